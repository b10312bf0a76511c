"""A Keras twin in Lightning's Trainer trains the weights of a plain Keras program, bit for bit."""

import pickle
from collections.abc import Callable
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import EMAWeightAveraging, StochasticWeightAveraging
from numpy.typing import NDArray
from torch.optim.lr_scheduler import ExponentialLR, OneCycleLR, ReduceLROnPlateau

from digitlab import models
from digitlab.callbacks import ExactResume
from digitlab.callbacks.logging import named_weights
from digitlab.classifier import Classifier
from digitlab.data import Augmentation
from digitlab.parity import twins
from digitlab.parity.keras_module import KerasClassifier
from tests import tiny
from tests.fitting import Recording, checkpoint_of, trainer
from tests.parity.references import EPOCHS, SEED, plain_keras
from tests.tiny import TinyDataModule

Arrays = list[NDArray[Any]]


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
    np.testing.assert_equal(arrays(ours), arrays(theirs))


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


SLOW = pytest.mark.slow
# Dense layers with dropout one by one; convolutions, and dropout of channels, in blocks.
DEFAULT = [("mlp", 1), ("lenet5", 3), ("example", 3)]
OTHERS = [pytest.param(case, 3, marks=SLOW) for case in CASES if (case, 3) not in DEFAULT]


@pytest.mark.parametrize(("case", "steps"), [*DEFAULT, *OTHERS])
def test_the_weights_are_those_of_a_plain_keras_program(case: str, steps: int) -> None:
    kind, settings, twin, optimizer = CASES[case]
    options = {"initialization": "keras", "steps_per_execution": steps, **settings}
    model = make(lambda: kind(optimizer=optimizer, **options))
    train(model)
    theirs, _ = plain_keras(lambda: twin(**settings), KERAS[optimizer], steps)
    assert_equal(model.keras_model, theirs)


def test_both_frameworks_train_on_the_same_augmented_images() -> None:
    original = models.LinearClassifier(optimizer=sgd, steps_per_execution=3)
    kernels: list[NDArray[Any]] = []
    for augmentation in (Augmentation(shift=2, flip=True, erase=0.5), None):
        for model in (KerasClassifier(original, "float64"), deepcopy(original)):
            seed_everything(SEED, verbose=False)
            of_keras = isinstance(model, KerasClassifier)
            fitted = trainer(max_epochs=EPOCHS, precision="32-true" if of_keras else "64-true")
            fitted.fit(model, TinyDataModule(augmentation=augmentation))
            kernel, _ = (weight.numpy(force=True) for _, weight in named_weights(model))
            kernels.append(kernel if of_keras else kernel.T)
    for ours, theirs in (kernels[:2], kernels[2:]):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-13)  # sums in another order
    assert np.abs(kernels[0] - kernels[2]).max() > 1e-3  # than without


def halving(interval: str) -> dict[str, Any]:
    return {
        "lr_scheduler": lambda optimizer: ExponentialLR(optimizer, 0.5),
        "lr_scheduler_interval": interval,
    }


def small(**options: Any) -> models.MLP:
    return models.MLP([16], **{"optimizer": adam, "initialization": "keras", **options})


def small_twin(**options: Any) -> Any:
    return twins.mlp([16], **options)


@cache
def plain_small() -> tuple[Any, list[dict[str, float]]]:
    """The plain program of `small`, step by step."""
    return plain_keras(small_twin, KERAS[adam])


EACH_STEP = [0.001 * 0.5**step for step in range(14)]
EACH_EPOCH = [0.001] * 7 + [0.0005] * 7
BLOCKS = {"steps_per_execution": 3}
BY_STEP, BY_EPOCH = halving("step"), halving("epoch")
# The validation loss falls: in mode "max", the first one later is a plateau.
PLATEAU = {"lr_scheduler": lambda of: ReduceLROnPlateau(of, "max", factor=0.1, patience=0)}
HALF, BRAIN, DOUBLE = ({"policy": name} for name in ("mixed_float16", "mixed_bfloat16", "float64"))
Variant = tuple[dict[str, Any], dict[str, Any], dict[str, Any]]
VARIANTS: dict[str, Variant] = {  # of the model, the twin and the plain program
    "a schedule by steps, in blocks": (BY_STEP | BLOCKS, {}, {"rates": EACH_STEP}),
    "a plateau": (PLATEAU | BLOCKS, {}, {"rates": [0.001] * 14 + [0.0001] * 7, "epochs": 3}),
    "a softmax": (BLOCKS, {"output": "softmax"}, {"softmax": True, **BLOCKS}),
    "a clipped norm": ({"gradient_clip_norm": 0.05}, {}, {"clip": 0.05}),
}
MORE: dict[str, Variant] = {
    "mixed_float16": (BY_STEP | BLOCKS, HALF, {"rates": EACH_STEP, **HALF}),
    "a schedule by epochs, step by step": (BY_EPOCH, {}, {"rates": EACH_EPOCH}),
    "a schedule by epochs, in blocks": (BY_EPOCH | BLOCKS, {}, {"rates": EACH_EPOCH}),
    "a schedule by steps, step by step": (BY_STEP, {}, {"rates": EACH_STEP}),
    "float64": (BY_STEP | BLOCKS, DOUBLE, {"rates": EACH_STEP, **DOUBLE}),
    "mixed_bfloat16": (BY_STEP | BLOCKS, BRAIN, {"rates": EACH_STEP, **BRAIN}),
}


@pytest.mark.parametrize(
    ("of_model", "of_twin", "of_plain"),
    [
        *(pytest.param(*variant, id=name) for name, variant in VARIANTS.items()),
        *(pytest.param(*variant, id=name, marks=SLOW) for name, variant in MORE.items()),
    ],
)
def test_each_setting_changes_the_weights_as_in_a_plain_keras_program(
    of_model: dict[str, Any], of_twin: dict[str, Any], of_plain: dict[str, Any]
) -> None:
    plain = {"softmax": False, "policy": "float32", "epochs": EPOCHS, **of_plain}
    clip, softmax = plain.pop("clip", None), plain["softmax"]
    theirs, logs = plain_keras(
        lambda: small_twin(softmax=softmax),
        lambda optimizers: optimizers.Adam(0.001, global_clipnorm=clip),
        **plain,
    )
    logger, model = Recording(), make(lambda: small(**of_model), **of_twin)
    fitted = train(model, max_epochs=plain["epochs"], logger=logger, log_every_n_steps=2)
    assert theirs.layers[1].compute_dtype == plain["policy"].removeprefix("mixed_")
    assert_equal(model.keras_model, theirs)
    if not softmax:
        assert not np.array_equal(arrays(theirs)[0], arrays(plain_small()[0])[0])
    scores = fitted.callback_metrics
    if plain["policy"] == "float32":
        assert scores["train/accuracy"].item() == pytest.approx(logs[-1]["accuracy"], rel=1e-6)
        # Keras's loss is float32.
        assert scores["train/loss"].item() == pytest.approx(logs[-1]["loss"], rel=1e-6)
    if rates := plain.get("rates"):
        logged = logger.series("train/learning_rate_step")
        assert [step for step, _ in logged] == list(range(1, len(rates), 2))
        assert [rate for _, rate in logged] == pytest.approx(rates[1::2])


def decayed(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=0.001, eps=1e-7, weight_decay=0.3)


@pytest.mark.parametrize("steps", [1, 3])
def test_averages_and_the_decay_of_kernels_alone_are_those_of_a_plain_keras_program(
    steps: int,
) -> None:
    def optimizer(optimizers: Any) -> Any:
        made = optimizers.AdamW(0.001, weight_decay=0.3, use_ema=True, ema_momentum=0.8)
        made.exclude_from_weight_decay(var_names=["bias"])
        return made

    theirs, _ = plain_keras(small_twin, optimizer, steps, epochs=1)
    options = {"average_decay": 0.8, "decay_kernels_only": True, "steps_per_execution": steps}
    model = make(lambda: small(optimizer=decayed, **options))
    fitted = train(model, max_epochs=1)
    images = (tiny.TEST[0][..., None] / np.float32(255)).astype(np.float32)
    loss, _ = theirs.evaluate(images, tiny.TEST[1], verbose=0)  # of the averages
    assert fitted.callback_metrics["val/loss"] == pytest.approx(loss, rel=1e-6)
    for ours, expected in zip(model.keras_model.variables, theirs.variables, strict=True):
        np.testing.assert_array_equal(ours.numpy(), expected.numpy())
    without, _ = plain_keras(small_twin, KERAS[adam], steps, epochs=1)
    assert not np.array_equal(arrays(theirs)[0], arrays(without)[0])


def test_training_starts_from_the_originals_weights_unless_keras_draws_its_own() -> None:
    original = models.MLP([16])
    model = make(lambda: original)
    fc1 = dict(model.named_weights())["fc1/kernel"]
    assert torch.equal(fc1, original.state_dict()["network.fc1.weight"].T)
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


def test_max_steps_and_limits_stop_inside_a_block() -> None:
    model = make(lambda: small(steps_per_execution=3))
    fitted = train(model, max_steps=11)
    assert fitted.global_step == 11
    limited = make(lambda: small(steps_per_execution=3))
    fitted = train(limited, limit_train_batches=4, max_epochs=1)
    assert (fitted.global_step, fitted.is_last_batch) == (4, True)
    one_by_one = make(small)
    train(one_by_one, max_steps=11)
    assert_equal(model.keras_model, one_by_one.keras_model)


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


@pytest.mark.parametrize("steps", [pytest.param(1, marks=SLOW), 3])
def test_scores_are_those_that_keras_reports(steps: int) -> None:
    curves, logger = Curves(), Recording()
    model = make(lambda: small(steps_per_execution=steps))
    train(model, curves, logger=logger, log_every_n_steps=3)
    theirs, logs = plain_small()
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
    cut, _ = np.split(np.random.default_rng([SEED, 0]).permutation(tiny.TRAIN_SIZE), [3 * 32])
    _, (of_three,) = plain_keras(small_twin, KERAS[adam], epochs=1, indices=cut)
    assert first == pytest.approx(of_three["loss"], rel=1e-6)  # Keras's is float32


class KilledError(Exception):
    """Ends a fit as nothing foreseen would."""


class KillAfter(Callback):
    """Saves a checkpoint once a step is reached, after its block or epoch, and ends the fit."""

    def __init__(self, step: int, path: Path) -> None:
        self.step = step
        self.path = path

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        if not trainer.is_last_batch:
            self.on_train_epoch_end(trainer)

    def on_train_epoch_end(self, trainer: Trainer, *args: Any) -> None:
        if trainer.global_step >= self.step:
            trainer.save_checkpoint(self.path)
            raise KilledError


# In an epoch, at its end, in another.
@pytest.mark.parametrize(
    ("steps", "killed_at", "decay"),
    [
        *((1, 7, None), (3, 11, 0.8)),
        *(pytest.param(*it, 0.8, marks=SLOW) for it in [(1, 2), (1, 11), (3, 2), (3, 7)]),
    ],
)
def test_a_killed_run_resumes_exactly(
    tmp_path: Path, steps: int, killed_at: int, decay: float | None
) -> None:
    options = {**halving("step"), "steps_per_execution": steps, "average_decay": decay}
    path = tmp_path / "last.ckpt"
    straight, straight_curves = make(lambda: small(**options)), Curves()
    train(straight, straight_curves, ExactResume(), max_epochs=3)
    with pytest.raises(KilledError):
        train(
            make(lambda: small(**options)), ExactResume(), KillAfter(killed_at, path), max_epochs=3
        )
    seed_everything(99, verbose=False)  # so that only the checkpoint tells weights and masks
    fresh, curves = KerasClassifier(small(**options)), Curves()
    seed_everything(SEED, verbose=False)
    resumed = trainer(max_epochs=3, callbacks=[ExactResume(), curves])
    resumed.fit(fresh, TinyDataModule(), ckpt_path=path, weights_only=True)
    assert resumed.global_step == 21
    assert_equal(fresh.keras_model, straight.keras_model)
    assert curves.train == straight_curves.train[-len(curves.train) :]
    assert curves.val[-1] == straight_curves.val[-1]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, tiny_for_module: None) -> Path:
    """Of `small` after two steps."""
    path = tmp_path_factory.mktemp("small") / "last.ckpt"
    train(make(small), max_steps=2).save_checkpoint(path)
    return path


def test_a_checkpoint_of_a_pytorch_run_is_refused(tmp_path: Path) -> None:
    path = checkpoint_of(small(), tmp_path / "last.ckpt")
    with pytest.raises(ValueError, match="not of a Keras run: resume a run in the framework"):
        trainer().fit(make(small), TinyDataModule(), ckpt_path=path, weights_only=True)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (lambda: models.MLP([17]), r"model variables have shapes .*\(784, 16\).* this MLP"),
        (lambda: models.MLP([16], optimizer=sgd), "optimizer variables have shapes"),
        (models.LinearClassifier, "model variables have shapes .* this LinearClassifier"),
    ],
    ids=["width", "optimizer", "architecture"],
)
def test_a_checkpoint_of_another_model_is_refused(
    other: Callable[[], Classifier], message: str, checkpoint: Path
) -> None:
    model = make(other)
    before = arrays(model.keras_model)
    with pytest.raises(ValueError, match=message):
        trainer().fit(model, TinyDataModule(), ckpt_path=checkpoint, weights_only=True)
    np.testing.assert_equal(arrays(model.keras_model), before)


class OwnStart(models.MLP):
    keras_twin = "digitlab.parity.twins.mlp"

    def on_train_epoch_start(self) -> None:
        """Is not called."""


class SeesGradients(Callback):
    def on_after_backward(self, *args: Any) -> None:
        """Is not called."""


Refusal = tuple[Callable[[], Classifier], dict[str, Any], str]
REFUSED: dict[str, Refusal] = {  # the model and the trainer's settings
    "hook": (OwnStart, {}, "OwnStart has its own on_train_epoch_start, .* leave it out"),
    "optimizer": (lambda: small(optimizer=torch.optim.LBFGS), {}, "optimizer is LBFGS"),
    "clipping": (small, {"gradient_clip_val": 1.0}, "gradient_clip_val 1.0 .*s gradient_clip_norm"),
    "batches": (small, {"accumulate_grad_batches": 2}, "accumulate_grad_batches 2 .* larger batch"),
    "precision": (small, {"precision": "bf16-true"}, "precision bf16-true .* use one of 32-true"),
    "policy": (small, {"precision": "bf16-mixed"}, r'precision bf16-mixed .* policy="mixed_bfloa'),
    "averaging": (small, {"callbacks": [StochasticWeightAveraging(0.1)]}, "StochasticWeightAverag"),
    "ema": (small, {"callbacks": [EMAWeightAveraging()]}, "EMAWeightAveraging .* leave the callb"),
    "callback": (small, {"callbacks": [SeesGradients()]}, "SeesGradients.on_after_backward .* no"),
    "block": (
        lambda: small(steps_per_execution=3),
        {"val_check_interval": 0.5},
        "set steps_per_execution to 1",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_keras_cannot_do_is_refused_before_anything_is_trained(case: str) -> None:
    original, settings, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        make(original).check_supported(trainer(**settings))


def test_a_fit_itself_refuses_what_keras_cannot_do() -> None:
    with pytest.raises(ValueError, match="is not supported by a Keras model"):
        train(make(small), SeesGradients())


def test_a_schedule_of_the_momentum_is_refused() -> None:
    def one_cycle(cycle_momentum: bool) -> dict[str, Any]:
        return {
            "lr_scheduler": lambda optimizer: OneCycleLR(
                optimizer, max_lr=0.01, total_steps=14, cycle_momentum=cycle_momentum
            ),
            "lr_scheduler_interval": "step",
        }

    with pytest.raises(ValueError, match=r"cycle_momentum True: .* set cycle_momentum to false"):
        train(make(lambda: small(**one_cycle(True))))
    assert train(make(lambda: small(**one_cycle(False))), max_steps=1).global_step == 1


@pytest.mark.parametrize(
    "copy", [deepcopy, pytest.param(lambda model: pickle.loads(pickle.dumps(model)), marks=SLOW)]
)
def test_a_model_is_copied_and_pickled_with_its_state(
    copy: Callable[[KerasClassifier], KerasClassifier],
) -> None:
    model = make(small, output="softmax")
    train(model, max_steps=2)
    twin, before = copy(model), arrays(model.keras_model)
    assert_equal(twin.keras_model, model.keras_model)
    train(twin, max_steps=3)
    np.testing.assert_equal(arrays(model.keras_model), before)
    train(model, max_steps=3)
    assert_equal(twin.keras_model, model.keras_model)
    assert (twin.output, twin.state_dict().keys()) == ("softmax", model.state_dict().keys())


def test_the_names_of_a_run_are_the_originals() -> None:
    model = make(lambda: models.MLP([16], dropout=0.3))
    assert (model.framework, model.architecture) == ("keras", "MLP")
    assert model.hparams["hidden_features"] == [16]
    assert model.hparams["dropout"] == 0.3
    assert "original" not in model.hparams
