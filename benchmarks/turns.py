"""A contestant's side of a measurement: train a chunk of steps, report its time, and wait."""

import json
import os
import sys
from time import perf_counter, process_time

REPORTS = "DIGITLAB_BENCHMARK_REPORTS"
"""The environment variable with the file descriptor that reports are written to."""


class Turns:
    """Counts the optimizer steps of a training loop, and pauses it while others train.

    It ends the process when there are no more turns: the trained network is not needed.

    Args:
        steps: Length of a chunk; a loop that counts several steps at once may overshoot it.
    """

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self._reports = os.fdopen(int(os.environ[REPORTS]), "w")
        self._first = 0
        self._started = self._cpu_started = 0.0

    def start(self) -> None:
        """Report that the loop is ready, and wait for the first turn."""
        self._report({})

    def count(self, step: int) -> None:
        """Record the number of steps done in all; at a chunk's end, report and wait."""
        if step - self._first < self.steps:
            return
        _synchronize()
        report = {
            "steps": step - self._first,
            "seconds": perf_counter() - self._started,
            "cpu_seconds": process_time() - self._cpu_started,
        }
        self._first = step
        self._report(report)

    def _report(self, report: dict[str, float]) -> None:
        print(json.dumps(report), file=self._reports, flush=True)
        if sys.stdin.readline() != "go\n":
            os._exit(0)  # no other way out of a framework's loop is free
        self._started, self._cpu_started = perf_counter(), process_time()


def _synchronize() -> None:
    """Wait until the GPU, if there is one, has finished its work."""
    torch = sys.modules.get("torch")  # a Keras loop may not import it
    if torch and torch.cuda.is_initialized():
        torch.cuda.synchronize()
