"""Steps 1 to 4 of the comparison: parameters, round trip of the weights, logits and gradients.

Each compares a PyTorch module with a Keras model, in evaluation mode and in the precision of the
pair, which sets the tolerance. All but the first and second expect the same weights on both sides.
"""

from collections.abc import Mapping
from copy import deepcopy
from itertools import chain
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from digitlab.classifier import Classifier
from digitlab.parity.backend import import_keras, import_tensorflow
from digitlab.parity.compare import TOLERANCES, Check, relative_difference
from digitlab.parity.layout import LAYOUTS, Array
from digitlab.parity.sides import (
    evaluation_mode,
    keras_images,
    outputs,
    precision,
    sole_output,
    torch_images,
)
from digitlab.parity.weights import Match, copy_weights, keras_layers, load_keras_weights, match

Shapes = dict[str, tuple[int, ...]]


def parameter_counts(
    module: nn.Module, keras_model: Any, documented: Mapping[str, tuple[int, ...]] | None = None
) -> Check:
    """Compare the shapes of all tensors, layer by layer, and their total count.

    Args:
        module: The PyTorch side.
        keras_model: The Keras side; with `documented`, its layers have PyTorch's names.
        documented: Shape of every tensor as PyTorch lays it out, by its name in the network, such
            as `conv1.weight`. Both sides must have these and no others. Without it, the two are
            compared with each other.

    Returns:
        A check whose values are tensors, and whose difference counts those that disagree.

    Raises:
        ValueError: Nothing is documented, and the layers of the two do not match.
    """
    if documented is None:  # what disagrees is refused by `match`
        sides = {"torch": {p.torch_name: tuple(p.tensor.shape) for p in match(module, keras_model)}}
    else:
        ours, theirs = _torch_shapes(module), _keras_shapes(keras_model)
        sides = {"documented": dict(documented), "torch": ours, "keras": theirs}
    names = dict.fromkeys(chain(*sides.values()))
    wrong = [name for name in names if len({side.get(name) for side in sides.values()}) > 1]
    counts = {origin: sum(map(prod, side.values())) for origin, side in sides.items()}
    # The frameworks' own counts, which no rule of this module can lead astray.
    counts["torch"] = sum(tensor.numel() for tensor in tensors(module).values())
    counts["keras"] = keras_model.count_params()
    if wrong:
        note = f"{wrong[0]}: " + ", ".join(f"{o} {side.get(wrong[0])}" for o, side in sides.items())
    elif len(set(counts.values())) > 1:
        note = "parameters: " + ", ".join(f"{count:,} {o}" for o, count in counts.items())
    else:
        note = f"{counts['torch']:,} parameters"
    note += "" if documented is not None else "; no documented shapes are known"
    difference = float(len(wrong) or len(set(counts.values())) - 1)
    return Check("parameters", len(names), difference, 0.0, note)


def round_trip(module: nn.Module, keras_model: Any) -> Check:
    """Copy the weights into the Keras model and from there back, and compare their bits.

    Both sides have the module's weights after it.

    Raises:
        ValueError: As for `digitlab.parity.weights.match`.
    """
    copy_weights(module, keras_model)
    back = deepcopy(module)
    with torch.no_grad():
        for tensor in tensors(back).values():
            tensor.fill_(float("nan") if tensor.is_floating_point() else -1)  # no weight's value
    load_keras_weights(back, keras_model)
    before, after = tensors(module), tensors(back)
    changed = {
        name: int((_bits(tensor) != _bits(after[name])).any(-1).sum())
        for name, tensor in before.items()
    }
    first = next((name for name, count in changed.items() if count), None)
    return Check(
        "round trip of the weights",
        compared=sum(tensor.numel() for tensor in before.values()),
        difference=float(sum(changed.values())),
        tolerance=0.0,
        note=f"{first} comes back changed" if first else "bit for bit",
    )


def logits(module: nn.Module, keras_model: Any, images: Tensor) -> Check:
    """Compare what both compute of the same images.

    Args:
        module: The PyTorch side; its mode and its weights stay as they are.
        keras_model: The Keras side, with the same weights.
        images: Float32 `(N, C, H, W)`, normalized images.

    Raises:
        ValueError: The Keras model reads no such images; or a side gives more than one array, or
            is neither float32 nor float64.
    """
    dtype = precision(module, keras_model)
    ours, theirs = outputs(module, keras_model, images)
    note = ""
    if ours.shape != theirs.shape:
        note = f"torch gives {ours.shape}, keras {theirs.shape}"
    elif _probabilities(ours) != _probabilities(theirs):
        note = f"only {'torch' if _probabilities(ours) else 'keras'} gives probabilities"
    difference = relative_difference(ours, theirs)
    return Check(f"logits, {dtype}", ours.size, difference, TOLERANCES[dtype], note)


def gradients(module: nn.Module, keras_model: Any, images: Tensor, labels: Tensor) -> list[Check]:
    """Compare the mean cross-entropy of the logits, and its gradient by every parameter.

    Each framework's own functions compute them, with dropout off. A parameter's difference is
    relative to its own largest gradient, or to a thousandth of the largest of all parameters where
    that is more: gradients that are zero but for rounding have no size of their own.

    Args:
        module: The PyTorch side; its mode, weights and gradients stay as they are.
        keras_model: The Keras side, with the same weights.
        images: Float32 `(N, C, H, W)`, normalized images.
        labels: Int64 `(N,)`, classes.

    Returns:
        The check of the loss and the one of the gradients.

    Raises:
        ValueError: As for `logits` and `digitlab.parity.weights.match`.
    """
    dtype = precision(module, keras_model)
    pairs = match(module, keras_model)
    our_loss, ours = _torch_gradients(module, pairs, images, labels)
    their_loss, theirs = _keras_gradients(keras_model, pairs, images, labels)
    known = [array for array in (*ours, *theirs) if array is not None]
    floor = 1e-3 * max((float(np.abs(array).max()) for array in known), default=0.0)
    differences = {
        pair.torch_name: _difference(left, right, floor)
        for pair, left, right in zip(pairs, ours, theirs, strict=True)
        if left is not None or right is not None
    }
    # NaN, which `max` may pass over, is as bad as can be.
    worst = max(
        differences, key=lambda name: np.nan_to_num(differences[name], nan=np.inf), default=""
    )
    count = sum(array.size for array in ours if array is not None)
    note = f"most in {worst.removeprefix('network.')}" if worst else "no parameter has a gradient"
    tolerance, difference = TOLERANCES[dtype], differences.get(worst, 0.0)
    return [
        Check(f"loss, {dtype}", 1, relative_difference(our_loss, their_loss), tolerance),
        Check(f"gradients, {dtype}", count, difference, tolerance, note),
    ]


def tensors(module: nn.Module) -> dict[str, Tensor]:
    """Give a module's parameters and buffers by name, but for BatchNorm's count of batches."""
    named = chain(module.named_parameters(), module.named_buffers())
    return {name: tensor for name, tensor in named if not name.endswith("num_batches_tracked")}


def _probabilities(array: Array) -> bool:
    return bool((array >= 0).all()) and np.allclose(array.sum(-1), 1, atol=1e-4)


def _bits(tensor: Tensor) -> Array:
    """Give a tensor's bytes, in rows of one value each."""
    array = np.ascontiguousarray(tensor.detach().cpu().numpy())
    return array.reshape(-1, 1).view(np.uint8)


def _torch_shapes(module: nn.Module) -> Shapes:
    network = module.network if isinstance(module, Classifier) else module
    return {name: tuple(tensor.shape) for name, tensor in tensors(network).items()}


def _keras_shapes(keras_model: Any) -> Shapes:
    """Give the shapes of a Keras model's variables in PyTorch's layout, by PyTorch's names."""
    shapes: Shapes = {}
    for layer in keras_layers(keras_model):
        kinds = (LAYOUTS[k.__name__] for k in type(layer).__mro__ if k.__name__ in LAYOUTS)
        layouts = next(kinds, {})
        for variable in layer.weights:
            name, shape, layout = variable.name, variable.shape, layouts.get(variable.name)
            if layout is not None:
                name, shape = layout.source, [shape[axis] for axis in np.argsort(layout.axes)]
            shapes[f"{layer.name}.{name}"] = tuple(shape)
    return shapes


def _torch_gradients(
    module: nn.Module, pairs: list[Match], images: Tensor, labels: Tensor
) -> tuple[Array, list[Array | None]]:
    wanted = [pair.tensor for pair in pairs if pair.tensor.requires_grad]
    with evaluation_mode(module), torch.enable_grad():
        output = sole_output(module(torch_images(module, images)))
        loss = cross_entropy(output, labels.to(output.device))
        # Unlike `backward`, this leaves the parameters' own gradients alone.
        found = torch.autograd.grad(loss, wanted, allow_unused=True) if wanted else ()
    left = iter(found)
    of_pairs = [next(left) if pair.tensor.requires_grad else None for pair in pairs]
    arrays = [None if g is None else g.cpu().numpy() for g in of_pairs]
    return loss.detach().cpu().numpy(), arrays


def _keras_gradients(
    keras_model: Any, pairs: list[Match], images: Tensor, labels: Tensor
) -> tuple[Array, list[Array | None]]:
    keras, tensorflow = import_keras(), import_tensorflow()
    variables = [pair.variable.value for pair in pairs if pair.variable.trainable]
    with tensorflow.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(variables)
        output = sole_output(keras_model(keras_images(keras_model, images), training=False))
        # Of a softmax's output, Keras would quietly take what the softmax was given.
        output = tensorflow.identity(output)
        # A loss computes in `floatx`, whatever the precision of the logits.
        loss = keras.losses.SparseCategoricalCrossentropy(
            from_logits=True, dtype=keras.backend.standardize_dtype(output.dtype)
        )(labels.cpu().numpy(), output)
    left = iter(tape.gradient(loss, variables))
    of_pairs = [next(left) if pair.variable.trainable else None for pair in pairs]
    arrays = [
        None if g is None else pair.to_torch(keras.ops.convert_to_numpy(g))
        for pair, g in zip(pairs, of_pairs, strict=True)
    ]
    return keras.ops.convert_to_numpy(loss), arrays


def _difference(ours: Array | None, theirs: Array | None, floor: float) -> float:
    if ours is None or theirs is None:
        return float("inf")
    largest = float(max(np.abs(ours).max(initial=0), np.abs(theirs).max(initial=0)))
    return relative_difference(ours, theirs) * (largest / max(largest, floor) if largest else 1.0)
