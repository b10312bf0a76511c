"""Images per second, by a clock that goes only where the test lets it."""

from pathlib import Path
from typing import Any

import pytest
from lightning import Callback, LightningModule, Trainer

from digitlab.callbacks import History, Rates, Stopwatch
from tests.fitting import Recording, fit, small_mlp


class Clock(Callback):
    """Two seconds for a batch of training, and a thousand for a batch of validation."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr("digitlab.callbacks.logging.perf_counter", lambda: self.now)

    def on_train_batch_start(self, *_: Any) -> None:
        self.now += 2

    def on_validation_batch_start(self, *_: Any) -> None:
        self.now += 1000


class Shared(Callback):
    """As if another process trained on as many images."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.strategy.__class__ = type(
            "Two", (type(trainer.strategy),), {"world_size": property(lambda _: 2)}
        )


def rates(monkeypatch: pytest.MonkeyPatch, *others: Callback, **options: Any) -> dict[str, Any]:
    """The curves of a short run of 200 images in 7 batches of 32, the last of 8."""
    steps = options.pop("steps_per_execution", 1)
    stopwatch, logger = Stopwatch(), Recording()
    history = History(options.pop("path"))
    callbacks = [Clock(monkeypatch), *others, stopwatch, history, Rates(history, stopwatch)]
    fit(small_mlp(steps_per_execution=steps), *callbacks, logger=logger, max_epochs=2, **options)
    names = ("train/images_per_second", "train/images_per_second_step")
    return {name: logger.series(name) for name in names}


@pytest.mark.parametrize("world_size", [1, 2])
def test_validations_do_not_count_and_all_processes_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, world_size: int
) -> None:
    others = [Shared()] if world_size == 2 else []
    options = {"log_every_n_steps": 4, "val_check_interval": 2, "path": tmp_path / "history.csv"}
    curves = rates(monkeypatch, *others, **options)
    epoch = pytest.approx(world_size * 200 / 14)
    assert curves["train/images_per_second"] == [(6, epoch), (13, epoch)]
    # 4 batches of 32; then the first of the second epoch, since its start.
    whole = pytest.approx(world_size * 32 / 2)
    assert curves["train/images_per_second_step"] == [(3, whole), (7, whole), (11, whole)]


@pytest.mark.filterwarnings("ignore:The number of training batches .* is smaller")
def test_several_steps_per_execution_are_recorded_at_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"log_every_n_steps": 4, "steps_per_execution": 3, "path": tmp_path / "history.csv"}
    curves = rates(monkeypatch, **options)
    # Executions of 3, 3 and 1 steps take 2 s each here.
    assert curves["train/images_per_second"] == [(6, 200 / 6), (13, 200 / 6)]
    of_steps = [(5, 6 * 32 / 4), (9, 3 * 32 / 2), (12, 3 * 32 / 2)]
    assert curves["train/images_per_second_step"] == of_steps
