"""What a Keras run does beside training: the same screen, files and curves as a PyTorch run's."""

from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from lightning.pytorch.loggers import TensorBoardLogger

from digitlab import runs
from digitlab.callbacks import Stopwatch
from digitlab.callbacks.console import describe_epoch
from digitlab.callbacks.history import Row
from digitlab.callbacks.probabilities import probability_scalars
from digitlab.callbacks.progress import Bar
from digitlab.parity.backend import import_keras
from digitlab.parity.network import KerasNetwork
from digitlab.parity.settings import Schedule, Settings
from digitlab.scores import Score


class Recorder:
    """Records a Keras run, through the hooks of `keras.callbacks.Callback`.

    Args:
        folder: The run folder.
        keras_model: The compiled model.
        settings: The trainer's settings.
        schedule: The learning rate.
        stopwatch: Times training and validation.
        logger: Writes the curves, or None.
        images: Number of training images.
        held_out: Number of images validated on.
        batch_size: Of all batches but the last.
    """

    def __init__(
        self,
        folder: Path,
        keras_model: Any,
        settings: Settings,
        schedule: Schedule,
        stopwatch: Stopwatch,
        logger: TensorBoardLogger | None,
        images: int,
        held_out: int,
        batch_size: int,
    ) -> None:
        self.folder = folder
        self.keras_model = keras_model
        self.settings = settings
        self.schedule = schedule
        self.stopwatch = stopwatch
        self.logger = logger
        self.images = images
        self.held_out = held_out
        self.batch_size = batch_size
        self.rows: list[Row] = []
        self.step = 0
        self.step_before = 0
        self._best = -1.0
        self._bar = Bar("", 0, enabled=False)

    def callback(self) -> Any:
        """Make the Keras callback of these hooks."""
        hooks = [name for name in dir(self) if name.startswith("on_")]
        return import_keras().callbacks.LambdaCallback(
            **{name: getattr(self, name) for name in hooks}
        )

    def on_train_begin(self, logs: Any = None) -> None:
        """Start the clock."""
        self.stopwatch.start()

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Start an epoch's row."""
        self._started = perf_counter()
        self._learning_rate = self.schedule.learning_rate  # Keras rounds its own to float32
        self._done, self._seen, self._window = 0, 0, (0.0, 0.0, 0)
        self._bar = Bar(f"Epoch {epoch + 1}", self._batches, self.settings.shows_bar)

    def on_train_batch_end(self, batch: int, logs: dict[str, float]) -> None:
        """Count the steps, and show and log them if it is time; Keras's `logs` are means so far."""
        before = self._done, self._seen
        self._done = min(batch + 1, self._batches)  # Keras counts a shorter execution as a whole
        self._seen = min(self._done * self.batch_size, self.images)
        self.stopwatch.images += self._seen - before[1]
        self.step_before, self.step = self.step, self.step + self._done - before[0]
        self._bar.show(self._done, partial(self._score, logs))
        if self.logger and self.passes(self.settings.log_every):
            self._log_window(self.logger, logs)
        if self.schedule.interval == "step":
            self._follow_schedule()
        if self.step == self.settings.steps:
            self.keras_model.stop_training = True

    @property
    def _batches(self) -> int:
        return -(-self.images // self.batch_size)

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
        row: Row = {
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
        runs.write_csv(self.folder / "history.csv", self.rows)
        self._save(row)
        if self.logger:
            self._log_epoch(self.logger, epoch, row)
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
        held_out = self.held_out
        return None if accuracy is None else round(accuracy * held_out) / held_out

    def _score(self, logs: dict[str, float]) -> Score:
        correct = round(logs["accuracy"] * self._seen)
        return {
            "loss": logs["loss"],
            "accuracy": logs["accuracy"],
            "correct": correct,
            "n": self._seen,
        }

    def _log_window(self, logger: TensorBoardLogger, logs: dict[str, float]) -> None:
        """Log the means since the last record, out of Keras's means since the epoch's start."""
        loss, accuracy, seen = self._window
        sums = (logs["loss"] * self._seen, logs["accuracy"] * self._seen, self._seen)
        images = self._seen - seen
        scalars = {
            "train/loss_step": (sums[0] - loss) / images,
            "train/accuracy_step": (sums[1] - accuracy) / images,
        }
        self._window = sums
        self._log(logger, scalars, len(self.rows))

    def _log_epoch(self, logger: TensorBoardLogger, epoch: int, row: Row) -> None:
        scalars = {
            f"{phase}/{name}": row[f"{phase}_{name}"]
            for phase in ("train", "val")
            for name in ("loss", "accuracy")
        }
        self._log(
            logger, {name: value for name, value in scalars.items() if value is not None}, epoch
        )

    def _log(self, logger: TensorBoardLogger, scalars: dict[str, Any], epoch: int) -> None:
        # Lightning, too, counts steps from 0 on this axis, and logs the epoch beside.
        logger.log_metrics({**scalars, "epoch": epoch}, step=self.step - 1)

    def _save(self, row: Row) -> None:
        if not self.settings.saves:
            return
        with runs.whole(self.folder / runs.CHECKPOINTS["keras"]["last"]) as path:
            self.keras_model.save(path)
        if row["val_accuracy"] is not None and row["val_accuracy"] > self._best:
            self._best = row["val_accuracy"]
            best = self.folder / runs.CHECKPOINTS["keras"]["best"]
            best.parent.mkdir(exist_ok=True)
            with runs.whole(best) as path:
                self.keras_model.save(path)


class ProbabilityRecorder:
    """Logs the mean class probabilities while training, as `ClassProbabilities` does for PyTorch.

    Keras gives its callbacks no images, so those that are classified are a batch of random training
    images rather than the step's own.

    Args:
        recorder: Counts the steps.
        images: All training images, `(N, 28, 28, C)`.
        class_names: Of all classes.
    """

    def __init__(
        self, recorder: Recorder, images: np.ndarray[Any, Any], class_names: tuple[str, ...]
    ) -> None:
        self.recorder = recorder
        self.images = images
        self.class_names = class_names

    def callback(self) -> Any:
        """Make the Keras callback; it must stand behind the recorder's."""
        return import_keras().callbacks.LambdaCallback(on_train_batch_end=self.on_train_batch_end)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Log the probabilities, if it is time."""
        recorder = self.recorder
        if not recorder.logger or not recorder.passes(recorder.settings.probabilities_every):
            return
        generator = np.random.default_rng(recorder.step)
        chosen = generator.choice(len(self.images), size=recorder.batch_size)
        images = torch.from_numpy(self.images[chosen]).permute(0, 3, 1, 2)
        probabilities = KerasNetwork(recorder.keras_model)(images).softmax(1).mean(0)
        recorder.logger.log_metrics(
            probability_scalars(self.class_names, probabilities), step=recorder.step - 1
        )
