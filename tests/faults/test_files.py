"""A disk that is full or closed leaves the old file or the new one, and one line that says so."""

import os
import resource
import shutil
import signal
import subprocess
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from digitlab import checkpoints
from tests.faults.conftest import Alone
from tests.faults.runs_of_tiny import MLP, at_step, fit, folder_of, log_of, resume
from tests.faults.victims import differences, run


def fill_disk(size: int) -> None:
    """From here on, no file of this process may become larger than some bytes."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a write fails instead: EFBIG
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def test_a_checkpoint_that_does_not_fit_leaves_the_one_before(tmp_path: Path, alone: Alone) -> None:
    log = log_of(tmp_path)
    assert run(fit(MLP, tmp_path), log, at_step(30, partial(fill_disk, 100_000))) == 1
    folder = folder_of(tmp_path)
    last = folder / "checkpoints" / "last.ckpt"
    assert last.stat().st_size > 100_000  # as events are not, by then
    assert checkpoints.read_checkpoint(last)["global_step"] == 28
    line = log.read_text().splitlines()[-1]
    assert line.startswith("digitlab: error: training failed after 32 steps: ")
    assert "File too large" in line
    assert line.endswith(f"; {last} was saved at step 28; resume with: digitlab fit --run {folder}")
    assert "Traceback" not in log.read_text()
    assert [path.name for path in folder.rglob(".*") if path.name != ".lock"] == []
    resume(folder)
    assert differences(folder, alone(MLP)) == []


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
    log = tmp_path / "log"
    assert run(fit(MLP, small_disk), log) == 1
    assert "No space left on device" in log.read_text().splitlines()[-1]
    folder = folder_of(small_disk)
    for path in folder.glob("checkpoints/*.ckpt"):
        checkpoints.read_checkpoint(path)
    room = tmp_path / "room"
    shutil.copytree(folder, room)
    resume(room)
    assert differences(room, alone(MLP)) == []


def test_a_folder_that_cannot_be_written_is_refused_in_a_line(tmp_path: Path) -> None:
    if os.getuid() != 0:
        pytest.skip("another user's rights can be taken on by root only")
    place = tmp_path / "closed"
    place.mkdir(mode=0o755)
    for parent in (tmp_path, *tmp_path.parents[:3]):
        parent.chmod(0o755)
    log = tmp_path / "log"
    log.touch()
    log.chmod(0o666)
    assert run(fit(MLP, place), log, partial(os.setuid, 65534)) == 2
    assert log.read_text().splitlines()[-1].startswith("digitlab: error: [Errno 13] Permission")
    assert list(place.iterdir()) == []
