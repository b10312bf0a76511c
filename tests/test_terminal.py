"""What is printed from files is inert, and printed commands run when pasted."""

import os
import shlex
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from digitlab.terminal import command, printable

NASTY = "\x1b[31m \r\n\t\x00\x7f\x85\x9b\u2028\u202e\u2066\u200b\ufeff\udcff"


def test_no_character_is_left_that_a_terminal_obeys_or_that_reorders_text() -> None:
    shown = printable(NASTY)
    assert shown.isprintable()
    assert shown == r"\x1b[31m \r\n\t\x00\x7f\x85\x9b\u2028\u202e\u2066\u200b\ufeff\udcff"
    assert printable("Größe\xa0²→数🙂'\"\\") == "Größe\xa0²→数🙂'\"\\"
    assert printable("a\nb\x1b", keep="\n") == "a\nb\\x1b"


WORDS = ["my runs [1] #2 'x'", "$HOME", "`id`", "%d\\n'", "*", "!", "\x1b[31mred", "a\nb", "\udcff"]


@pytest.mark.parametrize("shell", ["sh", "bash"])
def test_a_shell_takes_a_command_apart_into_the_same_words(shell: str) -> None:
    line = command("printf", "%s\\0", *WORDS)
    assert line.isprintable()
    output = subprocess.run([shell, "-c", line], capture_output=True, check=True).stdout
    assert output == b"".join(os.fsencode(word) + b"\0" for word in WORDS)


@given(st.text(st.characters(exclude_categories=["C", "Z"])))
def test_other_text_is_quoted_as_python_does(text: str) -> None:
    assert command("x", text) == shlex.join(["x", text])


@pytest.mark.parametrize("name", ["-x", "~", "~/x", "~root"])
def test_a_path_is_neither_an_option_nor_a_home(name: str) -> None:
    (word,) = shlex.split(command(Path(name)))
    assert not word.startswith(("-", "~"))
    assert Path(word) == Path(name)
