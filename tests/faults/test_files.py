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
import torch
from lightning.pytorch.trainer import Trainer

from digitlab import checkpoints, files
from digitlab.checkpoints import AtomicCheckpointIO
from digitlab.classifier import Classifier
from tests.faults.runs_of_tiny import MLP, fit, folder_of, go_on, left_alone, log_of
from tests.faults.victims import differences, kill_self, run


def fill_disk_at(step: int, size: int) -> None:
    """A fault: from a step on, no file of this process may become larger than some bytes."""
    made, original = 0, Classifier.on_before_optimizer_step

    def count(self: Classifier, optimizer: Any) -> None:
        nonlocal made
        made += 1
        if made == step:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a write fails instead: EFBIG
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
        original(self, optimizer)

    Classifier.on_before_optimizer_step = count  # type: ignore[method-assign]


def test_a_checkpoint_that_does_not_fit_leaves_the_one_before(tmp_path: Path) -> None:
    log = log_of(tmp_path)
    assert run(fit(MLP, tmp_path), log, partial(fill_disk_at, 30, 100_000)) == 1
    folder = folder_of(tmp_path)
    last = folder / "checkpoints" / "last.ckpt"
    assert last.stat().st_size > 100_000  # as events are not, by then
    assert checkpoints.read_checkpoint(last)["global_step"] == 28
    line = log.read_text().splitlines()[-1]
    assert line.startswith("digitlab: error: training failed after 32 steps: ")
    assert "File too large" in line
    assert line.endswith(f"; {last} is of step 28, digitlab fit --run {folder} goes on")
    assert "Traceback" not in log.read_text()
    assert [path.name for path in folder.rglob(".*") if path.name != ".lock"] == []
    go_on(folder)
    alone = tmp_path / "alone"
    assert differences(folder, left_alone(fit(MLP, alone), alone)) == []


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


def test_a_run_on_a_full_disk_ends_in_a_line_and_goes_on_when_there_is_room(
    tmp_path: Path, small_disk: Path
) -> None:
    log = tmp_path / "log"
    assert run(fit(MLP, small_disk), log) == 1
    assert "No space left on device" in log.read_text().splitlines()[-1]
    folder = folder_of(small_disk)
    for path in folder.glob("checkpoints/*.ckpt"):
        checkpoints.read_checkpoint(path)
    room = tmp_path / "room"
    shutil.copytree(folder, room)
    go_on(room)
    alone = tmp_path / "alone"
    assert differences(room, left_alone(fit(MLP, alone), alone)) == []


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
                kill_self()
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


def test_lightning_s_trainer_writes_its_checkpoints_so(tmp_path: Path) -> None:
    folder = left_alone(fit("LinearClassifier", tmp_path), tmp_path)
    assert {path.name for path in (folder / "checkpoints").iterdir()} == {
        "last.ckpt",
        "previous.ckpt",
        "best.ckpt",
    }
    trainer = Trainer(plugins=[AtomicCheckpointIO()], logger=False, accelerator="cpu")
    assert isinstance(trainer.strategy.checkpoint_io, AtomicCheckpointIO)
