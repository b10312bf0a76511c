"""Runs of several processes: ranks that start in no time, and commands as a user gives them."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from tests.faults.runs_of_tiny import folder_of
from tests.faults.victims import Fault, start

PATIENCE = 120.0
"""Seconds that the slowest machine may take for anything here."""

DDP = ["--trainer.strategy", "ddp", "--trainer.devices", "2"]


def free_port() -> int:
    """A port that nobody listens at."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _be_rank(rank: int, size: int, port: int, fault: Fault | None) -> None:
    """A fault: the environment that torchrun gives a process of its own, and another fault."""
    os.environ |= {
        **{"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size)},
        **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "tests"},
    }
    if fault:
        fault()


def run_ranks(
    arguments: list[str], place: Path, size: int = 2, faults: dict[int, Fault] | None = None
) -> list[int]:
    """Runs `digitlab` in `size` processes, with faults by rank; gives their exit codes.

    What rank r prints stands in `place/log.r`.
    """
    port = free_port()
    place.mkdir(parents=True, exist_ok=True)
    devices = ["--trainer.devices", str(size), "--trainer.strategy", "ddp"]
    processes = []
    for rank in range(size):
        (place / f"log.{rank}").unlink(missing_ok=True)
        fault = partial(_be_rank, rank, size, port, (faults or {}).get(rank))
        processes.append(start([*arguments, *devices], place / f"log.{rank}", fault))
    try:
        for process in processes:
            process.join(PATIENCE)
            assert process.exitcode is not None, said(place, 0) + said(place, 1)
        return [process.exitcode for process in processes if process.exitcode is not None]
    finally:
        for process in processes:
            process.kill()


def said(place: Path, rank: int) -> str:
    """What a rank of the last run has printed."""
    return (place / f"log.{rank}").read_text("utf-8")


def ranks_left_alone(arguments: list[str], place: Path, size: int = 2) -> Path:
    """Runs `digitlab` in several processes to its end, and gives its run folder."""
    assert run_ranks(arguments, place, size) == [0] * size, said(place, 0) + said(place, 1)
    assert [said(place, rank) for rank in range(1, size)] == [""] * (size - 1)
    return folder_of(place)


@contextmanager
def command(
    arguments: list[str], place: Path, *before: str, name: str = "log"
) -> Iterator[subprocess.Popen[bytes]]:
    """Starts `python -m [before] digitlab`, the first of a session, all of which ends here.

    What it prints is appended to `place/name`.
    """
    place.mkdir(parents=True, exist_ok=True)
    words = [sys.executable, "-m", *before, "digitlab", *arguments]
    with (place / name).open("ab") as log:
        process = subprocess.Popen(words, stdout=log, stderr=log, start_new_session=True)
    try:
        yield process
    finally:
        for number in members(process.pid):
            os.kill(number, signal.SIGKILL)
        process.wait()


def members(session: int) -> list[int]:
    """The processes of a session that still run, in the order of their start."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state, _, _, of = (folder / "stat").read_text().rpartition(")")[2].split()[:4]
        except OSError:  # it has just ended
            continue
        if int(of) == session and state != "Z":
            found.append(int(folder.name))
    return sorted(found)


def wait_for(condition: Callable[[], object], seconds: float = PATIENCE) -> None:
    """Waits until something is true.

    Raises:
        TimeoutError: It was not, all the time.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError
        time.sleep(0.05)


def trains(place: Path) -> bool:
    """Whether a run below a place has written its first checkpoint."""
    return any(place.glob("*/version_*/checkpoints/last.ckpt"))
