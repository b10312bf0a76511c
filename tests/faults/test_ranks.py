"""Several ranks share a run: its images, its folder and its weights."""

import csv
import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from digitlab.classifier import Classifier
from digitlab.cli import main
from digitlab.data.loader import EpochSampler
from tests.faults.conftest import Alone
from tests.faults.ranks import ranks_left_alone, run_ranks, said
from tests.faults.runs_of_tiny import BLOCKS, COMMAND, MLP, at_step, fit, folder_of, left_alone
from tests.faults.victims import differences, equal, pictures

slow = partial(pytest.param, marks=pytest.mark.slow)
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


def lose_the_loss(step: int) -> None:
    """A fault: this process's loss is infinite at its `step`-th step."""
    made, original = 0, Classifier.training_step

    def spoilt(self: Classifier, batch: object, batch_idx: int) -> Tensor | None:
        nonlocal made
        made += 1
        loss = original(self, batch, batch_idx)  # type: ignore[arg-type]
        if made == step:  # the gradient is spared, or the others' weights would show it
            assert self.sums["train"].loss  # adds up what waits
            self.sums["train"]._unchecked[-1] = torch.tensor(torch.inf)
        return loss

    Classifier.training_step = spoilt  # type: ignore[assignment]


def test_two_processes_serve_every_image_once_an_epoch_in_one_run_folder(tmp_path: Path) -> None:
    notes = [tmp_path / "images.0", tmp_path / "images.1"]
    faults = {rank: partial(note_images, path) for rank, path in enumerate(notes)}
    assert run_ranks(fit(PLAIN, tmp_path), tmp_path, faults=faults) == [0, 0]
    epochs = list(
        zip(*(map(json.loads, path.read_text().splitlines()) for path in notes), strict=True)
    )
    assert len(epochs) == 3
    assert all(sorted(first + second) == list(range(200)) for first, second in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert said(tmp_path, 1) == ""
    assert said(tmp_path).count("epoch   1 ") == said(tmp_path).count("Results are in") == 1
    assert "sync_dist" not in said(tmp_path)
    assert len(list(folder_of(tmp_path).glob("events.*"))) == 1
    metrics = json.loads((folder_of(tmp_path) / "metrics.json").read_text("utf-8"))
    assert (metrics["train"]["n"], metrics["test"]["n"]) == (200, 50)
    assert metrics["optimizer_steps"] == 39  # 100 images a rank, 8 at a time


@pytest.mark.slow
@pytest.mark.parametrize("model", [PLAIN, NORMALIZED])
def test_every_image_counts_once_where_processes_have_other_numbers_of_batches(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], model: str
) -> None:
    # Of 49 held out images one process has 25, two batches, and one 24; of 151 one trains on 75.
    folder = ranks_left_alone(fit(f"{model} {HOLD_OUT}", tmp_path, epochs=2), tmp_path)
    ours = json.loads((folder / "metrics.json").read_text("utf-8"))
    assert (ours["train"]["n"], ours["val"]["n"]) == (151, 49)
    assert main(["validate", "--run", str(folder)]) == 0
    assert f"({ours['val']['correct']}/49)" in capsys.readouterr().out
    theirs = json.loads((folder / "metrics.json").read_text("utf-8"))["val"]
    assert ours["val"]["loss"] == pytest.approx(theirs["loss"], rel=1e-6)  # sums in another order
    with (folder / "history.csv").open(newline="") as file:
        *_, last = csv.DictReader(file)
    assert float(last["val_loss"]) == pytest.approx(theirs["loss"], rel=1e-6)


@pytest.mark.parametrize("blocks", [slow(""), BLOCKS])
def test_two_processes_train_what_one_does_with_their_batches_together(
    tmp_path: Path, blocks: str
) -> None:
    settings = f"{PLAIN} {blocks} --trainer.precision 64-true --data.batch_size"
    one = left_alone(fit(f"{settings} 20", tmp_path / "one"), tmp_path / "one")
    two = ranks_left_alone(fit(f"{settings} 10", tmp_path / "two"), tmp_path / "two")
    ours, theirs = (
        torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True) for folder in (two, one)
    )
    assert ours["global_step"] == theirs["global_step"] == 30
    for name, weights in theirs["state_dict"].items():
        # The sum over a batch has another order, which 30 steps of Adam carry on.
        torch.testing.assert_close(ours["state_dict"][name], weights, rtol=1e-10, atol=1e-10)
    assert pictures(two) == pictures(one)  # of the images of both


@pytest.mark.parametrize(
    ("model", "steps"),
    # Saved at step 4 or 8 of 13, inside an epoch; at its end; and again before anything new.
    [slow(MLP, (6, 14, 2)), slow(COMMAND, (7, 2, 14)), (COMMAND, (7,))],
)
def test_two_processes_that_were_killed_end_where_two_left_alone_do(
    tmp_path: Path, alone: Alone, model: str, steps: tuple[int, ...]
) -> None:
    place = tmp_path / "killed"
    arguments = fit(model, place)
    for step in steps:
        fault = at_step(step)
        assert run_ranks(arguments, place, faults={0: fault, 1: fault}) == [-9, -9], said(place)
        arguments = ["fit", "--run", str(folder_of(place))]
    assert run_ranks(arguments, place) == [0, 0], said(place)
    assert "Resuming from" in said(place)
    assert said(place, 1) == ""
    assert differences(folder_of(place), alone(model, 2)) == []
    assert run_ranks(arguments, place) == [0, 0]
    assert (said(place).count("is finished"), said(place, 1)) == (1, "")


def test_a_loss_that_is_not_finite_in_one_process_stops_all(tmp_path: Path) -> None:
    faults = {1: partial(lose_the_loss, 11)}
    assert run_ranks(fit(PLAIN, tmp_path), tmp_path, faults=faults) == [1, 0]  # rank 0 reports it
    *_, last = said(tmp_path).splitlines()
    assert last.startswith("digitlab: error: the loss is inf at step 11, learning rate 0.001; ")
    assert said(tmp_path, 1) == ""
    checkpoint = folder_of(tmp_path) / "checkpoints" / "last.ckpt"
    weights = torch.load(checkpoint, weights_only=True)["state_dict"]
    assert all(value.isfinite().all() for value in weights.values())


def test_processes_of_a_run_draw_other_random_numbers(alone: Alone) -> None:
    state = torch.load(alone(COMMAND, 2) / "checkpoints" / "last.ckpt", weights_only=True)
    first, second = state["exact_resume"]["processes"]
    assert not equal(first["random"]["torch"], second["random"]["torch"])
