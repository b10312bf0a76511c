"""Processes that train by turns, so that each sees the same noise and none disturbs another."""

import json
import os
import pty
import signal
import subprocess
import termios
from collections import deque
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from types import TracebackType
from typing import Any, Self

from benchmarks.turns import REPORTS

ROOT = Path(__file__).parent.parent
WARM_UP = 2
"""Turns of each contestant that are not counted: caches fill, Keras traces and compiles."""


@dataclass(frozen=True)
class Turn:
    """The time of a turn.

    Args:
        microseconds: Per optimizer step.
        cpu_microseconds: Per optimizer step, of all threads together. Other processes hardly
            change it, and it shows how many cores were used.
    """

    microseconds: float
    cpu_microseconds: float


class Contestant:
    """A process that trains during its turns, and is stopped between them.

    It writes to a terminal of its own, so that progress bars are drawn; the output is discarded.

    Args:
        name: Its name in error messages.
        command: The command line; it uses `benchmarks.turns.Turns`.
        environment: Its environment.
    """

    def __init__(self, name: str, command: Sequence[str], environment: dict[str, str]) -> None:
        self.name = name
        terminal, its_terminal = pty.openpty()
        termios.tcsetwinsize(its_terminal, (24, 100))
        reports, its_reports = os.pipe()
        self._process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**environment, "TERM": "xterm-256color", REPORTS: str(its_reports)},
            stdin=subprocess.PIPE,
            stdout=its_terminal,
            stderr=its_terminal,
            pass_fds=[its_reports],
            # A process group can be stopped as a whole. It stays in this session, so that the
            # kernel ends the stopped processes if this one is killed.
            process_group=0,
            text=True,
        )
        os.close(its_terminal)
        os.close(its_reports)
        self._reports = os.fdopen(reports)
        self._shown: deque[bytes] = deque(maxlen=20)
        Thread(target=self._drain, args=[terminal], daemon=True).start()

    def __enter__(self) -> Self:
        """Wait until it is ready for its first turn."""
        try:
            self._await_report()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end()

    def take_turn(self) -> Turn:
        """Let it train a chunk.

        Raises:
            RuntimeError: The process has ended.
        """
        assert self._process.stdin
        self._signal(signal.SIGCONT)
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        report = self._await_report()
        scale = 1e6 / report["steps"]
        return Turn(scale * report["seconds"], scale * report["cpu_seconds"])

    def _await_report(self) -> Any:
        line = self._reports.readline()
        if not line:
            self._process.wait()
            shown = b"".join(self._shown).decode(errors="replace")
            raise RuntimeError(f"{self.name} ended before its turn was over:\n{shown}")
        # Otherwise its threads, such as a progress bar's, would run during the others' turns.
        self._signal(signal.SIGSTOP)
        return json.loads(line)

    def _signal(self, number: signal.Signals) -> None:
        os.killpg(self._process.pid, number)

    def _end(self) -> None:
        if self._process.poll() is None:
            self._signal(signal.SIGKILL)  # a stopped process reacts to no other signal
        self._process.wait()

    def _drain(self, terminal: int) -> None:
        try:
            while shown := os.read(terminal, 4096):
                self._shown.append(shown)
        except OSError:  # on Linux: the other side is closed
            pass
        finally:
            os.close(terminal)


@dataclass(frozen=True)
class Entry:
    """A contestant to be started.

    Args:
        name: A name for it.
        command: Its command line.
    """

    name: str
    command: Sequence[str]


def compete(
    entries: Iterable[Entry], rounds: int, environment: dict[str, str]
) -> dict[str, list[Turn]]:
    """Let all take turns, and return each one's turns, round by round."""
    with ExitStack() as stack:
        contestants = [
            stack.enter_context(Contestant(entry.name, entry.command, environment))
            for entry in entries
        ]
        turns = [
            {contestant.name: contestant.take_turn() for contestant in contestants}
            for _ in range(WARM_UP + rounds)
        ][WARM_UP:]
    return {
        contestant.name: [turn[contestant.name] for turn in turns] for contestant in contestants
    }
