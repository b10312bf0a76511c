"""A run's folder: claimed by its first process, and given back where the input is refused."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from digitlab import runs
from digitlab.arguments import BAD_INPUT, RunCLI
from digitlab.processes import is_first_process
from digitlab.slurm import note_job


def claim(cli: RunCLI, suffix: str = "") -> Path:
    """Claim a run folder in the first process; no other writes, so that a name does for it."""
    root, name = Path(cli.config.trainer.default_root_dir), run_name(cli) + suffix
    if not is_first_process():
        return root / name / "version_of_the_first_process"
    folder = runs.claim(root, name)
    note_job(folder)
    return folder


def release(folder: Path) -> None:
    """Take back a claim, in the process that made it."""
    if is_first_process():
        runs.release(folder)


def run_name(cli: RunCLI) -> str:
    """Give the name of the folder that holds the versions of a run."""
    return f"{cli.datamodule.name}-{cli.config.name}"


@contextmanager
def released_if_refused(folder: Path, new: bool = True) -> Iterator[None]:
    """Leave no folder where the input of a new run is refused in the `with` block."""
    try:
        yield
    except BAD_INPUT:
        if new:
            release(folder)
        raise
