"""Independent references: optimizers in NumPy, and a program in Keras alone."""

from collections.abc import Callable, Sequence
from inspect import signature
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from digitlab.parity.backend import Policy, import_keras, keras_dtype
from digitlab.parity.optimizers import KerasAdam, KerasRMSprop
from tests import tiny

Array = NDArray[Any]


def sgd(
    weight: Array, gradients: Sequence[Array], lr: float, momentum: float, nesterov: bool
) -> Array:
    """Gradient descent as Keras has it, whose velocity contains the learning rate."""
    momentum, velocity = float(np.float32(momentum)), np.zeros_like(weight)
    for gradient in gradients:
        velocity = momentum * velocity - lr * gradient
        weight = weight + (momentum * velocity - lr * gradient if nesterov else velocity)
    return weight


def adam(
    weight: Array,
    gradients: Sequence[Array],
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    amsgrad: bool,
) -> Array:
    """Kingma and Ba's formula with "epsilon hat", its moments as sums over all gradients."""
    # What Keras rounds: the weight decay, and the betas in the bias correction alone.
    decay, *rounded = np.array([weight_decay, *betas], np.float32).astype(float)
    largest = np.zeros_like(weight)
    for t in range(1, len(gradients) + 1):
        ages = np.arange(t)[::-1]
        first, second = (
            np.tensordot((1 - beta) * beta**ages, np.stack(gradients[:t]) ** power, 1)
            for beta, power in zip(betas, (1, 2), strict=True)
        )
        largest = np.maximum(largest, second)
        size = lr * np.sqrt(1 - rounded[1] ** t) / (1 - rounded[0] ** t)
        root = np.sqrt(largest if amsgrad else second)
        weight = weight * (1 - lr * decay) - size * first / (root + eps)
    return weight


def rmsprop(
    weight: Array,
    gradients: Sequence[Array],
    lr: float,
    alpha: float,
    eps: float,
    weight_decay: float,
    momentum: float,
    centered: bool,
    year: int = 2025,
) -> Array:
    """Hinton's formula; in 2018, Keras had epsilon outside the root."""
    square, mean, increment = (np.zeros_like(weight) for _ in range(3))
    for gradient in gradients:
        square = square + (1 - alpha) * (gradient**2 - square)
        mean = mean + (1 - alpha) * (gradient - mean)
        variance = square - centered * mean**2
        root = np.sqrt(variance) + eps if year == 2018 else np.sqrt(variance + eps)
        increment = momentum * increment + lr * gradient / root
        weight = weight * (1 - lr * float(np.float32(weight_decay))) - increment
    return weight


FORMULAS: dict[type[torch.optim.Optimizer], Callable[..., Array]] = {
    torch.optim.SGD: sgd,
    torch.optim.Adam: adam,
    torch.optim.AdamW: adam,
    torch.optim.RMSprop: rmsprop,
    KerasAdam: adam,
    KerasRMSprop: rmsprop,
}


def in_numpy(
    optimizer: torch.optim.Optimizer,
    start: Sequence[Array],
    gradients: Sequence[Sequence[Array]],
    **others: Any,
) -> list[Array]:
    """The weights after all steps of Keras's formula with an optimizer's settings, in float64."""
    formula = FORMULAS[type(optimizer)]
    settings = {
        name: optimizer.defaults.get(name) for name in list(signature(formula).parameters)[2:]
    }
    settings = {name: value for name, value in settings.items() if value is not None} | others
    histories = zip(*gradients, strict=True)
    return [
        formula(weight, history, **settings)
        for weight, history in zip(start, histories, strict=True)
    ]


SEED = 3
EPOCHS = 2


def plain_keras(
    build: Callable[[], Any],
    optimizer: Callable[[Any], Any],
    steps_per_execution: int = 1,
    policy: Policy = "float32",
    rates: Sequence[float] = (),
    softmax: bool = False,
    epochs: int = EPOCHS,
    indices: NDArray[Any] | None = None,
) -> tuple[Any, list[dict[str, float]]]:
    """Reference: a program in Keras alone, on the same images in the same order.

    Returns:
        The model, and each epoch's logs.
    """
    keras = import_keras()
    images, labels = tiny.TRAIN
    images = (images[..., None] / np.float32(255)).astype(np.float32)
    labels = labels.astype(np.int64)
    if softmax:
        labels = keras.utils.to_categorical(labels)
    callbacks = []
    step = -1

    def change_rate(batch: int, logs: Any) -> None:
        nonlocal step
        step += 1
        model.optimizer.learning_rate = rates[step]

    if rates:
        callbacks = [keras.callbacks.LambdaCallback(on_train_batch_begin=change_rate)]
    with keras_dtype(policy):
        keras.utils.set_random_seed(SEED)
        model = build()
        model.compile(
            optimizer(keras.optimizers),
            keras.losses.CategoricalCrossentropy()
            if softmax
            else keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            metrics=["accuracy"],
            steps_per_execution=steps_per_execution,
        )
        logs = []
        for epoch in range(epochs):
            order = np.random.default_rng([SEED, epoch]).permutation(len(labels))
            order = order if indices is None else indices
            options = {"batch_size": 32, "shuffle": False, "verbose": 0, "callbacks": callbacks}
            fitted = model.fit(images[order], labels[order], **options)
            logs.append({name: values[0] for name, values in fitted.history.items()})
    return model, logs
