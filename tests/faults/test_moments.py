"""A run may be killed at any moment, while it writes, validates or measures, and may be moved."""

import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import Timer

from digitlab.callbacks import FinalEvaluation, History, LastCheckpoint, SaveFigures
from digitlab.classifier import Classifier
from digitlab.run_folder import read_metrics
from tests.faults.conftest import Alone
from tests.faults.runs_of_tiny import (
    BLOCKS,
    COMMAND,
    MLP,
    STOP,
    at_call,
    at_step,
    fit,
    folder_of,
    killed,
    killed_again,
    log_of,
    resume,
)
from tests.faults.test_resume import BY_EPOCH, PLATEAU, STOPPING
from tests.faults.victims import differences, kill_self, run

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
    "moment", [pytest.param(it, marks=[] if it in DEFAULT else pytest.mark.slow) for it in MOMENTS]
)
def test_a_run_that_was_killed_when(tmp_path: Path, alone: Alone, moment: str) -> None:
    folder = killed(fit(COMMAND, tmp_path), tmp_path, MOMENTS[moment])
    assert ("finished" in resume(folder)) == (moment == "all was done")
    assert differences(folder, alone(COMMAND)) == []
    assert [path.name for path in folder.rglob(".*") if path.name != ".lock"] == []


def when_time_is_up(then: Any = lambda: None) -> None:
    """A fault in a run with `max_time`: the time is up at step 37, on any machine."""

    def check(timer: Timer, trainer: Any) -> None:
        trainer.should_stop = trainer.should_stop or trainer.global_step >= 37

    Timer._check_time_remaining = check  # type: ignore[method-assign, assignment]
    then()


ENDS = {  # epochs have 25 steps
    "max_steps": f"{MLP} {BY_EPOCH} --trainer.max_steps 37",
    "max_steps inside a block": f"{MLP} {BLOCKS} --trainer.max_steps 38",
    "max_steps and plateau": f"{MLP} {PLATEAU} --trainer.max_steps 37",
    "max_steps at a validation": f"{MLP} --trainer.val_check_interval 8 --trainer.max_steps 33",
    "a callback": f"{MLP} {PLATEAU} {STOP}",
    "a callback, blocks": f"{MLP} {BLOCKS} {BY_EPOCH} {STOP}",
    "a callback in the last epoch": f"{MLP} {BLOCKS} {STOP} --trainer.max_epochs 2",
    "early stopping": f"{MLP} {STOPPING} --trainer.val_check_interval 8",
    "max_time": f"{MLP} --trainer.max_time 00:01:00:00",
    "max_time, blocks": f"{MLP} {BLOCKS} --trainer.max_time 00:01:00:00",
}
IN_KERAS = ("max_steps inside a block", "a callback", "max_time, blocks")
LAST = {
    "before the last row was written": partial(at_call, History, "on_train_epoch_end", 2),
    "after the last row was written": after(History, "on_train_epoch_end", 2),
    "in the final evaluation": partial(at_call, Classifier, "evaluate", 1),
}
slow = partial(pytest.param, marks=pytest.mark.slow)
INSIDE = [
    ("torch", "max_steps inside a block", "after the last row was written"),
    ("torch", "a callback in the last epoch", "in the final evaluation"),
    *(
        slow(framework, end, moment)
        for framework, ends in (("torch", ENDS), ("keras", IN_KERAS))
        for end in ends
        for moment in LAST
        if (end, moment) != ("early stopping", "before the last row was written")
    ),
]


@pytest.mark.parametrize(("framework", "end", "moment"), INSIDE)
def test_a_run_that_ended_inside_an_epoch_and_was_killed_then_keeps_its_last_row(
    tmp_path: Path, framework: str, end: str, moment: str
) -> None:
    alone, other = tmp_path / "alone", tmp_path / "killed"
    fault, first = LAST[moment], end == "early stopping"  # which ends in its first epoch
    if first and "row" in moment:
        fault = after(History, "on_train_epoch_end", 1)
    on_time = when_time_is_up if "max_time" in end else None
    folder = killed(
        fit(ENDS[end], other, framework=framework),
        other,
        partial(on_time, fault) if on_time else fault,
    )
    for place, command in (
        (other, ["fit", "--run", str(folder)]),
        (alone, fit(ENDS[end], alone, framework=framework)),
    ):
        assert run(command, log_of(place), on_time) == 0, log_of(place).read_text("utf-8")
    assert differences(folder, folder_of(alone)) == []
    assert len((folder / "history.csv").read_text().splitlines()) == (2 if first else 3)
    last = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["global_step"] == read_metrics(folder)["optimizer_steps"]


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
