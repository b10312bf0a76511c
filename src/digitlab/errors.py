"""The errors that the command line turns into exit codes, and their messages, without torch."""

import errno
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path
from traceback import extract_tb, format_list

from digitlab.terminal import one_line


def _caller_and_message(error: BaseException) -> list[str]:
    """Let a notebook show the caller's line and the message, not hundreds of lines."""
    package = str(Path(__file__).parent)
    frames = extract_tb(error.__traceback__)
    outside = takewhile(lambda frame: not frame.filename.startswith(package), frames)
    caller = format_list(list(outside)[-1:])
    return "".join([*caller, f"{type(error).__name__}: {error}"]).splitlines()


class InputError(ValueError):
    """Bad input: exit code 2. The message names the value, the rule and the remedy in one line."""

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))

    _render_traceback_ = _caller_and_message


class RunError(Exception):
    """Training failed after it had started: exit code 1. The message names the last checkpoint."""

    _render_traceback_ = _caller_and_message


class Interrupted(BaseException):
    """A signal asked the run to stop.

    Not an `Exception`, since it is not an error; not a `KeyboardInterrupt`, which Lightning turns
    into exit code 1.

    Args:
        number: The signal's number.
        rest: A sentence on the saved checkpoint and how to resume.
    """

    def __init__(self, number: int, rest: str = "") -> None:
        super().__init__(number, rest)
        self.number = number
        self.rest = rest

    @property
    def exit_code(self) -> int:
        """A shell's code for a program that the signal ended: 130 for Ctrl-C, 143 for SIGTERM."""
        return 128 + self.number

    @property
    def asks_to_requeue(self) -> bool:
        """Whether SLURM is to start the job again."""
        return self.number == getattr(signal, "SIGUSR1", None)  # which Windows lacks

    def __str__(self) -> str:
        name = "Ctrl-C" if self.number == signal.SIGINT else signal.Signals(self.number).name
        return f"interrupted by {name}" + (f": {self.rest}" if self.rest else "")


_ROOM = "make room there, or give another folder"
_RIGHTS = "give a folder in which you may read and write"
_LOCKS = "the file system has no locks, so give a folder on another one"
_REMEDIES = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), _ROOM),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), _RIGHTS),
    **dict.fromkeys((errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP), _LOCKS),
    errno.ENAMETOOLONG: "give a shorter name",
    errno.ELOOP: "remove the link that leads back to a folder above it",
}


def describe_error(error: BaseException) -> str:
    """Describe an error: one of the operating system with a remedy, a bare name with its place.

    >>> describe_error(KeyError("width"))
    "KeyError 'width'; --debug shows more"
    """
    remedy = _REMEDIES.get(error.errno or 0) if isinstance(error, OSError) else None
    text = str(error)
    if isinstance(error, KeyError) or not text:
        frames = extract_tb(error.__traceback__)[-1:]
        where = "".join(f" in {frame.filename}, line {frame.lineno}" for frame in frames)
        text, remedy = f"{type(error).__name__} {text}".rstrip() + where, "--debug shows more"
    return f"{text}; {remedy}" if remedy else text


def check_at_least(least: int, **values: float | None) -> None:
    """Refuse smaller values and NaN, by their names; None is no value."""
    for name, value in values.items():
        if value is not None and not value >= least:
            raise ValueError(f"{name} is {value}: it must be at least {least}")


@contextmanager
def reading_input() -> Iterator[None]:
    """Turn errors of bad input, unreadable files and missing extras into `InputError`."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        # Lightning's own kind by its name: importing Lightning takes seconds.
        is_lightning_s = type(error).__name__ == "MisconfigurationException"
        if not is_lightning_s and not isinstance(error, (ValueError, OSError, ImportError)):
            raise
        raise InputError(describe_error(error)) from error
