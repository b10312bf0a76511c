"""Files are written atomically: whenever the writer fails, the old file or the new one is there."""

import csv
import errno
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from digitlab import checkpoints, files
from digitlab.checkpoints import AtomicCheckpointIO


def test_text_is_written_as_utf8_under_a_name_of_any_length_and_leaves_no_other_file(
    tmp_path: Path,
) -> None:
    path = tmp_path / f"{'x' * 250}.txt"
    for text in ("2²⁰ ±√6\n", "shorter"):
        files.write_text(path, text)
        assert path.read_bytes() == text.encode()
    assert [*tmp_path.iterdir()] == [path]


@pytest.mark.parametrize("failing", ["write_text", "replace", "fsync"])
def test_a_failed_write_leaves_the_old_text_and_names_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    path = tmp_path / "text.txt"
    files.write_text(path, "old")

    def fail(beside: Any, *rest: Any, **_: str) -> None:
        if failing == "write_text":
            beside.write_bytes(rest[0][:2].encode())
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path if failing == "write_text" else os, failing, fail)
    with pytest.raises(OSError, match=rf"No space left on device: '{path}'$"):
        files.write_text(path, "new and longer")
    assert path.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["text.txt"]


WRITERS = {
    "text": lambda path: files.write_text(path, "new" * 1000),
    "csv": lambda path: files.write_csv(path, [{"new": "new" * 1000}]),
    "checkpoint": lambda path: AtomicCheckpointIO().save_checkpoint({"new": torch.ones(999)}, path),
}


def in_child(work: Any) -> int:
    """Does the work in a process of its own, and returns its status; it may be killed."""
    child = os.fork()
    if child == 0:
        work()
        os._exit(0)
    return os.waitpid(child, 0)[1]


def write_and_be_killed(kind: str, path: Path, calls: int) -> None:
    """Writes a file anew, and is killed at a system call that touches the disk."""
    left = calls

    def dies(original: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal left
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*args, **kwargs)

        return call

    os.fsync, os.replace = dies(os.fsync), dies(os.replace)
    WRITERS[kind](path)


@pytest.mark.parametrize("calls", [1, 2, 3])
@pytest.mark.parametrize("kind", WRITERS)
def test_a_file_is_the_old_or_the_new_one_whenever_its_writer_is_killed(
    tmp_path: Path, kind: str, calls: int
) -> None:
    path = tmp_path / "file"
    WRITERS[kind](path)
    new = path.read_bytes()
    path.write_bytes(b"old")
    status = in_child(lambda: write_and_be_killed(kind, path, calls))
    assert os.WTERMSIG(status) == signal.SIGKILL
    # Flushed to the disk, renamed, and the name flushed.
    if kind == "checkpoint" and calls == 3:
        assert checkpoints.read_checkpoint(path)["new"].sum() == 999
    else:
        assert path.read_bytes() == (new if calls == 3 else b"old")
    files.write_text(tmp_path / "another", "")  # cleans up
    assert {path.name for path in tmp_path.iterdir()} == {"file", "another"}


def test_a_folder_is_written_as_a_file_is(tmp_path: Path) -> None:
    def write(fails: bool) -> None:
        with files.atomic_write(tmp_path / "folder") as beside:
            (beside / "in").mkdir(parents=True)
            (beside / "in" / "file").touch()
            if fails:
                os.kill(os.getpid(), signal.SIGKILL)

    in_child(lambda: write(fails=True))
    assert len(list(tmp_path.iterdir())) == 1
    write(fails=False)
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
    assert (tmp_path / "folder" / "in" / "file").exists()


@pytest.mark.parametrize(
    ("name", "is_removed"),
    [
        (".{dead}.last.ckpt", True),  # of version 0.1
        (".{dead}@{here}.last.ckpt", True),
        (".{alive}@{here}.last.ckpt", False),
        (".{dead}@00000000.last.ckpt", False),  # of another machine, on a shared disk
        (".{dead}.notes", False),
        (".99999999999999999999.last.ckpt", False),
        ("{dead}.last.ckpt", False),
    ],
)
def test_partial_files_of_dead_processes_are_removed_and_no_others(
    tmp_path: Path, name: str, is_removed: bool
) -> None:
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    with files.atomic_write(tmp_path / "file") as beside:
        beside.touch()
        here = beside.name.split("@")[1].split(".")[0]
    path = tmp_path / "checkpoints" / name.format(dead=child, alive=os.getpid(), here=here)
    path.parent.mkdir()
    path.touch()
    files.remove_partial_files(tmp_path)
    assert path.exists() != is_removed


@pytest.mark.parametrize(
    ("call", "number", "of_folder"),
    [
        *(("fsync", errno.EINVAL, True), ("fsync", errno.EINVAL, False)),
        *(("open", errno.EACCES, True), ("open", errno.EACCES, False)),
        *(("fsync", errno.EIO, True), ("fsync", errno.EIO, False)),
    ],
)
def test_a_file_system_without_fsync_is_written_and_a_broken_disk_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int, of_folder: bool
) -> None:
    original = getattr(os, call)

    def refuse(path: Any, *rest: Any) -> Any:
        name = path if call == "open" else os.readlink(f"/proc/self/fd/{path}")
        if os.path.isdir(name) == of_folder:
            raise OSError(number, "refused")
        return original(path, *rest)

    path = tmp_path / "text.txt"
    monkeypatch.setattr(os, call, refuse)
    if number == errno.EINVAL or (of_folder and number == errno.EACCES):  # as Windows refuses
        files.write_text(path, "text")
        assert path.read_text() == "text"
    else:
        with pytest.raises(OSError, match=f"refused: '{path}'"):
            files.write_text(path, "text")


# Paths.


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The home folder, which is also the current one."""
    for name, value in {"HOME": str(tmp_path), "DEEP": "~/a", "EMPTY": ""}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("path", "expanded"),
    [
        *(("~", "."), ("~/x", "x"), ("$HOME/x", "x"), ("${HOME}/x", "x"), ("$DEEP/x", "a/x")),
        ("~/$UNSET", "$UNSET"),  # which exists
    ],
)
def test_a_path_is_expanded_as_a_shell_does(home: Path, path: str, expanded: str) -> None:
    (home / "$UNSET").touch()
    assert files.expand_path(path) == home / expanded
    assert files.expand_path(Path(path)) == home / expanded


@pytest.mark.usefixtures("home")
@pytest.mark.parametrize("path", ["x", "a~/~", "no_such_user~", "price $5", "$", "${"])
def test_other_paths_are_left(path: str) -> None:
    assert files.expand_path(path) == Path(path)


@pytest.mark.usefixtures("home")
@pytest.mark.parametrize("name", ["UNSET", "EMPTY"])
def test_a_variable_that_is_not_set_is_named(name: str) -> None:
    with pytest.raises(ValueError, match=rf"^x/\${name}/y names the variable {name}, which is not"):
        files.expand_path(f"x/${name}/y")


# CSV files.


@given(st.lists(st.one_of(st.text(), st.text("'=+-@\t\r\n 1"), st.integers(), st.floats())))
def test_no_cell_is_a_formula_and_all_are_read_back(cells: list[Any]) -> None:
    for cell in cells:
        written = files.csv_cell(cell)
        if not isinstance(cell, str):
            assert written is cell
        else:
            assert written[:1] not in tuple("=+-@\t\r") or float(written) is not None
            assert files.from_csv_cell(written) == cell


def test_text_that_begins_like_a_formula_gets_an_apostrophe(tmp_path: Path) -> None:
    text = {"a": "=cmd|' /C calc'!A0", "b": "@x", "c": "\t=1", "d": "+1+1", "e": "-x"}
    files.write_csv(tmp_path / "x.csv", [text | {"f": -1.5, "g": "-1e-5"}])
    with (tmp_path / "x.csv").open(newline="", encoding="utf-8") as file:
        (row,) = csv.DictReader(file)
    assert row == {name: f"'{cell}" for name, cell in text.items()} | {"f": "-1.5", "g": "-1e-5"}
