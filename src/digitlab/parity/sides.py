"""Both sides of a comparison: the inputs of each, and its output in PyTorch's layout."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from digitlab.parity.backend import import_keras, import_tensorflow
from digitlab.parity.graph import Graph, first_line
from digitlab.parity.layouts import TOLERANCES, Array, in_torch_layout
from digitlab.parity.weights import Match
from digitlab.scores import evaluating

Inputs = Tensor | tuple[Tensor, ...] | dict[str, Tensor]
"""What a model reads: one tensor, several by position, or several by name."""


class Sides(NamedTuple):
    """A PyTorch module and a Keras model, as it is or copied, and their matched weights."""

    module: nn.Module
    graph: Graph
    pairs: list[Match]


def each(function: Callable[[Any], Tensor], inputs: Any) -> Inputs:
    """Apply a function to each tensor of inputs; those in a list become a tuple."""
    if isinstance(inputs, dict):
        return {name: function(tensor) for name, tensor in inputs.items()}
    return tuple(map(function, inputs)) if isinstance(inputs, list | tuple) else function(inputs)


def flat(inputs: Inputs) -> list[Tensor]:
    """Return the tensors of inputs, in their order."""
    if isinstance(inputs, dict):
        return list(inputs.values())
    return list(inputs) if isinstance(inputs, tuple) else [inputs]


def read_batch(batch: Any, loss: str | None, graph: Graph) -> tuple[Inputs, Tensor]:
    """Return a batch's inputs and targets as tensors, or refuse it."""
    if loss is None:
        return each(_tensor, batch), torch.empty(0)
    parts: list[Any] = list(batch) if isinstance(batch, list | tuple) else [batch]
    if len(parts) != 2 or not isinstance(parts[1], Tensor | np.ndarray):
        kinds = ", ".join(type(part).__name__ for part in parts[:3])
        raise ValueError(
            f"a batch is {kinds}: it must be inputs and targets, such as two tensors, images and "
            "labels, as in `[(images, labels)]`"
        )
    inputs, targets = each(_tensor, parts[0]), torch.as_tensor(parts[1])
    if loss == "cross_entropy":
        _check_labels(targets, len(flat(inputs)[0]), graph.symbolic[graph.outputs[0]].shape[1])
    elif not targets.is_floating_point():
        raise ValueError(f"targets are {targets.dtype}: for loss={loss} they must be floats")
    return inputs, targets


def _tensor(given: Any) -> Tensor:
    if not isinstance(given, Tensor | np.ndarray):
        raise ValueError(
            f"an input is a {type(given).__name__}: it must be a tensor or an array, as in "
            "`[(images, labels)]`"
        )
    try:
        tensor = torch.as_tensor(given)
    except TypeError as error:
        raise ValueError(f"an input is an array of {given.dtype}: it must be numbers") from error
    is_image = tensor.ndim == 4
    if tensor.dtype in (torch.float32, torch.float64) or (
        not is_image and tensor.dtype in (torch.int32, torch.int64)
    ):
        return tensor
    kind, rule = "images", "float32 (N, C, H, W), as `images.float()` makes them"
    if not is_image:
        kind, rule = "inputs", "float32, float64, int32 or int64"
    raise ValueError(f"{kind} are {tensor.dtype} {tuple(tensor.shape)}: they must be {rule}")


def _check_labels(labels: Tensor, examples: int, classes: int | None) -> None:
    most = classes or math.inf
    integers = labels.dtype == torch.int64 and labels.shape == (examples,)
    if not integers or not ((labels >= 0) & (labels < most)).all():
        span = f", from {labels.min()} to {labels.max()}" if integers else ""
        raise ValueError(
            f"labels are {labels.dtype} {tuple(labels.shape)}{span}: they must be int64 "
            f"({examples},), from 0 to {most - 1}, as `labels.long()` or, of one-hot labels, "
            "`labels.argmax(1)` makes them"
        )


def outputs(module: nn.Module, model: Graph, inputs: Inputs) -> tuple[Array, Array]:
    """Compute both sides' outputs, in PyTorch's layout, or raise ValueError."""
    with torch.no_grad():
        ours = torch_output(module, inputs).cpu().numpy()
    theirs = _sole_output(model.output(keras_inputs(model, inputs)[0]))
    return ours, in_torch_layout(ours, import_keras().ops.convert_to_numpy(theirs))


def torch_output(module: nn.Module, inputs: Inputs) -> Tensor:
    """Compute a module's output in evaluation mode, or raise ValueError."""
    given = torch_inputs(module, inputs)
    with evaluating(module):
        try:
            output = module(**given) if isinstance(given, dict) else module(*flat(given))
        except Exception as error:  # a user's module may raise anything
            shapes = ", ".join(str(tuple(it.shape)) for it in flat(inputs))
            raise ValueError(
                f"{type(module).__name__} cannot compute inputs of shape {shapes} "
                f"({first_line(error)}): give what it reads, images as (N, C, H, W)"
            ) from error
    sole: Tensor = _sole_output(output)
    return sole


def precision(module: nn.Module, model: Graph) -> str:
    """Return the coarser dtype of the two sides, `float32` or `float64`; refuse any other."""
    found = {str(it.dtype).removeprefix("torch.") for it in module.parameters()} | model.dtypes
    if unknown := sorted(found - set(TOLERANCES)):
        raise ValueError(
            f"a side computes in {unknown[0]}: compare in float32 or float64, "
            "as `module.float()` and Keras's dtype policy make them"
        )
    return min(found, default="float32")


def torch_inputs(module: nn.Module, inputs: Inputs) -> Inputs:
    """Move inputs to the device, and floating-point ones to the dtype, of a module's parameters."""
    parameter = next((it for it in module.parameters() if it.is_floating_point()), None)

    def move(tensor: Tensor) -> Tensor:
        if parameter is None:
            return tensor
        dtype = parameter.dtype if tensor.is_floating_point() else tensor.dtype
        return tensor.to(parameter.device, dtype)

    return each(move, inputs)


def keras_inputs(model: Graph, inputs: Inputs) -> tuple[list[Any], frozenset[int]]:
    """Convert inputs to what a Keras model reads, in its order, or raise ValueError.

    Images `(N, C, H, W)` become `(N, H, W, C)`; or, if only that fits the model's input,
    `(N, H, W)` of one channel, `(N, C·H·W)` in PyTorch's order, or `(N, C, H, W)`. Sequences
    `(N, C, T)` stay as they are, or become `(N, T, C)` if only that fits. Also returned are the
    indices of the inputs whose axes are in PyTorch's order.
    """
    name, read, given = model.name, [model.symbolic[i] for i in model.inputs], flat(inputs)
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
    made: list[Any] = []
    in_torch_order: set[int] = set()
    for i, tensor, symbolic in zip(model.inputs, given, read, strict=True):
        where = f"{name}'s input {symbolic.name}" if len(read) > 1 else name
        nodes = symbolic._keras_history.operation._outbound_nodes
        formats = {getattr(node.operation, "data_format", None) for node in nodes}
        is_first, wanted = "channels_first" in formats, tuple(symbolic.shape[1:])
        layout, as_in_torch = _arranged(where, tensor.detach(), wanted, is_first)
        dtype = str(symbolic.dtype) if tensor.is_floating_point() else "int64"
        if model.policy and dtype.startswith("float"):
            dtype = model.policy
        made.append(import_tensorflow().constant(np.asarray(layout.cpu().numpy(), dtype)))
        in_torch_order |= {i} if as_in_torch else set()
    return made, frozenset(in_torch_order)


def arrange(images: Tensor, keras_model: Any) -> Tensor:
    """Convert images `(N, C, H, W)` to the layout of a Keras model's input, as `keras_inputs`."""
    if images.ndim != 4:
        raise ValueError(f"images are {tuple(images.shape)}: they must be (N, C, H, W)")
    inputs = getattr(keras_model, "inputs", None) or []
    if len(inputs) != 1:
        raise ValueError(
            f"{keras_model.name} has {len(inputs)} inputs of known shape: give it one keras.Input"
        )
    return _arranged(keras_model.name, images, tuple(inputs[0].shape[1:]))[0]


def _arranged(
    name: str, tensor: Tensor, wanted: tuple[int | None, ...], channels_first: bool = False
) -> tuple[Tensor, bool]:
    """Return a tensor in the layout that fits an input, and whether that is PyTorch's order."""
    is_image = tensor.ndim == 4
    layouts = [] if is_image and not channels_first else [(tensor, True)]
    if tensor.ndim > 4:  # steps of images
        layouts.append((tensor.movedim(2, -1), False))
    if tensor.ndim > 2:
        layouts += [(tensor.movedim(1, -1), False), (tensor.flatten(1), True), (tensor, True)]
    if is_image and tensor.shape[1] == 1:
        layouts.append((tensor[:, 0], True))
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


def _sole_output(output: Any) -> Any:
    """Return a model's output; refuse several."""
    if isinstance(output, list | tuple | dict):
        kind = "a dict" if isinstance(output, dict) else f"{len(output)} values"
        raise ValueError(f"a side returns {kind}: it must return one array, such as the logits")
    return output
