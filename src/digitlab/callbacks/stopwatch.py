"""Wall time of a run's phases."""

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer


class Stopwatch(Callback):
    """Measures how long training and validation take; other phases are timed with `time`.

    `seconds` maps a phase to its wall time so far, in seconds; `images` counts the images that this
    process has trained on.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.images = 0
        self._started: float | None = None  # while no training is timed

    @contextmanager
    def time(self, phase: str) -> Iterator[None]:
        """Add what happens in the `with` block to a phase."""
        started = perf_counter()
        yield
        self.seconds[phase] += perf_counter() - started

    def trained(self) -> tuple[int, float]:
        """Give the images, and the seconds of training without validation, while it goes on."""
        running = 0.0 if self._started is None else perf_counter() - self._started
        return self.images, self.seconds["training"] + running

    def rate_since(self, mark: tuple[int, float]) -> float:
        """Give this process's images per second since `trained` gave a mark."""
        images, seconds = self.trained()
        # An epoch that goes on may have nothing left but its end.
        return (images - mark[0]) / max(seconds - mark[1], 1e-9)

    def state_dict(self) -> dict[str, Any]:
        """Give what was measured so far, for a checkpoint."""
        running = {} if self._started is None else {"training": perf_counter() - self._started}
        seconds = {
            phase: self.seconds.get(phase, 0.0) + running.get(phase, 0.0)
            for phase in (*self.seconds, *running)
        }
        return {"seconds": seconds, "images": self.images}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint; what this process has measured is added."""
        for phase, seconds in state_dict["seconds"].items():
            self.seconds[phase] += seconds
        self.images = state_dict["images"]

    def start(self) -> None:
        """Start the clock of the phases that follow each other."""
        self._started = perf_counter()

    def finish(self, phase: str) -> None:
        """Add the time since the clock was started, or a phase finished, to this phase."""
        if self._started is None:  # a sanity check, or a validation on its own
            return
        now = perf_counter()
        self.seconds[phase] += now - self._started
        self._started = now

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self.start()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the images."""
        self.images += len(batch[1])

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Change from training to validation."""
        self.finish("training")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Change from validation to training."""
        self.finish("validation")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock."""
        self.finish("training")
        self._started = None
