"""Several processes: ranks that agree, ranks that are lost, torchrun and SLURM."""

import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import Popen, TimeoutExpired
from threading import Event, Thread, current_thread, main_thread
from time import monotonic, sleep
from typing import Any, TextIO

import numpy as np
import torch
from lightning.fabric.utilities.rank_zero import _get_rank
from lightning.pytorch import Trainer
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher

from digitlab import files
from digitlab.errors import RunError


def is_rank_zero() -> bool:
    """Say whether this process is the one that writes a run's files, before there is a trainer."""
    # Where a node starts its processes by itself, their ranks are those on the node.
    return not _get_rank() and int(os.environ.get("NODE_RANK", "0")) == 0


def print_rank_zero(sentence: str, file: TextIO | None = None) -> None:
    """Print what all processes know, in the first one."""
    if is_rank_zero():
        print(sentence, file=file)


def all_reduce_max(trainer: Trainer, number: int) -> int:
    """Give the largest of all processes' numbers, at least 0, to each of them.

    To be called by all processes or none.
    """
    if trainer.world_size == 1:
        return number
    tensor = torch.tensor(number, device=trainer.strategy.root_device)
    torch.distributed.all_reduce(tensor, torch.distributed.ReduceOp.MAX)
    return int(tensor.item())


def gather(trainer: Trainer, state: Any) -> list[Any]:
    """Give each process what all have, in the order of their ranks; it must pickle.

    To be called by all processes or none.
    """
    if trainer.world_size == 1:
        return [state]
    states = [None] * trainer.world_size
    torch.distributed.all_gather_object(states, state)
    return states


def seed_per_rank(trainer: Trainer) -> None:
    """Seed the random numbers of each process but the first by its rank.

    Lightning seeds all alike, and then images of one step share dropout's masks.
    """
    if trainer.global_rank == 0:
        return
    seeds = np.random.SeedSequence([torch.initial_seed(), trainer.global_rank])
    seed = int(seeds.generate_state(1)[0])
    torch.manual_seed(seed)
    np.random.seed(seed)  # noqa: NPY002  # a user may draw from it
    random.seed(seed)


# In the environment of a process that the first one has started: the number of the first one.
_FIRST = "DIGITLAB_FIRST_PROCESS"
# Seconds in which a process notices by itself that it waits for a lost one; a GPU's may never.
_GRACE = 10.0
# Seconds in which the system says what became of a process whose connections are closed.
_SETTLES = 3.0
_GO_ON = "digitlab fit --run goes on with the run"


@contextmanager
def watch_ranks(trainer: Trainer) -> Iterator[None]:
    """Train in the `with` block, as one of the trainer's processes; end with all of them.

    Raises:
        RunError: Another process was lost.
        SystemExit: So it was, and the first process says so.
    """
    companions = ChildProcesses(trainer)
    try:
        yield
    except RuntimeError as error:
        if not _is_lost_connection(error):
            raise
        if companions.told_by_first():
            raise SystemExit(0) from None
        if current_thread() is main_thread():
            # So torchrun ends the processes that are left, where one still has a line to say.
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        lost = companions.lost_soon() or "the connection to another process is lost"
        # The first process tells more of what to do.
        raise RunError(lost if trainer.is_global_zero else f"{lost}; {_GO_ON}") from error
    else:
        companions.wait()
    finally:
        companions.end()


def is_child() -> bool:
    """Say whether this process was started by the run's first one, which speaks for it."""
    return os.environ.get(_FIRST, str(os.getpid())) != str(os.getpid())


class ChildProcesses:
    """The processes that Lightning starts on this machine, and the one that started this one.

    They are watched in place of Lightning, which ends the first process too, by SIGKILL and without
    a word, where another has failed, and nothing where the first is gone.

    Args:
        trainer: Its launcher, which has not started anything yet.
    """

    def __init__(self, trainer: Trainer) -> None:
        self._children: list[Popen[bytes]] = []
        self._over = Event()
        self._first_rank = trainer.global_rank
        launcher = trainer.strategy.launcher
        if is_child():
            self._watch()
        elif (
            isinstance(launcher, _SubprocessScriptLauncher)
            and not launcher.cluster_environment.creates_processes_externally
        ):
            self._start = launcher._call_children_scripts
            self._launcher = launcher
            launcher._call_children_scripts = self._start_and_watch  # type: ignore[method-assign]

    def _start_and_watch(self) -> None:
        os.environ[_FIRST] = str(os.getpid())
        main = current_thread() is main_thread()
        # A terminal's Ctrl-C goes to all: until the others can wait for the end of a step, and
        # would only show where their imports are, they leave it to this one.
        before = signal.signal(signal.SIGINT, signal.SIG_IGN) if main else None
        self._start()
        if main:
            signal.signal(signal.SIGINT, before)
        # An empty list is what Lightning's own watcher is left with.
        self._children, self._launcher.procs = self._launcher.procs, []
        self._watch()

    def _watch(self) -> None:
        Thread(target=self._end_if_stuck, name="companions", daemon=True).start()

    def _end_if_stuck(self) -> None:
        """Wait for a loss that nobody else notices, for all wait for the lost one, and end."""
        while not (lost := self.lost()):
            if self._over.wait(1):
                return
        if self._over.wait(_GRACE):
            return
        print(f"digitlab: error: {lost}; {_GO_ON}", file=sys.stderr, flush=True)
        self.end()
        os._exit(1)

    def lost(self) -> str:
        """Say what became of a process that has failed; nothing if none has."""
        if is_child() and not self.told_by_first():
            return "the first process is gone"
        for rank, child in enumerate(self._children, self._first_rank + 1):
            if code := child.poll():
                end = f"failed with exit code {code}"
                if code < 0:
                    end = f"was ended by {signal.Signals(-code).name}"
                return f"the process of rank {rank} {end}"
        return ""

    def lost_soon(self) -> str:
        """Say it, if it turns out within the seconds that the system may take."""
        deadline = monotonic() + _SETTLES
        while not (lost := self.lost()) and self._children and monotonic() < deadline:
            sleep(0.05)
        return lost

    def told_by_first(self) -> bool:
        """Say whether the first process has started this one, and is there to say what happens."""
        return is_child() and os.environ[_FIRST] == str(os.getppid())

    def wait(self) -> None:
        """Wait for the end of the others, which have nothing left to do, but for a moment."""
        for child in self._children:
            try:
                child.wait(timeout=_GRACE)
            except TimeoutExpired:
                return

    def end(self) -> None:
        """End the others at once; only the first process has anything to save."""
        self._over.set()
        for child in self._children:
            child.kill()
            child.wait()


def _is_lost_connection(error: RuntimeError) -> bool:
    """Say whether other processes do not answer: gloo has no class of its own for it."""
    return isinstance(error, torch.distributed.DistError) or "/gloo/" in str(error)


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
        files.write_text(folder / _NOTE, job)


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
