"""How each kind of layer stores its weights in PyTorch and in Keras.

`LAYOUTS` says how the variables of each kind of Keras layer, or of a part of it, are made of the
tensors of a PyTorch layer.
"""

from dataclasses import dataclass
from math import prod
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Shape = tuple[int, ...]
Order = tuple[Shape, ...]
"""The order of features that are not in PyTorch's: blocks one after the other, each a flattening of
a shape with the channels last. A block with one axis is in PyTorch's order."""


@dataclass(frozen=True)
class Layout:
    """How a Keras variable is made of a PyTorch tensor, or of two.

    Args:
        source: Name of the tensor in the PyTorch part.
        axes: For each axis of the variable, the axis of the tensor, merged axes counted singly.
        merged: The groups of axes that are one axis of the tensor; an empty group is an axis of
            size 1. By default each axis is its own.
        gates: Block i along the variable's last axis is block `gates[i]` along the tensor's first.
        second: Name of a second tensor of the same shape.
        join: Whether the two are stacked on a new first axis, or added up.
        per_input: Whether the variable's first axis is the layer's input features.
        per_output: Whether its last axis is the layer's output features.
    """

    source: str
    axes: Shape
    merged: tuple[Shape, ...] | None = None
    gates: Shape = ()
    second: str = ""
    join: Literal["", "stack", "add"] = ""
    per_input: bool = False
    per_output: bool = False

    @property
    def sources(self) -> tuple[str, ...]:
        """The names of the tensors."""
        return (self.source, self.second) if self.second else (self.source,)

    def torch_shape(self, shape: Shape) -> Shape | None:
        """Return the shape of each tensor for a variable's shape; None if that does not fit."""
        shape = shape[self.join == "stack" :]
        if len(shape) != len(self.axes):
            return None
        single = self._single(shape)
        if self.merged is None:
            return single
        groups = self.merged
        return tuple(prod(single[axis] for axis in group) for group in groups)

    def _single(self, shape: Shape) -> Shape:
        return tuple(shape[axis] for axis in np.argsort(self.axes))

    def to_keras(
        self,
        *tensors: Array,
        shape: Shape = (),
        inputs: Order | None = None,
        outputs: Order | None = None,
    ) -> Array:
        """Convert PyTorch tensors, one for each of `sources`, to the Keras variable.

        Args:
            *tensors: The tensors, or their gradients.
            shape: The variable's shape, needed where axes are merged.
            inputs: The order of the layer's input features, if it is not PyTorch's.
            outputs: The order of its output features.

        Examples:
            >>> dense = Layout("weight", (1, 0), per_input=True)
            >>> dense.to_keras(np.array([[1, 2, 3, 4]]), inputs=((1, 2, 2),)).tolist()
            [[1], [3], [2], [4]]
        """
        arrays = []
        for tensor in tensors:
            if self.gates:
                blocks = np.split(tensor, len(self.gates))
                tensor = np.concatenate([blocks[i] for i in self.gates])
            if self.merged is not None:
                tensor = tensor.reshape(self._single(shape[self.join == "stack" :]))
            arrays.append(tensor.transpose(self.axes))
        array = (
            np.stack(arrays)
            if self.join == "stack"
            else np.add(*arrays)
            if self.join
            else arrays[0]
        )
        if self.per_input and inputs:
            array = array[channels_last(inputs)]
        if self.per_output and outputs:
            array = array[..., channels_last(outputs)]
        return np.asarray(array, order="C")  # `ascontiguousarray` makes a scalar an array

    def to_torch(
        self,
        variable: Array,
        inputs: Order | None = None,
        outputs: Order | None = None,
        is_gradient: bool = False,
    ) -> tuple[Array, ...]:
        """Convert a Keras variable to PyTorch tensors: the inverse of `to_keras`.

        Of two tensors that are added up, the first gets the sum and the second zeros; the gradient
        of the sum is the gradient of each.
        """
        if self.per_input and inputs:
            variable = variable[np.argsort(channels_last(inputs))]
        if self.per_output and outputs:
            variable = variable[..., np.argsort(channels_last(outputs))]
        arrays = []
        for part in variable if self.join == "stack" else [variable]:
            array = part.transpose(np.argsort(self.axes))
            if self.merged is not None:
                array = array.reshape(
                    [prod(array.shape[i] for i in group) for group in self.merged]
                )
            if self.gates:
                blocks = np.split(array, len(self.gates))
                array = np.concatenate([blocks[i] for i in np.argsort(self.gates)])
            arrays.append(np.asarray(array, order="C"))
        if self.join == "add":
            arrays.append(arrays[0] if is_gradient else np.zeros_like(arrays[0]))
        return tuple(arrays)


def channels_last(order: Order) -> NDArray[np.intp]:
    """Return, for each feature in an order, its index in PyTorch's order.

    Examples:
        >>> channels_last(((2, 2), (1,))).tolist()
        [0, 2, 1, 3, 4]
    """
    blocks, start = [], 0
    for shape in order:
        *space, channels = shape
        indices = np.arange(start, start + prod(shape)).reshape(channels, *space)
        blocks.append(np.moveaxis(indices, 0, -1).ravel())
        start += prod(shape)
    return np.concatenate(blocks)


def _convolution(dimensions: int) -> dict[str, tuple[Layout, ...]]:
    axes = (*range(2, dimensions + 2), 1, 0)
    return {"kernel": (Layout("weight", axes),), "bias": _BIAS}


def _depthwise(dimensions: int) -> dict[str, tuple[Layout, ...]]:
    # PyTorch's grouped convolution has one axis for channel and multiplier, and an axis of size 1.
    space = range(2, dimensions + 2)
    merged = ((0, 1), (), *((axis,) for axis in space))
    kernel = (Layout("weight", (*space, 0, 1), merged),)
    return {"kernel": kernel, "depthwise_kernel": kernel, "bias": _BIAS}


def _recurrent(gates: Shape, stacked: bool = False) -> dict[str, tuple[Layout, ...]]:
    biases = Layout(
        "bias_ih", (0,), gates=gates, second="bias_hh", join="stack" if stacked else "add"
    )
    return {
        "kernel": (Layout("weight_ih", (1, 0), gates=gates, per_input=True),),
        "recurrent_kernel": (Layout("weight_hh", (1, 0), gates=gates),),
        "bias": (biases,),
    }


def _normalization(**others: str) -> dict[str, tuple[Layout, ...]]:
    names = {"gamma": "weight", "beta": "bias", **others}
    # Over several axes: channels last of an image, or as they are of a sequence.
    several = [axes for n in (2, 3, 4) for axes in ((*range(1, n), 0), tuple(range(n)))]
    return {
        variable: (Layout(tensor, (0,), per_input=True), *(Layout(tensor, it) for it in several))
        for variable, tensor in names.items()
    }


_BIAS = (Layout("bias", (0,), per_output=True),)

LAYOUTS: dict[str, dict[str, tuple[Layout, ...]]] = {
    "Dense": {
        "kernel": (Layout("weight", (1, 0), per_input=True, per_output=True),),
        "bias": _BIAS,
    },
    **{f"Conv{n}D": _convolution(n) for n in (1, 2, 3)},
    **{f"Conv{n}DTranspose": _convolution(n) for n in (1, 2, 3)},
    **{f"DepthwiseConv{n}D": _depthwise(n) for n in (1, 2)},
    "Embedding": {"embeddings": (Layout("weight", (0, 1)),)},
    "BatchNormalization": _normalization(moving_mean="running_mean", moving_variance="running_var"),
    "GroupNormalization": _normalization(),
    "LayerNormalization": _normalization(),
    "RMSNormalization": _normalization(scale="weight"),
    # A slope for each channel, or one for all, beside axes of size 1.
    "PReLU": {
        "alpha": tuple(
            Layout("weight", tuple(range(n)), (tuple(range(n)),), per_input=n == 1)
            for n in (1, 2, 3)
        )
    },
    "LSTMCell": _recurrent((0, 1, 2, 3)),
    "GRUCell": _recurrent((1, 0, 2), stacked=True),
    "SimpleRNNCell": _recurrent((0,)),
    # Of an attention: the projections into heads, and the one out of them.
    "projection": {
        "kernel": (Layout("weight", (2, 0, 1), ((0, 1), (2,))),),
        "bias": (Layout("bias", (0, 1), ((0, 1),)),),
    },
    "output projection": {"kernel": (Layout("weight", (1, 2, 0), ((0,), (1, 2))),), "bias": _BIAS},
}
"""By kind of a Keras part and name of its variable, the possible layouts."""
