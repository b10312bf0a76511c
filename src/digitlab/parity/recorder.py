"""What a Keras run does beside training: the same screen, files and curves as a PyTorch run's."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

from lightning.pytorch.loggers import TensorBoardLogger

from digitlab import files, run_folder
from digitlab.callbacks import Stopwatch
from digitlab.callbacks.logging import Bar, HistoryRow, describe_epoch
from digitlab.data import ImageDataModule
from digitlab.parity.hooks import Hooks
from digitlab.parity.settings import Schedule, Settings
from digitlab.scores import Score


class Recorder(Hooks):
    """Records a Keras run.

    Args:
        folder: The run folder.
        keras_model: The compiled model.
        settings: The trainer's settings.
        schedule: The learning rate.
        stopwatch: Times training and validation.
        loggers: TensorBoard's, or none.
        data: What is trained on.
    """

    def __init__(
        self,
        folder: Path,
        keras_model: Any,
        settings: Settings,
        schedule: Schedule,
        stopwatch: Stopwatch,
        loggers: Sequence[TensorBoardLogger],
        data: ImageDataModule,
    ) -> None:
        self.folder = folder
        self.keras_model = keras_model
        self.settings = settings
        self.schedule = schedule
        self.stopwatch = stopwatch
        self.loggers = loggers
        self.data = data
        self.images = data.size("train")
        self.rows: list[HistoryRow] = []
        self.step = 0
        self.step_before = 0
        self._best = -1.0
        self._bar = Bar("", 0, enabled=False)

    def on_train_begin(self, logs: Any = None) -> None:
        """Start the clock."""
        self.stopwatch.start()

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Start an epoch's row."""
        self._started = perf_counter()
        self._learning_rate = self.schedule.learning_rate  # Keras rounds its own to float32
        self._done, self._seen, self._window = 0, 0, (0.0, 0.0, 0)
        self._epoch_mark = self._step_mark = self.stopwatch.trained()
        self._bar = Bar(f"Epoch {epoch + 1}", self._batches, self.settings.shows_bar)

    def on_train_batch_end(self, batch: int, logs: dict[str, float]) -> None:
        """Count the steps, and show and log them if it is time; Keras's `logs` are means so far."""
        before = self._done, self._seen
        self._done = min(batch + 1, self._batches)  # Keras counts a shorter execution as a whole
        self._seen = min(self._done * self.data.batch_size, self.images)
        self.stopwatch.images += self._seen - before[1]
        self.step_before, self.step = self.step, self.step + self._done - before[0]
        self._bar.show(self._done, partial(self._score, logs))
        if self.loggers and self.passes(self.settings.log_every):
            self._log_window(logs)
        if self.schedule.interval == "step":
            self._follow_schedule()
        if self.step == self.settings.steps:
            self.keras_model.stop_training = True

    @property
    def _batches(self) -> int:
        return -(-self.images // self.data.batch_size)

    def passes(self, every: int | None) -> bool:
        """Say whether the steps just made reach or pass a multiple of `every`, if that is given."""
        return bool(every) and self.step // every > self.step_before // every  # type: ignore[operator]

    def on_test_begin(self, logs: Any = None) -> None:
        """Change from training to validation."""
        self.stopwatch.finish("training")
        self._bar.say("validating")

    def on_test_end(self, logs: Any = None) -> None:
        """Change from validation to training."""
        self.stopwatch.finish("validation")

    def on_epoch_end(self, epoch: int, logs: dict[str, float]) -> None:
        """Finish the epoch's row, save the model, print and log."""
        self._bar.close()
        row: HistoryRow = {
            "epoch": epoch + 1,
            "step": self.step,
            "train_loss": logs["loss"],
            "train_accuracy": self._score(logs)["correct"] / self._seen,
            "val_loss": logs.get("val_loss"),
            "val_accuracy": self._exact(logs.get("val_accuracy")),
            "learning_rate": self._learning_rate,
            "seconds": round(perf_counter() - self._started, 3),
        }
        self.rows.append(row)
        files.write_csv(self.folder / "history.csv", self.rows)
        self._log_epoch(epoch, row)
        self._save(row)
        print(describe_epoch(row), flush=True)
        if self.schedule.interval == "epoch":
            self._follow_schedule()

    def on_train_end(self, logs: Any = None) -> None:
        """Stop the clock."""
        self.stopwatch.finish("training")

    def _follow_schedule(self) -> None:
        if self.schedule.scheduler:
            self.schedule.step()
            self.keras_model.optimizer.learning_rate = self.schedule.learning_rate

    def _exact(self, accuracy: float | None) -> float | None:
        """Undo Keras's rounding of the validation accuracy to float32."""
        held_out = self.data.size("validation")
        return None if accuracy is None else round(accuracy * held_out) / held_out

    def _score(self, logs: dict[str, float]) -> Score:
        correct = round(logs["accuracy"] * self._seen)
        return {
            "loss": logs["loss"],
            "accuracy": logs["accuracy"],
            "correct": correct,
            "n": self._seen,
        }

    def _log_window(self, logs: dict[str, float]) -> None:
        """Log what was since the last record: means, out of Keras's since the epoch's start."""
        loss, accuracy, seen = self._window
        sums = (logs["loss"] * self._seen, logs["accuracy"] * self._seen, self._seen)
        images = self._seen - seen
        scalars = {
            "train/loss_step": (sums[0] - loss) / images,
            "train/accuracy_step": (sums[1] - accuracy) / images,
            "train/learning_rate_step": self.schedule.learning_rate,
            "train/images_per_second_step": self.stopwatch.rate_since(self._step_mark),
            "epoch": len(self.rows),
        }
        self.log(scalars, self.step - 1)
        self._window, self._step_mark = sums, self.stopwatch.trained()

    def _log_epoch(self, epoch: int, row: HistoryRow) -> None:
        scalars = {
            f"{phase}/{name}": row[f"{phase}_{name}"]
            for phase in ("train", "val")
            for name in ("loss", "accuracy")
        }
        scalars["train/learning_rate"] = self._learning_rate
        scalars["train/images_per_second"] = self.stopwatch.rate_since(self._epoch_mark)
        scalars["epoch"] = epoch
        known = {name: value for name, value in scalars.items() if value is not None}
        self.log(known, self.epoch_end_step)

    @property
    def epoch_end_step(self) -> int:
        """The step at which an epoch's values stand, as `execution.epoch_end_step`."""
        return self.step - (self._done == self._batches)

    def log(self, scalars: dict[str, Any], step: int) -> None:
        """Show values at a step; Lightning, too, counts from 0 on this axis."""
        for logger in self.loggers:
            logger.log_metrics(scalars, step=step)

    def _save(self, row: HistoryRow) -> None:
        if not self.settings.saves:
            return
        with files.atomic_write(self.folder / run_folder.CHECKPOINTS["keras"]["last"]) as path:
            self.keras_model.save(path)
        if row["val_accuracy"] is not None and row["val_accuracy"] > self._best:
            self._best = row["val_accuracy"]
            best = self.folder / run_folder.CHECKPOINTS["keras"]["best"]
            best.parent.mkdir(exist_ok=True)
            with files.atomic_write(best) as path:
                self.keras_model.save(path)
