"""Weights from PyTorch to Keras and back: layers are matched, layouts changed, nothing is lost."""

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from digitlab.classifier import Classifier
from digitlab.parity.backend import keras_dtype, unchanged_random_state
from digitlab.parity.flattening import flattened_in, inputs_within
from digitlab.parity.layout import LAYOUTS, Array, Layout
from digitlab.parity.pairs import find_twin


@dataclass(frozen=True)
class Match:
    """A PyTorch tensor and the Keras variable that holds the same numbers in another layout."""

    layer: str  # the Keras layer's name
    torch_name: str  # as in the module's `state_dict`
    tensor: Tensor
    variable: Any
    layout: Layout
    flattened: tuple[int, ...] | None

    @property
    def keras_name(self) -> str:
        """Name the variable with its layer, such as `conv1/kernel`."""
        return f"{self.layer}/{self.variable.name}"

    def to_keras(self, tensor: Tensor) -> Array:
        """Lay out a tensor of PyTorch's side, the weights or their gradient, as Keras's is."""
        return self.layout.to_keras(tensor.detach().cpu().numpy(), self.flattened)

    def to_torch(self, variable: Any) -> Array:
        """Lay out a value of Keras's side, the weights or their gradient, as PyTorch's is."""
        return self.layout.to_torch(np.asarray(variable), self.flattened)


def to_keras(model: Classifier, softmax: bool = False) -> Any:
    """Build the Keras twin of a model, with the model's weights.

    Args:
        model: One of `digitlab.models`, a class that names its twin's function by `keras_twin`, or
            a subclass with the same network.
        softmax: Whether the twin ends in a softmax, as document A writes its Keras network;
            otherwise it gives logits, as the model does.

    Returns:
        A `keras.Model` that takes `(N, 28, 28, in_channels)`. It is float64 if the model is, and
        has Keras's dtype policy otherwise.

    Raises:
        ValueError: There is no twin for this class, or none with a softmax.
        ImportError: The extra `parity` is not installed.
    """
    with unchanged_random_state():
        twin = build_twin(model, softmax)
    copy_weights(model, twin)
    return twin


def build_twin(model: Classifier, softmax: bool = False) -> Any:
    """Build the Keras twin of a model as `to_keras` does, with initial weights of Keras's own."""
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
    """Find, for each tensor of a PyTorch module, the Keras variable that corresponds to it.

    Layers with weights are matched by name where every Keras layer's name is that of a PyTorch
    layer, and in their order otherwise. A dense layer behind a flattening reads channels last.

    Raises:
        ValueError: Weights are missing on a side, have other shapes, or are of a layer whose layout
            is unknown; the message names them.
    """
    ours = dict(_torch_layers(module))
    theirs = [layer for layer in keras_layers(keras_model) if layer.weights]
    names = _by_name(list(ours), [layer.name for layer in theirs]) or _by_order(ours, theirs)
    outside = inputs_within(keras_model)
    matches = [
        pair
        for name, layer in zip(names, theirs, strict=True)
        for pair in _match_layer(name, ours[name], layer, flattened_in(layer.input, outside))
    ]
    if unmatched := [name for name in ours if name not in names]:
        raise ValueError(
            f"the Keras model has no weights for {unmatched[0]} of {type(module).__name__}: "
            "give both the same layers"
        )
    return matches


def keras_layers(model: Any) -> Iterator[Any]:
    """Yield a Keras model's layers in their order, and those of models within it."""
    for layer in model.layers:
        if hasattr(layer, "layers"):
            yield from keras_layers(layer)
        else:
            yield layer


def _torch_layers(module: nn.Module) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Yield the layers that hold tensors themselves, in their order, with these tensors."""
    for name, layer in module.named_modules():
        tensors = {
            **dict(layer.named_parameters(recurse=False)),
            **dict(layer.named_buffers(recurse=False)),
        }
        tensors.pop("num_batches_tracked", None)  # Keras has no such counter
        if tensors:
            yield name, tensors


def _by_name(ours: list[str], theirs: list[str]) -> list[str] | None:
    """Give the PyTorch layer of each Keras layer by name, if every name has exactly one."""
    known: dict[str, str] = {}
    for name in ours:
        known[name.rpartition(".")[2]] = name
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
    kinds = [kind.__name__ for kind in type(layer).__mro__ if kind.__name__ in LAYOUTS]
    if not kinds:
        raise ValueError(
            f"{layer.name} is a {type(layer).__name__}, whose layout of weights is not known: "
            f"use layers of {', '.join(LAYOUTS)}"
        )
    layouts = LAYOUTS[kinds[0]]
    left = set(tensors)
    for variable in layer.weights:
        layout = layouts.get(variable.name)
        if layout is None:
            raise ValueError(
                f"{layer.name}/{variable.name} is a variable whose layout is not known: use a "
                f"{kinds[0]} without it"
            )
        tensor, torch_name = tensors.get(layout.source), f"{name}.{layout.source}".lstrip(".")
        if tensor is None:
            raise ValueError(f"{layer.name}/{variable.name} has no counterpart {torch_name}")
        left.discard(layout.source)
        pair = Match(layer.name, torch_name, tensor, variable, layout, flattened)
        _check_shape(pair)
        yield pair
    if left:
        torch_name = f"{name}.{min(left)}".lstrip(".")
        raise ValueError(f"{torch_name} has no counterpart in the Keras layer {layer.name}")


def _check_shape(pair: Match) -> None:
    ours, theirs = tuple(pair.tensor.shape), tuple(pair.variable.shape)
    axes = pair.layout.axes
    if len(ours) != len(axes) or tuple(ours[axis] for axis in axes) != theirs:
        raise ValueError(
            f"{pair.torch_name} is {ours} and {pair.keras_name} is {theirs}: "
            f"give both the same shape but for the order of axes"
        )
