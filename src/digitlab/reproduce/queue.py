"""A queue of runs that survives interruption, and that several processes may work on."""

import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple, Self

from filelock import FileLock, Timeout
from tqdm import tqdm

from digitlab import files, run_folder
from digitlab.reproduce.results import lock
from digitlab.reproduce.rows import Row
from digitlab.run_folder import Framework
from digitlab.terminal import printable


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


@dataclass
class Queue:
    """Trains items, several at a time, each in its own process.

    An item writes to `out/runs/<item>`: log.txt, and a run folder. An item that another process
    is training is left to it. An interrupted one starts over.

    Args:
        out: The folder of all files.
        is_done: Whether an item needs no training; asked again once the item is locked.
        record: Records the result in an item's run folder, and returns it in a few words.
        expected_seconds: How long an item will take, for the time left; None if unknown.
        workers: Number of runs at a time.
        threads: Number of CPU threads of each.
        options: Options of `digitlab fit` that all runs get.
    """

    out: Path
    is_done: Callable[[Item], bool]
    record: Callable[[Item, Path], str]
    expected_seconds: Callable[[Item], float | None] = lambda item: None
    workers: int = 1
    threads: int = 1
    options: Sequence[str] = ()
    _stopped: threading.Event = field(default_factory=threading.Event, repr=False)

    def work(self, items: Iterable[Item]) -> list[Item]:
        """Train the items that are not done, and return those that failed.

        Raises:
            KeyboardInterrupt, SystemExit: Ctrl-C was pressed, or SIGTERM came; the runs are ended
                first.
        """
        with _ended_by_sigterm():
            return self._work(items)

    def _work(self, items: Iterable[Item]) -> list[Item]:
        # Items that start from another one's weights come last: that one is then mostly done.
        waiting = sorted((i for i in items if not self.is_done(i)), key=lambda i: bool(i.row.after))
        failed = []
        with ThreadPoolExecutor(self.workers) as pool, _Progress(self, waiting) as progress:
            try:
                futures = {pool.submit(self._take, item): item for item in waiting}
                pending = set(futures)
                while pending:
                    done, pending = wait(pending, timeout=1, return_when=FIRST_COMPLETED)
                    for future in done:
                        progress.show(futures[future], future.result() or "failed")
                        failed += [] if future.result() else [futures[future]]
                    progress.refresh()
            except BaseException as error:
                self._stopped.set()
                pool.shutdown(wait=True, cancel_futures=True)
                if isinstance(error, KeyboardInterrupt):
                    raise KeyboardInterrupt("the same command resumes the queue") from None
                raise
        return failed

    def find_run(self, item: Item) -> Path | None:
        """Find the folder of an item's finished run."""
        finished = [path.parent for path in self._folder(item).glob("*/version_*/metrics.json")]
        return max(finished, key=lambda path: path.stat().st_mtime, default=None)

    def log(self, item: Item) -> Path:
        """Return the file with the output of an item's run."""
        return self._folder(item) / "log.txt"

    def _take(self, item: Item) -> str:
        """Train an item unless it is done or taken, and return a short report; "" if it failed."""
        try:
            with self._lock(item, blocking=False) as held:
                if self.is_done(item):
                    return "done by another process"
                run = self.find_run(item) or self._train(item, held)
                return self._record(item, run) if run else ""
        except Timeout:
            return "left to another process, which trains it"

    def _record(self, item: Item, run: Path) -> str:
        try:
            return self.record(item, run)
        except (KeyError, ValueError) as error:  # a finished run without a result
            with self.log(item).open("a", encoding="utf-8") as log:
                log.write(f"\n{error}\n")
            return ""

    def _train(self, item: Item, held: FileLock) -> Path | None:
        options = [*self.options]
        if item.row.after:
            first = self._train_first(item, item.row.after)
            if not first:
                return None
            last = run_folder.CHECKPOINTS[item.framework]["last"]
            options += ["--weights", str(first / last)]
        folder = self._folder(item)
        folder.mkdir(parents=True, exist_ok=True)
        command = [*_fit_command(item, folder, self.threads), *options]
        run = self.find_run(item) if self._call(command, self.log(item), held) else None
        if run:
            for half in {*run.parent.iterdir()} - {run}:
                shutil.rmtree(half, ignore_errors=True)
        return run

    def _train_first(self, item: Item, config: Path) -> Path | None:
        first = Item(Row(f"{config.parent.name}/{config.stem}", config), item.framework, item.seed)
        while not self._stopped.is_set():
            with suppress(Timeout), self._lock(first, timeout=0.2) as held:
                return self.find_run(first) or self._train(first, held)
        return None

    def _call(self, command: list[str], log: Path, held: FileLock) -> bool:
        # The lock is the process's too, so that a run whose queue was killed keeps its item.
        own = held._context.lock_file_fd
        kept = [] if own is None else [own]
        # `--threads` is for PyTorch and TensorFlow; this is for NumPy and scikit-learn.
        environment = os.environ | {"OMP_NUM_THREADS": str(self.threads)}
        with log.open("w", encoding="utf-8") as file:
            process = subprocess.Popen(
                command, stdout=file, stderr=file, env=environment, pass_fds=kept
            )
            while True:
                try:
                    return process.wait(timeout=0.2) == 0
                except subprocess.TimeoutExpired:
                    if self._stopped.is_set():
                        process.kill()

    def _folder(self, item: Item) -> Path:
        return self.out / "runs" / item.name

    @contextmanager
    def _lock(self, item: Item, **how: Any) -> Iterator[FileLock]:
        own = lock(self.out, item.name)
        with files.naming(self.out):
            held = own.acquire(**how)
        with held:
            yield own


def _fit_command(item: Item, folder: Path, threads: int) -> list[str]:
    framework = ["--framework", "keras"] if item.framework == "keras" else []
    command = [sys.executable, "-m", "digitlab", "fit", *framework]
    command += ["--config", str(item.row.config), "--seed_everything", str(item.seed)]
    return [*command, "--threads", str(threads), "--trainer.default_root_dir", str(folder)]


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """On SIGTERM, end the runs and exit with 143."""
    if threading.current_thread() is not threading.main_thread():
        yield  # signals cannot be handled here
        return

    def leave(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class _Progress:
    """Shows a line for each finished item, and a bar of all items."""

    def __init__(self, queue: Queue, items: Sequence[Item]) -> None:
        known = {item: queue.expected_seconds(item) for item in items}
        measured = [seconds for seconds in known.values() if seconds]
        mean = sum(measured) / len(measured) if measured else 1.0
        self._seconds = {item: seconds or mean for item, seconds in known.items()}
        self._done = 0
        # Counts expected seconds, not runs, so that the time left is right although some rows take
        # a hundred times as long as others.
        self._bar: tqdm[Any] = tqdm(
            total=sum(self._seconds.values()),
            bar_format="{desc} |{bar}| {percentage:3.0f}% {elapsed}<{remaining}",
            desc=self._count(),
            disable=None,  # if there is no terminal
            dynamic_ncols=True,
        )

    def show(self, item: Item, said: str) -> None:
        """Show the report of an item."""
        self._done += 1
        self._bar.set_description_str(self._count(), refresh=False)
        self._bar.update(self._seconds[item])
        self._bar.write(printable(f"[{self._done}/{len(self._seconds)}] {item}: {said}"))

    def refresh(self) -> None:
        """Show the elapsed time."""
        self._bar.refresh()

    def _count(self) -> str:
        return f"{self._done} of {len(self._seconds)} runs"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.close()
