"""Files are written atomically: whenever the writer fails, the old file or the new one is there."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from digitlab import checkpoints, files
from digitlab.checkpoints import AtomicCheckpointIO


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


WRITERS = {
    "text": lambda path: files.write_text(path, "new" * 1000),
    "csv": lambda path: files.write_csv(path, [{"new": "new" * 1000}]),
    "checkpoint": lambda path: AtomicCheckpointIO().save_checkpoint({"new": torch.ones(999)}, path),
}


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
    child = os.fork()
    if child == 0:
        write_and_be_killed(kind, path, calls)
        os._exit(0)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    # Written through to the disk, renamed, and the name written through.
    if kind == "checkpoint" and calls == 3:
        assert checkpoints.read_checkpoint(path)["new"].sum() == 999
    else:
        assert path.read_bytes() == (new if calls == 3 else b"old")


def test_partial_files_of_dead_processes_are_removed_and_no_others(tmp_path: Path) -> None:
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    dead = tmp_path / "checkpoints" / f".{child}.last.ckpt"
    alive, other = tmp_path / f".{os.getpid()}.text.txt", tmp_path / ".lock"
    dead.parent.mkdir()
    for path in (dead, alive, other):
        path.touch()
    files.remove_partial_files(tmp_path)
    assert [path.exists() for path in (dead, alive, other)] == [False, True, True]
