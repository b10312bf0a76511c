"""Files of a data set: read if they are the known ones, repaired, or refused in one line."""

import gzip
import multiprocessing
import os
import resource
import signal
import struct
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import product
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from torchvision import datasets

from digitlab.data import MNISTDataModule
from digitlab.data.download import Split
from tests import tiny
from tests.tiny import TinyDataModule, TinyMNIST

FILES = list(tiny.NAMES.values())
TRUE = {name: gzip.decompress(tiny.ARCHIVES[f"{name}.gz"]) for name in FILES}
OTHER = {name: data[:16] + bytes(byte // 2 for byte in data[16:]) for name, data in TRUE.items()}
PACKED = {name: tiny.ARCHIVES[f"{name}.gz"] for name in FILES}

# Python 3.12 warns about any fork beside threads; torch's are idle here.
pytestmark = pytest.mark.filterwarnings("ignore:.*use of fork.. may lead to deadlocks")

# Whatever is imported is there already, also where the child may not read the files.
FORK = multiprocessing.get_context("fork")


def outcome(
    root: Path, data: type[MNISTDataModule] = TinyDataModule, split: Split | None = None
) -> str:
    """The one line that reading is refused with; empty where the true arrays are read."""
    truth: dict[Split, Any] = {"train": tiny.TRAIN, "test": tiny.TEST}
    try:
        read = {name: data(root=str(root)).read(name) for name in ([split] if split else truth)}
    except (OSError, ValueError) as error:
        line = str(error)
        assert len(line.splitlines()) == 1
        return line
    for name, (images, labels) in read.items():
        assert (images.dtype.name, labels.dtype.name) == ("uint8", "int64")
        np.testing.assert_array_equal(images, truth[name][0])
        np.testing.assert_array_equal(labels, truth[name][1])
    return ""


def in_child(function: Callable[..., Any], *args: Any) -> Any:
    """What a function of a module returns in a process of its own, which it may spoil."""
    with ProcessPoolExecutor(1, mp_context=FORK) as pool:
        return pool.submit(function, *args).result()


def unprivileged(function: Callable[..., Any], *args: Any) -> Any:
    """Run as a user whom a folder's permissions bind; for a child."""
    if os.geteuid() == 0:
        nobody = 65534
        os.setgroups([])
        os.setgid(nobody)
        os.setuid(nobody)
    return function(*args)


class Mirror(ThreadingHTTPServer):
    """Serves the archives in full or with a fault."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.fault = ""
        self.asked: Counter[str] = Counter()


class Answer(BaseHTTPRequestHandler):
    server: Mirror

    def do_GET(self) -> None:
        name, fault = self.path.lstrip("/"), self.server.fault
        self.server.asked[name] += 1
        if fault == "missing":
            self.send_error(404)
        if fault in ("missing", "silent"):
            return
        content = tiny.ARCHIVES[name]
        if fault == "another file":
            content = gzip.compress(OTHER[name.removesuffix(".gz")])
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if fault == "cut" else content)

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def mirrors(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Mirror]]:
    """Two local servers, in place of the data set's mirrors."""
    servers = [Mirror(), Mirror()]
    for server in servers:
        poll = {"poll_interval": 0.01}
        threading.Thread(target=server.serve_forever, kwargs=poll, daemon=True).start()
    urls = [f"http://127.0.0.1:{server.server_port}/" for server in servers]
    monkeypatch.setattr(TinyMNIST, "mirrors", urls)
    yield servers
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def mirror(mirrors: list[Mirror], monkeypatch: pytest.MonkeyPatch) -> Mirror:
    monkeypatch.setattr(TinyMNIST, "mirrors", TinyMNIST.mirrors[:1])
    return mirrors[0]


def fill(
    root: Path, packed: dict[str, bytes], plain: Mapping[str, bytes] = {}, data: str = "TinyMNIST"
) -> Path:
    """Write files, by their unpacked names, and return their folder."""
    raw = root / data / "raw"
    raw.mkdir(parents=True, exist_ok=True)
    for name, content in packed.items():
        (raw / f"{name}.gz").write_bytes(content)
    for name, content in plain.items():
        (raw / name).write_bytes(content)
    return raw


STATES = ["missing", "good", "cut", "other"]
CONTENTS: dict[str, Callable[[bytes, bytes], bytes]] = {
    "good": lambda true, other: true,
    "cut": lambda true, other: true[:-20],
    "other": lambda true, other: other,
}


@pytest.mark.promise("data")
@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(("archive", "unpacked"), list(product(STATES, STATES)))
def test_a_file_is_read_repaired_or_refused(
    tmp_path: Path, name: str, archive: str, unpacked: str, mirror: Mirror
) -> None:
    archives, plain = dict(PACKED), {}
    del archives[name]
    if archive != "missing":
        archives[name] = CONTENTS[archive](PACKED[name], gzip.compress(OTHER[name]))
    if unpacked != "missing":
        plain[name] = CONTENTS[unpacked](TRUE[name], OTHER[name])
    raw = fill(tmp_path, archives, plain)
    before = {path: path.read_bytes() for path in raw.iterdir()}
    mirror.fault = "silent"
    line = outcome(tmp_path)
    assert {path: path.read_bytes() for path in raw.iterdir()} == before
    if "good" in (archive, unpacked):
        assert line == ""
    elif "other" in (archive, unpacked):
        bad = name if unpacked == "other" else f"{name}.gz"
        remedy = "move it away and run the command again"
        assert line == f"{raw / bad} is damaged or of another data set: {remedy}"
    else:
        bad = name if unpacked == "cut" else f"{name}.gz"
        state = "damaged" if "cut" in (archive, unpacked) else "missing"
        url = f"{TinyMNIST.mirrors[0]}{name}.gz"
        assert line.startswith(f"{raw}: {bad} is {state}, and downloading it from {url} failed (")
        assert f"put {', '.join(tiny.ARCHIVES)} there, packed or unpacked, or set DIGITLAB" in line
        assert "or --data.root to the folder that has TinyMNIST/raw" in line
        assert line.endswith("(the data of --config digits/lenet5 needs no download)")
        mirror.fault = ""
        assert outcome(tmp_path) == ""
        assert (raw / f"{name}.gz").read_bytes() == tiny.ARCHIVES[f"{name}.gz"]


@pytest.mark.promise("data")
@pytest.mark.parametrize("kind", ["images", "labels"])
def test_a_file_of_wrong_length_bits_or_header_is_refused_by_name(
    tmp_path: Path, kind: str
) -> None:
    name = tiny.NAMES["train", kind]
    true = TRUE[name]
    headers = [(0, 0, 0, 0), (2051, 200, 14, 56), (2051, 2**31, 28, 28), (2051, 100, 28, 28)]
    if kind == "labels":
        headers = [(0, 0), (2049, 100), (2049, 201), (2051, 200)]  # type: ignore[list-item]
    contents = [true[:size] for size in (0, 1, 3, 7, 8, 16, 20, -1)] + [true + b"\0"]
    contents += [true[:-10] + bytes([true[-10] ^ 1]) + true[-9:], OTHER[tiny.NAMES["test", kind]]]
    for header in headers:
        altered = struct.pack(f">{len(header)}I", *header)
        contents.append(altered + true[len(altered) :])
    for content in contents:
        fill(tmp_path, {}, {**TRUE, name: content})
        assert f"{name} is damaged" in outcome(tmp_path)
        assert outcome(tmp_path, split="test") == ""  # which does not need the file


@pytest.mark.promise("data")
@pytest.mark.parametrize("name", FILES)
def test_an_archive_with_any_byte_changed_gives_the_true_arrays_or_is_named(
    tmp_path: Path, name: str
) -> None:
    split: Split = "train" if name.startswith("train") else "test"
    packed = PACKED[name]
    for place in sorted({*range(20), *range(20, len(packed), len(packed) // 12)}):
        changed = packed[:place] + bytes([packed[place] ^ 0xFF]) + packed[place + 1 :]
        fill(tmp_path, PACKED | {name: changed})
        assert outcome(tmp_path, split=split) == "" or f"{name}.gz is damaged" in outcome(tmp_path)


@pytest.mark.promise("data")
def test_a_root_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (file := tmp_path / "file").touch()
    line = f"root is {file}: it is a file, give the folder with the data sets"
    assert outcome(file) == line


class OwnFiles(datasets.MNIST):  # type: ignore[misc] # torchvision ships no type hints
    resources: ClassVar[list[tuple[str, str]]] = []  # nothing can be downloaded


class OwnFilesDataModule(TinyDataModule):
    dataset = OwnFiles
    digests = TinyDataModule.digests


def test_a_data_set_may_name_no_archives(tmp_path: Path) -> None:
    read = partial(outcome, tmp_path, OwnFilesDataModule, "test")
    raw = fill(tmp_path, {}, TRUE, "OwnFiles")
    assert read() == ""
    labels = raw / FILES[3]
    labels.write_bytes(TRUE[FILES[3]][:-1] + b"\x07")
    assert read() == (
        f"{labels} is damaged or of another data set: replace it, or give "
        "OwnFilesDataModule.digests of its own files"
    )
    labels.unlink()
    line = f"{raw}: {labels.name}.gz is missing, and downloading it failed (no address of it is kno"
    assert read().startswith(line)


class NoDigestsDataModule(TinyDataModule):
    dataset = OwnFiles


class CopiedDataModule(TinyDataModule):
    """Files of its own in the place of the tiny data set's."""


def test_files_of_a_class_without_digests_of_its_own_are_read_if_they_are_whole(
    tmp_path: Path,
) -> None:
    raw = fill(tmp_path, {}, TRUE, "OwnFiles")
    assert outcome(tmp_path, NoDigestsDataModule) == ""
    (raw / FILES[2]).write_bytes(TRUE[FILES[2]][:-1])
    assert f"{FILES[2]} is damaged, and downl" in outcome(tmp_path, NoDigestsDataModule, "test")
    for shape in ((50,), (50, 28), (50, 14, 56), (50, 1, 28, 28)):
        (raw / FILES[2]).write_bytes(tiny.idx(np.ones(shape, np.uint8)))
        line = outcome(tmp_path, NoDigestsDataModule, "test")
        assert line.startswith(f"{raw / FILES[2]} is damaged or of another data set: replace it, ")


@pytest.mark.promise("data")
@pytest.mark.parametrize("shape", [(28, 28), (32, 32)])
def test_files_of_a_subclass_are_neither_overwritten_nor_to_be_deleted(
    tmp_path: Path, mirror: Mirror, shape: tuple[int, int]
) -> None:
    own = tiny.idx(np.ones((50, *shape), np.uint8))
    raw = fill(tmp_path, {FILES[2]: gzip.compress(own), FILES[3]: PACKED[FILES[3]]})
    line = outcome(tmp_path, CopiedDataModule, "test")
    assert line == (
        f"{raw / FILES[2]}.gz is damaged or of another data set: replace it, or give "
        "CopiedDataModule.digests of its own files"
    )
    assert "move it away" in outcome(tmp_path, split="test")
    assert gzip.decompress((raw / f"{FILES[2]}.gz").read_bytes()) == own
    assert not mirror.asked


@pytest.mark.promise("download")
def test_missing_archives_are_downloaded_once_and_kept(tmp_path: Path, mirror: Mirror) -> None:
    root = tmp_path / "new/and/deep"
    assert outcome(root) == outcome(root) == ""
    assert mirror.asked == dict.fromkeys(tiny.ARCHIVES, 1)
    raw = root / "TinyMNIST/raw"
    assert {path.name: path.read_bytes() for path in raw.iterdir()} == tiny.ARCHIVES


@pytest.mark.promise("download")
@pytest.mark.parametrize("fault", ["cut", "silent", "missing", "another file"])
def test_a_download_that_fails_leaves_nothing_and_the_next_mirror_is_asked(
    tmp_path: Path, mirrors: list[Mirror], fault: str
) -> None:
    for mirror in mirrors:
        mirror.fault = fault
    line = outcome(tmp_path / "new")
    raw = tmp_path / "new/TinyMNIST/raw"
    urls = " or ".join(f"{mirror}{FILES[0]}.gz" for mirror in TinyMNIST.mirrors)
    assert line.startswith(f"{raw}: {FILES[0]}.gz is missing, and downloading it from {urls} faile")
    assert "failed ()" not in line
    assert not list(tmp_path.iterdir())
    mirrors[1].fault = ""
    assert outcome(tmp_path / "new") == ""
    assert {*os.listdir(raw)} == {*tiny.ARCHIVES}


@pytest.mark.promise("download")
def test_a_link_is_replaced_and_its_target_left_alone(tmp_path: Path, mirror: Mirror) -> None:
    (target := tmp_path / "elsewhere.gz").write_bytes(b"no gzip")
    archive = fill(tmp_path, PACKED) / f"{FILES[0]}.gz"
    archive.unlink()
    archive.symlink_to(target)
    assert outcome(tmp_path) == ""
    assert not archive.is_symlink()
    assert target.read_bytes() == b"no gzip"


@pytest.mark.promise("download")
def test_processes_that_start_with_an_empty_root_all_read_the_true_arrays(
    tmp_path: Path, mirror: Mirror
) -> None:
    with FORK.Pool(4) as pool:
        assert pool.map(outcome, [tmp_path / "new"] * 4, chunksize=1) == [""] * 4
    assert {*os.listdir(tmp_path / "new/TinyMNIST/raw")} == {*tiny.ARCHIVES}


def _with_little_room(root: Path, kill: bool) -> str:
    # Python ignores the signal, so a write past the limit fails with an error.
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
    if kill:
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    return outcome(root)


@pytest.mark.promise("data")
@pytest.mark.parametrize("kill", [False, True])
def test_a_full_disk_or_a_kill_while_writing_leaves_no_part_of_a_file(
    tmp_path: Path, mirror: Mirror, kill: bool
) -> None:
    raw = tmp_path / "TinyMNIST/raw"
    if kill:
        child = FORK.Process(target=_with_little_room, args=(tmp_path, True))
        child.start()
        child.join()
        assert child.exitcode == -signal.SIGXFSZ
    else:
        line = in_child(_with_little_room, tmp_path, False)
        assert line.startswith(f"{raw}: {FILES[0]}.gz is missing, and downloading it from ")
        assert "File too large" in line
    assert [name for name in os.listdir(raw) if not (kill and name[0] == ".")] == []
    assert outcome(tmp_path) == ""


@pytest.fixture
def shared() -> Iterator[Path]:
    """A root that other users can reach, unlike pytest's folders."""
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
        permit(folder / "root", 0o700)


def permit(root: Path, mode: int) -> None:
    for folder in (root, *(path for path in root.rglob("*") if path.is_dir())):
        folder.chmod(mode)


@pytest.mark.promise("data")
def test_a_read_only_root_is_read_or_named(shared: Path, mirror: Mirror) -> None:
    read = partial(in_child, unprivileged, outcome)
    raw = fill(shared, PACKED)
    permit(shared, 0o555)
    assert read(shared) == ""
    permit(shared, 0o755)
    for name in FILES:
        (raw / f"{name}.gz").unlink()
        (raw / name).write_bytes(TRUE[name])
    permit(shared, 0o555)
    assert read(shared) == ""
    (raw / FILES[1]).chmod(0)
    assert all(it in read(shared) for it in ("Permission denied", str(raw / FILES[1])))
    line = read(shared / "new")
    assert line.startswith(f"{shared / 'new/TinyMNIST/raw'}: {FILES[0]}.gz is missing, and down")
    assert "Permission denied" in line
