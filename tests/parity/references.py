"""Independent references: the documents' shapes, optimizers in NumPy, a program in Keras alone."""

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

WEIGHTS: dict[str, dict[str, tuple[int, ...]]] = {
    "linear": {"fc1": (10, 784)},
    "mlp512": {"fc1": (512, 784), "fc2": (512, 512), "fc3": (10, 512)},
    "nn128": {"fc1": (128, 784), "fc2": (10, 128)},
    "lenet5": {
        **{"conv1": (6, 1, 5, 5), "conv2": (16, 6, 5, 5)},
        **{"fc1": (120, 400), "fc2": (84, 120), "fc3": (10, 84)},
    },
    "lenet1": {
        **{"conv1": (32, 1, 3, 3), "conv2": (64, 32, 3, 3), "conv3": (64, 64, 3, 3)},
        **{"fc1": (64, 1024), "fc2": (10, 64)},
    },
    "pytorch_example_net": {
        **{"conv1": (10, 1, 5, 5), "conv2": (20, 10, 5, 5)},
        **{"fc1": (50, 320), "fc2": (10, 50)},
    },
    "tensorflow_tutorial_cnn": {
        **{"conv1": (32, 1, 5, 5), "conv2": (64, 32, 5, 5)},
        **{"fc1": (1024, 3136), "fc2": (10, 1024)},
    },
    # In no document: from the description in its docstring.
    "fast_cnn": {
        **{"conv1": (16, 1, 5, 5), "conv2": (32, 16, 3, 3)},
        **{"fc1": (256, 800), "fc2": (10, 256)},
    },
}
"""Shape of each layer's weight as PyTorch lays it out: what the text of the documents says."""

TOTALS = {
    "linear": 7_850,
    "mlp512": 669_706,
    "nn128": 101_770,
    "lenet5": 61_706,
    "lenet1": 121_994,
    "pytorch_example_net": 21_840,
    "tensorflow_tutorial_cnn": 3_274_634,
    "fast_cnn": 212_682,
}
"""Number of parameters, as the documents print it."""


def documented_shapes(name: str) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor; each layer has a bias."""
    layers = WEIGHTS[name].items()
    return {f"{layer}.weight": shape for layer, shape in layers} | {
        f"{layer}.bias": shape[:1] for layer, shape in layers
    }


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
