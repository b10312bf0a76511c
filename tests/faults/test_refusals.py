"""What `fit --run` does not go on with, and what it goes on with when a file is damaged."""

import os
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from digitlab.run_folder import read_metrics
from tests.faults.runs_of_tiny import (
    COMMAND,
    fit,
    go_on,
    in_call,
    kill_before_step,
    killed,
    killed_again,
    left_alone,
    refused,
)
from tests.faults.victims import differences, run

LR_SCHEDULER = "model.lr_scheduler is torch.optim.lr_scheduler.StepLR, but the run in {}"
CHANGES = [
    ("--data.batch_size 10", "data.batch_size is 10, but the run in {} was started with 8"),
    ("--data.normalization symmetric", "data.normalization is symmetric, but"),
    ("--seed_everything 1", "seed_everything is 1, but the run in {} was started with 0"),
    ("--model.steps_per_execution 5", "model.steps_per_execution is 5, but"),
    ("--model.steps_per_execution 1", "model.steps_per_execution is 1, but"),
    ("--model.dropout 0.1", "model.dropout is 0.1, but the run in {} was started with 0.3"),
    ("--model LinearClassifier", "model is digitlab.models.LinearClassifier, but"),
    ("--model.optimizer SGD --model.optimizer.lr 1", "model.optimizer is torch.optim.SGD, but"),
    ("--trainer.precision bf16-mixed", "trainer.precision is bf16-mixed, but"),
    ("--model.lr_scheduler StepLR --model.lr_scheduler.step_size 1", LR_SCHEDULER),
    ("--trainer.strategy ddp", "trainer.strategy is ddp, but"),
    ("--weights x.ckpt", "weights is x.ckpt, but"),
    ("--trainer.devices 2", "trainer.devices is 2, but the run in {} was started with 1"),
    ("--trainer.log_every_n_steps 7", "trainer.log_every_n_steps is 7, but"),
]


@pytest.fixture
def half(tmp_path: Path) -> Path:
    """A run that was killed inside its second epoch."""
    return killed(fit(COMMAND, tmp_path), tmp_path, partial(kill_before_step, 40))


@pytest.fixture(scope="module")
def unchanged(tmp_path_factory: pytest.TempPathFactory, tiny_for_module: None) -> Path:
    """Another, which refusals leave as it is."""
    place = tmp_path_factory.mktemp("half")
    return killed(fit(COMMAND, place), place, partial(kill_before_step, 40))


@pytest.mark.parametrize(("options", "said"), CHANGES)
def test_a_changed_setting_is_refused_by_name(unchanged: Path, options: str, said: str) -> None:
    line = refused(unchanged, *options.split())
    assert line.startswith(said.format(unchanged))
    assert line.endswith(("start a new run from its --weights", "give up the exact result"))


@pytest.mark.parametrize(
    "options",
    [
        "--data.batch_size 10",
        "--model.steps_per_execution 1",
        "--model.steps_per_execution 1 --data.batch_size 20",
        "--seed_everything 1 --data.normalization symmetric",
        "--trainer.precision bf16-mixed",
    ],
)
def test_a_change_that_is_allowed_starts_the_epoch_over(tmp_path: Path, options: str) -> None:
    half = killed(fit(COMMAND, tmp_path), tmp_path, partial(kill_before_step, 40))
    go_on(half, "--allow_changes", "true", *options.split())
    metrics = read_metrics(half)
    size = {"10": 20, "20": 10}.get(options.rpartition("batch_size ")[2], 25)
    # Killed in the block of steps 38 to 41; the last checkpoint is of 37. Two epochs follow.
    assert (metrics["epochs"], metrics["optimizer_steps"]) == (3, 37 + 2 * size)
    rows = (half / "history.csv").read_text().splitlines()[1:]
    assert [row.split(",")[:2] for row in rows] == [
        ["1", "25"],
        ["2", str(37 + size)],
        ["3", str(37 + 2 * size)],
    ]


def test_what_does_not_change_the_result_may_change(half: Path, alone: Path) -> None:
    options = "--checkpoint_every_n_steps 7 --trainer.enable_progress_bar false"
    go_on(half, *options.split())
    assert differences(half, alone) == []


def test_fewer_epochs_than_there_were_are_refused(alone: Path, unchanged: Path) -> None:
    said = "trainer.max_epochs is 2, but the run has had 3 already"
    assert refused(alone, "--trainer.max_epochs", "2") == said
    said = "trainer.max_steps is 30, but the run has had 37 already"
    assert refused(unchanged, "--trainer.max_steps", "30") == said


def test_a_finished_run_says_so_and_stays_as_it_is(alone: Path) -> None:
    before = (alone / "checkpoints" / "last.ckpt").read_bytes()
    said = go_on(alone)
    assert said.endswith(
        "is finished: 3 epochs, 75 steps; a larger --trainer.max_epochs or max_steps goes on\n"
    )
    assert (alone / "checkpoints" / "last.ckpt").read_bytes() == before


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def remove(path: Path) -> None:
    path.unlink()


def hide_code(path: Path) -> None:
    content = torch.load(path, weights_only=True)
    torch.save(content | {"hidden": Path("/")}, path)


@pytest.mark.parametrize("damage", [flip, cut, empty, remove, hide_code])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(
    half: Path, alone: Path, damage: Any
) -> None:
    last = half / "checkpoints" / "last.ckpt"
    assert torch.load(last, weights_only=True)["global_step"] == 37
    before = last.read_bytes()
    damage(last)
    assert not last.exists() or last.read_bytes() != before
    said = go_on(half)
    assert (f"digitlab: warning: {last} is damaged or no" in said) == (damage is not remove)
    assert f"Going on from {last.with_name('previous.ckpt')}, step 33\n" in said
    assert differences(half, alone) == []


def test_where_both_are_damaged_nothing_is_overwritten(tmp_path: Path) -> None:
    half = killed(fit(COMMAND, tmp_path), tmp_path, partial(kill_before_step, 40))
    for name in ("last", "previous"):
        flip(half / "checkpoints" / f"{name}.ckpt")
    log = half / "log"
    assert run(["fit", "--run", str(half)], log) == 2
    warning, error = log.read_text().splitlines()
    assert warning.startswith(f"digitlab: warning: {half}/checkpoints/last.ckpt is damaged or no")
    assert error.startswith(f"digitlab: error: {half}/checkpoints/previous.ckpt is damaged or no")


def test_a_damaged_checkpoint_does_not_take_the_place_of_the_whole_one(
    half: Path, alone: Path
) -> None:
    last = half / "checkpoints" / "last.ckpt"
    flip(last)
    # Killed when the first checkpoint is about to be written: the whole one is what is left.
    killed_again(half, partial(in_call, "os", "replace", 1))
    go_on(half)
    assert differences(half, alone) == []


def test_a_checkpoint_that_may_not_be_read_is_no_damaged_one(half: Path, alone: Path) -> None:
    if os.getuid() != 0:
        pytest.skip("another user's rights can be taken on by root only")
    last, log = half / "checkpoints" / "last.ckpt", half.parents[1] / "log"
    for path in (half, *half.parents[:5], *half.rglob("*")):
        path.chmod(0o777)
    last.chmod(0o600)
    assert run(["fit", "--run", str(half)], log, partial(os.setuid, 65534)) == 2
    assert "Permission denied" in log.read_text().splitlines()[-1]
    last.chmod(0o644)
    go_on(half)
    assert differences(half, alone) == []


def test_an_edited_config_is_noticed(half: Path) -> None:
    config = half / "config.yaml"
    config.write_text(config.read_text().replace("batch_size: 8", "batch_size: 7", 1))
    assert refused(half).startswith("data.batch_size is 7, but the run in")


def test_a_change_of_the_optimizer_is_refused_even_if_changes_are_allowed(half: Path) -> None:
    line = refused(half, "--allow_changes", "true", "--model.optimizer.lr", "0.5")
    assert line.startswith("model.optimizer.lr is 0.5, but")


def test_a_refused_change_leaves_the_settings_as_they_were(half: Path, alone: Path) -> None:
    line = refused(half, "--allow_changes", "true", "--model.hidden_features", "[8]")
    assert "is of another architecture than MLP" in line
    go_on(half)
    assert differences(half, alone) == []


def test_changes_are_allowed_once(half: Path) -> None:
    go_on(half, "--allow_changes", "true", "--data.batch_size", "10")
    assert refused(half, "--data.batch_size", "20").startswith("data.batch_size is 20, but")


def test_a_run_without_checkpoints_is_not_trained_again(tmp_path: Path) -> None:
    command = [*fit(COMMAND, tmp_path, epochs=1), "--trainer.enable_checkpointing", "false"]
    said = "keeps no checkpoints to go on from: start a new run"
    assert refused(left_alone(command, tmp_path)).endswith(said)


def test_a_longer_run_forgets_what_was_measured_of_the_shorter_one(tmp_path: Path) -> None:
    command = [*fit(COMMAND, tmp_path, epochs=1), "--data.validation_size", "50"]
    folder = left_alone(command, tmp_path)
    for evaluation in ("test", "predict"):
        assert run([evaluation, "--run", str(folder)], tmp_path / "log") == 0
    assert "test" in read_metrics(folder)
    go_on(folder, "--trainer.max_epochs", "2")
    assert "test" not in read_metrics(folder)
    assert not (folder / "predictions.csv").exists()


def test_a_checkpoint_of_weights_alone_is_no_run(half: Path) -> None:
    last = half / "checkpoints" / "last.ckpt"
    content = torch.load(last, weights_only=True)
    torch.save({name: content[name] for name in ("state_dict", "hyper_parameters")}, last)
    said = f"{last} is of an older digitlab or of another program, without what a run goes on from"
    assert refused(half) == f"{said}: start a new run, --weights {last}"


def test_a_keras_run_is_refused_by_name(half: Path) -> None:
    (half / "model.keras").touch()
    assert refused(half) == f"{half} was trained in Keras: only PyTorch's runs go on"


def test_no_run_and_no_folder_are_refused(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert run(["fit", "--run", str(tmp_path / "none")], log) == 2
    assert "is no run folder" in log.read_text()
