"""The terminal: inert names, commands that run when pasted, and streams that may fail."""

import errno
import io
import os
import re
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, TextIO
from unicodedata import category


def printable(text: object, keep: str = "") -> str:
    r"""Escape characters that a terminal obeys or that reorder text, except those in `keep`.

    >>> print(printable("a\x1b[31m\nb\u202e.png"))
    a\x1b[31m\nb\u202e.png
    """
    return "".join(
        char
        if char.isprintable() or category(char) == "Zs" or char in keep
        else char.encode("unicode_escape").decode()
        for char in str(text)
    )


def one_line(text: str) -> str:
    """Make a message inert and a single line; its spaces stay, as a command may quote them."""
    return printable(re.sub(r"\s*[\r\n]\s*", " ", text.strip()))


def command(*words: str | Path) -> str:
    """Write words as a command that a POSIX shell takes apart into the same words.

    A path that would be read as an option or as somebody's home gets `./` before it.

    >>> command("digitlab", "report", Path("my runs"), Path("-x"))
    "digitlab report 'my runs' ./-x"
    """
    return " ".join(map(_quote, words))


def _quote(word: str | Path) -> str:
    text = str(word)
    if isinstance(word, Path) and text.startswith(("-", "~")):
        text = f"./{text}"
    if printable(text) == text:
        return shlex.quote(text)
    codes = {"\\": "\\\\", "%": "%%", "'": "\\047"}
    inert = (
        "".join(f"\\{byte:03o}" for byte in os.fsencode(char))
        if printable(char) != char
        else codes.get(char, char)
        for char in text
    )
    return f"\"$(printf '{''.join(inert)}')\""


@contextmanager
def redirected(file: IO[Any], *descriptors: int) -> Iterator[None]:
    """Let open descriptors write to a file in the `with` block, also those of C++ code."""
    for stream in filter(None, (sys.stdout, sys.stderr)):
        stream.flush()
    before = {}
    for number in descriptors:
        with suppress(OSError):  # it is closed
            before[number] = os.dup(number)
    try:
        for number in before:
            os.dup2(file.fileno(), number)
        yield
    finally:
        for number, old in before.items():
            os.dup2(old, number)
            os.close(old)


class Nowhere(io.TextIOBase):
    """Drops its text."""

    encoding = "utf-8"

    def write(self, text: str) -> int:
        """Drop a text."""
        return len(text)


class Stream:
    """A text stream that drops its text once it cannot be written, which `error` then explains.

    Without a `name` for the warning on standard error, a failure is not reported.
    """

    def __init__(self, stream: TextIO | None, name: str = "") -> None:
        self._stream: Any = stream or Nowhere()
        self._name = name
        self.error: OSError | ValueError | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write text; characters that the stream's encoding lacks are escaped."""
        try:
            self._stream.write(text)
        except UnicodeEncodeError:
            encoding = self._stream.encoding  # and not the error's, which may be "charmap"
            self._stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
        except (OSError, ValueError) as error:  # the latter if it is closed
            self._drop(error)
        return len(text)

    def flush(self) -> None:
        """Write what is buffered."""
        try:
            self._stream.flush()
        except (OSError, ValueError) as error:
            self._drop(error)

    def _drop(self, error: OSError | ValueError) -> None:
        """Send all further text, also what is buffered and what other code writes, nowhere."""
        is_first, self.error = self.error is None, error
        try:
            number = self._stream.fileno()
        except (OSError, ValueError, AttributeError):  # closed, or not a file
            self._stream = Nowhere()
        else:
            with open(os.devnull, "w") as null:
                os.dup2(null.fileno(), number)
        if self._name and is_first and not self.reader_left:
            print(
                f"digitlab: warning: {self._name} cannot be written ({error}): the rest is not "
                "shown",
                file=sys.stderr,
            )

    @property
    def reader_left(self) -> bool:
        """Whether a pipe's reader has closed it, such as `head`, which has seen enough."""
        return isinstance(self.error, OSError) and self.error.errno == errno.EPIPE


@contextmanager
def surviving_streams() -> Iterator[Stream]:
    """Replace `sys.stdout` and `sys.stderr` in the `with` block by streams that may fail."""
    _open_closed_descriptors()
    before = sys.stdout, sys.stderr
    output, errors = Stream(sys.stdout, "standard output"), Stream(sys.stderr)
    sys.stdout, sys.stderr = output, errors
    try:
        yield output
    finally:
        output.flush()  # not at the interpreter's end, whose errors cannot be caught
        errors.flush()
        sys.stdout, sys.stderr = before


def _open_closed_descriptors() -> None:
    """Open closed standard streams, or the next files get their numbers, and stray output."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)  # the lowest free number
            os.dup2(null, number)
            if null != number:
                os.close(null)
