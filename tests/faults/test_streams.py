"""Standard output and error that cannot be written end no training, and other commands quietly."""

import io
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from digitlab.callbacks import PrintEpoch
from digitlab.terminal import Stream
from tests.faults.conftest import Alone
from tests.faults.runs_of_tiny import COMMAND, at_call, fit, folder_of, log_of
from tests.faults.victims import Fault, differences, run


def full() -> None:
    for number in (1, 2):
        os.dup2(os.open("/dev/full", os.O_WRONLY), number)


def closed() -> None:
    for number in (0, 1, 2):
        os.close(number)
    sys.stdout = sys.stderr = None  # as Python starts then


def lost(terminal: bool) -> None:
    """Standard output and error are a terminal, or a pipe; it is lost in the second epoch."""
    theirs, ours = os.openpty() if terminal else os.pipe()
    for number in (1, 2):
        os.dup2(ours, number)
    at_call(PrintEpoch, "on_train_epoch_end", 2, partial(os.close, theirs))


@pytest.mark.parametrize(
    "fault", [full, closed, partial(lost, True), partial(lost, False)], ids=range(4)
)
def test_a_training_whose_output_fails_ends_as_one_left_alone(
    tmp_path: Path, alone: Alone, fault: Fault
) -> None:
    assert run(fit(COMMAND, tmp_path), log_of(tmp_path), fault) == 0
    assert differences(folder_of(tmp_path), alone(COMMAND)) == []


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
