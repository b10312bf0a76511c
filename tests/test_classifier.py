"""What a classifier measures, logs and predicts, and how it is initialized."""

import math
from typing import Any

import pytest
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import LambdaCallback
from torch import Tensor, nn

from digitlab.classifier import Classifier
from digitlab.models import MLP, LeNet5, PyTorchExampleNet
from tests.fitting import (
    BATCHES,
    Recording,
    fit,
    plain_loop,
    reference,
    small_mlp,
    trainer,
    weights,
    whole,
)
from tests.tiny import TinyDataModule

IMAGES, LABELS = whole("test")
SIZES = torch.tensor([32.0] * 6 + [8.0])  # of the batches of an epoch


def close(ours: Any, theirs: Any) -> None:
    """Compares as float32, which is what Lightning logs."""
    torch.testing.assert_close(
        torch.as_tensor(ours, dtype=torch.float32), torch.as_tensor(theirs, dtype=torch.float32)
    )


@pytest.fixture
def trained() -> MLP:
    """A small network that has learned some of the tiny data."""
    model = small_mlp()
    plain_loop(model, torch.optim.Adam(model.parameters(), lr=0.001, fused=True), epochs=2)
    return model


@pytest.mark.parametrize("batch_size", [7, 50])
def test_scores_are_those_of_the_whole_split_by_the_trainer_and_by_evaluate(
    trained: MLP, batch_size: int
) -> None:
    loss, accuracy = reference(trained, *whole("test"))
    assert 0.2 < accuracy < 1  # or a wrong count might go unseen
    data = TinyDataModule(eval_batch_size=batch_size)
    [validated] = trainer().validate(trained, data, verbose=False)
    [tested] = trainer().test(trained, data, verbose=False)
    close([validated["val/loss"], validated["val/accuracy"]], [loss, accuracy])
    close([tested["test/loss"], tested["test/accuracy"]], [loss, accuracy])
    score = trained.epoch_score("test")
    assert (score["correct"], score["n"]) == (round(50 * accuracy), 50)
    assert trained.evaluate(data.test_dataloader()) == score
    score = trained.evaluate(data.train_eval_dataloader())
    close([score["loss"], score["accuracy"]], reference(trained, *whole("train")))
    assert score["n"] == 200


@pytest.mark.parametrize("training", [True, False])
def test_evaluate_restores_the_mode_and_draws_no_random_number(
    trained: MLP, training: bool
) -> None:
    trained.train(training)
    before, state = weights(trained), torch.get_rng_state()
    first, second = (trained.evaluate(TinyDataModule().test_dataloader()) for _ in range(2))
    assert first == second
    assert torch.equal(state, torch.get_rng_state())
    assert {module.training for module in trained.modules()} == {training}
    assert all(torch.equal(before[name], value) for name, value in trained.state_dict().items())
    assert all(parameter.requires_grad for parameter in trained.parameters())


def test_the_logged_training_score_is_the_mean_over_the_epochs_images() -> None:
    logger = Recording()
    run = fit(logger=logger, max_epochs=2, log_every_n_steps=BATCHES)
    model = small_mlp()
    losses = plain_loop(model, torch.optim.Adam(model.parameters(), lr=0.001, fused=True), epochs=2)
    expected = [(SIZES @ torch.stack(epoch) / 200).item() for epoch in losses]
    close([loss for _, loss in logger.series("train/loss")], expected)
    close(run.callback_metrics["train/loss"], expected[-1])
    close(run.callback_metrics["val/loss"], reference(model, *whole("test"))[0])
    assert not logger.series("step")  # it would rename checkpoints


@pytest.mark.parametrize("accumulated", [1, 2])
def test_the_logged_steps_are_means_over_the_images_since_the_last(accumulated: int) -> None:
    logger = Recording()
    # Two steps to a record, with a learning rate of zero: the losses do not depend on the steps.
    model = small_mlp(dropout=0.0, optimizer=lambda params: torch.optim.SGD(params, lr=0.0))
    options = {"accumulate_grad_batches": accumulated, "log_every_n_steps": 2}
    fit(model, logger=logger, max_epochs=2, **options)
    losses = plain_loop(model, torch.optim.SGD(model.parameters(), lr=0.0), epochs=2)
    expected, global_step = [], 0
    for epoch in losses:
        start = 0
        for batch in range(1, BATCHES + 1):
            if batch % accumulated == 0 or batch == BATCHES:
                global_step += 1
                if global_step % 2 == 0:
                    sizes, window = SIZES[start:batch], torch.stack(epoch[start:batch])
                    expected.append((global_step - 1, (sizes @ window / sizes.sum()).item()))
                    start = batch
    assert [step for step, _ in logger.series("train/loss_step")] == [step for step, _ in expected]
    close([loss for _, loss in logger.series("train/loss_step")], [loss for _, loss in expected])
    assert all(0 <= accuracy <= 1 for _, accuracy in logger.series("train/accuracy_step"))


def test_the_running_score_is_that_of_the_epoch_so_far() -> None:
    counts: list[int] = []

    def read(trainer: Trainer, model: Classifier, *_: Any) -> None:
        counts.append(model.running_score("train")["n"])

    fit(None, LambdaCallback(on_train_batch_end=read), max_epochs=2)
    assert counts == [32, 64, 96, 128, 160, 192, 200] * 2


def test_a_run_after_a_failed_one_counts_its_own_images_only() -> None:
    def fail(*_: Any) -> None:
        raise OSError("no space left on device")

    model = small_mlp()
    with pytest.raises(OSError, match="no space"):
        fit(model, LambdaCallback(on_train_batch_end=fail))
    fit(model)
    assert model.epoch_score("train")["n"] == 200


def test_lightnings_costly_logging_is_called_at_an_epochs_end_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    logged: list[str] = []
    original = LightningModule.log

    def log(self: LightningModule, name: str, *args: Any, **kwargs: Any) -> None:
        logged.append(name)
        original(self, name, *args, **kwargs)

    monkeypatch.setattr(LightningModule, "log", log)
    fit(max_epochs=2, log_every_n_steps=5, num_sanity_val_steps=0)  # 14 steps
    expected = {"train/loss": 2, "val/loss": 2}
    losses = [name for name in logged if "loss" in name]
    assert {name: losses.count(name) for name in losses} == expected
    assert len(logged) == 2 * len(losses)


@pytest.mark.parametrize("at_once", [1, 4])
def test_a_training_step_never_waits_for_the_device(at_once: int) -> None:
    class Strict(MLP):
        steps = 0

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            def wait(*_: Any, **__: Any) -> None:
                raise AssertionError("a tensor is read back in a training step")

            with pytest.MonkeyPatch.context() as patch:
                for name in ("item", "tolist", "cpu", "numpy", "__bool__", "__float__", "__int__"):
                    patch.setattr(torch.Tensor, name, wait)
                self.steps += 1
                return super().training_step(batch, batch_idx)

    model = Strict([16], steps_per_execution=at_once)
    fit(model, log_every_n_steps=100)
    assert model.steps == -(-BATCHES // at_once)


def test_keras_initialization_is_glorot_uniform_with_zero_biases() -> None:
    torch.manual_seed(0)
    layers = dict(LeNet5(initialization="keras").network.named_children())
    # Reference: ±√(6 / (fan_in + fan_out)), where a fan is channels x kernel area.
    bounds = {
        "conv1": math.sqrt(6 / (1 * 25 + 6 * 25)),
        "conv2": math.sqrt(6 / (6 * 25 + 16 * 25)),
        "fc1": math.sqrt(6 / (400 + 120)),
        "fc2": math.sqrt(6 / (120 + 84)),
        "fc3": math.sqrt(6 / (84 + 10)),
    }
    for name, bound in bounds.items():
        weight, bias = layers[name].weight, layers[name].bias
        assert isinstance(weight, Tensor)
        assert isinstance(bias, Tensor)
        assert not bias.any()
        assert 0.95 * bound < weight.abs().max() <= bound
        # A uniform distribution's standard deviation; some hundreds of draws are within a tenth.
        assert weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.1)


def test_torch_initialization_is_left_as_torch_makes_it() -> None:
    torch.manual_seed(0)
    ours = MLP([128], initialization="torch")
    torch.manual_seed(0)
    theirs = nn.Linear(784, 128), nn.Linear(128, 10)
    expected = [parameter for layer in theirs for parameter in layer.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), expected, strict=True))


@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("end", [{"max_epochs": 2}, {"max_epochs": -1, "max_steps": 10}])
def test_a_callback_sees_the_epochs_training_score_as_it_ends(
    steps: int, end: dict[str, int]
) -> None:
    seen: list[tuple[float, float]] = []

    def read(trainer: Trainer, model: Classifier) -> None:
        logged = trainer.callback_metrics["train/loss"].item()
        seen.append((logged, model.epoch_score("train")["loss"]))

    fit(small_mlp(steps_per_execution=steps), LambdaCallback(on_train_epoch_end=read), **end)
    assert len(seen) == 2
    for logged, measured in seen:
        close(logged, measured)


@pytest.mark.parametrize(
    ("dropout_in_evaluation", "still_training"), [(True, ["dropout1", "dropout2"]), (False, [])]
)
def test_evaluation_leaves_on_the_dropout_layers_that_it_is_asked_to(
    dropout_in_evaluation: bool, still_training: list[str]
) -> None:
    seen: list[list[str]] = []

    def layers_in_training(model: Classifier) -> list[str]:
        return [name for name, layer in model.network.named_children() if layer.training]

    def watch(trainer: Trainer, model: Classifier, *_: Any) -> None:
        seen.append(layers_in_training(model))
        assert not model.training

    model = PyTorchExampleNet(dropout_in_evaluation=dropout_in_evaluation)
    run = trainer(callbacks=[LambdaCallback(on_validation_batch_end=watch)])
    run.validate(model, TinyDataModule(), verbose=False)
    assert [*seen, layers_in_training(model.eval())] == [still_training] * 2
    assert all(layer.training for layer in model.train().modules())


def test_dropout_in_evaluation_changes_the_score_from_call_to_call() -> None:
    torch.manual_seed(0)
    plain, noisy = MLP([16], dropout=0.5), MLP([16], dropout=0.5, dropout_in_evaluation=True)
    noisy.load_state_dict(plain.state_dict())
    batches = [(IMAGES, LABELS)]
    first, second = (noisy.evaluate(batches)["loss"] for _ in range(2))
    assert first != second
    torch.manual_seed(7)
    score = noisy.evaluate(batches)
    # Reference: document B's program, which leaves the whole network in training mode.
    torch.manual_seed(7)
    loss = torch.nn.functional.cross_entropy(plain.train()(IMAGES), LABELS)
    torch.testing.assert_close(torch.tensor(score["loss"]), loss.detach())


def check(prediction: Any, model: Classifier, names: str = "0123456789") -> None:
    assert isinstance(prediction, dict)
    probabilities = prediction["probabilities"]
    torch.testing.assert_close(probabilities, model.eval()(IMAGES).softmax(1).detach())
    torch.testing.assert_close(probabilities.sum(1), torch.ones(len(IMAGES)))
    assert torch.equal(prediction["class"], probabilities.argmax(1))
    assert prediction["class"].dtype == torch.int64
    assert torch.equal(prediction["probability"], probabilities.amax(1))
    assert prediction["class_name"] == [names[number] for number in prediction["class"]]


def test_images_with_or_without_labels_are_classified_with_or_without_a_trainer() -> None:
    class Named(TinyDataModule):
        class_names = tuple("abcdefghij")

    model = MLP([16]).eval()
    with torch.no_grad():
        prediction, labelled = model.predict_step(IMAGES), model.predict_step((IMAGES, LABELS))
    assert list(prediction) == ["class", "class_name", "probability", "probabilities"]
    assert list(labelled) == ["label", *prediction]
    check(prediction, model)
    [named] = trainer().predict(model, Named()) or []
    check(named, model, names="abcdefghij")
    assert isinstance(named, dict)
    for one in (labelled, named):
        assert torch.equal(one["label"], LABELS)


@pytest.mark.parametrize(
    ("precision", "dtype"), [("bf16-mixed", torch.float32), ("64-true", torch.float64)]
)
def test_probabilities_are_float32_or_wider_in_any_precision(
    precision: Any, dtype: torch.dtype
) -> None:
    run = trainer(precision=precision)
    [prediction] = run.predict(MLP([16]), TinyDataModule()) or []
    assert isinstance(prediction, dict)
    probabilities = prediction["probabilities"]
    assert probabilities.dtype == dtype
    torch.testing.assert_close(probabilities.sum(1), torch.ones(50, dtype=dtype))
