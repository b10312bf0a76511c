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
    if softmax:
        labels = keras.utils.to_categorical(labels)
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
            keras.losses.CategoricalCrossentropy()
            if softmax
            else keras.losses.SparseCategoricalCrossentropy(from_logits=True),
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


def halving(interval: Literal["epoch", "step"]) -> dict[str, Any]:
    return {
        "lr_scheduler": lambda optimizer: ExponentialLR(optimizer, 0.5),
        "lr_scheduler_interval": interval,
    }


def small(**options: Any) -> models.MLP:
    return models.MLP([16], **{"optimizer": adam, "initialization": "keras", **options})


def small_twin(**options: Any) -> Any:
    return twins.mlp([16], **options)


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("interval", ["epoch", "step"])
def test_a_schedule_changes_the_rate_at_each_step_or_epoch(
    interval: Literal["epoch", "step"], steps: int
) -> None:
    logger = Recording()
    model = make(lambda: small(**halving(interval), steps_per_execution=steps))
    train(model, logger=logger, log_every_n_steps=2)
    rates = [0.001 * 0.5 ** (step // 7 if interval == "epoch" else step) for step in range(14)]
    theirs, _ = plain_keras(small_twin, KERAS[adam], rate=lambda step: rates[step])
    assert_equal(model.keras_model, theirs)
    logged = logger.series("train/learning_rate_step")
    assert logged == [(step, pytest.approx(rates[step])) for step in range(1, 14, 2)]


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("policy", ["float64", "mixed_float16", "mixed_bfloat16"])
def test_the_weights_are_bit_equal_in_each_policy(policy: Policy, steps: int) -> None:
    options = {**halving("step"), "steps_per_execution": steps}
    model = make(lambda: models.LeNet5(optimizer=adam, **options), policy=policy, copy_weights=False)
    train(model)
    theirs, _ = plain_keras(
        twins.lenet5, KERAS[adam], policy=policy, rate=lambda step: 0.001 * 0.5**step
    )
    assert theirs.layers[1].compute_dtype == policy.removeprefix("mixed_")
    assert_equal(model.keras_model, theirs)


def test_a_softmax_output_is_trained_as_a_plain_keras_program_does() -> None:
    model = make(lambda: small(steps_per_execution=3), output="softmax")
    fitted = train(model)
    theirs, logs = plain_keras(lambda: small_twin(softmax=True), KERAS[adam], 3, softmax=True)
    assert_equal(model.keras_model, theirs)
    scores = {name: value.item() for name, value in fitted.callback_metrics.items()}
    assert scores["train/accuracy"] == pytest.approx(logs[-1]["accuracy"], rel=1e-6)
    assert scores["train/loss"] == pytest.approx(logs[-1]["loss"], rel=1e-6)  # Keras's is float32


def test_gradients_are_clipped_to_a_norm() -> None:
    model = make(lambda: small(gradient_clip_norm=0.05))
    train(model)
    theirs, _ = plain_keras(small_twin, lambda of: of.Adam(0.001, global_clipnorm=0.05))
    assert_equal(model.keras_model, theirs)
    unclipped, _ = plain_keras(small_twin, KERAS[adam])
    assert not np.array_equal(arrays(theirs)[0], arrays(unclipped)[0])


def test_training_starts_from_the_originals_weights_unless_keras_draws_its_own() -> None:
    original = models.MLP([16])
    model = make(lambda: original)
    fc1 = dict(model.named_weights())["fc1/kernel"]
    torch.testing.assert_close(fc1, original.network.fc1.weight.detach().T, rtol=0, atol=0)
    theirs = make(small), make(small, copy_weights=True)
    kernels = [dict(it.named_weights())["fc1/kernel"] for it in theirs]
    assert not torch.equal(*kernels)


def test_one_seed_gives_the_same_run_and_leaves_the_random_numbers_alone() -> None:
    import random

    seed_everything(SEED, verbose=False)
    state = random.getstate()
    ours = KerasClassifier(small())
    assert random.getstate() == state
    random.random()
    assert_equal(ours.keras_model, KerasClassifier(small()).keras_model)


@pytest.mark.parametrize("steps", [1, 3])
def test_max_steps_and_limits_stop_inside_a_block(steps: int) -> None:
    model = make(lambda: small(steps_per_execution=steps))
    fitted = train(model, max_steps=11)
    assert fitted.global_step == 11
    limited = make(lambda: small(steps_per_execution=steps))
    assert train(limited, limit_train_batches=4, max_epochs=1).global_step == 4
    one_by_one = make(small)
    train(one_by_one, max_steps=11)
    assert_equal(model.keras_model, one_by_one.keras_model)


def test_a_plateau_scheduler_waits_for_the_validation() -> None:
    plateau = {"lr_scheduler": lambda of: ReduceLROnPlateau(of, "max", factor=0.1, patience=0)}
    model = make(lambda: small(**plateau, steps_per_execution=3))  # the loss falls, so at once
    fitted = train(model, max_epochs=3)
    assert fitted.optimizers[0].param_groups[0]["lr"] == pytest.approx(1e-5)
    rates = [0.001] * 14 + [0.0001] * 7
    theirs, _ = plain_keras(small_twin, KERAS[adam], rate=lambda step: rates[step], epochs=3)
    assert_equal(model.keras_model, theirs)


class Curves(Callback):
    """Keeps the scores of each epoch."""

    def __init__(self) -> None:
        self.train: list[Any] = []
        self.val: list[Any] = []

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, Classifier)
        self.val.append(pl_module.epoch_score("val"))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, Classifier)
        self.train.append(pl_module.epoch_score("train"))


@pytest.mark.parametrize("steps", [1, 3])
def test_scores_are_those_that_keras_reports(steps: int) -> None:
    curves, logger = Curves(), Recording()
    model = make(lambda: small(steps_per_execution=steps))
    train(model, curves, logger=logger, log_every_n_steps=3)
    theirs, logs = plain_keras(small_twin, KERAS[adam], steps)
    for score, expected in zip(curves.train, logs, strict=True):
        assert score["n"] == tiny.TRAIN_SIZE
        assert score["correct"] == round(expected["accuracy"] * tiny.TRAIN_SIZE)
        assert score["loss"] == pytest.approx(expected["loss"], rel=1e-6)  # Keras's is float32
    images = (tiny.TEST[0][..., None] / np.float32(255)).astype(np.float32)
    loss, accuracy = theirs.evaluate(images, tiny.TEST[1], verbose=0)
    assert curves.val[-1]["correct"] == round(accuracy * tiny.TEST_SIZE)
    assert curves.val[-1]["loss"] == pytest.approx(loss, rel=1e-6)  # Keras's is float32
    assert [step for step, _ in logger.series("train/loss_step")] == [2, 5, 8, 11]
    first, *_ = (value for _, value in logger.series("train/loss_step"))
    losses = [log["loss"] for log in plain_batches(3)]
    assert first == pytest.approx(np.mean(losses), rel=1e-6)  # Keras's is float32


def plain_batches(count: int) -> list[dict[str, float]]:
    """Reference: what Keras's `train_on_batch` says of the first batches, one by one."""
    keras = import_keras()
    keras.utils.set_random_seed(SEED)
    model = small_twin()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.001), loss, metrics=["accuracy"])
    order = np.random.default_rng([SEED, 0]).permutation(tiny.TRAIN_SIZE).reshape(-1, 8)
    logs = []
    for batch in np.split(order[: 4 * count].ravel(), count):
        images = (tiny.TRAIN[0][batch][..., None] / np.float32(255)).astype(np.float32)
        model.reset_metrics()
        labels = tiny.TRAIN[1][batch].astype(np.int64)
        logs.append(model.train_on_batch(images, labels, return_dict=True))
    return logs
