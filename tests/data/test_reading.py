import functools
import gzip
import inspect
import struct
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from torchvision import datasets

from digitlab.data import FashionMNISTDataModule, MNISTDataModule, download
from tests import tiny
from tests.tiny import TinyDataModule

FILES = list(tiny.NAMES.values())


def read(raw: Path, stage: str | None = None) -> None:
    TinyDataModule(root=str(raw.parent.parent)).setup(stage)


def unpack(raw: Path) -> None:
    """Leave only unpacked files, which nothing can repair."""
    read(raw)
    for archive in raw.glob("*.gz"):
        archive.unlink()


def refusal(raw: Path, kind: type[Exception] = ValueError, stage: str | None = None) -> str:
    with pytest.raises(kind) as error:
        read(raw, stage)
    message = str(error.value)
    assert "\n" not in message
    return message


def test_archives_are_unpacked_and_read(raw: Path) -> None:
    read(raw)
    assert all((raw / name).read_bytes() == gzip.decompress((raw / f"{name}.gz").read_bytes())
               for name in FILES)  # fmt: skip


def test_unpacked_files_do_without_archives(raw: Path) -> None:
    unpack(raw)
    read(raw)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("size", [0, 3, 7, 20, -1])
def test_a_truncated_file_is_refused_by_name(raw: Path, name: str, size: int) -> None:
    unpack(raw)
    content = (raw / name).read_bytes()
    (raw / name).write_bytes(content[:size])
    assert refusal(raw) == (
        f"{raw / name} is damaged or of another data set: delete it and run the command again"
    )


@pytest.mark.parametrize("name", FILES)
def test_a_file_with_one_altered_bit_is_refused_by_name(raw: Path, name: str) -> None:
    unpack(raw)
    content = bytearray((raw / name).read_bytes())
    content[-10] ^= 1
    (raw / name).write_bytes(content)
    assert str(raw / name) in refusal(raw)


@pytest.mark.parametrize(
    ("name", "header"),
    [
        (FILES[0], (0, 0, 0, 0)),
        (FILES[0], (2051, 200, 14, 56)),
        (FILES[0], (2051, 2**31, 28, 28)),
        (FILES[1], (0, 0)),
        (FILES[1], (2049, 100)),
        (FILES[1], (2049, 201)),
    ],
)
def test_an_altered_header_is_refused_by_name(
    raw: Path, name: str, header: tuple[int, ...]
) -> None:
    unpack(raw)
    altered = struct.pack(f">{len(header)}I", *header)
    (raw / name).write_bytes(altered + (raw / name).read_bytes()[len(altered) :])
    assert str(raw / name) in refusal(raw)


def test_a_file_that_may_not_be_read_is_not_called_damaged(
    raw: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(self: object) -> None:
        raise PermissionError(13, "Permission denied", str(raw / FILES[0]))

    read(raw)
    monkeypatch.setattr(tiny.TinyMNIST, "_load_data", forbidden)
    assert "Permission denied" in refusal(raw, PermissionError)


@pytest.mark.usefixtures("mirror")
def test_following_the_advice_repairs_a_damaged_file(raw: Path) -> None:
    unpack(raw)
    (raw / FILES[0]).write_bytes(b"")
    refusal(raw)
    (raw / FILES[0]).unlink()
    read(raw)


def test_every_process_checks_what_it_reads(raw: Path) -> None:
    data = TinyDataModule(root=str(raw.parent.parent))
    data.prepare_data()
    (raw / f"{FILES[0]}.gz").unlink()
    (raw / FILES[0]).write_bytes(b"")
    with pytest.raises(ValueError, match=FILES[0]):
        TinyDataModule(root=str(raw.parent.parent)).setup("fit")


def test_a_damaged_file_of_a_split_that_is_not_needed_does_no_harm(raw: Path) -> None:
    read(raw)
    (raw / "train-images-idx3-ubyte").write_bytes(b"")
    read(raw, "test")


@pytest.mark.parametrize("content", [None, b"", b"no gzip"], ids=["missing", "empty", "other"])
@pytest.mark.parametrize("name", FILES)
def test_an_archive_that_cannot_be_fetched_is_named(
    raw: Path, name: str, content: bytes | None
) -> None:
    archive = raw / f"{name}.gz"
    if content is None:
        archive.unlink()
    else:
        archive.write_bytes(content)
    message = refusal(raw, OSError)
    state = "missing" if content is None else "damaged"
    assert message.startswith(f"{raw}: {archive.name} is {state}, and fetching it failed (")
    assert message.endswith(
        "): put the four .gz archives there, "
        "or set DIGITLAB_DATA or --data.root to the folder that holds them"
    )


def test_a_folder_without_data_and_network_is_named(tmp_path: Path) -> None:
    raw = tmp_path / "new/TinyMNIST/raw"
    assert f"{raw}: train-images-idx3-ubyte.gz is missing" in refusal(raw, OSError)


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    message = refusal(tmp_path / "file/inside/TinyMNIST/raw", OSError)
    assert "file/inside/TinyMNIST/raw: train-images-idx3-ubyte.gz is missing" in message
    assert "Not a directory" in message


def test_an_archive_that_cannot_be_unpacked_is_named(
    raw: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(datasets.mnist, "download_and_extract_archive", full)
    message = refusal(raw, OSError)
    monkeypatch.undo()
    assert "train-images-idx3-ubyte.gz is not unpacked, and fetching it failed" in message
    assert "No space left on device" in message


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Makes the data set's mirror a server on this machine that has the archives."""
    good = tiny.write(tmp_path / "mirror")
    handler = functools.partial(QuietHandler, directory=str(good))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}/"
        monkeypatch.setattr(tiny.TinyMNIST, "mirrors", ["file:///no/such/mirror/", url])
        yield
        server.shutdown()
        thread.join()


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None: ...


@pytest.mark.usefixtures("mirror")
def test_missing_archives_are_downloaded(tmp_path: Path) -> None:
    read(tmp_path / "new/TinyMNIST/raw")


@pytest.mark.usefixtures("mirror")
def test_a_damaged_archive_is_downloaded_again(raw: Path) -> None:
    (raw / f"{FILES[0]}.gz").write_bytes(b"no gzip")
    read(raw)


@pytest.mark.usefixtures("real_data")
def test_fashion_mnist_in_mnists_folder_is_refused(tmp_path: Path, real_data: Path) -> None:
    FashionMNISTDataModule().setup("test")
    (tmp_path / "MNIST").mkdir()
    (tmp_path / "MNIST/raw").symlink_to(real_data / "FashionMNIST/raw")
    with pytest.raises(ValueError, match=r"MNIST/raw/t10k-images-idx3-ubyte is .* of another data"):
        MNISTDataModule(root=str(tmp_path)).setup("test")


def test_swapped_splits_are_refused(raw: Path) -> None:
    unpack(raw)
    for kind in ("images", "labels"):
        train, test = (raw / tiny.NAMES[split, kind] for split in ("train", "test"))
        test.write_bytes(train.read_bytes())
    assert "t10k-images-idx3-ubyte" in refusal(raw)


def test_there_is_no_way_to_switch_the_check_off() -> None:
    assert set(inspect.signature(download.read_split).parameters) == {
        "dataset", "root", "split", "digests",
    }  # fmt: skip
    assert set(TinyDataModule().hparams) == {
        "batch_size", "eval_batch_size", "normalization", "validation_size", "validation_seed",
        "train_images",
    }  # fmt: skip
