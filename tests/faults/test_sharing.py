"""Downloads that break off, and processes that prepare the same root at once."""

import gzip
import itertools
import threading
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from hashlib import md5, sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from digitlab.data.download import read_split
from tests import tiny
from tests.faults.outcomes import in_children, outcome
from tests.tiny import TinyDataModule, TinyMNIST

IMAGES = f"{tiny.NAMES['train', 'images']}.gz"

# Python 3.12 warns of any fork beside threads; torch's are idle here, and a server's lock nothing.
pytestmark = pytest.mark.filterwarnings("ignore:.*use of fork.. may lead to deadlocks")


class Mirror(ThreadingHTTPServer):
    """Serves the archives in full, or their first half, or hangs up without an answer."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.fault = ""
        self.asked: Counter[str] = Counter()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/"


class Answer(BaseHTTPRequestHandler):
    server: Mirror

    def do_GET(self) -> None:
        name = self.path.lstrip("/")
        self.server.asked[name] += 1
        if self.server.fault == "silent":
            return
        content = tiny.ARCHIVES[name]
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if self.server.fault == "cut" else content)

    def log_message(self, *_: object) -> None: ...


class MirroredMNIST(TinyMNIST):
    mirrors: ClassVar[list[str]] = []  # set by the fixture


MirroredMNIST.__name__ = "TinyMNIST"  # torchvision derives the folder from it


class MirroredDataModule(TinyDataModule):
    dataset = MirroredMNIST


@pytest.fixture
def mirror(monkeypatch: pytest.MonkeyPatch) -> Iterator[Mirror]:
    with Mirror() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        monkeypatch.setattr(MirroredMNIST, "mirrors", [server.url])
        yield server
        server.shutdown()
        thread.join()


read = partial(outcome, data=MirroredDataModule)


def test_a_download_that_is_cut_is_refused_and_the_next_run_begins_it_anew(
    tmp_path: Path, mirror: Mirror
) -> None:
    mirror.fault = "cut"
    raw = tmp_path / "TinyMNIST/raw"
    line = read(tmp_path)
    whole, half = tiny.ARCHIVES[IMAGES], (raw / IMAGES).read_bytes()
    assert half == whole[: len(whole) // 2]
    assert line.startswith(f"{raw}: {IMAGES} is damaged, and fetching it failed (")
    mirror.fault = ""
    assert read(tmp_path) == ""


def test_a_download_that_is_cut_goes_on_at_another_mirror(
    tmp_path: Path, mirror: Mirror, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirror.fault = "cut"
    with Mirror() as good:
        thread = threading.Thread(target=good.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        monkeypatch.setattr(MirroredMNIST, "mirrors", [mirror.url, good.url])
        assert read(tmp_path) == ""
        good.shutdown()
        thread.join()
    assert set(mirror.asked) == set(good.asked) == set(tiny.ARCHIVES)


@pytest.mark.parametrize("place", ["", "new/and/deep"])
def test_a_download_of_which_nothing_came_leaves_nothing_in_the_root(
    tmp_path: Path, mirror: Mirror, place: str
) -> None:
    mirror.fault = "silent"
    line = read(tmp_path / place)
    assert mirror.asked[IMAGES] == 1
    assert line.startswith(f"{tmp_path / place / 'TinyMNIST/raw'}: {IMAGES} is missing")
    assert list((tmp_path / place).iterdir()) == []


def test_a_failed_download_leaves_what_was_there(tmp_path: Path, mirror: Mirror) -> None:
    mirror.fault = "silent"
    others = [tmp_path / "TinyMNIST/raw/notes.txt", tmp_path / "MNIST/raw"]
    others[0].parent.mkdir(parents=True)
    others[0].touch()
    others[1].mkdir(parents=True)
    assert f"{IMAGES} is missing" in read(tmp_path)
    assert all(path.exists() for path in others)


def _timed(root: Path, _: int) -> tuple[float, float, str]:
    start = time.monotonic()
    line = read(root)
    return start, time.monotonic(), line


def _overlap(intervals: list[tuple[float, float]]) -> bool:
    return max(start for start, _ in intervals) < min(end for _, end in intervals)


def test_processes_that_begin_with_an_empty_root_fetch_each_archive_once(
    tmp_path: Path, mirror: Mirror
) -> None:
    times = in_children(3, partial(_timed, tmp_path / "new"))
    assert _overlap([(start, end) for start, end, _ in times])
    assert [line for *_, line in times] == [""] * 3
    # torchvision asks for each file twice: where it is, and for the file.
    assert mirror.asked == dict.fromkeys(tiny.ARCHIVES, 2)


LARGE_LABELS = (np.arange(20_000) % 10).astype(np.uint8)
LARGE_IMAGES = (25 * LARGE_LABELS)[:, None, None].repeat(28, 1).repeat(28, 2)


class LargeMNIST(TinyMNIST):
    """Takes a tenth of a second to unpack."""


def _read_large(root: Path, _: int) -> tuple[float, float, bool]:
    digests = (
        sha256(LARGE_IMAGES.tobytes()).hexdigest(),
        sha256(LARGE_LABELS.tobytes()).hexdigest(),
    )
    start = time.monotonic()
    images, labels = read_split(LargeMNIST, root, "train", digests)
    end = time.monotonic()
    true = np.array_equal(images, LARGE_IMAGES) and np.array_equal(labels, LARGE_LABELS)
    return start, end, true


def test_processes_that_begin_with_archives_all_read_the_true_arrays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = tiny.write(tmp_path, "LargeMNIST")
    for array, kind in ((LARGE_IMAGES, "images"), (LARGE_LABELS, "labels")):
        content = gzip.compress(tiny.idx(array), compresslevel=1)
        (raw / f"{tiny.NAMES['train', kind]}.gz").write_bytes(content)
    known = [(path.name, md5(path.read_bytes()).hexdigest()) for path in sorted(raw.iterdir())]
    monkeypatch.setattr(LargeMNIST, "resources", known)
    times = in_children(4, partial(_read_large, tmp_path))
    assert _overlap([(start, end) for start, end, _ in times])
    assert [true for *_, true in times] == [True] * 4


class Dead(TinyMNIST):
    """Notes when it fails to download, which takes it a while."""

    turns: ClassVar[list[tuple[float, float]]] = []  # of one process

    def download(self) -> None:
        start = time.monotonic()
        Path(self.raw_folder).mkdir(parents=True, exist_ok=True)
        time.sleep(0.002)
        self.turns.append((start, time.monotonic()))
        raise RuntimeError("no answer")


def _fail_often(root: Path, number: int) -> list[tuple[float, float, int]]:
    for _ in range(20):
        with pytest.raises(OSError, match=f"^{root}/Dead/raw: {IMAGES} is missing, and fetching"):
            read_split(Dead, root, "train", ("", ""))
        time.sleep(0.02)  # in which another takes its turn
    return [(start, end, number) for start, end in Dead.turns]


def test_processes_that_wait_for_a_lock_which_is_taken_back_still_take_turns(
    tmp_path: Path,
) -> None:
    turns = in_children(4, partial(_fail_often, tmp_path / "new"))
    merged = sorted(turn for own in turns for turn in own)
    assert len(merged) == 80
    changes = [(first, then) for first, then in itertools.pairwise(merged) if first[2] != then[2]]
    assert len(changes) > 3
    assert all(end <= start for (_, end, _), (start, _, _) in changes)
    assert list((tmp_path / "new").iterdir()) == []
