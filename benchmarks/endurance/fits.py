"""Many fits in a row in one process, and what that leaves behind in memory and open files."""

import io
import os
import shutil
import tempfile
import threading
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from tests import tiny

from digitlab.cli import main

_EVERY = 50  # fits between two looks at the process


def fit_in_a_row(fits: int) -> dict[str, Any]:
    """Fit again and again, for an epoch of the tiny data, with all that a run writes.

    Args:
        fits: How often; Linux only, whose `/proc` is read.
    """
    looks: list[dict[str, int]] = []
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        tiny.write(place / "data")
        os.environ["DIGITLAB_DATA"] = str(place / "data")
        for done in range(1, fits + 1):
            _fit(place / "runs")
            if done % _EVERY == 0 or done == fits:
                shutil.rmtree(place / "runs")
                looks.append({"fits": done, **_look()})
                print(*(f"{value} {name}" for name, value in looks[-1].items()), flush=True)
    return {"fits": fits, "looks": looks}


def _fit(place: Path) -> None:
    options = "--model LinearClassifier --data tests.tiny.TinyDataModule --trainer.max_epochs 1"
    where = ["--trainer.accelerator", "cpu", "--trainer.default_root_dir", str(place)]
    with redirect_stdout(io.StringIO()):
        code = main(["fit", *options.split(), *where])
    if code != 0:
        raise RuntimeError(f"a fit ended with {code}")


def _look() -> dict[str, int]:
    status = Path("/proc/self/status").read_text("utf-8")
    resident = next(line for line in status.splitlines() if line.startswith("VmRSS"))
    return {
        "MB": int(resident.split()[1]) // 1024,
        "open files": len(os.listdir("/proc/self/fd")),
        "threads": threading.active_count(),
    }
