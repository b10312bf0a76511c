"""Ranks that Lightning or torchrun starts end together, and the run can be resumed exactly."""

import os
import signal
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest

from tests.faults.commands import DDP, Command, digitlab
from tests.faults.conftest import Alone
from tests.faults.ranks import (
    PATIENCE,
    free_port,
    ranks_left_alone,
    run_ranks,
    said,
    trains,
    wait_for,
)
from tests.faults.runs_of_tiny import COMMAND, MLP, at_step, fit, folder_of, log_of, resume, send
from tests.faults.victims import SIGKILLED, differences, run

ENDLESS = 100_000  # epochs; with --run, another number may be given
OF_TWO = ["--trainer.num_nodes", "2", "--trainer.devices", "1", "--trainer.strategy", "ddp"]


def by(strategy: str) -> list[str]:
    return [*DDP, "--trainer.strategy", strategy]


def two_nodes(exit_stack: ExitStack, arguments: Sequence[str], place: Path) -> list[Command]:
    """Starts a torchrun for each of two nodes; the output is in `place/node.0` and `.1`."""
    meeting = ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{free_port()}"]
    # Without the `--`, torchrun takes `--run` for an abbreviation of an option of its own.
    words = ["torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1", *meeting]
    words += ["-m", "--", "digitlab", *arguments]
    return [exit_stack.enter_context(Command(words, place / f"node.{node}")) for node in range(2)]


def last_line(*commands: Command) -> str:
    """The line that digitlab prints about a run's end."""
    lines = [line for it in commands for line in it.said().splitlines()]
    (line,) = [line for line in lines if line.startswith("digitlab: ")]
    return line


def resumed_equals_left_alone(place: Path, model: str, line: str = "", nodes: bool = False) -> None:
    """Resumes a run for an epoch or two, and compares it with one that was left alone."""
    folder = folder_of(place)
    if line:
        assert f": saved {folder}/checkpoints/last.ckpt at step " in line
        assert line.endswith(f"; resume with: digitlab fit --run {folder}")
    step = int(line.partition(" at step ")[2].partition(";")[0]) if line else 0
    history = folder / "history.csv"
    rows = history.read_text().splitlines() if history.exists() else []
    epochs = max(step // 13 + 2, len(rows) + 2)
    alone = ranks_left_alone(fit(model, place / "alone", epochs), place / "alone")
    arguments = ["fit", "--run", str(folder), "--trainer.max_epochs", str(epochs)]
    if nodes:
        with ExitStack() as stack:
            ends = [node.end(PATIENCE) for node in two_nodes(stack, arguments, place)]
        assert ends == [0, 0]
    else:
        assert run_ranks(arguments, place) == [0, 0], said(place)
    assert differences(folder, alone) == []


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "ddp_spawn"])
def test_ranks_that_lightning_starts_train_as_those_of_torchrun(
    tmp_path: Path, alone: Alone, strategy: str
) -> None:
    with digitlab([*fit(COMMAND, tmp_path), *by(strategy)], tmp_path) as started:
        assert started.end(PATIENCE) == 0
    assert started.said().count("Results are in") == 1
    assert "sync_dist" not in started.said()
    assert differences(folder_of(tmp_path), alone(COMMAND, 2)) == []


def test_forked_ranks_stop_together_and_are_resumed(tmp_path: Path, alone: Alone) -> None:
    fault = at_step(7, partial(send, signal.SIGTERM))  # in both
    assert run([*fit(COMMAND, tmp_path), *by("ddp_fork")], log_of(tmp_path), fault) == 143
    text, folder = log_of(tmp_path).read_text(), folder_of(tmp_path)
    assert f"SIGTERM: saved {folder}/checkpoints/last.ckpt at step 8; resume" in text
    assert "Traceback" not in text
    resume(folder)
    assert differences(folder, alone(COMMAND, 2)) == []


def test_the_loss_of_a_forked_rank_is_one_line(tmp_path: Path) -> None:
    assert run([*fit(MLP, tmp_path), *by("ddp_fork")], log_of(tmp_path), at_step(6)) == 1
    *_, last = log_of(tmp_path).read_text().splitlines()
    assert "digitlab: error: rank " in last
    assert "terminated with signal SIGKILL" in last


def test_a_start_that_forked_ranks_refuse_is_one_line_and_leaves_no_folder(tmp_path: Path) -> None:
    words = ["--trainer.callbacks", "tests.cli.test_refusals.Fails"]
    assert run([*fit(MLP, tmp_path), *by("ddp_fork"), *words], log_of(tmp_path)) == 2
    assert log_of(tmp_path).read_text().endswith("digitlab: error: planted\n")
    assert "Traceback" not in log_of(tmp_path).read_text()
    assert not list(tmp_path.glob("*/*"))


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_the_loss_of_a_rank_ends_the_run_and_spares_its_checkpoint(
    tmp_path: Path, victim: int
) -> None:
    with digitlab([*fit(MLP, tmp_path, ENDLESS), *DDP], tmp_path) as started:
        wait_for(lambda: trains(tmp_path))
        os.kill([started.first, *started.others()][victim], signal.SIGKILL)
        # Without rank 1, either rank 0 gets an error first, or Lightning ends it.
        assert started.end() in ((1, SIGKILLED) if victim else (SIGKILLED,))
    if victim == 0:
        assert last_line(started) == "digitlab: error: the connection to another rank is lost"
    resumed_equals_left_alone(tmp_path, MLP)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kill", "number", "code", "strategy", "model"),
    [
        (os.kill, signal.SIGTERM, 143, "ddp", COMMAND),
        (os.killpg, signal.SIGINT, 130, "ddp", MLP),
        (os.kill, signal.SIGHUP, 129, "ddp_spawn", MLP),
        (os.killpg, signal.SIGINT, 130, "ddp_spawn", COMMAND),
    ],
)
def test_a_signal_ends_all_ranks_after_a_step(
    tmp_path: Path,
    kill: Callable[[int, int], None],
    number: int,
    code: int,
    strategy: str,
    model: str,
) -> None:
    place = tmp_path / "runs"
    with digitlab([*fit(model, place, ENDLESS), *by(strategy)], tmp_path) as started:
        wait_for(lambda: trains(place))
        kill(started.first, number)
        assert started.end() == code
    assert "Traceback" not in started.said()
    assert ": saved " in last_line(started)
    if strategy == "ddp":  # the other would be resumed by another strategy
        resumed_equals_left_alone(place, model, last_line(started))


@pytest.mark.slow
def test_two_nodes_share_a_run_as_two_ranks_of_one_machine_do(tmp_path: Path, alone: Alone) -> None:
    place = tmp_path / "nodes"
    with ExitStack() as stack:
        nodes = two_nodes(stack, [*fit(MLP, place), *OF_TWO], place)
        assert [node.end(PATIENCE) for node in nodes] == [0, 0]
    text = nodes[0].said() + nodes[1].said()
    assert text.count("epoch   1 ") == text.count("Results are in") == 1
    assert differences(folder_of(place), alone(MLP, 2)) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("victim", "number"), [(1, signal.SIGTERM), (0, signal.SIGKILL), (1, signal.SIGKILL)]
)
def test_a_signal_to_one_of_two_nodes_ends_both(tmp_path: Path, victim: int, number: int) -> None:
    place, lost = tmp_path / "nodes", number == signal.SIGKILL
    with ExitStack() as stack:
        nodes = two_nodes(stack, [*fit(MLP, place, ENDLESS), *OF_TWO], tmp_path)
        wait_for(lambda: trains(place))
        # torchrun hands SIGTERM to its process; the other is for that process alone.
        os.kill(nodes[victim].others()[0] if lost else nodes[victim].first, number)
        ends = [node.end() for node in nodes]
    assert ends == [1, 1] if lost else 1 in ends  # torchrun's own code
    resumed_equals_left_alone(place, MLP, "" if lost else last_line(*nodes), nodes=True)
