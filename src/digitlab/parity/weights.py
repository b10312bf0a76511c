"""Copies weights between PyTorch and Keras: matches layers, and converts the layout of weights.

`LAYOUTS` has the order of axes of each kind of layer. A dense layer after a flattening needs more:
PyTorch flattens channels first and Keras channels last, so `flattened_in` finds the flattening.
"""

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from digitlab.classifier import Classifier
from digitlab.parity.backend import keras_dtype, unchanged_random_state
from digitlab.parity.twins import find_twin

Array = NDArray[Any]


@dataclass(frozen=True)
class Layout:
    """How to convert a layer's PyTorch tensor to its Keras variable, and back.

    Args:
        source: Name of the tensor in the PyTorch layer.
        axes: The tensor's axes in Keras's order.
        per_input: Whether the variable's first axis is the layer's input features, whose order
            changes after a flattening.
    """

    source: str
    axes: tuple[int, ...]
    per_input: bool = False

    def to_keras(self, tensor: Array, flattened: tuple[int, ...] | None = None) -> Array:
        """Convert a PyTorch tensor to Keras's layout; `flattened` is as `flattened_in` returns it.

        Examples:
            >>> dense = Layout("weight", (1, 0), per_input=True)
            >>> dense.to_keras(np.array([[1, 2, 3, 4]]), flattened=(1, 2, 2)).tolist()
            [[1], [3], [2], [4]]
        """
        array = tensor.transpose(self.axes)
        if self.per_input and flattened:
            array = array[_channels_last(flattened)]
        return np.ascontiguousarray(array)

    def to_torch(self, variable: Array, flattened: tuple[int, ...] | None = None) -> Array:
        """Convert a Keras variable to PyTorch's layout: the inverse of `to_keras`."""
        if self.per_input and flattened:
            variable = variable[np.argsort(_channels_last(flattened))]
        return np.ascontiguousarray(variable.transpose(np.argsort(self.axes)))


_BIAS = Layout("bias", (0,))
_NORMALIZATION = {
    "gamma": Layout("weight", (0,), per_input=True),
    "beta": Layout("bias", (0,), per_input=True),
}

LAYOUTS: dict[str, dict[str, Layout]] = {
    "Dense": {"kernel": Layout("weight", (1, 0), per_input=True), "bias": _BIAS},
    "Conv1D": {"kernel": Layout("weight", (2, 1, 0)), "bias": _BIAS},
    "Conv2D": {"kernel": Layout("weight", (2, 3, 1, 0)), "bias": _BIAS},
    "Conv3D": {"kernel": Layout("weight", (2, 3, 4, 1, 0)), "bias": _BIAS},
    "Embedding": {"embeddings": Layout("weight", (0, 1))},
    "BatchNormalization": {
        **_NORMALIZATION,
        "moving_mean": Layout("running_mean", (0,), per_input=True),
        "moving_variance": Layout("running_var", (0,), per_input=True),
    },
    "GroupNormalization": _NORMALIZATION,
    "LayerNormalization": _NORMALIZATION,
}
"""Layouts by class of the Keras layer and name of its variable."""


def _channels_last(shape: tuple[int, ...]) -> NDArray[np.intp]:
    """Return, for each feature of a flattened channels-last array, its index in PyTorch's order."""
    *space, channels = shape
    indices = np.arange(prod(shape)).reshape(channels, *space)
    return np.moveaxis(indices, 0, -1).ravel()


def flattened_in(tensor: Any, within: dict[int, Any]) -> tuple[int, ...] | None:
    """Find the shape that was flattened to make a symbolic tensor, or a layer's list of inputs.

    Returns:
        The shape, channels last and without the batch; None if nothing was flattened or the order
        is PyTorch's already.
    """
    if isinstance(tensor, list) or len(tensor.shape) != 2:
        return None
    flattening, read = _origin(tensor, within)
    if type(flattening).__name__ not in ("Flatten", "Reshape"):
        return None
    shape = tuple(read[0].shape[1:])
    source, _ = _origin(read[0], within)
    if type(source).__name__ == "InputLayer":
        # PyTorch flattens an image without channels, or with channels first, in the same order.
        is_flat = len(shape) < 3
        return (
            None if is_flat or (shape[0] in (1, 3) and shape[0] < shape[1] == shape[2]) else shape
        )
    # Such a permutation puts channels first, the order in which PyTorch flattens.
    permuted = type(source).__name__ == "Permute" and source.dims[0] == len(shape)
    return None if permuted or len(shape) < 2 else shape


def inputs_within(model: Any) -> dict[int, Any]:
    """Map the inputs of nested models, by `id`, to the outer model's tensors that they read."""
    found: dict[int, Any] = {}
    for inner in model.layers:
        if hasattr(inner, "layers"):
            outer = inner._inbound_nodes[-1].input_tensors
            found |= {id(ours): theirs for ours, theirs in zip(inner.inputs, outer, strict=True)}
            found |= inputs_within(inner)
    return found


def _origin(tensor: Any, within: dict[int, Any]) -> tuple[Any, list[Any]]:
    """Return the last operation that moved or mixed a tensor's features, and its inputs."""
    while True:
        operation, node, index = tensor._keras_history
        read = operation._inbound_nodes[node].input_tensors
        if hasattr(operation, "layers"):
            tensor = operation.outputs[index]
        elif id(tensor) in within:
            tensor = within[id(tensor)]
        elif (
            type(operation).__name__ in ("InputLayer", "Permute")
            or any(tuple(other.shape) != tuple(tensor.shape) for other in read)
            or (getattr(operation, "weights", []) and "Normalization" not in str(type(operation)))
        ):
            return operation, read
        else:
            tensor = read[0]


@dataclass(frozen=True)
class Match:
    """A PyTorch tensor and the Keras variable with the same numbers in another layout."""

    layer: str  # the Keras layer's name
    torch_name: str  # as in the module's `state_dict`
    tensor: Tensor
    variable: Any
    layout: Layout
    flattened: tuple[int, ...] | None

    @property
    def keras_name(self) -> str:
        """The variable's name with its layer's, such as `conv1/kernel`."""
        return f"{self.layer}/{self.variable.name}"

    def to_keras(self, tensor: Tensor) -> Array:
        """Convert the tensor, or its gradient, to Keras's layout."""
        return self.layout.to_keras(tensor.detach().cpu().numpy(), self.flattened)

    def to_torch(self, variable: Any) -> Array:
        """Convert the variable, or its gradient, to PyTorch's layout."""
        return self.layout.to_torch(np.asarray(variable), self.flattened)


def to_keras(model: Classifier, softmax: bool = False) -> Any:
    """Build the Keras twin of a model, with the model's weights.

    Args:
        model: One of `digitlab.models`, a class that names its twin's function by `keras_twin`, or
            a subclass with the same network.
        softmax: Whether the twin ends in a softmax, as document A writes its Keras network;
            otherwise it returns logits, as the model does.

    Returns:
        A `keras.Model` that takes `(N, 28, 28, in_channels)`. It is float64 if the model is, and
        has Keras's current dtype policy otherwise.

    Raises:
        ValueError: The class has no twin, or none with a softmax.
        ImportError: The extra `parity` is not installed.
    """
    with unchanged_random_state():
        twin = build_twin(model, softmax)
    copy_weights(model, twin)
    return twin


def build_twin(model: Classifier, softmax: bool = False) -> Any:
    """Build the Keras twin of a model as `to_keras` does, but with Keras's own initial weights."""
    twin = find_twin(model, softmax)
    is_double = next(model.parameters()).dtype == torch.float64
    with keras_dtype("float64") if is_double else nullcontext():
        return twin()


def copy_weights(module: nn.Module, keras_model: Any) -> None:
    """Copy the weights of any PyTorch module into a Keras model, all or none of them.

    Raises:
        ValueError: As for `match`.
    """
    for pair in match(module, keras_model):
        pair.variable.assign(pair.to_keras(pair.tensor))


def load_keras_weights(model: nn.Module, keras_model: Any) -> None:
    """Copy the weights of a Keras model into a PyTorch module, all or none of them.

    Raises:
        ValueError: As for `match`.
    """
    with torch.no_grad():
        for pair in match(model, keras_model):
            pair.tensor.copy_(torch.from_numpy(pair.to_torch(pair.variable)))


def match(module: nn.Module, keras_model: Any) -> list[Match]:
    """Find the Keras variable of each tensor of a PyTorch module.

    Layers with weights are matched by name if every Keras layer has the name of a PyTorch layer,
    and by order otherwise.

    Raises:
        ValueError: One side lacks weights, shapes differ, or the layout of a kind of layer is not
            known; the message names the layer.
    """
    ours = dict(_torch_layers(module))
    theirs = [layer for layer in keras_layers(keras_model) if layer.weights]
    names = _by_name(list(ours), [layer.name for layer in theirs]) or _by_order(ours, theirs)
    within = inputs_within(keras_model)
    matches = [
        pair
        for name, layer in zip(names, theirs, strict=True)
        for pair in _match_layer(name, ours[name], layer, flattened_in(layer.input, within))
    ]
    if unmatched := [name for name in ours if name not in names]:
        raise ValueError(
            f"the Keras model has no weights for {unmatched[0]} of {type(module).__name__}: "
            "give both the same layers"
        )
    return matches


def keras_layers(model: Any) -> Iterator[Any]:
    """Yield the layers of a Keras model and of the models nested in it, in order."""
    for layer in model.layers:
        if hasattr(layer, "layers"):
            yield from keras_layers(layer)
        else:
            yield layer


def _torch_layers(module: nn.Module) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Yield the layers with tensors of their own, in order, and these tensors."""
    for name, layer in module.named_modules():
        tensors = dict(layer.named_parameters(recurse=False))
        tensors |= dict(layer.named_buffers(recurse=False))
        tensors.pop("num_batches_tracked", None)  # Keras has no such counter
        if tensors:
            yield name, tensors


def _by_name(ours: list[str], theirs: list[str]) -> list[str] | None:
    """Return the PyTorch layer of each Keras layer by name, if every name has exactly one."""
    known = {name.rpartition(".")[2]: name for name in ours}
    known |= {name.replace(".", "_"): name for name in ours} | {name: name for name in ours}
    found = [known[name] for name in theirs if name in known]
    return found if len(set(found)) == len(theirs) else None


def _by_order(ours: dict[str, Any], theirs: list[Any]) -> list[str]:
    if len(ours) != len(theirs):
        left, right = ", ".join(ours), ", ".join(layer.name for layer in theirs)
        raise ValueError(
            f"{len(ours)} PyTorch layers have weights ({left}) and {len(theirs)} Keras layers "
            f"({right}): give both the same layers, or the same names"
        )
    return list(ours)


def _match_layer(
    name: str, tensors: dict[str, Tensor], layer: Any, flattened: tuple[int, ...] | None
) -> Iterator[Match]:
    kind = next((k.__name__ for k in type(layer).__mro__ if k.__name__ in LAYOUTS), None)
    if kind is None:
        raise ValueError(
            f"{layer.name} is a {type(layer).__name__}, whose layout of weights is not known: "
            f"use layers of {', '.join(LAYOUTS)}"
        )
    left = set(tensors)
    for variable in layer.weights:
        layout = LAYOUTS[kind].get(variable.name)
        if layout is None:
            raise ValueError(
                f"{layer.name}/{variable.name} is a variable whose layout is not known: use a "
                f"{kind} without it"
            )
        tensor, torch_name = tensors.get(layout.source), f"{name}.{layout.source}".lstrip(".")
        if tensor is None:
            raise ValueError(f"{layer.name}/{variable.name} has no counterpart {torch_name}")
        left.discard(layout.source)
        pair = Match(layer.name, torch_name, tensor, variable, layout, flattened)
        ours, theirs, axes = tuple(tensor.shape), tuple(variable.shape), layout.axes
        if len(ours) != len(axes) or tuple(ours[axis] for axis in axes) != theirs:
            raise ValueError(
                f"{torch_name} is {ours} and {pair.keras_name} is {theirs}: give both the same "
                "shape but for the order of axes"
            )
        yield pair
    if left:
        torch_name = f"{name}.{min(left)}".lstrip(".")
        raise ValueError(f"{torch_name} has no counterpart in the Keras layer {layer.name}")
