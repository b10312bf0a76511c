"""The checks of one forward and backward pass: parameters, weights, logits and gradients.

`Check` is a row of the parity table. The functions that run both sides on the same images and
return PyTorch's layout are here too.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from digitlab.parity.backend import Policy, import_keras, import_tensorflow
from digitlab.parity.graph import CopiedModel, copy_layer
from digitlab.parity.layouts import part_of
from digitlab.parity.weights import Array, Match, in_module, keras_layers, load_matched, match

Inputs = Tensor | tuple[Tensor, ...] | dict[str, Tensor]
"""What a model reads: one tensor, several by position, or several by name."""
Loss = Literal["cross_entropy", "binary", "mse"]

TOLERANCES = {"float64": 1e-12, "float32": 1e-5}
"""Largest difference that rounding may cause, relative to the largest value."""


@dataclass(frozen=True)
class Check:
    """A row of a parity table.

    Args:
        name: The quantity compared, such as `logits, float64`.
        compared: Number of values compared; a check that compared nothing fails.
        difference: Largest absolute difference, relative to the largest absolute value, unless the
            function that makes the check says otherwise.
        tolerance: Largest difference that passes.
        note: Details for the reader, such as the parameter that differs most.
        informational: Whether the row is for information only and cannot fail.
    """

    name: str
    compared: int
    difference: float
    tolerance: float
    note: str = ""
    informational: bool = False

    @property
    def passed(self) -> bool:
        """Whether something was compared and agreed; NaN agrees with nothing."""
        return self.compared > 0 and self.difference <= self.tolerance


def relative_difference(ours: Array, theirs: Array) -> float:
    """Return the largest absolute difference of two arrays, relative to their largest value.

    It is infinite if the shapes differ, and NaN if a value is NaN.

    Examples:
        >>> relative_difference(np.array([1.0, 4.0]), np.array([1.0, 5.0]))
        0.2
        >>> relative_difference(np.zeros(2), np.zeros(3))
        inf
    """
    if ours.shape != theirs.shape:
        return float("inf")
    if not ours.size:
        return 0.0
    difference = float(np.abs(ours.astype(np.float64) - theirs.astype(np.float64)).max())
    largest = float(max(np.abs(ours).max(), np.abs(theirs).max()))
    return difference / largest if largest else difference


HEADING = f"{'check':43}  {'compared':>13}  difference  tolerance  verdict"
"""The line above a table of checks."""


def format_check(check: Check) -> str:
    """Format a check as a row below `HEADING`.

    Examples:
        >>> print(format_check(Check("loss, float64", 1, 2e-15, 1e-12)).replace("  " * 15, "..."))
        loss, float64...          1     2.0e-15    1.0e-12  passed
    """
    verdict = "info" if check.informational else "passed" if check.passed else "FAILED"
    difference, tolerance = (
        f"{number:.1e}" if number % 1 else f"{number:g}"
        for number in (check.difference, check.tolerance)
    )
    row = (
        f"{check.name:43}  {check.compared:>13,}  {difference:>10}  {tolerance:>9}  "
        f"{verdict:7}  {check.note}"
    )
    return row.rstrip()


def outputs(module: nn.Module, keras_model: Any, inputs: Inputs) -> tuple[Array, Array]:
    """Compute both sides' outputs, in PyTorch's layout.

    Raises:
        ValueError: A side cannot read the inputs, or has several outputs.
    """
    with torch.no_grad():
        ours = torch_output(module, inputs).cpu().numpy()
    theirs = keras_output(keras_model, keras_inputs(keras_model, inputs)[0])
    return ours, in_torch_layout(ours, import_keras().ops.convert_to_numpy(theirs))


def in_torch_layout(ours: Array, theirs: Array) -> Array:
    """Convert Keras's output to the layout of PyTorch's: channels first if that fits better."""
    moved = np.moveaxis(theirs, -1, 1) if theirs.ndim > 2 else theirs
    if moved.shape == ours.shape != theirs.shape:
        return moved
    as_it_is = relative_difference(ours, theirs) <= relative_difference(ours, moved)
    return theirs if as_it_is and theirs.shape == ours.shape else moved


def torch_output(module: nn.Module, inputs: Inputs) -> Tensor:
    """Compute a module's output in evaluation mode; gradients are recorded unless turned off.

    Raises:
        ValueError: The module cannot read the inputs, or returns several values.
    """
    given = torch_inputs(module, inputs)
    with evaluation_mode(module):
        try:
            if isinstance(given, dict):
                output = module(**given)
            else:
                output = module(*(given if isinstance(given, tuple) else (given,)))
        except Exception as error:  # a user's module may raise anything
            shapes = ", ".join(str(tuple(it.shape)) for it in _flat(inputs))
            raise ValueError(
                f"{type(module).__name__} cannot compute inputs of shape {shapes} "
                f"({_first_line(error)}): give what it reads, images as (N, C, H, W)"
            ) from error
    sole: Tensor = sole_output(output)
    return sole


def keras_output(keras_model: Any, read: list[Any]) -> Any:
    """Compute the output of a Keras model, or of a `CopiedModel`, in evaluation mode."""
    if isinstance(keras_model, CopiedModel):
        made = keras_model.run(read)
        return sole_output([made[i] for i in keras_model.graph.outputs], only_one=True)
    names = getattr(keras_model, "input_names", None)
    given: Any = read
    if isinstance(getattr(keras_model, "_inputs_struct", None), dict) and names:
        given = dict(zip(keras_model._inputs_struct, read, strict=True))
    try:
        output = keras_model(
            given if len(read) > 1 or isinstance(given, dict) else read[0], training=False
        )
    except Exception as error:  # a user's layer may raise anything
        raise ValueError(f"{keras_model.name} cannot be computed: {_first_line(error)}") from error
    return sole_output(output)


def _first_line(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()] or [""]
    plain = "".join(char for char in lines[0] if char.isprintable())
    return f"{type(error).__name__}: {plain[:160]}"


def _flat(inputs: Inputs) -> list[Tensor]:
    if isinstance(inputs, dict):
        return list(inputs.values())
    return list(inputs) if isinstance(inputs, tuple) else [inputs]


def precision(module: nn.Module, keras_model: Any) -> str:
    """Return the coarser dtype of the two sides, `float32` or `float64`; refuse any other."""
    ours = {str(t.dtype).removeprefix("torch.") for t in module.parameters()}
    if isinstance(keras_model, CopiedModel):
        return min(ours, default="float64") if keras_model.is_double else "float32"
    found = ours | {layer.compute_dtype for layer in keras_layers(keras_model)}
    if unknown := sorted(found - set(TOLERANCES)):
        raise ValueError(
            f"a side computes in {unknown[0]}: compare in float32 or float64, "
            "as `module.float()` and Keras's dtype policy make them"
        )
    return min(found, default="float32")


@contextmanager
def evaluation_mode(module: nn.Module) -> Iterator[None]:
    """Turn off dropout in the `with` block, even where `eval()` keeps it on.

    Modes and the CPU's random state are restored after the block.
    """
    modes = {part: part.training for part in module.modules()}
    try:
        for part in modes:
            part.training = False  # `train(False)` of a Classifier may keep dropout on
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        for part, mode in modes.items():
            part.training = mode


def torch_inputs(module: nn.Module, inputs: Inputs) -> Inputs:
    """Move inputs to the device, and floating-point ones to the dtype, of a module's parameters."""
    parameter = next((it for it in module.parameters() if it.is_floating_point()), None)

    def move(tensor: Tensor) -> Tensor:
        if parameter is None:
            return tensor
        dtype = parameter.dtype if tensor.is_floating_point() else tensor.dtype
        return tensor.to(parameter.device, dtype)

    if isinstance(inputs, dict):
        return {name: move(tensor) for name, tensor in inputs.items()}
    return tuple(map(move, inputs)) if isinstance(inputs, tuple) else move(inputs)


def keras_inputs(keras_model: Any, inputs: Inputs) -> tuple[list[Array], frozenset[int]]:
    """Convert inputs to the layouts that a Keras model reads.

    Images `(N, C, H, W)` become `(N, H, W, C)`; or, if only that fits the model's input,
    `(N, H, W)` of one channel, `(N, C·H·W)` in PyTorch's order, or `(N, C, H, W)`. Sequences
    `(N, C, T)` stay as they are, or become `(N, T, C)` if only that fits.

    Args:
        keras_model: A `keras.Model`, or a `CopiedModel`.
        inputs: Several are given by position, or by the names of the model's inputs.

    Returns:
        The arrays in the order of the model's inputs, and the positions of those whose axes are in
        PyTorch's order.

    Raises:
        ValueError: The model reads no such inputs.
    """
    copied = keras_model if isinstance(keras_model, CopiedModel) else None
    read = [copied.graph.symbolic[i] for i in copied.graph.inputs] if copied else keras_model.inputs
    name = copied.graph.name if copied else keras_model.name
    given = _flat(inputs)
    if isinstance(inputs, dict):
        names = [it.name for it in read]
        if set(names) != set(inputs):
            raise ValueError(
                f"{name} reads {', '.join(names)}, and the inputs are {', '.join(inputs)}: give "
                "each keras.Input the name of an argument of the module's forward"
            )
        given = [inputs[it] for it in names]
    if len(given) != len(read):
        raise ValueError(f"{name} has {len(read)} inputs, and {len(given)} are given")
    arrays, in_torch_order = [], set()
    for i, (tensor, symbolic) in enumerate(zip(given, read, strict=True)):
        array, as_in_torch = _keras_layout(name, tensor, tuple(symbolic.shape[1:]))
        dtype = str(symbolic.dtype)
        if copied and dtype.startswith("float") and tensor.is_floating_point():
            dtype = "float64" if copied.is_double else "float32"
        elif not tensor.is_floating_point():
            dtype = "int64"
        arrays.append(np.ascontiguousarray(array, dtype=dtype))
        in_torch_order |= {i} if as_in_torch else set()
    return arrays, frozenset(in_torch_order)


def _keras_layout(name: str, tensor: Tensor, wanted: tuple[int | None, ...]) -> tuple[Array, bool]:
    array = tensor.detach().cpu().numpy()
    flat, moved = (
        array.reshape(len(array), -1),
        np.moveaxis(array, 1, -1) if array.ndim > 1 else array,
    )
    layouts = [(moved, False), (flat, True), (array, True)]
    if array.ndim != 4:
        layouts = [(array, True), (moved, False), (flat, True)]
    elif array.shape[1] == 1:
        layouts.append((array[:, 0], True))
    for layout, as_in_torch in layouts:
        shape = layout.shape[1:]
        if len(shape) == len(wanted) and all(
            size in (None, actual) for size, actual in zip(wanted, shape, strict=True)
        ):
            return layout, as_in_torch
    if array.ndim != 4:
        raise ValueError(f"{name} reads {wanted}, and the inputs are {array.shape[1:]}")
    raise ValueError(
        f"{name} reads {wanted}, and the images are (C, H, W) = {array.shape[1:]}: it must read "
        "(H, W, C), (H, W), (C·H·W,) or (C, H, W)"
    )


def torch_images(module: nn.Module, images: Tensor) -> Tensor:
    """Move images to the device and dtype of a module's parameters."""
    return _flat(torch_inputs(module, images))[0]


def keras_images(keras_model: Any, images: Tensor) -> Array:
    """Convert images `(N, C, H, W)` to the layout that a Keras model with one input reads."""
    if images.ndim != 4:
        raise ValueError(f"images are {tuple(images.shape)}: they must be (N, C, H, W)")
    return keras_inputs(keras_model, images)[0][0]


def copy_in(keras_model: Any, policy: Policy) -> Any:
    """Copy a Keras model and its weights in another precision.

    Raises:
        CopyError: A layer cannot be copied.
    """
    keras = import_keras()

    def copy(layer: Any) -> Any:
        if isinstance(layer, keras.Model):
            return keras.models.clone_model(layer, clone_function=copy)
        return copy_layer(layer, policy)

    return copy(keras_model)


def sole_output(output: Any, only_one: bool = False) -> Any:
    """Return a model's output; refuse several."""
    if only_one and len(output) == 1:
        return output[0]
    if isinstance(output, list | tuple | dict):
        kind = "a dict" if isinstance(output, dict) else f"{len(output)} values"
        raise ValueError(f"a side returns {kind}: it must return one array, such as the logits")
    return output


def parameter_counts(
    module: nn.Module, keras_model: Any, pairs: list[Match] | None = None
) -> Check:
    """Match all tensors by layer and shape (`match` refuses a pair), and compare the total counts.

    The totals are the frameworks' own, which do not depend on how layers are matched here.
    """
    pairs = match(module, keras_model).pairs if pairs is None else pairs
    ours = sum(tensor.numel() for tensor in tensors(module).values())
    theirs = keras_model.count_params()
    # PyTorch's recurrent layers add up two biases where Keras has one.
    twice = sum(pair.tensors[1].numel() for pair in pairs if pair.layout.join == "add")
    equal, unequal = f"{theirs:,} parameters", f"parameters: {ours:,} torch, {theirs:,} keras"
    note = equal if ours - twice == theirs else unequal
    if twice:
        note += f"; {twice:,} second biases of torch are added to the first"
    return Check("parameters", len(pairs), float(ours - twice != theirs), 0.0, note)


def round_trip(module: nn.Module, keras_model: Any, pairs: list[Match] | None = None) -> Check:
    """Copy the weights into the Keras model, which keeps them, and back, and compare their bits.

    Of two biases that Keras adds up, the sum is compared.
    """
    pairs = match(module, keras_model).pairs if pairs is None else pairs
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
        if before.layout.join == "add":
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


def training_settings(keras_model: Any, pairs: list[Match]) -> Check | None:
    """Find what changes the training of one side alone; None if there is nothing.

    That is Keras's regularizers, constraints and added losses, which PyTorch's layers do not have,
    and weights that are frozen in one framework.
    """
    found = [
        f"{layer.name} has {name}={type(value).__name__}"
        for layer in keras_layers(keras_model)
        for name, value in sorted(vars(layer).items())
        if name.endswith(("regularizer", "constraint")) and value is not None
    ]
    if not found and keras_model.losses:
        found.append(f"{keras_model.name} has added losses")
    for pair in pairs:
        parameters = [it for it in pair.tensors if isinstance(it, nn.Parameter) or it._is_view()]
        ours = any(it.requires_grad for it in parameters)
        if parameters and ours != bool(pair.variable.trainable):
            found.append(f"{pair.torch_name} is frozen in {'keras' if ours else 'torch'} alone")
    if not found:
        return None
    more = f" and {len(found) - 1} more" if len(found) > 1 else ""
    note = f"{found[0]}{more}: remove it, or give both sides the same"
    return Check("settings of the training", len(pairs), float(len(found)), 0.0, note)


def logits(module: nn.Module, keras_model: Any, inputs: Inputs, name: str = "logits") -> Check:
    """Compare both sides' outputs, usually logits.

    Both sides must have the same weights; the module's mode stays as it is.

    Args:
        module: The PyTorch side.
        keras_model: The Keras side, a `keras.Model` or a `CopiedModel`.
        inputs: What both read, in PyTorch's layout.
        name: The name of the row.

    Raises:
        ValueError: A side cannot read the inputs, returns more than one array, or is neither
            float32 nor float64.
    """
    dtype = precision(module, keras_model)
    ours, theirs = outputs(module, keras_model, inputs)
    note = ""
    if ours.shape != theirs.shape:
        note = f"torch gives {ours.shape}, keras {theirs.shape}"
    elif _probabilities(ours) != _probabilities(theirs):
        note = f"only {'torch' if _probabilities(ours) else 'keras'} gives probabilities"
    difference = relative_difference(ours, theirs)
    return Check(f"{name}, {dtype}", ours.size, difference, TOLERANCES[dtype], note)


def gradients(
    module: nn.Module,
    keras_model: Any,
    inputs: Inputs,
    targets: Tensor,
    loss: Loss = "cross_entropy",
    pairs: list[Match] | None = None,
) -> list[Check]:
    """Compare a mean loss, and its gradient by every parameter.

    Each framework's own functions compute them, without dropout. A parameter's difference is
    relative to its own largest gradient, or to a thousandth of the largest of all parameters if
    that is more: gradients that are zero but for rounding have no size of their own. The module's
    `grad` stays as it is.

    Args:
        module: The PyTorch side.
        keras_model: The Keras side, a `keras.Model`, or a `CopiedModel` with `pairs`.
        inputs: As for `logits`.
        targets: Labels, int64 `(N,)`, for the cross-entropy of logits; else floats in the shape of
            the output, for the binary cross-entropy of logits or the mean squared error.
        loss: The loss.
        pairs: The matched weights.

    Returns:
        The check of the loss and that of the gradients, whose note names the parameter that differs
        most.
    """
    dtype = precision(module, keras_model)
    pairs = match(module, keras_model).pairs if pairs is None else pairs
    our_loss, ours = _torch_gradients(module, pairs, inputs, targets, loss)
    their_loss, theirs = _keras_gradients(keras_model, pairs, inputs, targets, loss)
    differences = gradient_differences(pairs, ours, theirs)
    # `max` may pass over NaN, which is worse than any number.
    worst = max(
        differences, key=lambda name: np.nan_to_num(differences[name], nan=np.inf), default=""
    )
    count = sum(array.size for arrays in ours for array in arrays if array is not None)
    note = f"most in {worst.removeprefix('network.')}" if worst else "no parameter has a gradient"
    tolerance, difference = TOLERANCES[dtype], differences.get(worst, 0.0)
    return [
        Check(f"loss, {dtype}", 1, relative_difference(our_loss, their_loss), tolerance),
        Check(f"gradients, {dtype}", count, difference, tolerance, note),
    ]


Gradients = list[tuple[Array | None, ...]]


def gradient_differences(
    pairs: list[Match], ours: Gradients, theirs: Gradients
) -> dict[str, float]:
    """Return the relative difference of each pair's gradients by the names of its tensors."""
    known = [array for arrays in (*ours, *theirs) for array in arrays if array is not None]
    floor = 1e-3 * max((float(np.abs(array).max(initial=0)) for array in known), default=0.0)
    return {
        pair.torch_name: max(
            _difference(left, right, floor)
            for left, right in zip(lefts, rights, strict=True)
            if left is not None or right is not None
        )
        for pair, lefts, rights in zip(pairs, ours, theirs, strict=True)
        if any(array is not None for array in (*lefts, *rights))
    }


def tensors(module: nn.Module) -> dict[str, Tensor]:
    """Return a module's parameters and buffers by name, without BatchNorm's count of batches."""
    named = chain(module.named_parameters(), module.named_buffers())
    return {name: tensor for name, tensor in named if not name.endswith("num_batches_tracked")}


def _probabilities(array: Array) -> bool:
    return bool((array >= 0).all()) and np.allclose(array.sum(-1), 1, atol=1e-4)


def _bits(array: Array) -> Array:
    """Return an array's bytes, one row for each value."""
    return np.ascontiguousarray(array).reshape(-1, 1).view(np.uint8)


def _torch_gradients(
    module: nn.Module, pairs: list[Match], inputs: Inputs, targets: Tensor, loss: Loss
) -> tuple[Array, Gradients]:
    named = dict(module.named_parameters(remove_duplicate=False))
    named = {name: parameter for name, parameter in named.items() if parameter.requires_grad}
    with torch.enable_grad():
        output = torch_output(module, inputs)
        value = _torch_loss(output, targets.to(output.device), loss)
        # Unlike `backward`, this does not touch the parameters' `grad`.
        found = torch.autograd.grad(value, list(named.values()), allow_unused=True) if named else ()
    by_name = {
        name: None if gradient is None else gradient.cpu().numpy()
        for name, gradient in zip(named, found, strict=True)
    }

    def of_path(path: str, third: int) -> Array | None:
        array = by_name.get(path)
        part: Array | None = None if array is None else part_of(array, path, third)
        return part

    arrays = [tuple(of_path(path, pair.third) for path in pair.torch_names) for pair in pairs]
    return value.detach().cpu().numpy(), arrays


def _torch_loss(output: Tensor, targets: Tensor, loss: Loss) -> Tensor:
    if loss == "cross_entropy":
        return functional.cross_entropy(output, targets)
    targets = targets.reshape(output.shape).to(output.dtype)
    if loss == "binary":
        return functional.binary_cross_entropy_with_logits(output, targets)
    return functional.mse_loss(output, targets)


def _keras_gradients(
    keras_model: Any, pairs: list[Match], inputs: Inputs, targets: Tensor, loss: Loss
) -> tuple[Array, Gradients]:
    keras, tensorflow = import_keras(), import_tensorflow()
    variables = [pair.variable.value for pair in pairs if pair.variable.trainable]
    read, _ = keras_inputs(keras_model, inputs)
    with tensorflow.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(variables)
        # From the output of a softmax, Keras would silently take the softmax's input instead.
        output = tensorflow.identity(
            keras_output(keras_model, [tensorflow.constant(x) for x in read])
        )
        # By default a loss computes in `floatx`, not in the precision of the logits.
        dtype = keras.backend.standardize_dtype(output.dtype)
        wanted = targets.cpu().numpy()
        if loss == "cross_entropy":
            function = keras.losses.SparseCategoricalCrossentropy(from_logits=True, dtype=dtype)
        else:
            wanted = wanted.reshape(output.shape)
            kinds = {
                "binary": keras.losses.BinaryCrossentropy,
                "mse": keras.losses.MeanSquaredError,
            }
            options = {"from_logits": True} if loss == "binary" else {}
            function = kinds[loss](dtype=dtype, **options)
        value = function(wanted, output)
    found = iter(tape.gradient(value, variables))
    arrays: Gradients = []
    for pair in pairs:
        gradient = next(found) if pair.variable.trainable else None
        if gradient is None:
            arrays.append((None,) * len(pair.torch_names))
        else:
            dense = keras.ops.convert_to_numpy(gradient)  # an embedding's may be sparse
            arrays.append(pair.to_torch(dense, is_gradient=True))
    return keras.ops.convert_to_numpy(value), arrays


def _difference(ours: Array | None, theirs: Array | None, floor: float) -> float:
    if ours is None or theirs is None:
        return float("inf")
    largest = float(max(np.abs(ours).max(initial=0), np.abs(theirs).max(initial=0)))
    return relative_difference(ours, theirs) * (largest / max(largest, floor) if largest else 1.0)
