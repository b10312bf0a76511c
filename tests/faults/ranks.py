"""Runs of several processes that start in no time: each gets a rank as a launcher would give it."""

import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from tests.faults.runs_of_tiny import folder_of
from tests.faults.victims import Fault, start

PATIENCE = 120.0
"""Seconds that the slowest machine may take for anything here."""

Environment = dict[str, str]


def free_port() -> int:
    """A port that nobody listens at."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def torchrun(rank: int, size: int) -> Environment:
    """What torchrun tells a process."""
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size}
    return {name: str(number) for name, number in numbers.items()} | {"TORCHELASTIC_RUN_ID": "a"}


def _prepare(environment: Environment, fault: Fault | None) -> None:
    os.environ |= environment
    if fault:
        fault()


@contextmanager
def ranks(
    arguments: Sequence[str],
    place: Path,
    size: int = 2,
    faults: Mapping[int, Fault] | None = None,
    launcher: Callable[[int, int], Environment] = torchrun,
) -> Iterator[list[ForkServerProcess]]:
    """Starts `digitlab` in `size` processes, with faults by rank; all end with the block.

    What rank r prints stands in `place/log.r`.
    """
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    place.mkdir(parents=True, exist_ok=True)
    devices = ["--trainer.devices", str(size), "--trainer.strategy", "ddp"]
    processes = []
    for rank in range(size):
        (place / f"log.{rank}").unlink(missing_ok=True)
        environment = address | launcher(rank, size)
        fault = partial(_prepare, environment, (faults or {}).get(rank))
        processes.append(start([*arguments, *devices], place / f"log.{rank}", fault))
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()


def codes(processes: Sequence[ForkServerProcess]) -> list[int | None]:
    """Waits for the end of processes, and gives their exit codes."""
    for process in processes:
        process.join(PATIENCE)
    return [process.exitcode for process in processes]


def run_ranks(
    arguments: Sequence[str], place: Path, size: int = 2, faults: Mapping[int, Fault] | None = None
) -> list[int | None]:
    """Runs `digitlab` in `size` processes, with faults by rank, and gives their exit codes."""
    with ranks(arguments, place, size, faults) as processes:
        return codes(processes)


def said(place: Path, rank: int = 0) -> str:
    """What a rank has printed."""
    return (place / f"log.{rank}").read_text("utf-8")


def ranks_left_alone(arguments: Sequence[str], place: Path, size: int = 2) -> Path:
    """Runs `digitlab` in several processes to its end, and gives its run folder."""
    ends = run_ranks(arguments, place, size)
    assert ends == [0] * size, [said(place, rank) for rank in range(size)]
    # One log, one folder.
    assert [said(place, rank) for rank in range(1, size)] == [""] * (size - 1)
    return folder_of(place)


def wait_for(condition: Callable[[], object], seconds: float = PATIENCE) -> None:
    """Waits until something is true.

    Raises:
        TimeoutError: It was not, all the time.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError
        time.sleep(0.02)


def trains(place: Path) -> bool:
    """Whether a run below a place has written its first checkpoint."""
    return any(place.glob("*/version_*/checkpoints/last.ckpt"))
