"""Both sides of a comparison: the inputs of each, and its output in PyTorch's layout."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from digitlab.parity.backend import Policy, import_keras
from digitlab.parity.graph import CopiedModel, copy_layer, first_line
from digitlab.parity.weights import Array, keras_layers

Inputs = Tensor | tuple[Tensor, ...] | dict[str, Tensor]
"""What a model reads: one tensor, several by position, or several by name."""

TOLERANCES = {"float64": 1e-12, "float32": 1e-5}
"""Largest difference that rounding may cause, relative to the largest value."""


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
                f"({first_line(error)}): give what it reads, images as (N, C, H, W)"
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
        raise ValueError(f"{keras_model.name} cannot be computed: {first_line(error)}") from error
    return sole_output(output)


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
        raise ValueError(
            f"{name} has {len(read)} inputs, and {len(given)} are given: give one for each "
            "keras.Input, in their order, or a dict"
        )
    arrays, in_torch_order = [], set()
    for i, (tensor, symbolic) in enumerate(zip(given, read, strict=True)):
        layout, as_in_torch = _arranged(
            f"{name}'s input {symbolic.name}" if len(read) > 1 else name,
            tensor.detach(),
            tuple(symbolic.shape[1:]),
            _is_read_channels_first(symbolic),
        )
        dtype = str(symbolic.dtype)
        if copied and dtype.startswith("float") and tensor.is_floating_point():
            dtype = "float64" if copied.is_double else "float32"
        elif not tensor.is_floating_point():
            dtype = "int64"
        arrays.append(np.ascontiguousarray(layout.cpu().numpy(), dtype=dtype))
        in_torch_order |= {i} if as_in_torch else set()
    return arrays, frozenset(in_torch_order)


def arrange(images: Tensor, keras_model: Any) -> Tensor:
    """Convert images `(N, C, H, W)` to the layout of a Keras model's input, as `keras_inputs`."""
    if images.ndim != 4:
        raise ValueError(f"images are {tuple(images.shape)}: they must be (N, C, H, W)")
    return _arranged(keras_model.name, images, tuple(sole_input(keras_model).shape[1:]))[0]


def sole_input(keras_model: Any) -> Any:
    """Return a Keras model's input, a symbolic tensor; refuse several, or an unknown shape."""
    inputs = getattr(keras_model, "inputs", None) or []
    if len(inputs) != 1:
        raise ValueError(
            f"{keras_model.name} has {len(inputs)} inputs of known shape: give it one keras.Input"
        )
    return inputs[0]


def _is_read_channels_first(symbolic: Any) -> bool:
    """Return whether a layer that reads an input says that its channels are first."""
    nodes = symbolic._keras_history.operation._outbound_nodes
    formats = {getattr(node.operation, "data_format", None) for node in nodes}
    return "channels_first" in formats


def _arranged(
    name: str, tensor: Tensor, wanted: tuple[int | None, ...], channels_first: bool = False
) -> tuple[Tensor, bool]:
    """Return a tensor in the layout that fits an input, and whether that is PyTorch's order."""
    is_image = tensor.ndim == 4
    layouts = [(tensor, True)]
    if tensor.ndim > 2:
        layouts.insert(0 if is_image else 1, (tensor.movedim(1, -1), False))
        layouts.insert(1 if is_image else 2, (tensor.flatten(1), True))
    if tensor.ndim > 4:  # steps of images
        layouts.insert(1, (tensor.movedim(2, -1), False))
    if is_image and tensor.shape[1] == 1:
        layouts.append((tensor[:, 0], True))
    if channels_first:
        layouts.insert(0, (tensor, True))
    for layout, as_in_torch in layouts:
        shape = layout.shape[1:]
        if len(shape) == len(wanted) and all(
            size in (None, actual) for size, actual in zip(wanted, shape, strict=True)
        ):
            return layout, as_in_torch
    what = "images are (C, H, W) =" if is_image else "inputs are"
    taken = dict.fromkeys(str(tuple(layout.shape[1:])) for layout, _ in layouts)
    raise ValueError(
        f"{name} reads {wanted}, and the {what} {tuple(tensor.shape[1:])}: it must read "
        f"{', '.join(taken)}"
    )


def torch_images(module: nn.Module, images: Tensor) -> Tensor:
    """Move images to the device and dtype of a module's parameters."""
    return _flat(torch_inputs(module, images))[0]


def keras_images(keras_model: Any, images: Tensor) -> Array:
    """Convert images `(N, C, H, W)` to the layout and dtype that a Keras model reads."""
    array = arrange(images.detach(), keras_model).cpu().numpy()
    return np.ascontiguousarray(array, dtype=str(sole_input(keras_model).dtype))


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
