"""Copies weights between PyTorch and Keras."""

from contextlib import nullcontext
from typing import Any

import torch
from torch import nn

from digitlab.classifier import Classifier
from digitlab.parity.backend import keras_dtype, unchanged_random_state
from digitlab.parity.matching import Match, match
from digitlab.parity.twins import find_twin


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
        ValueError: One side lacks weights, shapes differ, or the layout of a kind of layer is not
            known; the message names the layer.
    """
    for pair in match(module, keras_model):
        pair.variable.assign(pair.to_keras())


def load_keras_weights(model: nn.Module, keras_model: Any) -> None:
    """Copy the weights of a Keras model into a PyTorch module, all or none of them.

    Raises:
        ValueError: As for `copy_weights`.
    """
    load_matched(match(model, keras_model))


def load_matched(pairs: list[Match]) -> None:
    """Copy the variables of matches into their tensors."""
    with torch.no_grad():
        for pair in pairs:
            for tensor, array in zip(pair.tensors, pair.to_torch(pair.variable), strict=True):
                tensor.copy_(torch.from_numpy(array))
