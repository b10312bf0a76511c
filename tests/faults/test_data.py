"""Faults of the files and folders of a data set, each brought about on a real disk."""

import gzip
import os
import resource
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests import tiny
from tests.faults.outcomes import FORK, in_child, outcome, unprivileged
from tests.tiny import TinyDataModule, TinyMNIST

FILES = list(tiny.NAMES.values())
IMAGES, LABELS = FILES[:2]
TRUE = {name: gzip.decompress(tiny.ARCHIVES[f"{name}.gz"]) for name in FILES}

# Python 3.12 warns of any fork beside threads; torch's are idle here.
pytestmark = pytest.mark.filterwarnings("ignore:.*use of fork.. may lead to deadlocks")


class ImagesLast(TinyMNIST):
    """Unpacks the largest file last, after which nothing is missing."""

    resources = TinyMNIST.resources[::-1]


class ImagesLastDataModule(TinyDataModule):
    dataset = ImagesLast


ORDERS = pytest.mark.parametrize(
    "data", [TinyDataModule, ImagesLastDataModule], ids=["at the first file", "at the last file"]
)
LIMIT = 50_000  # bytes, between the sizes of the two files with images


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    return tiny.write(tmp_path)


@pytest.fixture
def shared() -> Iterator[Path]:
    """A root that other users can reach, as pytest's folders are their owner's alone."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "root").mkdir()
        try:
            reached = in_child(unprivileged, os.access, folder / "root", os.R_OK | os.X_OK)
        except PermissionError:
            pytest.skip("permissions do not bind root, and this machine lets no process be another")
        if not reached:
            pytest.skip(f"other users cannot reach {tempfile.gettempdir()}")
        yield folder / "root"
        _permit(folder / "root", 0o700)


def _permit(root: Path, mode: int) -> None:
    for folder in (root, *(path for path in root.rglob("*") if path.is_dir())):
        folder.chmod(mode)


def _read_only(root: Path) -> None:
    (root / ".digitlab.lock").unlink(missing_ok=True)
    _permit(root, 0o555)
    assert not in_child(unprivileged, os.access, root, os.W_OK)


def _with_little_room(root: Path, data: type[TinyDataModule]) -> str:
    # A write past the limit fails with an error of its own, for Python ignores the signal.
    resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, LIMIT))
    return outcome(root, data)


def _killed_in_a_write(root: Path, data: type[TinyDataModule]) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _with_little_room(root, data)


def _archives(tmp_path: Path, data: type[TinyDataModule]) -> Path:
    return tiny.write(tmp_path, data.dataset.__name__)


@ORDERS
def test_what_a_process_killed_while_unpacking_leaves_is_repaired(
    tmp_path: Path, data: type[TinyDataModule]
) -> None:
    raw = _archives(tmp_path, data)
    child = FORK.Process(target=_killed_in_a_write, args=(tmp_path, data))
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGXFSZ
    assert (raw / IMAGES).read_bytes() == TRUE[IMAGES][:LIMIT]
    assert outcome(tmp_path, data) == ""
    assert (raw / IMAGES).read_bytes() == TRUE[IMAGES]


@ORDERS
def test_a_disk_that_is_full_while_unpacking_is_named_and_the_next_run_repairs(
    tmp_path: Path, data: type[TinyDataModule]
) -> None:
    raw = _archives(tmp_path, data)
    line = in_child(_with_little_room, tmp_path, data)
    assert (raw / IMAGES).read_bytes() == TRUE[IMAGES][:LIMIT]
    assert str(raw) in line
    assert "File too large" in line
    assert outcome(tmp_path, data) == ""


def test_a_disk_that_is_full_while_repairing_leaves_the_file_as_it_was(raw: Path) -> None:
    root = raw.parent.parent
    assert outcome(root) == ""
    (raw / IMAGES).write_bytes(b"short")
    line = in_child(_with_little_room, root, TinyDataModule)
    assert line.startswith(f"{raw / IMAGES} is damaged")
    assert (raw / IMAGES).read_bytes() == b"short"
    assert sorted(path.name for path in raw.iterdir()) == sorted([*FILES, *tiny.ARCHIVES])
    assert outcome(root) == ""


@pytest.mark.parametrize("name", FILES)
def test_a_truncated_file_beside_an_archive_that_is_damaged_too_is_refused(
    raw: Path, name: str
) -> None:
    root = raw.parent.parent
    assert outcome(root) == ""
    (raw / name).write_bytes(TRUE[name][:-1])
    (raw / f"{name}.gz").write_bytes(tiny.ARCHIVES[f"{name}.gz"][:-1])
    assert outcome(root) == (
        f"{raw / name} is damaged or of another data set: delete it and run the command again"
    )


def _other(root: Path) -> Path:
    """A data set in the same format with the same sizes, as Fashion-MNIST is to MNIST."""
    raw = root / "Other" / "raw"
    raw.mkdir(parents=True)
    for name in FILES:
        other = TRUE[name][:16] + bytes(byte // 2 for byte in TRUE[name][16:])
        assert other != TRUE[name]
        (raw / name).write_bytes(other)
        (raw / f"{name}.gz").write_bytes(gzip.compress(other))
    return raw


def test_files_of_another_data_set_are_refused(tmp_path: Path, raw: Path) -> None:
    shutil.rmtree(raw)
    _other(tmp_path).rename(raw)
    assert f"{raw / IMAGES} is damaged or of another data set" in outcome(tmp_path)


def test_archives_of_another_data_set_are_refused(tmp_path: Path, raw: Path) -> None:
    shutil.rmtree(raw)
    _other(tmp_path).rename(raw)
    for name in FILES:
        (raw / name).unlink()
    assert outcome(tmp_path).startswith(f"{raw}: {IMAGES}.gz is damaged, and fetching it failed (")


def test_links_to_another_data_set_beside_the_archives_are_replaced_and_it_is_left_alone(
    tmp_path: Path, raw: Path
) -> None:
    other = _other(tmp_path)
    before = {name: (other / name).read_bytes() for name in FILES}
    for name in FILES:
        (raw / name).symlink_to(other / name)
    assert outcome(tmp_path) == ""
    assert {name: (other / name).read_bytes() for name in FILES} == before


def test_a_cache_of_an_old_torchvision_is_not_read(tmp_path: Path, raw: Path) -> None:
    processed = raw.parent / "processed"
    processed.mkdir()
    images, labels = (torch.from_numpy(array) for array in tiny.TRAIN)
    for name in (TinyMNIST.training_file, TinyMNIST.test_file):
        torch.save((images, labels.long() + 256), processed / name)
    assert TinyMNIST(tmp_path).targets.min() >= 256  # torchvision reads it
    assert outcome(tmp_path) == ""


def test_unpacked_files_in_a_read_only_root_are_read(shared: Path) -> None:
    tiny.write(shared)
    assert outcome(shared) == ""
    _read_only(shared)
    assert in_child(unprivileged, outcome, shared) == ""
    assert not (shared / ".digitlab.lock").exists()


def test_archives_in_a_read_only_root_are_refused(shared: Path) -> None:
    raw = tiny.write(shared)
    _read_only(shared)
    line = in_child(unprivileged, outcome, shared)
    assert line.startswith(f"{raw}: {IMAGES}.gz is not unpacked, and fetching it failed (")
    assert "Permission denied" in line


def test_a_truncated_file_in_a_read_only_root_is_refused(shared: Path) -> None:
    raw = tiny.write(shared)
    assert outcome(shared) == ""
    (raw / IMAGES).write_bytes(TRUE[IMAGES][:-1])
    _read_only(shared)
    line = in_child(unprivileged, outcome, shared)
    assert line.startswith(f"{raw / IMAGES} is damaged or of another data set: delete it")


def test_a_root_that_may_not_be_made_is_named(shared: Path) -> None:
    _read_only(shared)
    line = in_child(unprivileged, outcome, shared / "new")
    assert line.startswith(f"{shared / 'new' / 'TinyMNIST' / 'raw'}: {IMAGES}.gz is missing")
    assert "Permission denied" in line


def test_a_file_that_may_not_be_read_is_named(shared: Path) -> None:
    raw = tiny.write(shared)
    assert outcome(shared) == ""
    (raw / LABELS).chmod(0)
    _read_only(shared)
    line = in_child(unprivileged, outcome, shared)
    assert f"Permission denied: {raw / LABELS}: check the permissions" in line


@pytest.mark.skipif("__import__('os').geteuid() != 0", reason="needs a second user")
def test_a_root_is_shared_with_a_user_who_may_not_write_the_first_one_s_files(shared: Path) -> None:
    tiny.write(shared)
    _permit(shared, 0o777)
    assert outcome(shared) == ""
    assert (shared / ".digitlab.lock").stat().st_uid == 0
    assert in_child(unprivileged, os.access, shared, os.W_OK)
    assert in_child(unprivileged, outcome, shared) == ""
