"""Signals that ask a run to stop: in training after the current step, otherwise at once."""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from threading import current_thread, main_thread
from types import FrameType

from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch import Trainer

from digitlab.distributed import all_reduce_max, ignore_lightning_signals
from digitlab.errors import Interrupted as Interrupted

# Windows has neither.
_REQUEUE = getattr(signal, "SIGUSR1", None)
_HANGUP = getattr(signal, "SIGHUP", None)
_stop_condition: ContextVar[Callable[[], bool]] = ContextVar("stop", default=lambda: False)


@contextmanager
def stopped_if(condition: Callable[[], bool]) -> Iterator[None]:
    """Stop a run of the `with` block as by SIGTERM if the condition, asked at each step, holds."""
    token = _stop_condition.set(condition)
    try:
        yield
    finally:
        _stop_condition.reset(token)


class StopSignals:
    """Handles Ctrl-C, SIGTERM, SIGHUP and, under SLURM, SIGUSR1 while a trainer runs.

    A process that ignores SIGHUP when it starts, such as that of `nohup`, goes on ignoring it.

    Args:
        trainer: Its own handlers are switched off: they save in mid-step, and exit with 0 or 1.

    Attributes:
        deferring: Whether a signal waits until `received` is called. Otherwise it raises
            `Interrupted` at once, as a second Ctrl-C always does.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self.deferring = False
        self._number = 0

    @contextmanager
    def handled(self) -> Iterator[None]:
        """Handle the signals in the `with` block.

        Raises:
            Interrupted: A signal came.
        """
        if current_thread() is not main_thread():  # the only one that may set handlers
            yield
            return
        ignore_lightning_signals(self.trainer)
        numbers = [signal.SIGINT, signal.SIGTERM]
        if _HANGUP and signal.getsignal(_HANGUP) is not signal.SIG_IGN:
            numbers.append(_HANGUP)
        if _REQUEUE and SLURMEnvironment.detect():
            numbers.append(_REQUEUE)  # as in `sbatch --signal=USR1@90`
        self._number = 0
        before = {number: signal.signal(number, self._handle) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        again = bool(self._number)
        if self._number != _REQUEUE:  # which asks for more: to be requeued
            self._number = number
        if not self.deferring or (again and number == signal.SIGINT):
            raise Interrupted(number)
        if not again and self.trainer.is_global_zero:
            # Not `print`: the signal may have interrupted one. Standard error may be closed.
            with suppress(OSError, AttributeError):
                os.write(sys.stderr.fileno(), b"\nstopping after this step; Ctrl-C stops at once\n")

    def received(self) -> int:
        """Return the number of a signal that any rank received, or 0; call it on all ranks."""
        stopped = signal.SIGTERM if _stop_condition.get()() else 0
        return all_reduce_max(self.trainer, self._number or stopped)
