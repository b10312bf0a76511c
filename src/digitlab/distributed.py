"""Ranks, which torchrun or SLURM starts: collective operations, seeds, a job's requeue.

Touches private parts of Lightning, checked against 2.6: a strategy's way to start processes, and
signal handlers.
"""

import os
import random
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.pytorch import Trainer

from digitlab import files
from digitlab.errors import RunError
from digitlab.terminal import command


def check_started(trainer: Trainer, settings: Mapping[str, Any], options: Sequence[str]) -> None:
    """Refuse a run whose ranks Lightning would start.

    Args:
        trainer: The run's.
        settings: Of the trainer.
        options: The command line after `digitlab fit`, to name the one that starts the ranks.

    Raises:
        ValueError: The message has the command.
    """
    strategy, words = trainer.strategy, ["torchrun"]
    name = "num_nodes" if trainer.num_nodes > 1 else "devices"
    if starts_processes(trainer):
        name, options = "strategy", [*options, "--trainer.strategy", "ddp"]
    elif trainer.world_size == 1 or isinstance(
        getattr(strategy, "cluster_environment", None), SLURMEnvironment | TorchElasticEnvironment
    ):
        return
    if trainer.num_nodes > 1:
        words += ["--nnodes", str(trainer.num_nodes)]
        words += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "HOST:29500"]
    words += ["--nproc-per-node", str(trainer.num_devices), "-m", "--", "digitlab", "fit"]
    raise ValueError(
        f"trainer.{name} is {settings[name]}, and digitlab starts no processes: use "
        f"{command(*words, *options)}"
    )


def starts_processes(trainer: Trainer) -> bool:
    """Return whether the strategy starts processes under any launcher, as `ddp_spawn` does."""
    return getattr(trainer.strategy, "_start_method", "popen") != "popen"


def is_rank_zero() -> bool:
    """Return whether this process writes a run's files, without needing a trainer."""
    return os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) == "0"


def print_rank_zero(text: str, file: TextIO | None = None) -> None:
    """Print in rank 0 alone."""
    if is_rank_zero():
        print(text, file=file)


def all_reduce_max(trainer: Trainer, number: int) -> int:
    """Return the largest number of all ranks, each at least 0.

    Call it on all ranks or none.
    """
    if trainer.world_size == 1:
        return number
    tensor = torch.tensor(number)
    hosts = _group_of_hosts(torch.distributed.group.WORLD)
    torch.distributed.all_reduce(tensor, torch.distributed.ReduceOp.MAX, hosts)
    return int(tensor.item())


def gather(trainer: Trainer, state: Any) -> list[Any]:
    """Return the states of all ranks, in the order of ranks; they must pickle.

    Call it on all ranks or none.
    """
    if trainer.world_size == 1:
        return [state]
    states = [None] * trainer.world_size
    hosts = _group_of_hosts(torch.distributed.group.WORLD)
    torch.distributed.all_gather_object(states, state, hosts)
    return states


@cache
def _group_of_hosts(world: Any) -> Any:
    """Make a second group of all ranks: with NCCL, a number would wait for the GPU's queue."""
    return torch.distributed.new_group(backend="gloo")


def seed_per_rank(trainer: Trainer) -> None:
    """Seed the random numbers of each rank but 0 by the seed and the rank.

    Lightning seeds all alike, so that the ranks' images would share dropout's masks.
    """
    if trainer.global_rank == 0:
        return
    seeds = np.random.SeedSequence([torch.initial_seed(), trainer.global_rank])
    seed = int(seeds.generate_state(1)[0])
    torch.manual_seed(seed)
    np.random.seed(seed)  # noqa: NPY002  # a user may draw from it
    random.seed(seed)


@contextmanager
def reporting_lost_rank() -> Iterator[None]:
    """Report in a line that a rank is lost; torchrun and SLURM end those that are left.

    Raises:
        RunError: The connection to another rank is lost.
    """
    try:
        yield
    except RuntimeError as error:
        # gloo has no error class of its own.
        if not isinstance(error, torch.distributed.DistError) and "/gloo/" not in str(error):
            raise
        raise RunError("the connection to another rank is lost") from error


def ignore_lightning_signals(trainer: Trainer) -> None:
    """Keep a trainer from setting signal handlers: they save in mid-step, and exit with 0 or 1."""
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]


_NOTE = ".slurm_job"


def requeue() -> str:
    """Ask SLURM to requeue this job, and return a sentence on the result."""
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    job = f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}" if array else os.environ["SLURM_JOB_ID"]
    try:
        subprocess.run(["scontrol", "requeue", job], check=True, capture_output=True, timeout=60)
    except (OSError, subprocess.SubprocessError) as error:
        return f"SLURM did not requeue job {job} ({error})"
    return f"SLURM starts job {job} again"


def note_job(folder: Path) -> None:
    """Write the SLURM job, if any, into a new run's folder."""
    if job := _job():
        files.write_text(folder / _NOTE, job)


def requeued(parent: Path) -> Path | None:
    """Find the folder of the run that this SLURM job started before it was requeued."""
    if int(os.environ.get("SLURM_RESTART_COUNT", "0")) == 0:
        return None
    for note in parent.glob(f"version_*/{_NOTE}"):
        # A job may have been killed before its run had a config.
        if note.read_text("utf-8") == _job() and (note.parent / "config.yaml").exists():
            return note.parent
    return None


def _job() -> str:
    # A job script may train one run after another, each a step of the job.
    names = ("SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID", "SLURM_STEP_ID")
    return " ".join(os.environ[name] for name in names if name in os.environ)
