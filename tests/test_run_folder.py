import errno
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from digitlab import run_folder
from digitlab.cli import main
from tests.commands import refusal


def make_run(root: Path, name: str, started: float) -> Path:
    folder = run_folder.create_run_dir(root, name)
    (folder / "config.yaml").write_text("")
    os.utime(folder / "config.yaml", (started, started))
    return folder


def test_runs_of_a_name_are_numbered_from_zero(tmp_path: Path) -> None:
    root = tmp_path / "not" / "yet"
    folders = [run_folder.create_run_dir(root, "mnist-lenet5") for _ in range(12)]
    assert folders == [root / "mnist-lenet5" / f"version_{n}" for n in range(12)]
    assert run_folder.create_run_dir(root, "other") == root / "other" / "version_0"
    assert all(folder.is_dir() for folder in folders)


def test_a_number_is_not_given_again_after_a_gap(tmp_path: Path) -> None:
    for name in ("version_0", "version_9", "version_10", "version_x", "notes_99", "version_"):
        (tmp_path / "name" / name).mkdir(parents=True)
    (tmp_path / "name" / "version_11").write_text("a file takes a number too")
    assert run_folder.create_run_dir(tmp_path, "name").name == "version_12"


def test_a_folder_taken_between_looking_and_making_is_left_to_its_owner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "name" / "version_0").mkdir(parents=True)
    monkeypatch.setattr(Path, "iterdir", lambda self: iter(()))  # an old look at the folder
    assert run_folder.create_run_dir(tmp_path, "name").name == "version_1"


def test_latest_is_the_run_that_was_started_last(tmp_path: Path) -> None:
    first = make_run(tmp_path, "z", started=100)
    last = make_run(tmp_path, "a", started=300)
    make_run(tmp_path, "a", started=200)
    run_folder.create_run_dir(tmp_path, "b")  # has no config: its training never began
    assert run_folder.find_run("latest", tmp_path) == last
    assert run_folder.find_run(str(first), tmp_path) == first


@pytest.mark.parametrize("kind", ["loop", "folder", "removed"])
def test_a_broken_entry_does_not_hide_the_latest_run(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path, "name", started=100)
    config, is_file = make_run(tmp_path, "name", started=300) / "config.yaml", Path.is_file

    def removed_after(path: Path) -> bool:
        there = is_file(path)
        if path == config:
            path.unlink(missing_ok=True)
        return there

    if kind == "removed":
        monkeypatch.setattr(Path, "is_file", removed_after)
    else:
        config.unlink()
        config.mkdir() if kind == "folder" else config.symlink_to(config)
    assert run_folder.find_run("latest", tmp_path) == run


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"there is no run in .*: train one with digitlab fit"):
        run_folder.find_run("latest", tmp_path)
    claimed = run_folder.create_run_dir(tmp_path, "name")
    with pytest.raises(ValueError, match=r"version_0 has no config.yaml, .* or latest"):
        run_folder.find_run(str(claimed))


@pytest.mark.parametrize(
    ("framework", "name", "file"),
    [
        ("torch", "last", "checkpoints/last.ckpt"),
        ("torch", "best", "checkpoints/best.ckpt"),
        ("keras", "last", "model.keras"),
        ("keras", "best", "checkpoints/best.keras"),
    ],
)
def test_checkpoints_are_found_by_name_or_path(
    tmp_path: Path, framework: str, name: str, file: str
) -> None:
    (tmp_path / "config.yaml").write_text(f"framework: {framework}")
    path = tmp_path / file
    with pytest.raises(ValueError, match=f"there is no checkpoint {path}: resume the run, "):
        run_folder.find_checkpoint(tmp_path, name)
    path.parent.mkdir(exist_ok=True)
    path.touch()
    assert run_folder.find_checkpoint(tmp_path, name) == path
    assert run_folder.find_checkpoint(tmp_path, str(path)) == path
    with pytest.raises(ValueError, match=r"there is no checkpoint lst: give last, best or"):
        run_folder.find_checkpoint(tmp_path, "lst")


def test_an_old_run_s_framework_is_that_of_its_files(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("name: old")
    assert run_folder.framework(tmp_path) == "torch"
    (tmp_path / "model.keras").touch()
    assert run_folder.framework(tmp_path) == "keras"
    (tmp_path / "config.yaml").write_text("framework: torch")
    assert run_folder.framework(tmp_path) == "torch"


def test_a_run_of_another_user_is_to_be_copied(
    finished_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write everywhere
    for command in (["fit"], ["test"], ["validate"], ["predict"]):
        line = refusal(capsys, *command, "--run", str(finished_run))
        assert f"copy it, cp -r {finished_run} my-version_0, and name the copy" in line
    assert "may not be written: give --out FILE.html" in refusal(
        capsys, "report", str(finished_run)
    )


def test_a_removed_run_leaves_others_of_its_name(tmp_path: Path) -> None:
    first, second = (run_folder.create_run_dir(tmp_path, "name") for _ in range(2))
    run_folder.remove_run_dir(first)
    assert second.exists()
    run_folder.remove_run_dir(second)
    assert list(tmp_path.iterdir()) == []


def test_updating_metrics_keeps_what_others_have_written(tmp_path: Path) -> None:
    assert run_folder.read_metrics(tmp_path) == {}
    run_folder.update_metrics(tmp_path, {"test": {"accuracy": 0.5}, "model": "MLP"})
    run_folder.update_metrics(tmp_path, {"test": {"accuracy": 0.75}, "val": {"n": 5}})
    expected = {"test": {"accuracy": 0.75}, "model": "MLP", "val": {"n": 5}}
    assert run_folder.read_metrics(tmp_path) == expected
    assert json.loads((tmp_path / "metrics.json").read_text()) == expected
    with pytest.raises(TypeError):
        run_folder.update_metrics(tmp_path, {"model": object()})
    assert run_folder.read_metrics(tmp_path) == expected


HEAD = "epoch,step,train_loss,train_accuracy,val_loss,val_accuracy,learning_rate,seconds\n"


DEEP, LONG = "[" * 100_000, "1" * 5000
OF_ANY = ["", "null", "[1]", "\0\xff", DEEP]
DAMAGED = {
    "config.yaml": [
        *(*OF_ANY, "a: " + LONG, "a:\n\tb: 1", "a: 2024-99-99", "a: !!int", "a: &a [*a]"),
        *("a: !!python/name:os.system", "model: 1", "model: {class_path: x}\ndata:"),
    ],
    "metrics.json": [*OF_ANY, f'{{"a": {LONG}}}', '{"test": {"acc', f'{{"a": {"1" * 400}}}'],
    "history.csv": [
        *(HEAD + "1e300,1,1,1,1,1,1,1\n", HEAD + "-1,1,1,1,1,1,1,1\n", HEAD + "1,1,1,1,1,7,1,1\n"),
        *(HEAD + "1,1,1,x,1,1,1,1\n", HEAD + "\0\n", HEAD + LONG, HEAD + DEEP),
    ],
}
READ = {
    "config.yaml": lambda folder: run_folder.read_config(folder, run_folder.NEEDED),
    "metrics.json": run_folder.read_metrics,
    "history.csv": run_folder.read_history,
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_file_is_named(tmp_path: Path, name: str) -> None:
    for content in DAMAGED[name]:
        (tmp_path / name).write_text(content, "latin-1")
        with pytest.raises(ValueError, match=f"^{tmp_path}/{name} is damaged: (.|\n)+; restore it"):
            READ[name](tmp_path)


def test_a_loss_that_is_not_finite_is_no_damage(tmp_path: Path) -> None:
    assert run_folder.read_history(tmp_path).empty
    (tmp_path / "history.csv").write_text(f"{HEAD}1,7,inf,0.1,nan,,0.1,1\n2,14,3e38,1,,0,1,1\n")
    history = run_folder.read_history(tmp_path).fillna(-1)
    read = [[1, 7, -1, 0.1, -1, -1, 0.1, 1], [2, 14, 3e38, 1, -1, 0, 1, 1]]
    assert history[HEAD.strip().split(",")].to_numpy().tolist() == read


@pytest.mark.parametrize("file", ["config.yaml", "metrics.json"])
@pytest.mark.parametrize("command", ["fit --run", "test --run", "validate --run", "predict --run"])
def test_every_command_names_a_damaged_file_before_any_work(
    command: str, file: str, copied_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if (command, file) == ("predict --run", "metrics.json"):
        pytest.skip("it neither reads nor writes that file")
    run = copied_run
    (run / file).write_text("{")
    before = sorted(run.rglob("*"))
    line = refusal(capsys, *command.split(), str(run))
    assert re.match(rf"{run / file} is damaged: it is not valid (YAML|JSON).*; restore it", line)
    assert sorted(run.rglob("*")) == before


@pytest.mark.parametrize("setting", ["batch_size: [", "no_such_setting: 1", "in: {a: }"])
def test_a_setting_that_is_refused_is_the_config_s_fault_not_the_flags(
    setting: str, finished_run: Path, copied_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = copied_run
    with (run / "config.yaml").open("a") as file:
        file.write(f"{setting}\n")
    line = refusal(capsys, "fit", "--run", str(run), "--trainer.max_epochs", "5")
    assert "config.yaml is damaged: " in line
    line = refusal(capsys, "fit", "--run", str(finished_run), "--trainer.max_epoch", "5")
    assert line == "there is no option 'trainer.max_epoch': did you mean 'trainer.max_epochs'?"


def test_a_score_is_printed_before_it_is_written(
    copied_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = copied_run

    def fail(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    assert main(["test", "--run", str(run)]) == 1
    shown = capsys.readouterr()
    assert "Test accuracy " in shown.out
    expected = f"[Errno 28] No space left on device: '{run}/metrics.json'; make room there, or give"
    assert shown.err == f"digitlab: error: {expected} another folder\n"
