"""Small files in the formats that torchvision reads, and folders of pictures."""

import gzip
import struct
import zipfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tests import tiny

PREFIXES = {"train": "train", "test": "t10k"}


def kmnist(root: Path) -> None:
    """Four archives, as KMNIST's."""
    tiny.write(root, "KMNIST")


def qmnist(root: Path) -> None:
    """Labels are rows of eight numbers, the first of them the class."""
    raw = _raw(root, "QMNIST")
    for split, (images, labels) in (("train", tiny.TRAIN), ("test", tiny.TEST)):
        rows = np.arange(8 * len(labels)).reshape(-1, 8) + 1000
        rows[:, 0] = labels
        header = struct.pack(">HBB2I", 0, 12, 2, *rows.shape)
        files = {
            f"qmnist-{split}-images-idx3-ubyte": tiny.idx(images),
            f"qmnist-{split}-labels-idx2-int": header + rows.astype(">i4").tobytes(),
        }
        for name, content in files.items():
            (raw / name).write_bytes(content)
            (raw / f"{name}.gz").write_bytes(gzip.compress(content, mtime=0))


def emnist(root: Path, split: str, classes: int, first: int = 0) -> dict[str, NDArray[np.uint8]]:
    """Images are on their side; returns the labels in the files, which count from `first`."""
    raw, written = _raw(root, "EMNIST"), {}
    for part, (images, _) in (("train", tiny.TRAIN), ("test", tiny.TEST)):
        labels = (np.arange(len(images)) % classes + first).astype(np.uint8)
        prefix = f"emnist-{split}-{part}"
        sideways = np.stack([image.T for image in images])
        (raw / f"{prefix}-images-idx3-ubyte").write_bytes(tiny.idx(sideways))
        (raw / f"{prefix}-labels-idx1-ubyte").write_bytes(tiny.idx(labels))
        written[part] = labels
    return written


def zipped(raw: Path, path: Path) -> None:
    """Pack files as EMNIST's authors do: each compressed, in one zip file."""
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(raw.iterdir()):
            content = gzip.compress(file.read_bytes(), mtime=0)
            archive.writestr(f"gzip/{file.name}.gz", content)


def pictures(
    folder: Path, counts: dict[str, int], size: tuple[int, int] = (28, 28), seed: int = 0
) -> Path:
    """Write PNG files, each class darker than the next, and return the folder."""
    generator = np.random.default_rng(seed)
    for place, (name, count) in enumerate(counts.items()):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            tone = 40 + 170 * place // max(1, len(counts) - 1)
            pixels = generator.integers(tone - 40, tone + 40, size[::-1]).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number:03}.png")
    return folder


def _raw(root: Path, name: str) -> Path:
    raw = root / name / "raw"
    raw.mkdir(parents=True, exist_ok=True)
    return raw
