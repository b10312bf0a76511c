"""Text for a terminal: names from files are inert, and printed commands run when pasted."""

import os
import shlex
from pathlib import Path
from unicodedata import category


def printable(text: object, keep: str = "") -> str:
    r"""Escape characters that a terminal obeys or that reorder text, line breaks included.

    Args:
        text: A path, say, or anything else that a file or a user has named.
        keep: Characters to leave, such as the line breaks of a table.

    >>> print(printable("a\x1b[31m\nb\u202e.png"))
    a\x1b[31m\nb\u202e.png
    """
    return "".join(
        char
        if char.isprintable() or category(char) == "Zs" or char in keep
        else char.encode("unicode_escape").decode()
        for char in str(text)
    )


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
