"""The checks of one forward and backward pass: parameters, weights, logits and gradients.

`Check` is a row of the parity table. The functions that run both sides on the same images and
return PyTorch's layout are here too.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from itertools import chain
from types import FunctionType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from digitlab.parity.backend import (
    Policy,
    import_keras,
    import_tensorflow,
    keras_dtype,
    unchanged_random_state,
)
from digitlab.parity.weights import (
    Array,
    Match,
    copy_weights,
    keras_layers,
    load_keras_weights,
    match,
)

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


def outputs(module: nn.Module, keras_model: Any, images: Tensor) -> tuple[Array, Array]:
    """Compute both sides' outputs, in PyTorch's layout, for images `(N, C, H, W)`."""
    read = keras_images(keras_model, images)
    with evaluation_mode(module), torch.no_grad():
        ours = sole_output(module(torch_images(module, images))).cpu().numpy()
    return ours, channels_first(keras_model(read, training=False))


def precision(module: nn.Module, keras_model: Any) -> str:
    """Return the coarser dtype of the two sides, `float32` or `float64`; refuse any other."""
    ours = {str(t.dtype).removeprefix("torch.") for t in module.parameters()}
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


def torch_images(module: nn.Module, images: Tensor) -> Tensor:
    """Move images to the device and dtype of a module's parameters."""
    parameter = next(module.parameters(), None)
    return images if parameter is None else images.to(parameter.device, parameter.dtype)


def keras_images(keras_model: Any, images: Tensor) -> Array:
    """Convert images `(N, C, H, W)` to the layout and dtype that a Keras model reads.

    Raises:
        ValueError: As for `arrange`.
    """
    array = arrange(images.detach(), keras_model).cpu().numpy()
    return np.ascontiguousarray(array, dtype=str(sole_input(keras_model).dtype))


def arrange(images: Tensor, keras_model: Any) -> Tensor:
    """Convert images `(N, C, H, W)` to the layout that a Keras model with one input reads.

    That is `(N, H, W, C)`; or, if only that fits the model's input, `(N, H, W)` of one channel,
    `(N, C·H·W)` in PyTorch's order, or `(N, C, H, W)`.

    Raises:
        ValueError: The images are not four-dimensional, or the model reads no such images.
    """
    if images.ndim != 4:
        raise ValueError(f"images are {tuple(images.shape)}: they must be (N, C, H, W)")
    wanted = tuple(sole_input(keras_model).shape[1:])
    layouts = [images.permute(0, 2, 3, 1), images.flatten(1), images]
    if images.shape[1] == 1:
        layouts.append(images[:, 0])
    for layout in layouts:
        shape = layout.shape[1:]
        if len(shape) == len(wanted) and all(
            size in (None, actual) for size, actual in zip(wanted, shape, strict=True)
        ):
            return layout
    taken = dict.fromkeys(str(tuple(layout.shape[1:])) for layout in layouts)
    raise ValueError(
        f"{keras_model.name} reads {wanted}, and the images are (C, H, W) = "
        f"{tuple(images.shape[1:])}: it must read {', '.join(taken)}"
    )


def sole_input(keras_model: Any) -> Any:
    """Return a Keras model's input, a symbolic tensor; refuse several, or an unknown shape."""
    inputs = getattr(keras_model, "inputs", None) or []
    if len(inputs) != 1:
        raise ValueError(
            f"{keras_model.name} has {len(inputs)} inputs of known shape: give it one keras.Input"
        )
    return inputs[0]


def copy_in(keras_model: Any, policy: Policy) -> Any:
    """Copy a Keras model and its weights, in another precision and with nothing frozen."""
    keras = import_keras()

    def enter(tensor: Any) -> Any:
        dtype = policy if "float" in str(tensor.dtype) else tensor.dtype
        return keras.Input(batch_shape=tensor.shape, dtype=dtype)

    def copy(layer: Any) -> Any:
        if isinstance(layer, keras.Model):
            # With inputs of their own, since an inner model casts what it reads to their dtype.
            read = layer.inputs if isinstance(layer, keras.Sequential) else layer.input
            inputs = keras.tree.map_structure(enter, read)
            return keras.models.clone_model(layer, inputs, clone_function=copy)
        if not isinstance(layer, keras.layers.Layer):
            return layer  # an operation, which has no precision of its own
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Python's functions in a config: they are passed on
            config = layer.get_config()
        config.pop("dtype", None)  # set by the policy; not every user's layer accepts it
        given = {name: getattr(layer, name, None) for name in ("activation", "function")}
        own = {name: it for name, it in given.items() if name in config and _is_own(it)}
        return type(layer)(**config | own) if own else type(layer).from_config(config)

    with keras_dtype(policy), unchanged_random_state():
        made = copy(keras_model)
    made.set_weights(keras_model.get_weights())
    for layer in keras_layers(made):  # the model's own switch misses layers frozen by their config
        layer.trainable = True
    return made


def _is_own(function: Any) -> bool:
    return isinstance(function, FunctionType) and not function.__module__.startswith("keras.")


def channels_first(output: Any) -> Array:
    """Convert the output of a Keras layer, channels last, to PyTorch's layout."""
    array: Array = import_keras().ops.convert_to_numpy(sole_output(output))
    return np.moveaxis(array, -1, 1) if array.ndim > 2 else array


def sole_output(output: Any) -> Any:
    """Return a model's output; refuse several."""
    if isinstance(output, list | tuple | dict):
        raise ValueError(f"a side gives {len(output)} arrays: it must give the logits alone")
    return output


def parameter_counts(module: nn.Module, keras_model: Any) -> Check:
    """Match all tensors by layer and shape (`match` refuses a pair), and compare the total counts.

    The totals are the frameworks' own, which do not depend on how layers are matched here.
    """
    pairs = match(module, keras_model)
    ours = sum(tensor.numel() for tensor in tensors(module).values())
    theirs = keras_model.count_params()
    equal, unequal = f"{ours:,} parameters", f"parameters: {ours:,} torch, {theirs:,} keras"
    note = equal if ours == theirs else unequal
    return Check("parameters", len(pairs), float(ours != theirs), 0.0, note)


def round_trip(module: nn.Module, keras_model: Any) -> Check:
    """Copy the weights into the Keras model, which keeps them, and back, and compare their bits."""
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
    """Compare both sides' outputs, usually logits, for normalized images, float32 `(N, C, H, W)`.

    Both sides must have the same weights; the module's mode stays as it is.

    Raises:
        ValueError: The Keras model reads no such images; or a side returns more than one array, or
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

    Each framework's own functions compute them, without dropout; `images` are as for `logits`,
    `labels` int64 `(N,)`. A parameter's difference is relative to its own largest gradient, or to a
    thousandth of the largest of all parameters if that is more: gradients that are zero but for
    rounding have no size of their own. The module's `grad` stays as it is.

    Returns:
        The check of the loss and that of the gradients.
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
    # `max` may pass over NaN, which is worse than any number.
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
    """Return a module's parameters and buffers by name, without BatchNorm's count of batches."""
    named = chain(module.named_parameters(), module.named_buffers())
    return {name: tensor for name, tensor in named if not name.endswith("num_batches_tracked")}


def _probabilities(array: Array) -> bool:
    return bool((array >= 0).all()) and np.allclose(array.sum(-1), 1, atol=1e-4)


def _bits(tensor: Tensor) -> Array:
    """Return a tensor's bytes, one row for each value."""
    array = np.ascontiguousarray(tensor.detach().cpu().numpy())
    return array.reshape(-1, 1).view(np.uint8)


def _torch_gradients(
    module: nn.Module, pairs: list[Match], images: Tensor, labels: Tensor
) -> tuple[Array, list[Array | None]]:
    wanted = [pair.tensor for pair in pairs if pair.tensor.requires_grad]
    with evaluation_mode(module), torch.enable_grad():
        output = sole_output(module(torch_images(module, images)))
        loss = cross_entropy(output, labels.to(output.device))
        # Unlike `backward`, this does not touch the parameters' `grad`.
        found = iter(torch.autograd.grad(loss, wanted, allow_unused=True) if wanted else ())
    of_pairs = [next(found) if pair.tensor.requires_grad else None for pair in pairs]
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
        # From the output of a softmax, Keras would silently take the softmax's input instead.
        output = tensorflow.identity(output)
        # By default a loss computes in `floatx`, not in the precision of the logits.
        loss = keras.losses.SparseCategoricalCrossentropy(
            from_logits=True, dtype=keras.backend.standardize_dtype(output.dtype)
        )(labels.cpu().numpy(), output)
    found = iter(tape.gradient(loss, variables))
    of_pairs = [next(found) if pair.variable.trainable else None for pair in pairs]
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
