"""Nodes that torchrun brings together: here all of them on one machine."""

import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.faults.commands import DDP, Command, command
from tests.faults.ranks import (
    PATIENCE,
    free_port,
    ranks_left_alone,
    run_ranks,
    said,
    trains,
    wait_for,
)
from tests.faults.runs_of_tiny import BLOCKS, MLP, fit, folder_of
from tests.faults.victims import differences

TORCHRUN = "torch.distributed.run"
OF_TWO = ["--trainer.num_nodes", "2", "--trainer.devices", "1", "--trainer.strategy", "ddp"]
ENDLESS = 100_000


@contextmanager
def two_nodes(arguments: Sequence[str], place: Path) -> Iterator[tuple[Command, Command]]:
    """Starts a torchrun for each of two nodes; what they print is in `place/node.0` and `.1`."""
    meeting = ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{free_port()}"]
    # Without the `--`, torchrun takes `--run` for an option of its own, cut short.
    words = [TORCHRUN, "--nnodes", "2", "--nproc-per-node", "1", *meeting, "-m", "--", "digitlab"]
    logs = place / "node.0", place / "node.1"
    with (
        command([*words, *arguments], logs[0]) as first,
        command([*words, *arguments], logs[1]) as second,
    ):
        yield first, second


def last_word(*nodes: Command) -> str:
    """The one line that digitlab, and not torchrun, says of a run's end."""
    said = [line for node in nodes for line in node.said().splitlines()]
    (line,) = [line for line in said if line.startswith("digitlab: ")]
    return line


def epochs_after(line: str) -> int:
    """Epochs, of 13 steps, that a run has which was saved at a step and goes on for a while."""
    return int(line.partition(" at step ")[2].partition(";")[0]) // 13 + 2


def test_two_nodes_share_a_run_as_two_processes_of_one_machine_do(tmp_path: Path) -> None:
    place = tmp_path / "nodes"
    with two_nodes([*fit(MLP, place), *OF_TWO], place) as nodes:
        assert [node.end(PATIENCE) for node in nodes] == [0, 0]
    said = nodes[0].said() + nodes[1].said()
    assert said.count("epoch   1 ") == said.count("Results are in") == 1
    alone = ranks_left_alone(fit(MLP, tmp_path / "alone"), tmp_path / "alone")
    assert differences(folder_of(place), alone) == []


@pytest.mark.slow
@pytest.mark.parametrize("model", [MLP, f"{MLP} {BLOCKS}"], ids=["steps", "blocks"])
def test_sigterm_to_one_of_two_nodes_saves_once_and_both_go_on_exactly(
    tmp_path: Path, model: str
) -> None:
    with two_nodes([*fit(model, tmp_path, ENDLESS), *OF_TWO], tmp_path) as nodes:
        wait_for(lambda: trains(tmp_path))
        os.kill(nodes[1].first, signal.SIGTERM)  # whose torchrun hands it to its process
        assert [node.end() for node in nodes] == [1, 1]  # torchrun's own code
    folder = folder_of(tmp_path)
    line = last_word(*nodes)
    assert line.startswith(
        f"digitlab: interrupted by SIGTERM: saved {folder}/checkpoints/last.ckpt"
    )
    assert line.endswith(f"digitlab fit --run {folder} goes on")
    epochs = ["--trainer.max_epochs", str(epochs_after(line))]
    alone = ranks_left_alone(fit(model, tmp_path / "alone", epochs_after(line)), tmp_path / "alone")
    with two_nodes(["fit", "--run", str(folder), *epochs], tmp_path) as nodes:
        assert [node.end(PATIENCE) for node in nodes] == [0, 0]
    assert len(list(tmp_path.glob("tiny-run/version_*"))) == 1
    assert nodes[0].said().count("Results are in") + nodes[1].said().count("Results are in") == 1
    assert differences(folder, alone) == []


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_that_dies_ends_both_nodes_and_the_other_says_so(
    tmp_path: Path, victim: int
) -> None:
    with two_nodes([*fit(MLP, tmp_path, ENDLESS), *OF_TWO], tmp_path) as nodes:
        wait_for(lambda: trains(tmp_path))
        (process,) = nodes[victim].others()
        os.kill(process, signal.SIGKILL)
        assert [node.end() for node in nodes] == [1, 1]
    line = last_word(*nodes)
    assert line.startswith("digitlab: error: the connection to another process is lost; ")
    was_first = "training images" in nodes[victim].said()
    # Only the first process knows the folder of a new run.
    assert line.endswith("--run goes on with the run" if was_first else "version_0 goes on")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_torchrun_with_two_processes_saves_once_and_goes_on_exactly(
    tmp_path: Path, number: int
) -> None:
    words = [TORCHRUN, "--standalone", "--nproc-per-node", "2", "-m", "--", "digitlab"]
    arguments = [*fit(MLP, tmp_path, ENDLESS), *DDP]
    with command([*words, *arguments], tmp_path / "log") as node:
        wait_for(lambda: trains(tmp_path))
        os.killpg(node.first, number)  # a terminal's Ctrl-C; torchrun's processes are not of it
        assert node.end() == 1
    line = last_word(node)
    folder, epochs = folder_of(tmp_path), epochs_after(line)
    alone = ranks_left_alone(fit(MLP, tmp_path / "alone", epochs), tmp_path / "alone")
    # Processes that digitlab starts itself may go on with those that torchrun started.
    arguments = ["fit", "--run", str(folder), "--trainer.max_epochs", str(epochs)]
    assert run_ranks(arguments, tmp_path) == [0, 0], said(tmp_path)
    assert differences(folder, alone) == []
