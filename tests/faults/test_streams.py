"""Output that cannot be written ends no command."""

import io
import os
import subprocess
import sys

import pytest

from digitlab.terminal import Stream

pytestmark = pytest.mark.promise("output")


def test_a_short_command_ends_quietly_where_the_reader_left_and_else_with_1() -> None:
    reader, pipe = os.pipe()
    os.close(reader)
    for number, code, said in ((pipe, 0, ""), (os.open("/dev/full", os.O_WRONLY), 1, "space left")):
        command = [sys.executable, "-m", "digitlab", "--help"]
        done = subprocess.run(command, stdout=number, stderr=subprocess.PIPE, text=True)
        os.close(number)
        assert (done.returncode, len(done.stderr.splitlines())) == (code, code)
        assert said in done.stderr


def test_text_that_a_stream_s_encoding_lacks_is_escaped_and_a_closed_stream_takes_any() -> None:
    raw = io.BytesIO()
    stream = Stream(io.TextIOWrapper(raw, "ascii"))
    print("épée →", file=stream, flush=True)
    assert raw.getvalue() == b"\\xe9p\\xe9e \\u2192\n"
    raw.close()
    print("more", file=stream, flush=True)
    assert stream.error


def test_a_descriptor_that_failed_takes_what_other_code_writes_there() -> None:
    reader, pipe = os.pipe()
    os.close(reader)
    with open(pipe, "w") as file:
        print("lost", file=Stream(file), flush=True)
        assert os.write(pipe, b"of a library in C") == 17
