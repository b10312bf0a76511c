"""Dropout that is the same in both frameworks: its random numbers are given, not drawn.

Each framework draws dropout from a generator of its own. Here the layers of both sides read the
same uniform numbers instead, and each makes its mask of them with its own layer's rate.
"""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from digitlab.parity.backend import import_keras, import_tensorflow
from digitlab.parity.flattening import flattened_in, inputs_within
from digitlab.parity.layout import Array, Layout
from digitlab.parity.weights import keras_layers

# They drop whole channels.
_OF_CHANNELS = ("Dropout1d", "Dropout2d", "Dropout3d")
_OF_CHANNELS_IN_KERAS = ("SpatialDropout1D", "SpatialDropout2D", "SpatialDropout3D")
_FEATURES = Layout("uniform", (1, 0), per_input=True)  # flattened ones are in another order


@dataclass
class Masks:
    """Uniform numbers for the dropout of both sides, a function of seed, layer and step alone.

    Args:
        seed: At least 0 and below 2⁶⁴.
        step: The training step, from 0; set it before each.

    Examples:
        >>> Masks(seed=0).uniform(layer=0, shape=(2,)).round(3).tolist()
        [0.012, 0.242]
        >>> Masks(seed=0, step=1).uniform(layer=0, shape=(2,)).round(3).tolist()
        [0.342, 0.577]
    """

    seed: int = 0
    step: int = 0

    def uniform(self, layer: int, shape: tuple[int, ...]) -> Array:
        """Give numbers in [0, 1), float64, for a dropout layer.

        Args:
            layer: The layer's place among the network's dropout layers, from 0.
            shape: Of the layer's input in PyTorch's layout; `(N, C)` where whole channels are
                dropped.
        """
        # Philox turns a key and a counter into numbers: nothing is left over from another layer or
        # step. The counter's last word leaves 2¹⁹² blocks of numbers to a step.
        philox = np.random.Philox(key=[self.seed, layer], counter=[0, 0, 0, self.step])
        return np.random.Generator(philox).random(shape)


def masked_module(module: nn.Module, masks: Masks) -> nn.Module:
    """Copy a module, with dropout that reads its numbers from `masks` while it trains.

    Raises:
        ValueError: It has a dropout of another kind than `nn.Dropout` and `nn.Dropout1d` to `3d`.
    """
    copy = deepcopy(module)
    dropouts = [(name, layer) for name, layer in copy.named_modules() if _is_dropout(layer)]
    for place, (name, layer) in enumerate(dropouts):
        kind = type(layer).__name__
        if kind not in ("Dropout", *_OF_CHANNELS):
            raise ValueError(_unknown(name, kind, "nn.Dropout or nn.Dropout1d, 2d or 3d"))
        rate: Any = layer.p
        copy.set_submodule(name, _MaskedDropout(rate, place, kind in _OF_CHANNELS, masks))
    return copy


def masked_model(keras_model: Any, masks: Masks) -> Any:
    """Copy a Keras model, with dropout that reads its numbers from `masks` while it trains.

    The copy's weights are new: give it some.

    Raises:
        ValueError: It has a dropout of another kind than `Dropout` and `SpatialDropout1D` to `3D`.
    """
    places = {id(layer): place for place, layer in enumerate(_keras_dropouts(keras_model))}
    within = inputs_within(keras_model)

    def clone(layer: Any) -> Any:
        if id(layer) not in places:
            return type(layer).from_config(layer.get_config())
        kind = type(layer).__name__
        if kind not in ("Dropout", *_OF_CHANNELS_IN_KERAS) or getattr(layer, "noise_shape", None):
            raise ValueError(_unknown(layer.name, kind, "Dropout or SpatialDropout1D, 2D or 3D"))
        flattened = flattened_in(layer.input, within)
        draw = _keras_mask(layer, places[id(layer)], flattened, masks)
        return _masked_layer()(draw, name=layer.name, dtype=layer.dtype_policy)

    return import_keras().models.clone_model(keras_model, clone_function=clone, recursive=True)


def check_dropouts(module: nn.Module, keras_model: Any) -> None:
    """Check that both sides have equally many dropout layers, which are matched by their order.

    Raises:
        ValueError: They have not.
    """
    ours = sum(map(_is_dropout, module.modules()))
    theirs = len(_keras_dropouts(keras_model))
    if ours != theirs:
        raise ValueError(
            f"the PyTorch module has {ours} dropout layers and the Keras model {theirs}: "
            "give both the same"
        )


def _keras_dropouts(keras_model: Any) -> list[Any]:
    return [layer for layer in keras_layers(keras_model) if _is_dropout(layer)]


def _is_dropout(layer: Any) -> bool:
    return "Dropout" in type(layer).__name__  # also of the kinds that are refused


def _mask(uniform: Array, rate: float) -> Array:
    """Keep a share of `1 - rate`, enlarged so that the mean stays, and make the others 0."""
    return (uniform >= rate) * (1 / (1 - rate) if rate < 1 else 0.0)


class _MaskedDropout(nn.Module):
    def __init__(self, rate: float, place: int, of_channels: bool, masks: Masks) -> None:
        super().__init__()
        self.rate, self.place, self.of_channels, self.masks = rate, place, of_channels, masks

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        shape = tuple(x.shape[:2] if self.of_channels else x.shape)
        mask = torch.from_numpy(_mask(self.masks.uniform(self.place, shape), self.rate)).to(x)
        return x * mask.reshape(shape + (1,) * (x.ndim - mask.ndim))


def _keras_mask(
    layer: Any, place: int, flattened: tuple[int, ...] | None, masks: Masks
) -> Callable[[tuple[int, ...]], Array]:
    """Make the function that gives the mask for an input, channels last, of a Keras layer."""
    of_channels = type(layer).__name__ in _OF_CHANNELS_IN_KERAS

    def draw(shape: tuple[int, ...]) -> Array:
        batch, *space, channels = shape
        if of_channels:
            uniform = masks.uniform(place, (batch, channels))
            uniform = uniform.reshape(batch, *[1] * len(space), channels)
        elif space:
            uniform = np.moveaxis(masks.uniform(place, (batch, channels, *space)), 1, -1)
        else:
            uniform = _FEATURES.to_keras(masks.uniform(place, shape), flattened).T
        return _mask(uniform, float(layer.rate))

    return draw


@cache
def _masked_layer() -> Any:
    """Make the class of the Keras layer, which needs Keras to be derived from."""
    keras, tensorflow = import_keras(), import_tensorflow()

    class MaskedDropout(keras.layers.Layer):  # type: ignore[misc,name-defined]  # Keras ships no type hints
        def __init__(self, draw: Callable[[tuple[int, ...]], Array], **kwargs: Any) -> None:
            super().__init__(**kwargs)
            self.draw = draw
            self.supports_masking = True

        def call(self, inputs: Any, training: bool = False) -> Any:
            if not training:
                return inputs
            mask = tensorflow.numpy_function(
                lambda shape: self.draw(tuple(shape)).astype(inputs.dtype.as_numpy_dtype),
                [tensorflow.shape(inputs)],
                inputs.dtype,
            )
            return tensorflow.reshape(inputs * mask, tensorflow.shape(inputs))

        def compute_output_shape(self, input_shape: Any) -> Any:
            return input_shape

    return MaskedDropout


def _unknown(name: str, kind: str, known: str) -> str:
    return f"{name} is a {kind}, whose random numbers cannot be given: use {known}"
