"""How the two frameworks lay out the same weights, in NumPy alone."""

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


@dataclass(frozen=True)
class Layout:
    """How a layer's Keras variable is made of its PyTorch tensor.

    Args:
        source: Name of the tensor in the PyTorch layer.
        axes: The tensor's axes in Keras's order.
        per_input: Whether the variable's first axis counts the features that the layer reads. They
            are in another order behind a flattening.
    """

    source: str
    axes: tuple[int, ...]
    per_input: bool = False

    def to_keras(self, tensor: Array, flattened: tuple[int, ...] | None = None) -> Array:
        """Turn a PyTorch tensor into Keras's layout.

        Args:
            tensor: As the PyTorch layer holds it.
            flattened: Shape of the Keras array, channels last and without the batch, that was
                flattened before this layer; None where nothing was.

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
        """Turn a Keras variable into PyTorch's layout: the inverse of `to_keras`."""
        array = variable
        if self.per_input and flattened:
            array = array[np.argsort(_channels_last(flattened))]
        return np.ascontiguousarray(array.transpose(np.argsort(self.axes)))


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
"""By class of the Keras layer and name of its variable."""


def _channels_last(shape: tuple[int, ...]) -> NDArray[np.intp]:
    """Give, for each feature of a flattened channels-last array, its place in PyTorch's order."""
    *space, channels = shape
    places = np.arange(prod(shape)).reshape(channels, *space)
    return np.moveaxis(places, 0, -1).ravel()
