import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from digitlab import run_folder

CREATE_TEN = """
import sys
from pathlib import Path
from digitlab import run_folder
for _ in range(10):
    print(run_folder.create_run_dir(Path(sys.argv[1]), "name"))
"""


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


def test_processes_never_share_a_folder(tmp_path: Path) -> None:
    command = [sys.executable, "-c", CREATE_TEN, str(tmp_path)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    lines = [line for process in processes for line in process.communicate()[0].splitlines()]
    assert [process.returncode for process in processes] == [0] * 4
    assert len(lines) == len(set(lines)) == 40


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
    with pytest.raises(ValueError, match=f"there is no checkpoint {path}: train the run"):
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


def test_a_locked_run_is_refused_until_it_is_released(tmp_path: Path) -> None:
    lock = run_folder.lock_run(tmp_path)
    with lock, pytest.raises(ValueError, match="is being trained by another process: wait for"):
        run_folder.lock_run(tmp_path)
    with run_folder.lock_run(tmp_path):
        pass


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
