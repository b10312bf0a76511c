import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from digitlab import files, run_folder

CLAIM_TEN = """
import sys
from pathlib import Path
from digitlab import runs
for _ in range(10):
    print(runs.claim(Path(sys.argv[1]), "name"))
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


def test_threads_never_share_a_folder(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        folders = list(pool.map(lambda _: run_folder.create_run_dir(tmp_path, "name"), range(80)))
    assert sorted(int(folder.name[8:]) for folder in folders) == list(range(80))


def test_processes_never_share_a_folder(tmp_path: Path) -> None:
    command = [sys.executable, "-c", CLAIM_TEN, str(tmp_path)]
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
    with pytest.raises(ValueError, match=r"version_0 is no run folder, .* or latest"):
        run_folder.find_run(str(claimed))


@pytest.mark.parametrize("name", ["last", "best"])
def test_checkpoints_are_found_by_name_or_path(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=rf"there is no checkpoint .*{name}\.ckpt: train the run"):
        run_folder.find_checkpoint(tmp_path, name)
    path = tmp_path / "checkpoints" / f"{name}.ckpt"
    path.parent.mkdir()
    path.touch()
    assert run_folder.find_checkpoint(tmp_path, name) == path
    assert run_folder.find_checkpoint(tmp_path / "elsewhere", str(path)) == path
    with pytest.raises(ValueError, match=r"there is no checkpoint lst: give last, best or"):
        run_folder.find_checkpoint(tmp_path, "lst")


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


def test_text_is_written_as_utf8_and_leaves_no_other_file(tmp_path: Path) -> None:
    for text in ("2²⁰ ±√6\n", "shorter"):
        files.write_text(tmp_path / "text.txt", text)
        assert (tmp_path / "text.txt").read_bytes() == text.encode()
    assert [path.name for path in tmp_path.iterdir()] == ["text.txt"]


@pytest.mark.parametrize("failing", ["write_text", "replace"])
def test_a_failed_write_leaves_the_old_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    path = tmp_path / "text.txt"
    files.write_text(path, "old")

    def half(file: Path, text: str, **_: str) -> None:
        file.write_bytes(text[: len(text) // 2].encode())
        raise OSError("no space left on device")

    def refuse(*_: Path) -> None:
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        if failing == "replace":
            patch.setattr(os, "replace", refuse)
        else:
            patch.setattr(Path, "write_text", half)
        with pytest.raises(OSError, match="no space"):
            files.write_text(path, "new and longer")
    assert path.read_text() == "old"
