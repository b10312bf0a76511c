"""A SLURM job that is pre-empted, put back into the queue, and goes on with its own run."""

import os
import subprocess
from pathlib import Path

from digitlab import runs

_NOTE = ".slurm_job"


def requeue() -> str:
    """Ask SLURM to start this job again, and say what came of it."""
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    job = f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}" if array else os.environ["SLURM_JOB_ID"]
    try:
        subprocess.run(["scontrol", "requeue", job], check=True, capture_output=True, timeout=60)
    except (OSError, subprocess.SubprocessError) as error:
        return f"SLURM did not requeue job {job} ({error})"
    return f"SLURM starts job {job} again"


def note_job(folder: Path) -> None:
    """Note in a new run's folder which SLURM job it is of, if any."""
    if job := _job():
        runs.write_text(folder / _NOTE, job)


def requeued(parent: Path) -> Path | None:
    """Find the folder of the run that this SLURM job had started before it was requeued."""
    if int(os.environ.get("SLURM_RESTART_COUNT", "0")) == 0:
        return None
    for note in parent.glob(f"version_*/{_NOTE}"):
        # A job may have been killed before its run had a config, and so had begun.
        if note.read_text("utf-8") == _job() and (note.parent / "config.yaml").exists():
            return note.parent
    return None


def _job() -> str:
    # A job script may train one run after another, each a step of the job.
    names = ("SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID", "SLURM_STEP_ID")
    return " ".join(os.environ[name] for name in names if name in os.environ)
