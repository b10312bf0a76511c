"""A Keras twin in Lightning's Trainer trains the weights of a plain Keras program, bit for bit."""

from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from lightning import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import EMAWeightAveraging, StochasticWeightAveraging
from numpy.typing import NDArray
from torch.optim.lr_scheduler import ExponentialLR, OneCycleLR, ReduceLROnPlateau

from digitlab import models
from digitlab.classifier import Classifier
from digitlab.parity import twins
from digitlab.parity.backend import Policy, import_keras, keras_dtype
from digitlab.parity.keras_module import KerasClassifier, KerasFiles
from digitlab.parity.network import load_keras_model
from tests import tiny
from tests.fitting import Recording, trainer
from tests.tiny import TinyDataModule

pytestmark = [
    pytest.mark.skipif(not find_spec("tensorflow"), reason="needs the extra `parity`"),
    pytest.mark.xdist_group("keras"),
]

SEED = 3
EPOCHS = 2
Arrays = list[NDArray[Any]]


def plain_keras(
    build: Callable[[], Any],
    optimizer: Callable[[Any], Any],
    steps_per_execution: int = 1,
    policy: Policy = "float32",
    rate: Callable[[int], float] | None = None,
    initial: Arrays | None = None,
    softmax: bool = False,
    epochs: int = EPOCHS,
) -> tuple[Any, list[dict[str, float]]]:
    """Reference: a program in Keras alone, on the same images in the same order.

    Returns:
        The model, and each epoch's logs.
    """
    keras = import_keras()
    images, labels = tiny.TRAIN
    images = (images[..., None] / np.float32(255)).astype(np.float32)
    labels = labels.astype(np.int64)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    if softmax:
        labels = keras.utils.to_categorical(labels)
        loss = keras.losses.CategoricalCrossentropy()
    callbacks = []
    step = -1

    def change_rate(batch: int, logs: Any) -> None:
        nonlocal step
        step += 1
        model.optimizer.learning_rate = rate(step)  # type: ignore[misc]

    if rate:
        callbacks = [keras.callbacks.LambdaCallback(on_train_batch_begin=change_rate)]
    with keras_dtype(policy):
        keras.utils.set_random_seed(SEED)
        model = build()
        if initial:
            model.set_weights(initial)
        model.compile(
            optimizer(keras.optimizers),
            loss,
            metrics=["accuracy"],
            steps_per_execution=steps_per_execution,
        )
        logs = []
        for epoch in range(epochs):
            order = np.random.default_rng([SEED, epoch]).permutation(len(labels))
            options = {"batch_size": 32, "shuffle": False, "verbose": 0, "callbacks": callbacks}
            fitted = model.fit(images[order], labels[order], **options)
            logs.append({name: values[0] for name, values in fitted.history.items()})
    return model, logs


def make(original: Callable[[], Classifier], **options: Any) -> KerasClassifier:
    seed_everything(SEED, verbose=False)
    return KerasClassifier(original(), **options)


def train(model: KerasClassifier, *callbacks: Callback, **options: Any) -> Trainer:
    settings = {"max_epochs": EPOCHS, "callbacks": list(callbacks), **options}
    fitted = trainer(**settings)
    fitted.fit(model, TinyDataModule())
    return fitted


def arrays(keras_model: Any) -> Arrays:
    """Weights, seeds of dropout, and what the optimizer keeps."""
    return [np.array(v.numpy()) for v in (*keras_model.variables, *keras_model.optimizer.variables)]


def assert_equal(ours: Any, theirs: Any) -> None:
    for left, right in zip(arrays(ours), arrays(theirs), strict=True):
        np.testing.assert_array_equal(left, right)


def adam(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=0.001, eps=1e-7)


def rmsprop(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.RMSprop(parameters, lr=0.001, alpha=0.9, eps=1e-7)


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.01, momentum=0.5)


KERAS: dict[Any, Callable[[Any], Any]] = {
    adam: lambda optimizers: optimizers.Adam(0.001),
    rmsprop: lambda optimizers: optimizers.RMSprop(0.001),
    sgd: lambda optimizers: optimizers.SGD(0.01, momentum=0.5),
}
# Each architecture with the optimizer that its document trains it with.
CASES: dict[str, tuple[type[Classifier], dict[str, Any], Callable[..., Any], Any]] = {
    "linear": (models.LinearClassifier, {}, twins.linear_classifier, sgd),
    "mlp": (models.MLP, {"hidden_features": [24, 16]}, twins.mlp, rmsprop),
    "lenet5": (models.LeNet5, {}, twins.lenet5, adam),
    "lenet1": (models.LeNet1, {"padding": "same"}, twins.lenet1, adam),
    "example": (models.PyTorchExampleNet, {}, twins.pytorch_example_net, sgd),
    "tutorial": (models.TensorFlowTutorialCNN, {}, twins.tensorflow_tutorial_cnn, sgd),
    "fast": (models.FastCNN, {}, twins.fast_cnn, adam),
}


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("case", CASES)
def test_the_weights_are_those_of_a_plain_keras_program(case: str, steps: int) -> None:
    kind, settings, twin, optimizer = CASES[case]
    model = make(
        lambda: kind(
            **settings, optimizer=optimizer, initialization="keras", steps_per_execution=steps
        )
    )
    train(model)
    theirs, _ = plain_keras(lambda: twin(**settings), KERAS[optimizer], steps)
    assert_equal(model.keras_model, theirs)
