"""`fit --run` resumes a run exactly, or refuses in one line that changes nothing."""

import os
import re
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from digitlab import checkpoints, run_folder
from digitlab.cli import main
from digitlab.resume import ResumePoint, check_resumable
from digitlab.run_folder import read_metrics
from tests import commands
from tests.commands import checkpoint
from tests.conftest import MLP, Trained
from tests.faults.processes import differences, run, said

slow = pytest.mark.slow


@pytest.fixture
def half(trained: Trained, copied: Callable[[Path], Path]) -> Path:
    """`finished_run`, stopped at step 10 inside its second epoch; step 7 is in previous.ckpt."""
    return copied(trained("MLP", *MLP, "--trainer.max_steps", "10"))


def resume(folder: Path, *options: str) -> None:
    assert main(["fit", "--run", str(folder), "--trainer.max_steps", "-1", *options]) == 0


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Any:
    """Asks for a run to be resumed, and gives the line in which that is refused."""

    def refuse(folder: Path, *options: str) -> str:
        capsys.readouterr()
        before = {path: path.read_bytes() for path in folder.rglob("*.*") if path.is_file()}
        line = commands.refusal(capsys, "fit", "--run", str(folder), *options)
        after = {path: path.read_bytes() for path in folder.rglob("*.*") if path.is_file()}
        assert before == after
        return line

    return refuse


LR_SCHEDULER = "model.lr_scheduler is torch.optim.lr_scheduler.StepLR, but the run in {}"
CHANGES = [
    ("--data.batch_size 10", "data.batch_size is 10, but the run in {} was started with 32"),
    ("--seed_everything 1", "seed_everything is 1, but the run in {} was started with 0"),
    ("--framework keras", "framework is keras, but the run in {} was started with torch"),
    ("--model LinearClassifier", "model is digitlab.models.LinearClassifier, but"),
    ("--model.optimizer SGD --model.optimizer.lr 1", "model.optimizer is torch.optim.SGD, but"),
    ("--allow_changes true --model.optimizer.lr 0.5", "model.optimizer.lr is 0.5, but"),
    ("--model.lr_scheduler StepLR --model.lr_scheduler.step_size 1", LR_SCHEDULER),
    ("--weights x.ckpt", "weights is x.ckpt, but"),
    ("--trainer.devices 2", "trainer.devices is 2, but the run in {} was started with 1"),
]


@pytest.mark.promise("settings")
@pytest.mark.parametrize(("options", "said"), CHANGES)
def test_a_changed_setting_is_refused_by_name(
    copied_run: Path, refused: Any, options: str, said: str
) -> None:
    line = refused(copied_run, *options.split())
    assert line.startswith(said.format(copied_run))
    assert line.endswith(("start a new run from its --weights", "give up the exact result"))


@pytest.mark.promise("changes")
@pytest.mark.parametrize(
    ("options", "size"),
    [
        ("--data.batch_size 10", 20),
        ("--model.steps_per_execution 4 --data.batch_size 20", 10),
        ("--trainer.precision bf16-mixed", 7),
    ],
)
def test_a_change_is_allowed_once_and_starts_the_epoch_over(
    half: Path, refused: Any, options: str, size: int
) -> None:
    resume(half, "--allow_changes", "true", *options.split())
    assert refused(half, "--data.batch_size", "21").startswith("data.batch_size is 21, but")
    resume(half, "--trainer.max_epochs", "4")
    metrics = read_metrics(half)
    assert (metrics["epochs"], metrics["optimizer_steps"]) == (4, 10 + 3 * size)
    rows = (half / "history.csv").read_text().splitlines()[1:]
    steps = [["1", "7"], *([str(epoch), str(10 + (epoch - 1) * size)] for epoch in (2, 3, 4))]
    assert [row.split(",")[:2] for row in rows] == steps


@pytest.mark.promise("changes")
def test_settings_that_do_not_change_the_result_may_change(half: Path, finished_run: Path) -> None:
    resume(half, "--checkpoint_every_n_steps", "7", "--trainer.profiler", "simple")
    assert differences(half, finished_run) == []


def edit_numerics(folder: Path, **values: Any) -> None:
    """Let the checkpoint be of another machine."""
    content = checkpoint(folder)
    content["exact_resume"]["numerics"] |= values
    torch.save(content, folder / "checkpoints" / "last.ckpt")


@pytest.mark.promise("settings")
@pytest.mark.parametrize(
    ("name", "value"), [("device", "cuda"), ("threads", 3), ("float32_matmul_precision", "medium")]
)
def test_another_device_or_flag_is_refused_unless_inexact_resumes_are_allowed(
    half: Path, refused: Any, name: str, value: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    edit_numerics(half, **{name: value})
    line = refused(half, "--trainer.max_steps", "-1")
    assert re.fullmatch(f"{name} is .*, but the run had {value}: .*--allow_inexact_resume .*", line)
    resume(half, "--allow_inexact_resume", "true")
    (recorded,) = read_metrics(half)["inexact_resumes"]
    assert re.fullmatch(f"from step 10 on, {name} is .*, but the run had {value}", recorded)
    assert capsys.readouterr().err.endswith(f"is not bitwise equal: {recorded}\n")
    assert commands.config_of(half)["allow_inexact_resume"]
    resume(half, "--trainer.max_epochs", "4")
    assert read_metrics(half)["inexact_resumes"] == [recorded]


@pytest.mark.promise("changes")
def test_allowed_threads_are_taken_and_recorded(half: Path) -> None:
    resume(half, "--allow_inexact_resume", "true", "--threads", "2")
    said = "from step 10 on, threads is 2, but the run had 1"
    metrics = read_metrics(half)
    assert (metrics["inexact_resumes"], metrics["device"]) == ([said], "cpu (2 threads)")
    assert commands.config_of(half)["threads"] == 2


def test_another_model_of_the_device_is_said_and_recorded(
    half: Path, finished_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edit_numerics(half, device_model="Z80 (AVX512)")
    resume(half)
    (warning,) = capsys.readouterr().err.splitlines()[-1:]
    assert re.search("is not bitwise equal: .* device_model is .*, but the run had Z80", warning)
    metrics = read_metrics(half)
    assert len(metrics.pop("inexact_resumes")) == 1
    assert metrics.keys() == read_metrics(finished_run).keys()


@pytest.mark.promise("settings")
@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--trainer.max_epochs 2", "trainer.max_epochs is 2, but the run has had 3 already"),
        ("--trainer.max_steps 20", "trainer.max_steps is 20, but the run has had 21 already"),
        (
            "--allow_changes true --model.hidden_features [8] --trainer.max_epochs 4",
            ".* is of another architecture than MLP: .*",
        ),
    ],
)
def test_what_no_checkpoint_can_give_is_refused_whatever_is_allowed(
    copied_run: Path, refused: Any, options: str, said: str
) -> None:
    assert re.fullmatch(said, refused(copied_run, *options.split()))


@pytest.mark.promise("settings")
def test_a_finished_run_stays_as_it_is(
    copied_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (copied_run / "checkpoints" / "last.ckpt").read_bytes()
    capsys.readouterr()
    resume(copied_run)
    assert capsys.readouterr().out == (
        f"{copied_run} is finished: 3 epochs, 21 steps; lengthen it by a larger "
        "--trainer.max_epochs or max_steps\n"
    )
    assert (copied_run / "checkpoints" / "last.ckpt").read_bytes() == before


@pytest.mark.promise("longer")
def test_a_longer_run_equals_one_that_was_that_long_from_the_start(
    tmp_path: Path, finished_run: Path
) -> None:
    folder = commands.fit(tmp_path, *MLP, "--trainer.max_epochs", "1", model="MLP")
    resume(folder, "--trainer.max_epochs", "3")
    assert differences(folder, finished_run) == []


@pytest.mark.promise("longer")
@pytest.mark.parametrize("steps", [3, 13, *(pytest.param(n, marks=slow) for n in (8, 16))])
def test_a_run_that_max_steps_ended_is_resumed_exactly_with_blocks(
    tmp_path: Path, finished_blocks_run: Path, steps: int
) -> None:
    blocks = ["--model.steps_per_execution", "8", "--data.batch_size", "16"]
    folder = commands.fit(tmp_path, *MLP, *blocks, "--trainer.max_steps", str(steps), model="MLP")
    resume(folder)
    assert differences(folder, finished_blocks_run) == []


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def hide_code(path: Path) -> None:
    torch.save(torch.load(path, weights_only=True) | {"hidden": Path("/")}, path)


@pytest.mark.promise("damaged")
@pytest.mark.parametrize("damage", [flip, cut, Path.unlink, hide_code])
def test_a_damaged_checkpoint_is_replaced_by_the_one_before(
    half: Path, finished_run: Path, damage: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    last = half / "checkpoints" / "last.ckpt"
    assert checkpoints.read_checkpoint(last)["global_step"] == 10
    damage(last)
    damaged = last.exists()
    capsys.readouterr()
    resume(half)
    said = capsys.readouterr()
    assert (f"digitlab: warning: {last} is damaged, or not" in said.err) == damaged
    assert said.out.startswith(f"Resuming from {last.with_name('previous.ckpt')}, step 7\n")
    assert differences(half, finished_run) == []


@pytest.mark.promise("damaged")
def test_if_both_checkpoints_are_damaged_nothing_is_overwritten(
    half: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    last, previous = (half / "checkpoints" / f"{name}.ckpt" for name in ("last", "previous"))
    flip(last)
    flip(previous)
    before = last.read_bytes(), previous.read_bytes()
    capsys.readouterr()
    assert main(["fit", "--run", str(half)]) == 2
    warning, error = capsys.readouterr().err.splitlines()
    assert warning.startswith(f"digitlab: warning: {last} is damaged, or not")
    assert error.startswith(f"digitlab: error: {previous} is damaged, or not")
    assert (last.read_bytes(), previous.read_bytes()) == before


@pytest.mark.promise("damaged")
@pytest.mark.slow  # as a process
def test_a_checkpoint_without_read_permission_is_not_a_damaged_one(half: Path) -> None:
    if os.getuid() != 0:
        pytest.skip("another user's rights can be taken on by root only")
    last, place = half / "checkpoints" / "last.ckpt", half.parents[1]
    for path in (half, *half.parents[:5], *half.rglob("*")):
        path.chmod(0o777)
    last.chmod(0o600)
    assert run(["fit", "--run", str(half)], place, partial(os.setuid, 65534)) == [2]
    assert "Permission denied" in said(place).splitlines()[-1]


@pytest.mark.promise("settings")
def test_an_edited_config_is_noticed(copied_run: Path, refused: Any) -> None:
    config = copied_run / "config.yaml"
    config.write_text(config.read_text().replace("batch_size: 32", "batch_size: 7", 1))
    assert refused(copied_run).startswith("data.batch_size is 7, but the run in")


@pytest.mark.promise("settings")
def test_a_run_in_another_process_is_refused(copied_run: Path, refused: Any) -> None:
    with run_folder.lock_run(copied_run):
        assert "is being trained by another process: wait for its end" in refused(copied_run)


@pytest.mark.promise("settings")
def test_a_run_without_checkpoints_is_not_trained_again(tmp_path: Path, refused: Any) -> None:
    folder = commands.fit(tmp_path, "--trainer.enable_checkpointing", "false")
    assert refused(folder).endswith("keeps no checkpoints to resume from: start a new run")


@pytest.mark.promise("longer")
def test_a_longer_run_drops_the_scores_of_the_shorter_one(tmp_path: Path) -> None:
    folder = commands.fit(tmp_path, "--data.validation_size", "50")
    for evaluation in ("test", "predict"):
        assert main([evaluation, "--run", str(folder)]) == 0
    assert "test" in read_metrics(folder)
    resume(folder, "--trainer.max_epochs", "2")
    assert "test" not in read_metrics(folder)
    assert not (folder / "predictions.csv").exists()


@pytest.mark.promise("settings")
def test_a_checkpoint_of_weights_alone_is_refused(copied_run: Path, refused: Any) -> None:
    last = copied_run / "checkpoints" / "last.ckpt"
    content = checkpoint(copied_run)
    torch.save({name: content[name] for name in ("state_dict", "hyper_parameters")}, last)
    said = f"{last} was written by an older digitlab or another program, and cannot be resumed: "
    assert refused(copied_run) == f"{said}start a new run, --weights {last}"


def test_a_keras_run_may_be_killed_before_its_first_checkpoint(copied_run: Path) -> None:
    shutil.rmtree(copied_run / "checkpoints")
    (copied_run / "model.keras").touch()
    check_resumable(copied_run)  # only one of version 0.1 is refused, see test_old_runs.py


@pytest.mark.promise("settings")
def test_another_number_of_ranks_is_refused_unless_changes_are_allowed() -> None:
    start = ResumePoint(resumed=True, world_size=2)
    start.check_processes(2, allow_changes=False)
    start.check_processes(3, allow_changes=True)
    with pytest.raises(ValueError, match="there are 3 processes, but the run had 2: start as many"):
        start.check_processes(3, allow_changes=False)
