"""The checkpoint that a run goes on from, when it was stopped or killed."""

import os
import shutil
from pathlib import Path
from time import monotonic
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from digitlab import runs
from digitlab.callbacks.finite_loss import FiniteLoss
from digitlab.processes import agree
from digitlab.signals import Interrupted, StopSignals


class LastCheckpoint(Checkpoint):
    """Keeps `last.ckpt` of a run and, should that be damaged, the one before, `previous.ckpt`.

    They are written after each epoch, inside epochs at intervals, when the run is asked to stop,
    and where `max_steps` or another callback ends it inside an epoch. Lightning calls checkpoint
    callbacks after all others, so that what those keep is of the same step.

    Args:
        folder: Where to write the two.
        finite: Looks at the weights before they are saved.
        every_n_steps: Optimizer steps between two checkpoints inside an epoch (at least 1); none
            if unset. With several steps per execution, it is written after the last of those.
        every_n_minutes: Minutes between two checkpoints inside an epoch (at least 0); none if
            unset.

    Attributes:
        signals: Tell whether the run is asked to stop; they are the whole fit's, which sets them.

    Raises:
        ValueError: A number is out of its range.
    """

    def __init__(
        self,
        folder: Path | str,
        finite: FiniteLoss | None = None,
        every_n_steps: int | None = None,
        every_n_minutes: float | None = 1.0,
    ) -> None:
        if every_n_steps is not None and every_n_steps < 1:
            raise ValueError(f"every_n_steps is {every_n_steps}: it must be at least 1")
        if every_n_minutes is not None and not every_n_minutes >= 0:
            raise ValueError(f"every_n_minutes is {every_n_minutes}: it must be at least 0")
        self.path = Path(folder, "last.ckpt")
        self.signals: StopSignals | None = None
        self.finite = finite
        self.every_n_steps = every_n_steps
        self.every_n_minutes = every_n_minutes
        self.saved_step = 0
        self._is_whole = False  # the file, which this process has written or gone on from
        self._seen_step = 0
        self._saved_at = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start to count, and let signals wait for the end of a step from here on."""
        self.saved_step = self._seen_step = trainer.global_step
        self._is_whole = str(trainer.ckpt_path) == str(self.path)
        self._saved_at = monotonic()
        if self.signals:
            self.signals.deferring = True

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save inside an epoch, if it is time; stop, if the run is asked to."""
        # Lightning tells only its own code what follows a batch, and until 2.7 it stays as it is.
        seen, self._seen_step = self._seen_step, trainer.global_step
        ends = _ends_now(trainer)
        if trainer.fit_loop._should_accumulate() or (_validates_now(trainer) and not ends):
            return  # a run goes on exactly from what follows, and only from there
        number = self.signals.received() if self.signals else 0
        if number or ends or self._is_time(trainer, seen):
            self.save(trainer, pl_module)
        if number:
            self._stop(number)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the end of an epoch; stop, if the run is asked to."""
        if trainer.is_last_batch:  # or else it was ended inside, and saved there to go on from
            self.save(trainer, pl_module)
        if self.signals:
            self.signals.deferring = not trainer.fit_loop.done  # nothing is left to be saved
            if number := self.signals.received():
                self._stop(number)

    def save(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the checkpoint, and keep the one before.

        Raises:
            FloatingPointError: A loss or weight is not finite; then both files are as they were.
        """
        if self.finite:
            self.finite.check(trainer, pl_module)
        if trainer.is_global_zero:
            for logger in trainer.loggers:
                logger.save()  # a run that is killed after this has logged all until now
            if self._is_whole:
                _keep(self.path, self.path.with_name("previous.ckpt"))
        trainer.save_checkpoint(self.path)
        self._is_whole = True
        self.saved_step = trainer.global_step
        self._saved_at = monotonic()

    def _is_time(self, trainer: Trainer, seen: int) -> bool:
        every = self.every_n_steps
        if every and trainer.global_step // every > seen // every:
            return True
        minutes = self.every_n_minutes
        late = minutes is not None and monotonic() - self._saved_at >= 60 * minutes
        return bool(minutes is not None and agree(trainer, late))  # the processes' clocks differ

    def _stop(self, number: int) -> None:
        raise Interrupted(number, f"saved {self.path} at step {self.saved_step}")


def _validates_now(trainer: Trainer) -> bool:
    """Say whether a validation or the epoch's end follows the batch that has just ended."""
    fetcher = trainer.fit_loop._data_fetcher
    assert fetcher is not None
    return trainer.is_last_batch or trainer.fit_loop.epoch_loop._should_check_val_fx(fetcher)


def _ends_now(trainer: Trainer) -> bool:
    """Say whether training is ended inside an epoch, by `max_steps` or by a callback."""
    asked = trainer.should_stop and trainer.fit_loop._can_stop_early
    return not trainer.is_last_batch and (asked or trainer.global_step == trainer.max_steps)


def _keep(path: Path, previous: Path) -> None:
    """Give a file a second name, which the next to take its place leaves alone."""
    if not path.exists():
        return
    with runs.whole(previous) as beside:
        try:
            os.link(path, beside)
        except OSError:  # not every file system has two names for a file
            shutil.copyfile(path, beside)
