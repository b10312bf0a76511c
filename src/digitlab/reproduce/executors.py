"""Many runs by an executor: processes of this machine, or a Dask cluster's workers."""

import logging
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import (
    FIRST_COMPLETED,
    CancelledError,
    Executor,
    Future,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
    wait,
)
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from multiprocessing import active_children, get_context
from pathlib import Path
from threading import current_thread, local, main_thread
from types import FrameType
from typing import Any, Self

from tqdm import tqdm

from digitlab.errors import InputError, RunError, describe_error, reading_input
from digitlab.reproduce.results import Result
from digitlab.reproduce.worker import Item, Outcome, Spec, prepare_worker, train_run
from digitlab.terminal import printable


class Processes(ThreadPoolExecutor):
    """Spawned processes that import once and make call after call; each is a pool of its own.

    A process that dies breaks its pool, so that only its own call is lost. That is made once more,
    in a new process.
    """

    def __init__(self, workers: int, threads: int = 1) -> None:
        super().__init__(workers)
        self._threads_each = threads
        self._own = local()  # each thread has a pool
        self._ended = False

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Submit a call; its future raises BrokenProcessPool if it has killed two processes."""
        return super().submit(self._call, function, *args, **kwargs)

    def _call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        for is_last in (False, True):
            if not hasattr(self._own, "pool"):
                self._own.pool = ProcessPoolExecutor(
                    1, get_context("spawn"), prepare_worker, (self._threads_each,)
                )
            try:
                return self._own.pool.submit(function, *args, **kwargs).result()
            except BrokenProcessPool:
                del self._own.pool
                if is_last or self._ended:
                    raise
        return None

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Shut down; without `wait` end the calls that run, as Dask's executor does."""
        self._ended |= not wait
        super().shutdown(wait=False, cancel_futures=cancel_futures or not wait)
        for process in active_children() if not wait else ():
            process.kill()
        super().shutdown(wait=wait)


def train_items(
    items: Iterable[Item],
    out: Path,
    is_done: Callable[[Item], bool],
    record: Callable[[Item, Result], str],
    *,
    workers: int = 1,
    threads: int = 1,
    scheduler: str | None = None,
    fetch: bool = False,
    options: Sequence[str] = (),
    expected_seconds: Callable[[Item], float | None] = lambda item: None,
) -> list[Item]:
    """Train the items that are not done, name those that failed, and return these.

    A run writes to `out/runs/<item>`: log.txt, and a run folder. Those of a Dask worker stay with
    it, and the end of the log and history.csv come here; with `fetch` the run folder, too. Ctrl-C
    and SIGTERM end the runs first.

    Args:
        items: The runs.
        out: The folder of all files.
        is_done: Whether an item needs no training.
        record: Records an item's result, and returns it in a few words.
        workers: Number of runs at a time, without a scheduler.
        threads: Number of CPU threads of each.
        scheduler: The address of a Dask scheduler, whose workers train the runs.
        fetch: Whether Dask workers send the run folders.
        options: Options of `digitlab fit` that all runs get.
        expected_seconds: How long an item will take, for the time left; None if unknown.
    """
    # Items that start from another one's weights come last: that one is then mostly done.
    waiting = sorted((it for it in items if not is_done(it)), key=lambda it: bool(it.row.after))
    how = (threads, (*options,), bool(scheduler), fetch)
    specs = {it: Spec.make(it, out, *how) for it in waiting}
    failed = []
    with (
        _ended_by_sigterm(),
        _executor(workers, threads, scheduler) as executor,
        _Progress(waiting, expected_seconds) as progress,
    ):
        try:
            futures = {executor.submit(train_run, spec): item for item, spec in specs.items()}
            for future in _as_completed(futures, progress):
                item = futures[future]
                succeeded, said = _receive(future, specs[item], record, out)
                progress.show(item, said)
                failed += [] if succeeded else [item]
        except BaseException as error:
            executor.shutdown(wait=False)
            if isinstance(error, KeyboardInterrupt):
                raise KeyboardInterrupt("the same command resumes the queue") from None
            raise
    for item in failed:
        print(printable(f"{item} failed: see {out / 'runs' / item.name / 'log.txt'}"))
    return failed


def _as_completed(
    futures: Mapping[Future[Any], Item], progress: "_Progress"
) -> Iterator[Future[Any]]:
    pending = {*futures}
    while pending:
        done, pending = wait(pending, timeout=1, return_when=FIRST_COMPLETED)
        yield from (future for future in futures if future in done)  # in the order of runs
        progress.bar.refresh()  # the elapsed time


def _receive(
    future: Future[Outcome], spec: Spec, record: Callable[[Item, Result], str], out: Path
) -> tuple[bool, str]:
    """Record what has come back; return whether the run has a result, and a short report."""
    folder = out / "runs" / spec.item.name
    try:
        outcome = future.result()
        if outcome.left:
            return True, "left to another process, which trains it"
        if spec.name != spec.item.name:  # of a worker elsewhere
            for name, content in outcome.files.items():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).write_bytes(content)
        result = outcome.result
        return (True, record(spec.item, result)) if result else (False, "failed")
    except InputError:  # the worker is not fit for any run
        raise
    except CancelledError as error:
        raise RunError(
            "the Dask scheduler is lost; all recorded results are kept, and the same command "
            "resumes the queue"
        ) from error
    except Exception as error:
        said = describe_error(error)
        # The latter is Dask's, which may not be installed.
        if isinstance(error, BrokenProcessPool) or type(error).__name__ == "KilledWorker":
            said = "each process that trained it was killed or has crashed"
        folder.mkdir(parents=True, exist_ok=True)
        with suppress(OSError), (folder / "log.txt").open("a", encoding="utf-8") as log:
            log.write(f"\n{said}\n")
        return False, f"failed: {said}"


@contextmanager
def _executor(workers: int, threads: int, scheduler: str | None) -> Iterator[Executor]:
    if not scheduler:
        with Processes(workers, threads) as processes:
            yield processes
        return
    with reading_input():
        if not find_spec("distributed"):
            raise InputError('scheduler needs Dask: pip install "digitlab[cluster]"')
        from distributed import Client

        # Its import has set the level of each part; a lost scheduler is reported by `_receive`.
        logging.getLogger("distributed.client").setLevel(logging.CRITICAL)
        try:
            client: Any = Client(scheduler, timeout=10)  # type: ignore[no-untyped-call]
        except OSError as error:
            raise InputError(
                f"scheduler is {scheduler}: none answers there; start one, dask scheduler, or "
                "give the address that it has printed"
            ) from error
    with client:
        print(printable(f"Dask's dashboard: {client.dashboard_link}"))
        # A call has its arguments' digest for a name: what two commands ask for is done once.
        yield client.get_executor(pure=True)


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """On SIGTERM, exit with 143, as after Ctrl-C; the main thread alone may handle signals."""
    if current_thread() is not main_thread():
        yield
        return

    def leave(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class _Progress:
    """A line for each finished item, and a bar that counts expected seconds.

    Some rows take a hundred times as long as others, so a count of runs would promise a wrong end.
    """

    def __init__(
        self, items: Sequence[Item], expected_seconds: Callable[[Item], float | None]
    ) -> None:
        known = {item: expected_seconds(item) for item in items}
        measured = [seconds for seconds in known.values() if seconds]
        mean = sum(measured) / len(measured) if measured else 1.0
        self._seconds = {item: seconds or mean for item, seconds in known.items()}
        self._done = 0
        self.bar: tqdm[Any] = tqdm(
            total=sum(self._seconds.values()),
            bar_format="{desc} |{bar}| {percentage:3.0f}% {elapsed}<{remaining}",
            desc=self._count(),
            disable=None,  # if there is no terminal
            dynamic_ncols=True,
        )

    def show(self, item: Item, said: str) -> None:
        self._done += 1
        self.bar.set_description_str(self._count(), refresh=False)
        self.bar.update(self._seconds[item])
        self.bar.write(printable(f"[{self._done}/{len(self._seconds)}] {item}: {said}"))

    def _count(self) -> str:
        return f"{self._done} of {len(self._seconds)} runs"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.bar.close()
