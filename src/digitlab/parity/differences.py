"""How far two arrays are apart, in any layout that PyTorch and Keras may have."""

from collections.abc import Iterable, Iterator

import numpy as np

from digitlab.parity.layouts import Array, Order, channels_last

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
    """Yield an array of Keras in each layout that it may have in PyTorch.

    Args:
        theirs: The array, `(N, ..., C)`.
        orders: The orders that the features of an array `(N, F)` may have.
    """
    if theirs.ndim == 2:
        for order in orders:
            yield theirs[:, np.argsort(channels_last(order))] if order else theirs
    else:
        yield theirs
    if theirs.ndim > 2:
        yield np.moveaxis(theirs, -1, 1)
        yield theirs.swapaxes(0, 1)  # steps before examples


def is_close(ours: Array, theirs: Array, tolerance: float) -> bool:
    """Return whether two arrays have the same values in the same order, whatever their shapes."""
    if ours.size != theirs.size:
        return False
    return relative_difference(ours.ravel(), theirs.ravel()) <= tolerance
