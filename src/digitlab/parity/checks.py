"""The checks of one forward and backward pass, parameters to gradients."""

from copy import deepcopy
from itertools import chain
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from digitlab.parity.backend import import_keras, import_tensorflow
from digitlab.parity.layouts import TOLERANCES, Array, relative_difference
from digitlab.parity.parts import is_parameter, tensor_of
from digitlab.parity.report import Check
from digitlab.parity.sides import Inputs, Sides, keras_inputs, outputs, precision, torch_output
from digitlab.parity.weights import in_module, load_matched

Loss = Literal["cross_entropy", "binary", "mse"]
_KERAS_LOSSES = {
    "cross_entropy": "SparseCategoricalCrossentropy",
    "binary": "BinaryCrossentropy",
    "mse": "MeanSquaredError",
}


def parameter_counts(sides: Sides) -> Check:
    """Compare the frameworks' own total counts, which do not depend on how layers are matched."""
    module, graph, pairs = sides
    matched = {name.partition("[")[0] for pair in pairs for name in pair.torch_names}
    parameters = {name for name, _ in module.named_parameters(remove_duplicate=False)}
    # Buffers without a counterpart, such as a mean to subtract, are constants and no weights.
    counted = [it for name, it in tensors(module).items() if name in matched | parameters]
    ours = sum(tensor.numel() for tensor in counted)
    theirs = graph.model.count_params()
    # PyTorch's recurrent layers add up two biases where Keras has one.
    twice = sum(pair.tensors[1].numel() for pair in pairs if pair.is_sum)
    equal, unequal = f"{theirs:,} parameters", f"parameters: {ours:,} torch, {theirs:,} keras"
    note = equal if ours - twice == theirs else unequal
    if twice:
        note += f"; {twice:,} second biases of torch are added to the first"
    return Check("parameters", len(pairs), float(ours - twice != theirs), 0.0, note)


def round_trip(sides: Sides) -> Check:
    """Copy the weights into the Keras model, which keeps them, and back, and compare their bits.

    Of two biases that Keras adds up, the sum is compared.
    """
    module, _, pairs = sides
    for pair in pairs:
        pair.variable.assign(pair.to_keras())
    back = deepcopy(module)
    with torch.no_grad():
        for tensor in tensors(back).values():
            tensor.fill_(float("nan") if tensor.is_floating_point() else -1)  # no weight's value
    returned = in_module(pairs, back)
    load_matched(returned)
    changed: dict[str, int] = {}
    for before, after in zip(pairs, returned, strict=True):
        arrays = [[it.detach().cpu().numpy() for it in pair.tensors] for pair in (before, after)]
        if before.is_sum:
            arrays = [[before.to_keras()], [after.to_keras()]]
        changed[before.torch_name] = sum(
            int((_bits(ours) != _bits(theirs)).any(-1).sum())
            for ours, theirs in zip(*arrays, strict=True)
        )
    first = next((name for name, count in changed.items() if count), None)
    return Check(
        "round trip of the weights",
        compared=sum(tensor.numel() for pair in pairs for tensor in pair.tensors),
        difference=float(sum(changed.values())),
        tolerance=0.0,
        note=f"{first} comes back changed" if first else "bit for bit",
    )


def training_settings(sides: Sides) -> Check | None:
    """Find regularizers, constraints and added losses of Keras, and what one side alone freezes."""
    _, graph, pairs = sides
    found = [
        f"{layer.name} has {name}={type(value).__name__}"
        for top in graph.layers
        if hasattr(top, "weights")
        for layer in top._flatten_layers()
        for name, value in sorted(vars(layer).items())
        if name.endswith(("regularizer", "constraint")) and value is not None
    ]
    if not found and graph.model.losses:
        found.append(f"{graph.name} has added losses")
    for pair in pairs:
        named = zip(pair.tensors, pair.torch_names, strict=True)
        trained = [tensor.requires_grad for tensor, path in named if is_parameter(tensor, path)]
        ours = any(trained)
        if trained and ours != bool(pair.variable.trainable):
            found.append(f"{pair.torch_name} is frozen in {'keras' if ours else 'torch'} alone")
    if not found:
        return None
    more = f" and {len(found) - 1} more" if len(found) > 1 else ""
    note = f"{found[0]}{more}: remove it, or give both sides the same"
    return Check("settings of the training", len(pairs), float(len(found)), 0.0, note)


def logits(sides: Sides, inputs: Inputs, name: str = "logits") -> Check:
    """Compare the outputs of both sides, which must have the same weights."""
    dtype = precision(sides.module, sides.graph)
    ours, theirs = outputs(sides.module, sides.graph, inputs)
    note = ""
    if ours.shape != theirs.shape:
        note = f"torch gives {ours.shape}, keras {theirs.shape}"
    elif _probabilities(ours) != _probabilities(theirs):
        note = f"only {'torch' if _probabilities(ours) else 'keras'} gives probabilities"
    difference = relative_difference(ours, theirs)
    return Check(f"{name}, {dtype}", ours.size, difference, TOLERANCES[dtype], note)


def gradients(
    sides: Sides, inputs: Inputs, targets: Tensor, loss: Loss = "cross_entropy"
) -> list[Check]:
    """Compare a mean loss and its gradients, each by the framework's own functions."""
    dtype = precision(sides.module, sides.graph)
    of_loss, differences, count = gradient_differences(sides, inputs, targets, loss)
    # `max` may pass over NaN, which is worse than any number.
    worst = max(
        differences, key=lambda name: np.nan_to_num(differences[name], nan=np.inf), default=""
    )
    note = f"most in {worst.removeprefix('network.')}" if worst else "no parameter has a gradient"
    tolerance, difference = TOLERANCES[dtype], differences.get(worst, 0.0)
    is_empty = not sides.pairs
    return [
        Check(f"loss, {dtype}", 1, of_loss, tolerance),
        Check(f"gradients, {dtype}", count, difference, tolerance, note, informational=is_empty),
    ]


def gradient_differences(
    sides: Sides, inputs: Inputs, targets: Tensor, loss: Loss
) -> tuple[float, dict[str, float], int]:
    """Return the differences of the loss and of each pair's gradients, and how many were compared.

    A gradient's difference is relative to its own largest value, or to a thousandth of the largest
    of all if that is more: gradients that are zero but for rounding have no size of their own.
    """
    our_loss, ours = _torch_gradients(sides, inputs, targets, loss)
    their_loss, theirs = _keras_gradients(sides, inputs, targets, loss)
    known = [array for arrays in (*ours, *theirs) for array in arrays if array is not None]
    floor = 1e-3 * max((float(np.abs(array).max(initial=0)) for array in known), default=0.0)
    differences = {
        pair.torch_name: max(
            _difference(left, right, floor)
            for left, right in zip(lefts, rights, strict=True)
            if left is not None or right is not None
        )
        for pair, lefts, rights in zip(sides.pairs, ours, theirs, strict=True)
        if any(array is not None for array in (*lefts, *rights))
    }
    count = sum(array.size for arrays in ours for array in arrays if array is not None)
    return relative_difference(our_loss, their_loss), differences, count


def tensors(module: nn.Module) -> dict[str, Tensor]:
    """Return a module's parameters and buffers by name, without BatchNorm's count of batches."""
    named = chain(module.named_parameters(), module.named_buffers())
    return {name: tensor for name, tensor in named if not name.endswith("num_batches_tracked")}


def _probabilities(array: Array) -> bool:
    return bool((array >= 0).all()) and np.allclose(array.sum(-1), 1, atol=1e-4)


def _bits(array: Array) -> Array:  # a row for each value
    return np.ascontiguousarray(array).reshape(-1, 1).view(np.uint8)


Gradients = list[tuple[Array | None, ...]]
"""For each pair, the gradients by its tensors."""


def _torch_gradients(
    sides: Sides, inputs: Inputs, targets: Tensor, loss: Loss
) -> tuple[Array, Gradients]:
    named = dict(sides.module.named_parameters(remove_duplicate=False))
    named = {name: parameter for name, parameter in named.items() if parameter.requires_grad}
    with torch.enable_grad():
        output = torch_output(sides.module, inputs)
        value = _torch_loss(output, targets.to(output.device), loss)
        # Unlike `backward`, this does not touch the parameters' `grad`.
        found = torch.autograd.grad(value, list(named.values()), allow_unused=True) if named else ()
    by_name = {
        name: None if gradient is None else gradient.cpu().numpy()
        for name, gradient in zip(named, found, strict=True)
    }
    arrays = [tuple(tensor_of(by_name, path) for path in pair.torch_names) for pair in sides.pairs]
    return value.detach().cpu().numpy(), arrays


def _torch_loss(output: Tensor, targets: Tensor, loss: Loss) -> Tensor:
    if loss == "cross_entropy":
        return functional.cross_entropy(output, targets)
    if targets.numel() != output.numel():
        raise ValueError(
            f"targets are {tuple(targets.shape)} and the output is {tuple(output.shape)}: for "
            f"loss={loss} give targets of the output's shape"
        )
    targets = targets.reshape(output.shape).to(output.dtype)
    if loss == "binary":
        return functional.binary_cross_entropy_with_logits(output, targets)
    return functional.mse_loss(output, targets)


def _keras_gradients(
    sides: Sides, inputs: Inputs, targets: Tensor, loss: Loss
) -> tuple[Array, Gradients]:
    keras, tensorflow = import_keras(), import_tensorflow()
    _, graph, pairs = sides
    variables = [pair.variable.value for pair in pairs if pair.variable.trainable]
    read, _ = keras_inputs(graph, inputs)
    with tensorflow.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(variables)
        # From the output of a softmax, Keras would silently take the softmax's input instead.
        output = tensorflow.identity(graph.output(read))
        wanted = targets.cpu().numpy()
        if loss != "cross_entropy":
            if wanted.ndim > 2 and wanted.shape != output.shape:
                wanted = np.moveaxis(wanted, 1, -1)
            wanted = wanted.reshape(output.shape)
        # By default a loss computes in `floatx`, not in the precision of the logits.
        options: dict[str, Any] = {"dtype": keras.backend.standardize_dtype(output.dtype)}
        options |= {} if loss == "mse" else {"from_logits": True}
        value = getattr(keras.losses, _KERAS_LOSSES[loss])(**options)(wanted, output)
    found = iter(tape.gradient(value, variables))
    by_pair = [next(found) if pair.variable.trainable else None for pair in pairs]
    arrays: Gradients = [
        (None,) * len(pair.torch_names)
        if gradient is None  # an embedding's may be sparse
        else pair.to_torch(keras.ops.convert_to_numpy(gradient), is_gradient=True)
        for pair, gradient in zip(pairs, by_pair, strict=True)
    ]
    return keras.ops.convert_to_numpy(value), arrays


def _difference(ours: Array | None, theirs: Array | None, floor: float) -> float:
    if ours is None or theirs is None:
        return float("inf")
    largest = float(max(np.abs(ours).max(initial=0), np.abs(theirs).max(initial=0)))
    return relative_difference(ours, theirs) * (largest / max(largest, floor) if largest else 1.0)
