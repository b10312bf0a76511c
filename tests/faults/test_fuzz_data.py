"""Whatever the bytes of the files are: the true arrays are read, or one line says what is wrong."""

import gzip
import struct
import tempfile
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from digitlab.data.download import Split
from tests import tiny
from tests.faults.outcomes import outcome

Files = dict[str, bytes]

FILES = list(tiny.NAMES.values())
ARCHIVES: Files = {name: tiny.ARCHIVES[f"{name}.gz"] for name in FILES}
UNPACKED: Files = {name: gzip.decompress(content) for name, content in ARCHIVES.items()}
SPLITS: tuple[Split, ...] = ("train", "test")

# The same examples in every run, so that a failure is of the change that is being tested.
few = settings(deadline=None, max_examples=200, derandomize=True)
many = settings(deadline=None, max_examples=5000, derandomize=True)


class Splice(NamedTuple):
    """Drops some bytes, and puts others there."""

    place: float  # 0 is the first byte, 1 the end
    dropped: int
    put: bytes

    def spoil(self, files: Files, name: str) -> None:
        content = files[name]
        start = int(self.place * len(content))
        files[name] = content[:start] + self.put + content[start + self.dropped :]


class Flip(NamedTuple):
    """Turns one bit."""

    place: float
    bit: int

    def spoil(self, files: Files, name: str) -> None:
        content = bytearray(files[name])
        if content:
            content[min(int(self.place * len(content)), len(content) - 1)] ^= 1 << self.bit
        files[name] = bytes(content)


class Swap(NamedTuple):
    """Exchanges a file and another, or overwrites it with that."""

    other: str
    both: bool

    def spoil(self, files: Files, name: str) -> None:
        mine, files[name] = files[name], files[self.other]
        if self.both:
            files[self.other] = mine


class Header(NamedTuple):
    """Another type and other sizes, instead of the first bytes."""

    kind: int
    sizes: list[int]
    dropped: int

    def spoil(self, files: Files, name: str) -> None:
        sizes = struct.pack(f">{len(self.sizes)}I", *self.sizes)
        header = struct.pack(">HBB", 0, self.kind, len(self.sizes)) + sizes
        files[name] = header + files[name][self.dropped :]


places = st.just(0.0) | st.just(1.0) | st.floats(0, 1)
counts = st.just(10**9) | st.integers(0, 2000)
sizes = st.sampled_from([0, 1, 28, 50, 200, 784, 2**31, 2**32 - 1]) | st.integers(0, 2**32 - 1)
faults = st.one_of(
    st.builds(Splice, places, counts, st.binary(max_size=40)),
    st.builds(Flip, places, st.integers(0, 7)),
    st.builds(Swap, st.sampled_from(FILES), st.booleans()),
    st.builds(Header, st.integers(7, 15), st.lists(sizes, max_size=4), st.sampled_from([0, 8, 16])),
)
several = st.lists(st.tuples(st.sampled_from(FILES), faults), min_size=1, max_size=4)
some = st.lists(st.sampled_from(FILES), unique=True)

Faults = list[tuple[str, Splice | Flip | Swap | Header]]


def spoiled(true: Files, faults: Faults) -> Files:
    files = dict(true)
    for name, fault in faults:
        fault.spoil(files, name)
    assume(files != true)
    return files


def answers(unpacked: Files, archives: Files) -> dict[Split, str]:
    """What each split of a folder with these files is refused with, if it is."""
    with tempfile.TemporaryDirectory() as root:
        raw = Path(root) / "TinyMNIST" / "raw"
        raw.mkdir(parents=True)
        for name, content in unpacked.items():
            (raw / name).write_bytes(content)
        for name, content in archives.items():
            (raw / f"{name}.gz").write_bytes(content)
        return {split: outcome(Path(root), split=split) for split in SPLITS}


def check_unpacked(faults: Faults, with_archive: list[str]) -> None:
    files = spoiled(UNPACKED, faults)
    lines = answers(files, {name: ARCHIVES[name] for name in with_archive})
    for split, line in lines.items():
        mine = [tiny.NAMES[split, kind] for kind in ("images", "labels")]
        bad = [name for name in mine if files[name] != UNPACKED[name] and name not in with_archive]
        assert bool(line) == bool(bad)
        named = [f"/{name} is damaged or of another data set: delete it" for name in bad]
        assert not line or any(words in line for words in named)


def check_archives(faults: Faults, unpacked: list[str]) -> None:
    files = spoiled(ARCHIVES, faults)
    lines = answers({name: UNPACKED[name] for name in unpacked}, files)
    missing = [name for name in FILES if name not in unpacked]
    damaged = [name for name in missing if files[name] != ARCHIVES[name]]
    for line in lines.values():
        assert line if damaged else missing or not line
        named = [f"{name}.gz is {'damaged' if name in damaged else 'not unpacked'}, and fetching"
                 for name in missing]  # fmt: skip
        assert not line or any(words in line for words in named)


CHECKS = {"unpacked files": check_unpacked, "archives": check_archives}


@pytest.mark.parametrize("kind", CHECKS)
def test_spoiled_files_are_repaired_or_refused(kind: str) -> None:
    few(given(several, some)(CHECKS[kind]))()


@pytest.mark.slow
@pytest.mark.parametrize("kind", CHECKS)
def test_very_many_spoiled_files_are_repaired_or_refused(kind: str) -> None:
    many(given(several, some)(CHECKS[kind]))()
