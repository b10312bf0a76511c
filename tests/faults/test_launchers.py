"""Ranks that torchrun starts end together, and the run can be resumed exactly."""

import os
import signal
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.faults.conftest import Alone
from tests.faults.processes import (
    MLP,
    Command,
    differences,
    fit,
    folder_of,
    free_port,
    left_alone,
    wait_for,
)

pytestmark = pytest.mark.slow
ENDLESS = 100_000  # epochs; with --run, another number may be given


def torchruns(
    stack: ExitStack, arguments: Sequence[str], place: Path, nodes: int = 2
) -> list[Command]:
    """Start two ranks by one torchrun, or by one on each of two nodes."""
    port, ranks = free_port(), 2 // nodes
    words = ["torch.distributed.run", "--nnodes", str(nodes), "--nproc-per-node", str(ranks)]
    words += ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{port}"]
    # Without the `--`, torchrun takes `--run` for an abbreviation of an option of its own.
    words += ["-m", "--", "digitlab", *arguments, "--trainer.strategy", "ddp"]
    words += ["--trainer.num_nodes", str(nodes), "--trainer.devices", str(ranks)]
    return [stack.enter_context(Command(words, place / f"node.{it}")) for it in range(nodes)]


@pytest.mark.promise("ranks")
@pytest.mark.parametrize("nodes", [1, 2])
def test_one_or_two_nodes_train_what_two_ranks_do(tmp_path: Path, alone: Alone, nodes: int) -> None:
    with ExitStack() as stack:
        commands = torchruns(stack, fit(MLP, tmp_path), tmp_path, nodes)
        assert [it.end() for it in commands] == [0] * nodes
    text = "".join(it.said() for it in commands)
    assert text.count("epoch   1 ") == text.count("Results are in") == 1
    assert "sync_dist" not in text
    assert differences(folder_of(tmp_path), alone(MLP, 2)) == []


SAVED = "digitlab: interrupted by {}: saved {{last}} at step "
ranks, lost = pytest.mark.promise("ranks"), pytest.mark.promise("lost")


@pytest.mark.parametrize(
    ("nodes", "victim", "number", "line"),
    [
        pytest.param(1, None, signal.SIGINT, SAVED.format("Ctrl-C"), marks=ranks),
        pytest.param(2, None, signal.SIGTERM, SAVED.format("SIGTERM"), marks=ranks),
        pytest.param(1, 1, signal.SIGKILL, "", marks=lost),  # rank 0 may be ended before it says so
    ],
)
def test_a_signal_to_torchrun_or_the_loss_of_a_rank_ends_all(
    tmp_path: Path, nodes: int, victim: int | None, number: int, line: str
) -> None:
    with ExitStack() as stack:
        commands = torchruns(stack, fit(MLP, tmp_path, ENDLESS), tmp_path, nodes)
        wait_for(lambda: any(tmp_path.glob("*/version_*/history.csv")))  # after an epoch
        # torchrun hands a signal on to its ranks; Ctrl-C in a terminal is for the whole group.
        if victim is None:
            os.killpg(commands[-1].first, number)
        else:
            os.kill([rank for it in commands for rank in it.others()][victim], number)
        assert 1 in [it.end() for it in commands]  # torchrun's own code
    folder = folder_of(tmp_path)
    text = "".join(it.said() for it in commands)
    assert line.format(last=folder / "checkpoints" / "last.ckpt") in text
    rows = len((folder / "history.csv").read_text().splitlines()) - 1
    longer = [*fit(MLP, tmp_path / "alone", rows + 2)]
    arguments = ["fit", "--run", str(folder), "--trainer.max_epochs", str(rows + 2)]
    with ExitStack() as stack:
        assert [it.end() for it in torchruns(stack, arguments, tmp_path, nodes)] == [0] * nodes
    assert differences(folder, left_alone(longer, tmp_path / "alone", ranks=2)) == []
