"""Processes that a command starts on its machine end with it, and it with them."""

import os
import re
import signal
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.commands import DDP, Command, digitlab
from tests.faults.ranks import PATIENCE, ranks_left_alone, run_ranks, said, trains, wait_for
from tests.faults.runs_of_tiny import BLOCKS, MLP, fit, folder_of
from tests.faults.victims import SIGKILLED, differences

ENDLESS = 100_000  # epochs; with --run, another number may be given
GO_ON = "digitlab fit --run goes on with the run"


@pytest.fixture
def terminal() -> Iterator[tuple[int, int]]:
    """Two ends of a terminal: the user's, and a program's."""
    ends = os.openpty()
    termios.tcsetwinsize(ends[1], (24, 120))  # in one without width, no bar is drawn
    yield ends
    for end in ends:
        os.close(end)


def stopped(place: Path, model: str, line: str, by: str) -> tuple[list[str], Path]:
    """Checks the last line of an interrupted run.

    Returns:
        The command line that goes on with it for an epoch or two, and the folder of a run that was
        left alone for as long.
    """
    folder = folder_of(place)
    saved = rf"saved {folder}/checkpoints/last\.ckpt at step (\d+)"
    match = re.fullmatch(
        f"digitlab: interrupted by {by}: {saved}; digitlab fit --run {folder} goes on", line
    )
    assert match, line
    epochs = int(match[1]) // 13 + 2
    alone = ranks_left_alone(fit(model, place / "alone", epochs), place / "alone")
    return ["fit", "--run", str(folder), "--trainer.max_epochs", str(epochs)], alone


def error(started: Command) -> str:
    """The only line that is no part of the log of an undisturbed run."""
    lines = [line for line in started.said().splitlines() if line.startswith("digitlab: ")]
    assert len(lines) == 1, started.said()
    assert "Traceback" not in started.said()
    return lines[0]


def test_ctrl_c_ends_all_processes_after_a_step_and_the_run_goes_on_exactly(
    tmp_path: Path, terminal: tuple[int, int]
) -> None:
    place = tmp_path / "place"
    shown, tty = terminal
    with digitlab([*fit(MLP, place, ENDLESS), *DDP], place, tty) as started:
        wait_for(lambda: trains(place))
        assert len(started.others()) == 1
        os.killpg(started.first, signal.SIGINT)  # as a terminal does
        assert started.end() == 130
    screen = os.read(shown, 1_000_000).decode().replace("\r\n", "\n")
    assert screen.count("stopping after this step") == 1
    assert screen.count("Epoch 1:   0%") == 1  # one bar
    assert "Traceback" not in screen
    *_, line = screen.splitlines()
    go_on, alone = stopped(place, MLP, line, "Ctrl-C")
    assert run_ranks(go_on, place) == [0, 0], said(place)
    assert differences(folder_of(place), alone) == []


def test_a_process_that_dies_ends_the_run_and_is_named(tmp_path: Path) -> None:
    with digitlab([*fit(MLP, tmp_path, ENDLESS), *DDP], tmp_path) as started:
        wait_for(lambda: trains(tmp_path))
        (other,) = started.others()
        os.kill(other, signal.SIGKILL)
        assert started.end() == 1
    folder = folder_of(tmp_path)
    line = error(started)
    assert line.startswith("digitlab: error: the process of rank 1 was ended by SIGKILL; ")
    assert f"{folder}/checkpoints/last.ckpt is of " in line
    assert line.endswith(f"digitlab fit --run {folder} goes on")


@pytest.mark.slow
def test_all_processes_end_with_the_first_and_one_says_so(tmp_path: Path) -> None:
    with digitlab([*fit(MLP, tmp_path, ENDLESS), *DDP], tmp_path) as started:
        wait_for(lambda: trains(tmp_path))
        os.kill(started.first, signal.SIGKILL)
        assert started.end() == SIGKILLED
    assert error(started) == f"digitlab: error: the first process is gone; {GO_ON}"


@pytest.mark.slow
@pytest.mark.parametrize("model", [MLP, f"{MLP} {BLOCKS}"], ids=["steps", "blocks"])
def test_sigterm_to_the_first_ends_all_after_a_step_and_the_command_goes_on_exactly(
    tmp_path: Path, model: str
) -> None:
    place = tmp_path / "place"
    with digitlab([*fit(model, place, ENDLESS), *DDP], place) as started:
        wait_for(lambda: trains(place))
        os.kill(started.first, signal.SIGTERM)
        assert started.end() == 143
    go_on, alone = stopped(place, model, error(started), "SIGTERM")
    with digitlab(go_on, place) as again:
        assert again.end(PATIENCE) == 0
    assert differences(folder_of(place), alone) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("whom", "number", "code"),
    [
        ("first", signal.SIGTERM, 143),
        ("all", signal.SIGINT, 130),
        ("other", signal.SIGKILL, 1),
        ("first", signal.SIGKILL, SIGKILLED),
    ],
)
def test_whoever_is_stopped_while_processes_start_all_end_with_one_line(
    tmp_path: Path, whom: str, number: int, code: int
) -> None:
    with digitlab([*fit(MLP, tmp_path, ENDLESS), *DDP], tmp_path) as started:
        wait_for(started.others)
        time.sleep(0.5)  # in the middle of its imports
        {"first": os.kill, "all": os.killpg, "other": os.kill}[whom](
            started.others()[0] if whom == "other" else started.first, number
        )
        assert started.end() == code
    assert error(started)
    assert not trains(tmp_path)
