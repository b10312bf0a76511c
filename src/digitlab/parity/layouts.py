"""How PyTorch and Keras lay out weights and other arrays, and how far two arrays are apart."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Indices = NDArray[np.intp]
Shape = tuple[int, ...]
Order = tuple[Shape, ...]
"""The order of features that are not in PyTorch's: blocks one after the other, each a flattening of
a shape with the channels last. A block with one axis is in PyTorch's order."""


@dataclass(frozen=True)
class Layout:
    """How a Keras variable is made of a PyTorch tensor, or of two of the same shape."""

    source: str  # the tensor's name in the PyTorch part
    # Makes the variable of the tensors and the variable's `shape`. It only moves numbers, and
    # raises ValueError or IndexError if a shape does not fit.
    arrange: Callable[..., Array] = lambda tensor, shape: tensor
    second: str = ""
    is_sum: bool = False  # of the two, each arranged alone
    per_input: bool = False  # whether the first axis is the layer's input features
    per_output: bool = False  # whether the last axis is the layer's output features

    @property
    def sources(self) -> tuple[str, ...]:
        """The names of the tensors."""
        return (self.source, self.second) if self.second else (self.source,)

    def arranged(self, tensors: Sequence[Array], shape: Shape) -> Array | None:
        """Return the numbers of tensors in the variable's shape; None if that does not fit."""
        try:
            array = self.arrange(*tensors[: 1 if self.is_sum else 2], shape=shape)
        except (ValueError, IndexError):
            return None
        return array if array.shape == shape else None

    def indices(
        self,
        shapes: Sequence[Shape],
        shape: Shape,
        inputs: Order | None = None,
        outputs: Order | None = None,
    ) -> Indices:
        """Return where each number of the variable stands in the flattened, concatenated tensors.

        Examples:
            >>> dense = Layout("weight", lambda tensor, shape: tensor.T, per_input=True)
            >>> dense.indices([(1, 4)], (4, 1), inputs=((1, 2, 2),)).tolist()
            [[0], [2], [1], [3]]
        """
        starts = np.cumsum([0, *map(prod, shapes)])
        numbers = [
            np.arange(start, start + prod(it)).reshape(it)
            for start, it in zip(starts, shapes, strict=False)
        ]
        indices = self.arranged(numbers, shape)
        assert indices is not None
        if self.per_input and inputs and len(indices) > 1:  # one for all features has no order
            indices = indices[channels_last(inputs)]
        if self.per_output and outputs:
            indices = indices[..., channels_last(outputs)]
        return indices


Layouts = dict[str, tuple[Layout, ...]]
"""By name of a Keras variable, its possible layouts."""


def channels_last(order: Order) -> Indices:
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


def without_ones(tensor: Array, shape: Shape) -> Array:
    """Return a tensor in a shape that differs in axes of size 1 alone."""
    if [size for size in tensor.shape if size != 1] != [size for size in shape if size != 1]:
        raise ValueError(f"{tensor.shape} is not {shape} but for axes of size 1")
    return tensor.reshape(shape)


def last(tensor: Array, shape: Shape) -> Array:
    """Move the first axis, the channels, to the end."""
    return np.moveaxis(tensor, 0, -1)


def _kernel(weight: Array, shape: Shape) -> Array:
    return weight.transpose(*range(2, weight.ndim), 1, 0)


def _depthwise(weight: Array, shape: Shape) -> Array:
    # PyTorch's grouped convolution has one axis for channel and multiplier, and an axis of size 1.
    space = weight.squeeze(1).shape[1:]
    return np.moveaxis(weight.reshape(*shape[-2:], *space), (0, 1), (-2, -1))


def _gru(array: Array, shape: Shape = ()) -> Array:
    """Exchange the first two of three gates, and transpose."""
    reset, update, new = np.split(array, 3)
    return np.concatenate([update, reset, new]).T


def _recurrent(*bias: Layout, arrange: Callable[..., Array] = _kernel) -> Layouts:
    return {
        "kernel": (Layout("weight_ih", arrange, per_input=True),),
        "recurrent_kernel": (Layout("weight_hh", arrange),),
        "bias": bias,
    }


def _normalization(**others: str) -> Layouts:
    # Over several axes: channels last of an image, or as they are of a sequence.
    return {
        variable: (Layout(tensor, last, per_input=True), Layout(tensor))
        for variable, tensor in {"gamma": "weight", "beta": "bias", **others}.items()
    }


_BIAS = (Layout("bias", per_output=True),)
_KERNEL = (Layout("weight", _kernel, per_input=True, per_output=True),)
_DEPTHWISE = (Layout("weight", _depthwise),)

LAYOUTS: dict[str, Layouts] = {
    "Dense": {"kernel": _KERNEL, "bias": _BIAS},
    **{f"Conv{n}D": {"kernel": _KERNEL, "bias": _BIAS} for n in (1, 2, 3)},
    **{f"Conv{n}DTranspose": {"kernel": _KERNEL, "bias": _BIAS} for n in (1, 2, 3)},
    **{
        f"DepthwiseConv{n}D": {"kernel": _DEPTHWISE, "depthwise_kernel": _DEPTHWISE, "bias": _BIAS}
        for n in (1, 2)
    },
    "Embedding": {"embeddings": (Layout("weight"),)},
    "BatchNormalization": _normalization(moving_mean="running_mean", moving_variance="running_var"),
    "GroupNormalization": _normalization(),
    "LayerNormalization": _normalization(),
    "RMSNormalization": _normalization(scale="weight"),
    # A slope for each channel, or one for all, beside axes of size 1.
    "PReLU": {"alpha": (Layout("weight", without_ones, per_input=True),)},
    "LSTMCell": _recurrent(Layout("bias_ih", second="bias_hh", is_sum=True)),
    "SimpleRNNCell": _recurrent(Layout("bias_ih", second="bias_hh", is_sum=True)),
    "GRUCell": _recurrent(
        Layout(
            "bias_ih",
            lambda ours, hidden, shape: np.stack([_gru(ours), _gru(hidden)]),
            second="bias_hh",
        ),
        arrange=_gru,
    ),
    # Of an attention: the projections into heads, and the one out of them.
    "projection": {
        "kernel": (Layout("weight", lambda it, shape: it.T.reshape(it.shape[1], *shape[1:])),),
        "bias": (Layout("bias", lambda it, shape: it.reshape(shape)),),
    },
    "output projection": {
        "kernel": (Layout("weight", lambda it, shape: it.T.reshape(*shape[:-1], len(it))),),
        "bias": _BIAS,
    },
}
"""By kind of a Keras part and name of its variable, the possible layouts."""

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


def in_torch_layout(ours: Array, theirs: Array) -> Array:
    """Convert Keras's output to the layout of PyTorch's: channels first if that fits better."""
    moved = np.moveaxis(theirs, -1, 1) if theirs.ndim > 2 else theirs
    if moved.shape == ours.shape != theirs.shape:
        return moved
    as_it_is = relative_difference(ours, theirs) <= relative_difference(ours, moved)
    return theirs if as_it_is and theirs.shape == ours.shape else moved


def torch_layouts(theirs: Array, orders: Iterable[Order | None]) -> Iterator[Array]:
    """Yield Keras's `(N, ..., C)`, or `(N, F)` in any of the orders, in each layout of PyTorch."""
    if theirs.ndim == 2:
        for order in orders:
            yield theirs[:, np.argsort(channels_last(order))] if order else theirs
        return
    yield theirs
    if theirs.ndim > 2:
        yield np.moveaxis(theirs, -1, 1)
        yield theirs.swapaxes(0, 1)  # steps before examples


def is_close(ours: Array, theirs: Array, tolerance: float) -> bool:
    """Return whether two arrays have the same values in the same order, whatever their shapes."""
    return relative_difference(ours.ravel(), theirs.ravel()) <= tolerance
