"""A disk that is full or closed leaves the old file or the new one, and one line that says so."""

import errno
import fcntl
import os
import shutil
import subprocess
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from digitlab import checkpoints
from digitlab.cli import main
from tests.commands import SHORT, refusal
from tests.faults.conftest import Alone
from tests.faults.plants import kill_self
from tests.faults.processes import (
    COMMAND,
    SIGKILLED,
    differences,
    fit,
    folder_of,
    hidden,
    resume,
    run,
    said,
)

pytestmark = pytest.mark.promise("files")


@pytest.fixture
def small_disk(tmp_path: Path) -> Any:
    """A file system of 200 kB: a run's first checkpoints fit, more does not."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(folder)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a file system can be mounted by root only")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.slow
def test_a_run_on_a_full_disk_ends_in_a_line_and_is_resumed_when_there_is_room(
    tmp_path: Path, small_disk: Path, alone: Alone
) -> None:
    assert run(fit(COMMAND, small_disk), tmp_path) == [1]
    assert "No space left on device" in said(tmp_path).splitlines()[-1]
    folder = folder_of(small_disk)
    for path in folder.glob("checkpoints/*.ckpt"):
        checkpoints.read_checkpoint(path)
    room = tmp_path / "room" / "run"
    shutil.copytree(folder, room)
    resume(room)
    assert differences(room, alone(COMMAND)) == []


def test_a_folder_that_cannot_be_written_is_refused_in_a_line(
    tmp_path: Path, tiny_root: Path
) -> None:
    if os.getuid() != 0:
        pytest.skip("another user's rights can be taken on by root only")
    place = tmp_path / "closed"
    place.mkdir(mode=0o755)
    for parent in (tmp_path, *tmp_path.parents[:3]):
        parent.chmod(0o755)
    for path in (tiny_root, *tiny_root.rglob("*")):
        path.chmod(0o777)
    assert run(fit(COMMAND, place), tmp_path, partial(os.setuid, 65534)) == [2]
    line = said(tmp_path).splitlines()[-1]
    assert line.startswith(f"digitlab: error: [Errno 13] Permission denied: '{place}")
    assert line.endswith("; give a folder in which you may read and write")
    assert list(place.iterdir()) == []


@pytest.mark.parametrize("refused", ["fsync", "link", "flock"])
def test_a_file_system_that_refuses_a_call_is_written_or_refused_at_the_start(
    refused: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(fcntl if refused == "flock" else os, refused, refuse)
    args = ("fit", "--model", "LinearClassifier", *SHORT)
    place = ("--trainer.default_root_dir", str(tmp_path), "--checkpoint_every_n_steps", "3")
    if refused == "flock":
        line = refusal(capsys, *args, *place)
        assert f"not supported: '{tmp_path}/tiny-linearclassifier/version_0'; the file" in line
        assert list(tmp_path.iterdir()) == []
    else:
        assert main([*args, *place]) == 0
        (folder,) = tmp_path.glob("*/version_*")
        for name in ("last", "previous", "best"):
            checkpoints.read_checkpoint(folder / "checkpoints" / f"{name}.ckpt")


def die_at_rename() -> None:
    """From here on, this process is killed where it would rename a file."""
    os.replace = lambda *_: kill_self()


@pytest.mark.parametrize(
    ("command", "written"), [("test", "metrics.json"), ("predict", "predictions.csv")]
)
def test_the_next_command_removes_what_a_killed_one_left(
    command: str, written: str, copied_run: Path, tmp_path: Path
) -> None:
    folder = copied_run
    assert run([command, "--run", str(folder)], tmp_path, die_at_rename) == [SIGKILLED]
    (left,) = hidden(folder)
    assert left.endswith(written)
    process = left.strip(".").partition("@")[0]
    (folder / "checkpoints" / f".{process}.last.ckpt").touch()  # as of version 0.1
    assert main(["report", str(folder)]) == 0
    assert hidden(folder) == []
