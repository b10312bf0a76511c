"""Lightning callbacks that measure, for `--trainer.callbacks+=benchmarks.callbacks.<name>`."""

import os
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from benchmarks.turns import Turns


class TakeTurns(Callback):
    """Trains by turns with other processes.

    Args:
        steps: Optimizer steps of a turn.
    """

    def __init__(self, steps: int) -> None:
        self.turns = Turns(steps)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Wait for the first turn."""
        self.turns.start()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Wait for the next turn if this one is over."""
        self.turns.count(trainer.global_step)


class ExitAfterFirstStep(Callback):
    """Ends the process at the end of the first `training_step`, as if it were killed."""

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """End the process."""
        os._exit(0)
