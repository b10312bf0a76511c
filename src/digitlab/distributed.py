"""Ranks: collective operations, seeds, lost ranks, torchrun and SLURM.

Touches private parts of Lightning, checked against 2.6: the rank before there is a trainer, signal
handlers, and the function that a child process runs.
"""

import multiprocessing
import os
import random
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from pathlib import Path
from typing import Any, TextIO, TypeVar

import numpy as np
import torch
from lightning.fabric.utilities.rank_zero import _get_rank
from lightning.pytorch import Trainer
from lightning.pytorch.strategies.launchers.multiprocessing import _MultiProcessingLauncher
from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException

from digitlab import files
from digitlab.errors import RunError

T = TypeVar("T")

# Seconds that ranks get to end by themselves, once rank 0 is done.
_GRACE = 10.0


def is_rank_zero() -> bool:
    """Return whether this process writes a run's files, without needing a trainer."""
    # Without torchrun or SLURM, this is the rank on the node.
    return not _get_rank() and int(os.environ.get("NODE_RANK", "0")) == 0


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
def watch_ranks(trainer: Trainer) -> Iterator[None]:
    """Train in the `with` block, and end the processes that Lightning started with this one.

    A lost rank closes its connections. Those that wait for it get an error, and end; if it was
    started by Lightning or torchrun, these end the others too.

    Raises:
        RunError: Another rank was lost.
    """
    try:
        yield
        for child in started_ranks(trainer, subprocess.Popen):
            child.wait(_GRACE)
    except (ProcessExitedException, ProcessRaisedException) as error:
        *_, last = str(error).splitlines()  # of its traceback
        raise RunError(f"rank {error.error_index} failed: {last} (--debug shows more)") from error
    except RuntimeError as error:
        # gloo has no error class of its own.
        if not isinstance(error, torch.distributed.DistError) and "/gloo/" not in str(error):
            raise
        raise RunError("the connection to another rank is lost") from error
    except subprocess.TimeoutExpired:
        pass  # it has nothing left to save
    finally:
        for child in started_ranks(trainer, subprocess.Popen):
            child.kill()
        if isinstance(trainer.strategy.launcher, _MultiProcessingLauncher):
            for process in multiprocessing.active_children():  # of a start that was interrupted
                process.kill()


def started_ranks(trainer: Trainer, kind: type[T]) -> list[T]:
    """List the processes of a class that Lightning has started, and that train for this one."""
    started = getattr(trainer.strategy.launcher, "procs", [])
    return [child for child in started if isinstance(child, kind)]


def ignore_lightning_signals(trainer: Trainer) -> None:
    """Keep a trainer from setting signal handlers: they save in mid-step, and exit with 0 or 1."""
    trainer._signal_connector.register_signal_handlers = _register_none  # type: ignore[method-assign]


def _register_none() -> None:
    """Do nothing; a lambda would not pickle."""


Reported = Callable[[BaseException, Trainer], BaseException | None]


class RankLauncher(_MultiProcessingLauncher):
    """Starts ranks by multiprocessing, as `ddp_spawn`, `ddp_fork` and `ddp_notebook` do.

    Args:
        launcher: Lightning's, which it replaces.
        inside: Makes the context in which each rank trains.
        reported: Gives what the main process raises for an error that all ranks raise together;
            None for any other error.
    """

    def __init__(
        self,
        launcher: _MultiProcessingLauncher,
        inside: Callable[[], AbstractContextManager[None]],
        reported: Reported,
    ) -> None:
        super().__init__(launcher._strategy, launcher._start_method)
        self.inside = inside
        self.reported = reported

    def _wrapping_function(
        self, process_idx: int, trainer: Any, function: Any, args: Any, kwargs: Any, queue: Any,
        states: Any = None,
    ) -> None:  # fmt: skip
        with self.inside():
            try:
                super()._wrapping_function(
                    process_idx, trainer, function, args, kwargs, queue, states
                )
            except BaseException as error:
                if (reported := self.reported(error, trainer)) is None:
                    raise
                if process_idx == 0:
                    saved = [getattr(it, "saved_step", 0) for it in trainer.checkpoint_callbacks]
                    queue.put((reported, saved))

    def _recover_results_in_main_process(self, worker_output: Any, trainer: Trainer) -> None:
        if not isinstance(worker_output[0], BaseException):
            return super()._recover_results_in_main_process(worker_output, trainer)
        error, saved = worker_output
        for callback, step in zip(trainer.checkpoint_callbacks, saved, strict=True):
            callback.saved_step = step  # type: ignore[attr-defined]  # for the message
        raise error


def replace_launcher(
    trainer: Trainer, inside: Callable[[], AbstractContextManager[None]], reported: Reported
) -> None:
    """Let ranks that multiprocessing starts, if any, train in a context; see `RankLauncher`."""
    launcher = trainer.strategy.launcher
    if isinstance(launcher, _MultiProcessingLauncher):
        trainer.strategy._launcher = RankLauncher(launcher, inside, reported)


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
