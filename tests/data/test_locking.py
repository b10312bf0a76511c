import multiprocessing
import os
from pathlib import Path

import pytest
from filelock import FileLock

from tests import tiny
from tests.data.test_reading import FILES, read
from tests.tiny import TinyDataModule


# Python 3.12 warns of any fork beside threads; torch's are idle here.
@pytest.mark.filterwarnings("ignore:.*use of fork.. may lead to deadlocks:DeprecationWarning")
def test_a_process_waits_while_another_unpacks(raw: Path) -> None:
    with FileLock(raw.parent.parent / ".digitlab.lock"):
        process = multiprocessing.get_context("fork").Process(target=read, args=(raw,))
        process.start()
        process.join(timeout=1)
        assert process.is_alive()
        assert not (raw / FILES[0]).exists()
    process.join(timeout=60)
    assert process.exitcode == 0
    assert (raw / FILES[0]).exists()


def test_the_lock_is_held_from_fetching_to_reading(
    raw: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = FileLock(raw.parent.parent / ".digitlab.lock", timeout=0)
    held = []

    class Spy(tiny.TinyMNIST):
        def download(self) -> None:
            held.append(is_held())
            super().download()

        def _load_data(self) -> object:
            held.append(is_held())
            return super()._load_data()

    def is_held() -> bool:
        try:
            with lock:
                return False
        except TimeoutError:
            return True

    Spy.__name__ = "TinyMNIST"  # torchvision derives the folder from it
    monkeypatch.setattr(TinyDataModule, "dataset", Spy)
    read(raw, "test")
    assert held == [True, True]
    assert not is_held()


def test_data_in_a_folder_that_cannot_be_written_is_read_without_a_lock(
    raw: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read(raw)
    lock = raw.parent.parent / ".digitlab.lock"
    lock.unlink(missing_ok=True)
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)
    read(raw)
    assert not lock.exists()
