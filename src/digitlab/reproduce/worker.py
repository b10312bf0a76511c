"""One run in a worker process, which trains run after run; its result travels back as values."""

import hashlib
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass, field
from multiprocessing import parent_process
from pathlib import Path
from threading import RLock, Thread
from typing import Any, NamedTuple

from filelock import FileLock, Timeout
from tqdm import tqdm

from digitlab import __version__, files, run_folder
from digitlab.cli import main, prepare_process
from digitlab.errors import InputError
from digitlab.reproduce.results import Result, lock
from digitlab.reproduce.rows import Row
from digitlab.run_folder import Framework
from digitlab.terminal import redirected

LOG_END = 4000
"""Bytes of a run's log that travel back."""


class Item(NamedTuple):
    """One run: a row, in a framework, with a seed."""

    row: Row
    framework: Framework
    seed: int  # of initial weights, order of images and dropout

    @property
    def name(self) -> str:
        """A unique name, which is also the folder's."""
        return f"{self.row.run_folder}-{self.framework}-seed_{self.seed}"

    def __str__(self) -> str:
        """Name it for a reader."""
        return f"{self.row.name} {self.framework} seed {self.seed}"


@dataclass(frozen=True)
class Spec:
    """All that a worker needs to train an item, on any machine."""

    item: Item
    config: bytes  # the content of its config, for a worker that has no such file
    out: Path
    name: str  # of its folder, below `out/runs`
    threads: int = 1
    options: tuple[str, ...] = ()  # of `digitlab fit`
    first: "Spec | None" = None  # the run whose last weights it starts from
    fetch: bool = False  # whether the files of the run folder travel back
    version: str = __version__  # that the worker must have

    @classmethod
    def make(
        cls,
        item: Item,
        out: Path,
        threads: int = 1,
        options: tuple[str, ...] = (),
        remote: bool = False,
        fetch: bool = False,
    ) -> "Spec":
        """Read an item's config, and that of the run it starts from.

        A remote worker may have runs of earlier configs, so its folders' names have a digest.
        """
        config, first, name = item.row.config.read_bytes(), None, item.name
        if path := item.row.after:
            row = Row(f"{path.parent.name}/{path.stem}", path)
            first = cls.make(item._replace(row=row), out, threads, options, remote, False)
        if remote:
            recipe = repr((config, options, threads, first and first.name, __version__))
            name += f"-{hashlib.sha256(recipe.encode()).hexdigest()[:12]}"
        return cls(item, config, out, name, threads, options, first, fetch)

    @property
    def folder(self) -> Path:
        """Where the run writes."""
        return self.out / "runs" / self.name


@dataclass(frozen=True)
class Outcome:
    """What travels back from a worker."""

    result: Result | None = None  # None if the run failed
    left: bool = False  # whether another process trains it
    # The end of the log, history.csv and, if it was asked for, the run folder.
    files: dict[str, bytes] = field(default_factory=dict)


def train_run(spec: Spec) -> Outcome:
    """Train a run in this process, unless it is finished or another process trains it.

    An unfinished run starts over.
    """
    worker = _dask_worker()
    _check_worker(spec, worker)
    prepare_process()
    stop = _stop_condition(worker)
    try:
        with _lock(spec, blocking=False):
            run = _find_run(spec.folder) or _train(spec, stop)
            result = _read_result(spec, run) if run else None
    except Timeout:
        return Outcome(left=True)
    paths = {"log.txt": spec.folder / "log.txt"}
    if run and result:
        paths["history.csv"] = run / "history.csv"
        kept = (path for path in run.rglob("*") if spec.fetch and path.is_file())
        paths |= {path.relative_to(spec.folder).as_posix(): path for path in kept}
    sent = {name: path.read_bytes() for name, path in paths.items() if path.exists()}
    return Outcome(result, files=sent | {"log.txt": sent.get("log.txt", b"")[-LOG_END:]})


def prepare_worker(threads: int) -> None:
    """Set up a local worker: it ends with its parent, which alone handles Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # `--threads` is for PyTorch and TensorFlow; this is for NumPy and scikit-learn.
    os.environ["OMP_NUM_THREADS"] = str(threads)
    # tqdm's own lock is a semaphore that multiprocessing would complain about in a killed process.
    tqdm.set_lock(RLock())
    Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    # A standard pool's worker would otherwise wait for ever once its parent was killed.
    if parent := parent_process():
        parent.join()
        os._exit(1)


def _find_run(folder: Path) -> Path | None:
    finished = [path.parent for path in folder.glob("*/version_*/metrics.json")]
    return max(finished, key=lambda path: path.stat().st_mtime, default=None)


def _train(spec: Spec, stop: Callable[[], bool]) -> Path | None:
    from digitlab.signals import stopped_if  # it imports torch, which this process may never need

    options = [*spec.options]
    if spec.first:
        with _lock(spec.first, cancel_check=stop):
            first = _find_run(spec.first.folder) or _train(spec.first, stop)
        if not first:
            return None
        options += ["--weights", str(first / run_folder.CHECKPOINTS[spec.item.framework]["last"])]
    framework = ["--framework", "keras"] if spec.item.framework == "keras" else []
    words = ["fit", *framework, "--config", str(_find_config(spec))]
    words += ["--seed_everything", str(spec.item.seed), "--threads", str(spec.threads)]
    words += ["--trainer.default_root_dir", str(spec.folder)]
    with _output_to(spec.folder / "log.txt", "w"), stopped_if(stop):
        run = _find_run(spec.folder) if main([*words, *options]) == 0 else None
    for half in {*run.parent.iterdir()} - {run} if run else ():
        shutil.rmtree(half, ignore_errors=True)
    return run


def _find_config(spec: Spec) -> Path:
    path = spec.item.row.config
    if path.is_file() and path.read_bytes() == spec.config:
        return path
    copy = spec.folder / "config" / path.parent.name / path.name
    copy.parent.mkdir(parents=True, exist_ok=True)
    files.write_text(copy, spec.config.decode("utf-8-sig"))
    return copy


def _read_result(spec: Spec, run: Path) -> Result | None:
    with _output_to(spec.folder / "log.txt", "a"):
        try:
            if "test" not in run_folder.read_metrics(run):  # a run with a hold-out
                main(["test", "--run", str(run)])
            return Result.of_run(spec.item.row._replace(config=_find_config(spec)), run)
        except (KeyError, ValueError) as error:
            print(f"\n{error}")
            return None


@contextmanager
def _output_to(log: Path, mode: str) -> Iterator[None]:
    """Write all output to a file, that of C++ code included, which has descriptors of its own."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with (
        log.open(mode, encoding="utf-8", buffering=1) as file,
        redirected(file, 1, 2),
        redirect_stdout(file),
        redirect_stderr(file),
    ):
        yield


@contextmanager
def _lock(spec: Spec, **how: object) -> Iterator[FileLock]:
    own = lock(spec.out, spec.name)
    with files.naming(spec.out):
        held = own.acquire(**how)  # type: ignore[arg-type]  # as the two calls above give it
    with held:
        yield own


def _dask_worker() -> Any:
    if "distributed" in sys.modules:
        from distributed import get_worker

        with suppress(ValueError):  # this process is none, but the command's own
            return get_worker()
    return None


def _check_worker(spec: Spec, worker: Any) -> None:
    name = worker.address if worker else f"process {os.getpid()}"
    if spec.version != __version__:
        raise InputError(
            f"worker {name} has digitlab {__version__}: install {spec.version}, which the command "
            "has, or end that worker"
        )
    if worker and worker.state.nthreads != 1:  # runs would share output and random numbers
        raise InputError(
            f"worker {name} trains {worker.state.nthreads} runs in one process: start it with "
            "--nthreads 1, and --nworkers for more"
        )


def _stop_condition(worker: Any) -> Callable[[], bool]:
    """Make the condition that nobody waits for this run; a local worker is killed instead."""
    if not worker:
        return lambda: False
    tasks, key = worker.state.tasks, worker.get_current_task()
    # Dask cannot end a task that runs. It is cancelled after Ctrl-C, and if the command was killed.
    return lambda: key not in tasks or tasks[key].state == "cancelled"
