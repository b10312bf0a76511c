"""A Keras twin in Lightning's Trainer trains the weights of a plain Keras program, bit for bit."""

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from lightning import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import (
    EMAWeightAveraging,
    StochasticWeightAveraging,
)
from numpy.typing import NDArray
from torch.optim.lr_scheduler import ExponentialLR, OneCycleLR, ReduceLROnPlateau

from digitlab import models
from digitlab.callbacks import ExactResume
from digitlab.classifier import Classifier
from digitlab.parity import twins
from digitlab.parity.backend import Policy, import_keras, keras_dtype
from digitlab.parity.keras_files import KerasFiles, load_keras_model
from digitlab.parity.keras_module import KerasClassifier
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


@pytest.mark.parametrize(("case", "steps"), [*((case, 3) for case in CASES), ("mlp", 1)])
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
    assert [step for step, _ in logged] == list(range(1, 14, 2))
    assert [rate for _, rate in logged] == pytest.approx(rates[1::2])


@pytest.mark.parametrize("policy", ["float64", "mixed_float16", "mixed_bfloat16"])
def test_the_weights_are_bit_equal_in_each_policy(policy: Policy) -> None:
    model = make(lambda: small(**halving("step"), steps_per_execution=3), policy=policy)
    train(model)
    theirs, _ = plain_keras(
        small_twin, KERAS[adam], policy=policy, rate=lambda step: 0.001 * 0.5**step
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


@pytest.mark.parametrize("steps", [1, 3])
def test_max_steps_and_limits_stop_inside_a_block(steps: int) -> None:
    model = make(lambda: small(steps_per_execution=steps))
    fitted = train(model, max_steps=11)
    assert fitted.global_step == 11
    limited = make(lambda: small(steps_per_execution=steps))
    fitted = train(limited, limit_train_batches=4, max_epochs=1)
    assert (fitted.global_step, fitted.is_last_batch) == (4, True)
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


@pytest.mark.parametrize("killed_at", [2, 7, 11])  # in an epoch, at its end, in another
@pytest.mark.parametrize("steps", [1, 3])
def test_a_killed_run_resumes_exactly(tmp_path: Path, steps: int, killed_at: int) -> None:
    options = {**halving("step"), "steps_per_execution": steps}
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


def checkpoint_of(model: LightningModule, path: Path) -> Path:
    train(model, max_steps=2).save_checkpoint(path)  # type: ignore[arg-type]
    return path


def test_a_checkpoint_is_evaluated_by_another_process(tmp_path: Path) -> None:
    model = make(small)
    path = checkpoint_of(model, tmp_path / "last.ckpt")
    scores = trainer().validate(model, TinyDataModule(), verbose=False)
    others = trainer().validate(
        make(small), TinyDataModule(), ckpt_path=path, weights_only=True, verbose=False
    )
    assert others == scores


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
    other: Callable[[], Classifier], message: str, tmp_path: Path
) -> None:
    path = checkpoint_of(make(small), tmp_path / "last.ckpt")
    model = make(other)
    before = arrays(model.keras_model)
    with pytest.raises(ValueError, match=message):
        trainer().fit(model, TinyDataModule(), ckpt_path=path, weights_only=True)
    for ours, theirs in zip(before, arrays(model.keras_model), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_checkpoint_of_a_pytorch_run_is_refused(tmp_path: Path) -> None:
    path = checkpoint_of(small(), tmp_path / "last.ckpt")
    with pytest.raises(ValueError, match="not of a Keras run: resume a run in the framework"):
        trainer().fit(make(small), TinyDataModule(), ckpt_path=path, weights_only=True)


def test_other_programs_find_the_last_and_the_best_model(tmp_path: Path) -> None:
    model, curves = make(small), Curves()
    weights = []

    class Weights(Callback):
        def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
            weights.append(model.keras_model.get_weights())

    train(model, KerasFiles(tmp_path), curves, Weights(), max_epochs=4)
    accuracies = [score["accuracy"] for score in curves.val]
    expected = {"model.keras": weights[-1], "checkpoints/best.keras": weights[best(accuracies)]}
    for name, theirs in expected.items():
        for ours, their in zip(
            load_keras_model(tmp_path / name).get_weights(), theirs, strict=True
        ):
            np.testing.assert_array_equal(ours, their)
    assert len(list(tmp_path.rglob("*.keras"))) == 2  # and nothing that is half written


def best(accuracies: Sequence[float]) -> int:
    return accuracies.index(max(accuracies))


def test_a_resumed_run_knows_the_best_so_far(tmp_path: Path) -> None:
    files, again = KerasFiles(tmp_path), KerasFiles(tmp_path)
    train(make(small), files)
    again.load_state_dict(files.state_dict())
    written = (tmp_path / "checkpoints" / "best.keras").stat().st_mtime_ns
    untrained = make(lambda: small(optimizer=lambda p: torch.optim.SGD(p, lr=0.0)))
    train(untrained, again)
    assert (tmp_path / "checkpoints" / "best.keras").stat().st_mtime_ns == written


REFUSED_MODELS: dict[str, tuple[Callable[[], Classifier], str]] = {
    "smoothing": (lambda: small(label_smoothing=0.1), "label_smoothing is 0.1: .* set --model"),
    "dropout": (lambda: small(dropout_in_evaluation=True), "dropout_in_evaluation is True: .*"),
    "decay": (
        lambda: small(optimizer=lambda p: torch.optim.Adam(p, weight_decay=0.1)),
        "weight_decay is 0.1: Adam .* use AdamW",
    ),
    "optimizer": (lambda: small(optimizer=torch.optim.LBFGS), "optimizer is LBFGS"),
}


@pytest.mark.parametrize("case", REFUSED_MODELS)
def test_what_keras_cannot_do_is_refused_when_the_model_is_made(case: str) -> None:
    original, message = REFUSED_MODELS[case]
    with pytest.raises(ValueError, match=message):
        KerasClassifier(original())


def test_a_class_with_a_training_step_of_its_own_is_refused() -> None:
    class Own(models.MLP):
        keras_twin = "digitlab.parity.twins.mlp"

        def on_train_epoch_start(self) -> None:
            """Is not called."""

    with pytest.raises(ValueError, match=r"Own has its own on_train_epoch_start, .* leave it out"):
        KerasClassifier(Own())


class SeesGradients(Callback):
    def on_after_backward(self, *args: Any) -> None:
        """Is not called."""


REFUSED_SETTINGS: dict[str, tuple[dict[str, Any], str]] = {
    "clipping": ({"gradient_clip_val": 1.0}, "gradient_clip_val 1.0 .* model's gradient_clip_norm"),
    "batches": ({"accumulate_grad_batches": 2}, "accumulate_grad_batches 2 .* larger batch_size"),
    "precision": ({"precision": "bf16-true"}, "precision bf16-true .* use one of 32-true"),
    "policy": ({"precision": "bf16-mixed"}, r'precision bf16-mixed .* policy="mixed_bfloat16"'),
    "averaging": ({"callbacks": [StochasticWeightAveraging(0.1)]}, "StochasticWeightAveraging"),
    "ema": ({"callbacks": [EMAWeightAveraging()]}, "EMAWeightAveraging .* leave the callback out"),
    "hook": ({"callbacks": [SeesGradients()]}, "SeesGradients.on_after_backward .* no gradients"),
}


@pytest.mark.parametrize("case", REFUSED_SETTINGS)
def test_what_keras_cannot_do_is_refused_when_a_trainer_asks_for_it(case: str) -> None:
    options, message = REFUSED_SETTINGS[case]
    model = make(small)
    with pytest.raises(ValueError, match=message):
        model.check_supported(trainer(**options))
    model.check_supported(trainer(callbacks=[KerasFiles(Path())]))


def test_a_refusal_comes_from_the_fit_itself() -> None:
    with pytest.raises(ValueError, match="is not supported by a Keras model"):
        train(make(small), SeesGradients())
    with pytest.raises(ValueError, match="set steps_per_execution to 1"):
        train(make(lambda: small(steps_per_execution=3)), val_check_interval=0.5)


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
    assert train(make(lambda: small(**one_cycle(False)))).global_step == 14


def test_tensorboard_is_given_keras_layers_and_operations() -> None:
    model = make(lambda: models.LeNet5())
    keras = import_keras()
    assert model.layer_table()[0] == ("conv1", "Conv2D", {"kernel": (5, 5, 1, 6), "bias": (6,)})
    assert sum(weights.numel() for _, weights in model.named_weights()) == 61_706
    found = model.first_kernels()
    assert found is not None
    kernel = model.keras_model.get_layer("conv1").get_weights()[0]
    assert found[0] == "conv1"
    np.testing.assert_array_equal(found[1].numpy(), kernel.transpose(3, 2, 0, 1))
    assert make(small).first_kernels() is None

    images = torch.rand(5, 1, 28, 28)
    features = model.features(images)
    assert features is not None
    last = keras.Model(model.keras_model.inputs[0], model.keras_model.get_layer("fc3").input)
    array = images.numpy().reshape(5, 28, 28, 1)
    np.testing.assert_allclose(features, last(array), rtol=1e-5, atol=1e-6)  # compiled otherwise
    names = {node.name for node in model.trace_graph().node}
    assert {"images", "lenet5_1/conv1_1/convolution"} <= names, names


def test_the_names_of_a_run_are_the_originals() -> None:
    model = make(lambda: models.MLP([16], dropout=0.3))
    assert (model.framework, model.architecture) == ("keras", "MLP")
    assert model.hparams["hidden_features"] == [16]
    assert model.hparams["dropout"] == 0.3
    assert "original" not in model.hparams
