"""How fast a run goes: its learning rate, and images per second."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from digitlab.callbacks.history import History
from digitlab.callbacks.stopwatch import Stopwatch
from digitlab.execution import epoch_end_step, log_metrics


class Rates(Callback):
    """Logs images per second, and the learning rate of each epoch.

    The scalars are `train/images_per_second_step`, every `log_every_n_steps` optimizer steps and
    over these, `train/images_per_second` over an epoch, and `train/learning_rate`, that of the
    epoch's start. Validations do not count, and all processes' images do. A step's learning rate is
    logged with its loss.

    Args:
        history: Knows the learning rate.
        stopwatch: Measures; both must come before this among the trainer's callbacks.
    """

    def __init__(self, history: History, stopwatch: Stopwatch) -> None:
        self.history = history
        self.stopwatch = stopwatch
        self._seen_step = 0
        self._epoch_mark = self._step_mark = (0, 0.0)  # images and seconds

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start to measure; of an epoch that goes on, it is the rest."""
        self._seen_step = trainer.global_step
        self._epoch_mark = self._step_mark = self.stopwatch.trained()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start an epoch."""
        self._epoch_mark = self._step_mark = self.stopwatch.trained()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log the steps' rate, if it is time."""
        seen, step = self._seen_step, trainer.global_step
        self._seen_step = step
        every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]  # set at run time
        if every and step // every > seen // every:
            rate = trainer.world_size * self.stopwatch.rate_since(self._step_mark)
            log_metrics(pl_module, {"train/images_per_second_step": rate}, step - 1)
            self._step_mark = self.stopwatch.trained()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the epoch's rates."""
        rate = trainer.world_size * self.stopwatch.rate_since(self._epoch_mark)
        values = {"train/images_per_second": rate}
        learning_rate = self.history.rows[-1]["learning_rate"]
        if learning_rate is not None:
            values["train/learning_rate"] = learning_rate
        log_metrics(pl_module, values, epoch_end_step(trainer))
