"""Commands as a user gives them, which start processes of their own; none outlives its test."""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from uuid import uuid4

from tests.faults.ranks import PATIENCE, wait_for

DDP = ["--trainer.strategy", "ddp", "--trainer.devices", "2"]

# In the environment of all processes that a command has started, whatever became of their parents.
_MARK = "DIGITLAB_TESTS_COMMAND"


class Command(AbstractContextManager["Command"]):
    """A command under way, of which nothing is left after its `with` block.

    Args:
        words: What stands after `python -m`.
        log: The file that what it prints is appended to.
    """

    def __init__(self, words: Sequence[str], log: Path) -> None:
        self.log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        self._mark = uuid4().hex
        with log.open("ab") as file:
            self._process = subprocess.Popen(
                [sys.executable, "-m", *words],
                stdout=file,
                stderr=subprocess.STDOUT,
                env=os.environ | {_MARK: self._mark},
                start_new_session=True,
            )

    @property
    def first(self) -> int:
        """The process that was started."""
        return self._process.pid

    def others(self) -> list[int]:
        """The processes that were started with a rank, the first to start first."""
        return self._all(b"LOCAL_RANK=")

    def _all(self, name: bytes = b"") -> list[int]:
        """All processes whose environment at their start had a variable."""
        mark = f"{_MARK}={self._mark}".encode()
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):  # it has just ended, or is another's
                # Nothing is to be read of those that have ended.
                variables = (folder / "environ").read_bytes().split(b"\0")
                if mark in variables and any(text.startswith(name) for text in variables):
                    found.append(int(folder.name))
        return sorted(found)

    def end(self, seconds: float = 60) -> int:
        """Waits for the end of all its processes, and gives the exit code, below 0 for a signal."""
        code = self._process.wait(seconds)
        wait_for(lambda: not self._all(), seconds)
        return code

    def said(self) -> str:
        """What it has printed."""
        return self.log.read_text("utf-8")

    def __exit__(self, *_: object) -> None:
        """Ends all that is left of it."""
        for number in self._all():
            with suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)
        self._process.wait(PATIENCE)


def digitlab(arguments: Sequence[str], place: Path) -> Command:
    """Starts `digitlab`; what it prints is appended to `place/log`."""
    return Command(["digitlab", *arguments], place / "log")
