"""Several ranks share a run: its images, its folder and its weights."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from digitlab.classifier import Classifier
from digitlab.cli import main
from digitlab.data.loader import EpochSampler
from digitlab.run_folder import read_metrics
from tests.commands import SHORT, checkpoint, refusal
from tests.faults.conftest import Alone
from tests.faults.processes import (
    BLOCKS,
    COMMAND,
    equal,
    fit,
    folder_of,
    left_alone,
    pictures,
    run,
    said,
    slow,
)

pytestmark = pytest.mark.promise("ranks")
PLAIN = "MLP --model.hidden_features [16] --model.dropout 0"
NORMALIZED = "tests.faults.test_ranks.Normalized"
HOLD_OUT = "--data.validation_size 49 --data.eval_batch_size 24"


class Normalized(Classifier):
    """A network with buffers, which processes share at each forward pass while training."""

    def __init__(self) -> None:
        network = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(784), nn.Linear(784, 10))
        super().__init__(network=network)


def note_images(path: Path) -> None:
    """A fault: writes down the images that this process serves, a line for each shuffled epoch."""
    original = EpochSampler.indices

    def noted(self: EpochSampler) -> NDArray[np.int64]:
        indices = original(self)
        if self.shuffle:
            with path.open("a") as file:
                file.write(f"{json.dumps(indices.tolist())}\n")
        return indices

    EpochSampler.indices = noted  # type: ignore[method-assign]


@pytest.mark.slow
@pytest.mark.parametrize("model", [PLAIN, NORMALIZED])
def test_every_image_counts_once_where_processes_have_other_numbers_of_batches(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], model: str
) -> None:
    # Of 49 held out images one process has 25, two batches, and one 24; of 151 one trains on 75.
    folder = left_alone(fit(f"{model} {HOLD_OUT}", tmp_path, epochs=2), tmp_path, ranks=2)
    ours = read_metrics(folder)
    assert (ours["train"]["n"], ours["val"]["n"]) == (151, 49)
    assert main(["validate", "--run", str(folder)]) == 0
    assert f"({ours['val']['correct']}/49)" in capsys.readouterr().out
    theirs = read_metrics(folder)["val"]
    assert ours["val"]["loss"] == pytest.approx(theirs["loss"], rel=1e-6)  # sums in another order
    history = pd.read_csv(folder / "history.csv")
    assert history["val_loss"].iloc[-1] == pytest.approx(theirs["loss"], rel=1e-6)


@pytest.mark.parametrize("blocks", [slow(""), BLOCKS])
def test_two_processes_serve_every_image_once_and_train_what_one_does(
    tmp_path: Path, blocks: str
) -> None:
    settings = f"{PLAIN} {blocks} --trainer.precision 64-true --data.batch_size"
    one = left_alone(fit(f"{settings} 20", tmp_path / "one"), tmp_path / "one")
    place, notes = tmp_path / "two", [tmp_path / "images.0", tmp_path / "images.1"]
    faults = {rank: partial(note_images, path) for rank, path in enumerate(notes)}
    assert run(fit(f"{settings} 10", place), place, faults, ranks=2) == [0, 0]
    epochs = list(
        zip(*(map(json.loads, path.read_text().splitlines()) for path in notes), strict=True)
    )
    assert len(epochs) == 3
    assert all(sorted(first + second) == list(range(200)) for first, second in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert said(place, 1) == ""
    assert said(place).count("epoch   1 ") == said(place).count("Results are in") == 1
    assert "sync_dist" not in said(place)
    two = folder_of(place)
    assert len(list(two.glob("events.*"))) == 1
    metrics = read_metrics(two)
    assert (metrics["train"]["n"], metrics["test"]["n"]) == (200, 50)
    ours, theirs = (checkpoint(folder) for folder in (two, one))
    assert ours["global_step"] == theirs["global_step"] == metrics["optimizer_steps"] == 30
    for name, weights in theirs["state_dict"].items():
        # The sum over a batch has another order, which 30 steps of Adam carry on.
        torch.testing.assert_close(ours["state_dict"][name], weights, rtol=1e-10, atol=1e-10)
    assert pictures(two) == pictures(one)  # of the images of both


def test_processes_of_a_run_draw_other_random_numbers(alone: Alone) -> None:
    state = torch.load(alone(COMMAND, 2) / "checkpoints" / "last.ckpt", weights_only=True)
    first, second = state["exact_resume"]["processes"]
    assert not equal(first["random"]["torch"], second["random"]["torch"])


def test_a_finished_run_is_named_by_one_rank(alone: Alone) -> None:
    folder = alone(COMMAND, 2)
    assert run(["fit", "--run", str(folder)], folder.parent, ranks=2) == [0, 0]
    assert (said(folder.parent).count("is finished"), said(folder.parent, 1)) == (1, "")


@pytest.mark.parametrize(
    ("options", "command"),
    [
        ("--trainer.devices 2", "--nproc-per-node 2 -m -- digitlab fit {words}"),
        (
            "--trainer.strategy ddp_fork",
            "--nproc-per-node 1 -m -- digitlab fit {words} --trainer.strategy ddp",
        ),
        (
            "--trainer.devices 2 --trainer.strategy ddp_spawn",
            "--nproc-per-node 2 -m -- digitlab fit {words} --trainer.strategy ddp",
        ),
        (
            "--trainer.num_nodes 3",
            "--nnodes 3 --rdzv-backend c10d --rdzv-endpoint HOST:29500 --nproc-per-node 1 "
            "-m -- digitlab fit {words}",
        ),
    ],
)
def test_a_run_that_would_start_ranks_is_refused_with_the_command_of_torchrun(
    options: str, command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--model", "MLP", *SHORT, "--trainer.default_root_dir", str(tmp_path)]
    words += options.split()
    line = refusal(capsys, "fit", *words)
    setting, value = options.removeprefix("--").rsplit(" ", 2)[-2:]
    assert (
        f"{setting.removeprefix('--')} is {value}, and digitlab starts no processes: use " in line
    )
    assert line.endswith(f" {command.format(words=' '.join(words))}")
    assert not list(tmp_path.iterdir())
