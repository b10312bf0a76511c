from typing import Any

import pytest
import torch
from lightning import Callback, LightningModule, Trainer

from digitlab.callbacks import ClassProbabilities
from digitlab.classifier import Classifier
from digitlab.models import MLP
from tests.fitting import Recording, assert_bitwise_equal, fit, small_mlp, weights
from tests.tiny import TinyDataModule


def probabilities(logger: Recording) -> list[tuple[int, list[float]]]:
    return [
        (step, [value for name, value in values.items() if name.startswith("probabilities/")])
        for step, values in logger.records
        if "probabilities/0" in values
    ]


def test_every_class_has_its_mean_probability_every_n_steps() -> None:
    class Reference(Callback):
        """The mean probabilities by torch's own functions, in evaluation mode."""

        means: list[list[float]] = []  # noqa: RUF012 # one instance

        def on_train_batch_end(
            self, trainer: Trainer, model: LightningModule, outputs: Any, batch: Any, *_: Any
        ) -> None:
            if trainer.global_step % 3 == 0:
                with torch.no_grad():
                    logits = model.eval()(batch[0])
                model.train()
                self.means.append(torch.nn.functional.softmax(logits, 1).mean(0).tolist())

    logger = Recording()
    fit(None, ClassProbabilities(3), Reference(), logger=logger, max_epochs=2, log_every_n_steps=7)
    recorded = probabilities(logger)
    assert [step for step, _ in recorded] == [2, 5, 8, 11]  # counted from 0
    ours = torch.tensor([values for _, values in recorded])
    torch.testing.assert_close(ours, torch.tensor(Reference.means))
    torch.testing.assert_close(ours.sum(1), torch.ones(4))


@pytest.mark.filterwarnings("ignore:The number of training batches .* is smaller")
def test_of_a_block_the_last_batch_is_recorded() -> None:
    class Reference(Callback):
        means: list[torch.Tensor] = []  # noqa: RUF012 # one instance

        def on_train_batch_end(
            self, trainer: Trainer, model: LightningModule, outputs: Any, batch: Any, *_: Any
        ) -> None:
            *_, (images, _) = batch.batches()
            with torch.no_grad():
                self.means.append(model.eval()(images).softmax(1).mean(0))
            model.train()

    logger, model = Recording(), small_mlp(steps_per_execution=4)
    fit(model, ClassProbabilities(3), Reference(), logger=logger, max_epochs=2)
    recorded = probabilities(logger)
    assert [step for step, _ in recorded] == [3, 6, 10, 13]  # every block passes a multiple of 3
    ours = torch.tensor([values for _, values in recorded])
    torch.testing.assert_close(ours, torch.stack(Reference.means))


@pytest.mark.parametrize("dropout_in_evaluation", [False, True])
def test_recording_leaves_weights_and_random_numbers_alone(dropout_in_evaluation: bool) -> None:
    def train(*callbacks: Callback) -> tuple[Classifier, torch.Tensor]:
        model = small_mlp(dropout=0.5, dropout_in_evaluation=dropout_in_evaluation)
        fit(model, *callbacks, logger=Recording(), max_epochs=2, log_every_n_steps=7)
        return model, torch.get_rng_state()

    (ours, our_state), (theirs, their_state) = train(ClassProbabilities(1)), train()
    assert_bitwise_equal(weights(ours), weights(theirs))
    assert torch.equal(our_state, their_state)


def test_training_goes_on_in_training_mode() -> None:
    modes: set[bool] = set()

    class Watching(MLP):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            modes.update(module.training for module in self.modules())
            return super().training_step(batch, batch_idx)

    fit(Watching([16]), ClassProbabilities(1))
    assert modes == {True}


def test_a_class_name_with_a_slash_stays_in_one_group(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("T-shirt/top", *"123456789")
    monkeypatch.setattr(TinyDataModule, "class_names", names)
    logger = Recording()
    fit(None, ClassProbabilities(7), logger=logger, log_every_n_steps=7)
    assert len(logger.series("probabilities/T-shirt or top")) == 1


def test_another_precision_is_that_of_the_run() -> None:
    logger = Recording()
    options: dict[str, Any] = {"precision": "bf16-mixed", "log_every_n_steps": 7}
    fit(None, ClassProbabilities(7), logger=logger, **options)
    [(_, values)] = probabilities(logger)
    assert sum(values) == pytest.approx(1, abs=1e-6)  # a sum of ten float32


@pytest.mark.parametrize("every_n_steps", [0, -1])
def test_an_interval_below_one_is_refused(every_n_steps: int) -> None:
    message = f"every_n_steps is {every_n_steps}: it must be at least 1"
    with pytest.raises(ValueError, match=message):
        ClassProbabilities(every_n_steps)


def test_under_accumulation_a_step_is_recorded_once() -> None:
    logger = Recording()
    options: dict[str, Any] = {
        "accumulate_grad_batches": 3,
        "max_epochs": 2,
        "log_every_n_steps": 7,
    }
    fit(None, ClassProbabilities(1), logger=logger, **options)
    assert [step for step, _ in probabilities(logger)] == [0, 1, 2, 3, 4, 5]
