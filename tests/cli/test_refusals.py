"""Bad input that shows when training starts is one line, and leaves no run folder."""

from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import BatchSizeFinder

from digitlab.cli import main
from digitlab.models import LinearClassifier
from tests.commands import SHORT, refusal

PLATEAU = "PLAN lightning.pytorch.cli.ReduceLROnPlateau PLAN.monitor"
HERE = "tests.cli.test_refusals"


class Small(LinearClassifier):
    """A user's network that adds nothing to what is logged."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)


class WithF1(Small):
    """A user's network that logs a value of its own."""

    def on_validation_epoch_end(self) -> None:
        super().on_validation_epoch_end()
        self.log("val/f1", 0.5)


class Logs(Callback):
    """A user's callback that logs a value of its own."""

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        pl_module.log("own", 1.0)


class OwnFinder(BatchSizeFinder):
    """A subclass of a callback that tries out settings."""


class Fails(Callback):
    """A user's callback that raises an error when training starts."""

    def __init__(self, error: str = "ValueError", at_step: int = 0) -> None:
        self.error: type[Exception] = {"ValueError": ValueError, "KeyError": KeyError}[error]
        self.at_step = at_step

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == self.at_step:
            raise self.error("planted")


def options(place: Path, words: str) -> list[str]:
    model = [] if "--model " in words else ["--model", "LinearClassifier"]
    root = ["--trainer.default_root_dir", str(place), "--trainer.limit_train_batches", "4"]
    words = words.replace("CALL", "--trainer.callbacks").replace("PLAN", "--model.lr_scheduler")
    return ["fit", *model, *SHORT, *root, *words.split()]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("CALL EarlyStopping CALL.monitor valid_acc", "did you mean val/accuracy?"),
        ("CALL EarlyStopping CALL.monitor f1", "monitor one of val/loss, val/accuracy, train/loss"),
        (f"--model {HERE}.Small CALL EarlyStopping CALL.monitor val-loss", "mean val/loss?"),
        (f"{PLATEAU} val_loss", "model.lr_scheduler monitors val_loss, which this run does not"),
        (f"{PLATEAU} val/loss --trainer.limit_val_batches 0", "validate each epoch, or monitor tr"),
        # These show at the end of the first epoch.
        (f"--model {HERE}.WithF1 CALL EarlyStopping CALL.monitor val/f2", "one of val/loss, val/a"),
        (f"CALL {HERE}.Logs CALL+ ModelCheckpoint CALL.monitor owm", "train/accuracy, own"),
        (f"--model {HERE}.WithF1 {PLATEAU} val/f2", "lr_scheduler monitors val/f2, which this"),
        # Of Lightning's own callbacks, settings and loggers.
        (f"CALL {HERE}.OwnFinder", "OwnFinder changes settings that config.yaml has"),
        ("CALL LearningRateFinder", "Tuner"),
        ("CALL BackboneFinetuning", "BackboneFinetuning: 'LinearClassifier' object has no attr"),
        ("CALL EarlyStopping CALL.monitor val/loss CALL.mode low", "`mode` can be min, max, got"),
        ("CALL LearningRateMonitor --trainer.logger false", "Cannot use `LearningRateMonitor`"),
        (
            "--model.steps_per_execution 4 --trainer.val_check_interval 3",
            "validate after whole epochs, or set steps_per_exec",
        ),
        ("--trainer.strategy dpp", "invalid strategy name: `strategy='dpp'`"),
        ("--trainer.logger CSVLogger --trainer.logger.save_dir /dev/null/x", "'/dev/null/x'"),
        ("CALL ModelCheckpoint CALL.dirpath /dev/null/x", "Not a directory: '/dev/null/x'"),
        ("--trainer.logger CSVLogger --trainer.logger.dir x", "no option 'trainer.logger.dir'"),
        (f"CALL {HERE}.Fails", "planted"),
    ],
)
def test_a_start_that_is_refused_is_one_line_and_leaves_no_run_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: str, message: str
) -> None:
    assert message in refusal(capsys, *options(tmp_path, words))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "words",
    [
        f"--model {HERE}.WithF1 CALL EarlyStopping CALL.monitor val/f1",
        f"--model {HERE}.WithF1 {PLATEAU} val/f1",
        f"CALL {HERE}.Logs CALL+ ModelCheckpoint CALL.monitor own",
        "CALL LearningRateMonitor CALL+ ModelCheckpoint CALL.monitor lr-Adam",
        "CALL ModelCheckpoint CALL.monitor step CALL.mode max",
        "CALL EarlyStopping CALL.monitor val_loss CALL.strict false",
        f"{PLATEAU} train/loss --trainer.limit_val_batches 0",
    ],
)
def test_a_monitor_that_something_logs_is_taken(tmp_path: Path, words: str) -> None:
    assert main(options(tmp_path, words)) == 0


@pytest.mark.parametrize(("error", "step"), [("KeyError", 0), ("KeyError", 3), ("ValueError", 3)])
def test_a_user_s_own_bug_shows_its_traceback_and_keeps_what_was_trained(
    tmp_path: Path, error: str, step: int
) -> None:
    words = f"CALL {HERE}.Fails CALL.error {error} CALL.at_step {step}"
    with pytest.raises((KeyError, ValueError), match="planted") as raised:
        main(options(tmp_path, words))
    assert raised.value.__notes__ == [f"training failed after {step} steps"]
    assert bool(list(tmp_path.iterdir())) == bool(step)
