"""What a checkpoint costs: its size, and the time in which it is written through to the disk."""

import io
import time
from contextlib import redirect_stdout
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from digitlab.callbacks import LastCheckpoint
from digitlab.cli import main

_CONFIGS = sorted(Path("configs", "digits").glob("*.yaml"))


class _Timed:
    """`LastCheckpoint.save` with a clock around it, in the `with` block."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._original = LastCheckpoint.save

    def __enter__(self) -> list[float]:
        seconds, original = self.seconds, self._original

        def save(*args: Any) -> None:
            started = time.perf_counter()
            original(*args)
            seconds.append(time.perf_counter() - started)

        LastCheckpoint.save = save  # type: ignore[method-assign, assignment]
        return seconds

    def __exit__(self, *exception: object) -> None:
        LastCheckpoint.save = self._original  # type: ignore[method-assign]


def save_often() -> dict[str, Any]:
    """Train each architecture with a checkpoint after every execution of steps."""
    measured: dict[str, Any] = {}
    for config in _CONFIGS:
        with TemporaryDirectory() as folder, _Timed() as seconds:
            where = ["--trainer.default_root_dir", folder, "--trainer.accelerator", "cpu"]
            often = ["--checkpoint_every_n_steps", "1", "--trainer.max_epochs", "3"]
            with redirect_stdout(io.StringIO()):
                main(["fit", "--config", str(config), *where, *often])
            (last,) = Path(folder).glob("*/*/checkpoints/last.ckpt")
            measured[config.stem] = {
                "MB": last.stat().st_size / 1e6,
                "n": len(seconds),
                "milliseconds": 1e3 * median(seconds),
                "most": 1e3 * max(seconds),
            }
        print(config.stem, measured[config.stem], flush=True)
    return measured
