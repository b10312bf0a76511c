"""A run may be killed at any moment, while it writes, validates or measures, and may be moved."""

import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from digitlab.callbacks import FinalEvaluation, History, LastCheckpoint, SaveFigures
from digitlab.classifier import Classifier
from tests.faults.conftest import Alone
from tests.faults.runs_of_tiny import (
    COMMAND,
    MLP,
    at_call,
    at_step,
    fit,
    killed,
    killed_again,
    resume,
)
from tests.faults.victims import differences, kill_self

RESULTS = "digitlab.callbacks.results"


def in_half_of_a_file(name: str, number: int) -> None:
    """A fault: killed when half of the bytes of a file are on the disk, the `number`-th such."""
    writes, original = 0, Path.write_bytes

    def half(path: Path, content: Any) -> int:
        nonlocal writes
        writes += path.name.endswith(name)
        if writes == number and path.name.endswith(name):
            original(path, bytes(content)[: len(content) // 2])
            kill_self()
        return original(path, content)

    Path.write_bytes = half  # type: ignore[method-assign, assignment]


after = partial(partial, at_call, after=True)
MOMENTS = {
    "before anything was saved": at_step(2),
    "half of a checkpoint was written": partial(in_half_of_a_file, "last.ckpt", 8),
    "half of the best was written": partial(in_half_of_a_file, "best.ckpt", 2),
    "half of the first checkpoint was written": partial(in_half_of_a_file, "last.ckpt", 1),
    "a file was about to be renamed": partial(at_call, "os", "replace", 9),
    "a file had been renamed": after("os", "replace", 9),
    "the next file was about to be renamed": partial(at_call, "os", "replace", 10),
    "a checkpoint was about to be saved": partial(at_call, LastCheckpoint, "save", 9),
    "a checkpoint had been saved": after(LastCheckpoint, "save", 9),
    "a validation was under way": partial(at_call, Classifier, "validation_step", 2),
    "an epoch's row had been written": after(History, "on_train_epoch_end", 2),
    "an epoch's end had been logged": after(Classifier, "on_train_epoch_end", 2),
    "all was trained": partial(at_call, SaveFigures, "on_train_end", 1),
    "the whole splits were measured": partial(at_call, Classifier, "evaluate", 2),
    "metrics were about to be written": partial(at_call, RESULTS, "write_metrics", 1),
    "all was done": after(FinalEvaluation, "on_train_end", 1),
}
DEFAULT = ("half of a checkpoint was written", "metrics were about to be written")


@pytest.mark.parametrize(
    "moment",
    [pytest.param(it, marks=[] if it in DEFAULT else pytest.mark.slow) for it in MOMENTS],
)
def test_a_run_that_was_killed_when(tmp_path: Path, alone: Alone, moment: str) -> None:
    folder = killed(fit(COMMAND, tmp_path), tmp_path, MOMENTS[moment])
    assert ("finished" in resume(folder)) == (moment == "all was done")
    assert differences(folder, alone(COMMAND)) == []
    assert [path.name for path in folder.rglob(".*") if path.name != ".lock"] == []


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["all was trained", "metrics were about to be written"])
def test_a_run_that_is_killed_at_its_end_again_and_again_trains_nothing_twice(
    tmp_path: Path, alone: Alone, moment: str
) -> None:
    folder = killed(fit(COMMAND, tmp_path), tmp_path, MOMENTS[moment])
    for _ in range(3):
        killed_again(folder, MOMENTS[moment])
    said = resume(folder)
    assert "last.ckpt, step 75\n" in said
    assert "epoch " not in said
    assert differences(folder, alone(COMMAND)) == []


@pytest.mark.slow
def test_a_run_that_was_killed_in_a_validation_inside_an_epoch(
    tmp_path: Path, alone: Alone
) -> None:
    # A validation follows every second time when it would be due to save.
    command = f"{MLP} --trainer.val_check_interval 8"
    folder = killed(
        fit(command, tmp_path), tmp_path, partial(at_call, Classifier, "validation_step", 2)
    )
    resume(folder)
    assert differences(folder, alone(command)) == []


@pytest.mark.slow
def test_a_run_that_was_moved_is_resumed_and_keeps_its_best(tmp_path: Path, alone: Alone) -> None:
    # With this rate nothing is learned: the first epoch is the best, as none is better.
    command = f"{COMMAND} --model.optimizer.lr 0.05"
    folder = killed(fit(command, tmp_path), tmp_path, at_step(60))
    moved = tmp_path / "elsewhere"
    shutil.move(folder, moved)
    resume(moved)
    assert differences(moved, alone(command)) == []
    assert torch.load(moved / "checkpoints" / "best.ckpt", weights_only=True)["epoch"] == 0
    assert not folder.exists()
