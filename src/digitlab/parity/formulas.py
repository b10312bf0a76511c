"""The optimizers' formulas in NumPy, written from Keras 3's, which both frameworks are held to."""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from digitlab.parity.weights import Array


def sgd(
    weights: Array,
    gradients: Iterable[Array],
    learning_rate: float,
    momentum: float = 0.0,
    nesterov: bool = False,
) -> Iterator[Array]:
    """Yield the weights after each step of gradient descent.

    Args:
        weights: Float64, of any shape.
        gradients: One for each step, each of the weights' shape.
        learning_rate: Learning rate.
        momentum: Decay rate of the velocity. As everywhere here where it is said so, Keras rounds
            it to float32, for its TensorFlow backend makes a Python number a float32 tensor first.
        nesterov: Whether to step as if the velocity were a step further.

    Examples:
        >>> [w.tolist() for w in sgd(np.ones(1), [np.ones(1)] * 2, 0.5, momentum=0.5)]
        [[0.5], [-0.25]]
    """
    momentum = _float32(momentum)
    velocity = np.zeros_like(weights)
    for gradient in gradients:
        velocity = momentum * velocity - learning_rate * gradient
        step = momentum * velocity - learning_rate * gradient if nesterov else velocity
        weights = weights + step
        yield weights


def adam(
    weights: Array,
    gradients: Iterable[Array],
    learning_rate: float,
    beta_1: float,
    beta_2: float,
    epsilon: float,
    amsgrad: bool = False,
    weight_decay: float = 0.0,
) -> Iterator[Array]:
    """Yield the weights after each step of Adam, whose epsilon is the paper's "epsilon hat".

    Args:
        weights: Float64, of any shape.
        gradients: One for each step, each of the weights' shape.
        learning_rate: Learning rate.
        beta_1: Decay rate of the mean; rounded to float32 in the correction of the bias alone.
        beta_2: Decay rate of the mean square; rounded as `beta_1`.
        epsilon: Beside the root.
        amsgrad: Whether to divide by the largest mean square so far.
        weight_decay: Share of the weights that a step takes from them before, times the learning
            rate; rounded to float32.
    """
    mean, square, largest = (np.zeros_like(weights) for _ in range(3))
    for step, gradient in enumerate(gradients, start=1):
        weights = weights * (1 - learning_rate * _float32(weight_decay))
        mean = beta_1 * mean + (1 - beta_1) * gradient
        square = beta_2 * square + (1 - beta_2) * gradient**2
        largest = np.maximum(largest, square)
        correction = np.sqrt(1 - _float32(beta_2) ** step) / (1 - _float32(beta_1) ** step)
        root = np.sqrt(largest if amsgrad else square)
        weights = weights - learning_rate * correction * mean / (root + epsilon)
        yield weights


def rmsprop(
    weights: Array,
    gradients: Iterable[Array],
    learning_rate: float,
    rho: float,
    epsilon: float,
    momentum: float = 0.0,
    centered: bool = False,
    weight_decay: float = 0.0,
) -> Iterator[Array]:
    """Yield the weights after each step of RMSprop, whose epsilon is under the root.

    Args:
        weights: Float64, of any shape.
        gradients: One for each step, each of the weights' shape.
        learning_rate: Learning rate.
        rho: Decay rate of the mean square.
        epsilon: Under the root.
        momentum: Decay rate of the velocity.
        centered: Whether to divide by the standard deviation instead of the root mean square.
        weight_decay: As for `adam`.
    """
    mean, square, velocity = (np.zeros_like(weights) for _ in range(3))
    for gradient in gradients:
        weights = weights * (1 - learning_rate * _float32(weight_decay))
        mean = rho * mean + (1 - rho) * gradient
        square = rho * square + (1 - rho) * gradient**2
        variance = square - mean**2 if centered else square
        velocity = momentum * velocity + learning_rate * gradient / np.sqrt(variance + epsilon)
        weights = weights - velocity
        yield weights


FORMULAS: dict[str, Any] = {"SGD": sgd, "Adam": adam, "AdamW": adam, "RMSprop": rmsprop}
"""By the name of Keras's class; the arguments after the first two are those of Keras."""


def _float32(value: float) -> float:
    return float(np.float32(value))
