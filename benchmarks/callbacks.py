"""Lightning callbacks that measure, for `--trainer.callbacks+=benchmarks.callbacks.<name>`."""

import os
import re
import warnings
from collections import Counter
from pathlib import Path
from traceback import extract_stack
from typing import Any, ClassVar

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from benchmarks.raw_steps import now
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


class StepClock(Callback):
    """Times the steps from one of them to the last, once the device has nothing left to do.

    Args:
        first_step: Steps that are not timed.

    Attributes:
        seconds: The time, of the latest run of this process.
        steps: The number of steps that it was for.
    """

    seconds = 0.0
    steps = 0

    def __init__(self, first_step: int = 0) -> None:
        self.first_step = first_step
        self._started: tuple[int, float] | None = None

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        """Start the clock."""
        if self._started is None and trainer.global_step >= self.first_step:
            self._started = (trainer.global_step, now(trainer.strategy.root_device.type))

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Stop it after the last step of an epoch, or of all."""
        ends = trainer.is_last_batch or trainer.global_step == trainer.max_steps
        if self._started and ends:
            step, started = self._started
            StepClock.seconds = now(trainer.strategy.root_device.type) - started
            StepClock.steps = trainer.global_step - step


class NoteReads(Callback):
    """Notes where the host waits for the GPU in 64 steps, from step 64 on.

    Attributes:
        found: How often, by the line of digitlab or Lightning.
    """

    found: ClassVar[Counter[str]] = Counter()

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        """Let torch warn of each synchronization."""
        if trainer.global_step == 64 and trainer.strategy.root_device.type == "cuda":
            warnings.filterwarnings("always", "called a synchronizing CUDA operation")
            warnings.showwarning = self.note  # type: ignore[assignment]  # it takes any
            torch.cuda.set_sync_debug_mode("warn")

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Stop it."""
        if trainer.global_step == 128 and trainer.strategy.root_device.type == "cuda":
            torch.cuda.set_sync_debug_mode("default")

    def note(self, message: Any, *_: Any) -> None:
        """Count a warning, in place of `warnings.showwarning`."""
        frames = [it for it in extract_stack() if re.search(r"digitlab/|lightning/", it.filename)]
        self.found[f"{Path(frames[-1].filename).name}:{frames[-1].lineno} {message}"] += 1
