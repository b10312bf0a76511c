"""A data set in MNIST's own file format that is small enough for every test, and learnable."""

import gzip
import hashlib
import struct
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from torchvision import datasets

from digitlab.data import MNISTDataModule
from digitlab.data.download import Arrays, Split

TRAIN_SIZE = 200
TEST_SIZE = 50
NAMES = {
    ("train", "images"): "train-images-idx3-ubyte",
    ("train", "labels"): "train-labels-idx1-ubyte",
    ("test", "images"): "t10k-images-idx3-ubyte",
    ("test", "labels"): "t10k-labels-idx1-ubyte",
}


def draw(size: int, seed: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Equally many images of each class: its own pattern of 16 squares under heavy noise."""
    patterns = np.random.default_rng(0).integers(0, 2, (10, 4, 4)).repeat(7, 1).repeat(7, 2)
    generator = np.random.default_rng(seed)
    labels = generator.permutation(np.arange(size, dtype=np.uint8) % 10)
    noise = generator.integers(0, 156, (size, 28, 28))
    return (100 * patterns[labels] + noise).astype(np.uint8), labels


def idx(array: NDArray[np.uint8]) -> bytes:
    """The bytes of MNIST's file format: type and number of dimensions, their sizes, the values."""
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


TRAIN = draw(TRAIN_SIZE, seed=1)
TEST = draw(TEST_SIZE, seed=2)
ARCHIVES = {
    f"{NAMES[split, kind]}.gz": gzip.compress(idx(array), mtime=0)
    for split, arrays in (("train", TRAIN), ("test", TEST))
    for kind, array in zip(("images", "labels"), arrays, strict=True)
}


def digest(*arrays: NDArray[np.uint8]) -> tuple[str, str]:
    """SHA-256 of images and labels, by another way than the package's."""
    images, labels = (hashlib.new("sha256", bytes(array.ravel().tolist())) for array in arrays)
    return images.hexdigest(), labels.hexdigest()


def write(root: Path, dataset: str = "TinyMNIST") -> Path:
    """Writes the four archives below `root`, and returns their folder."""
    raw = root / dataset / "raw"
    raw.mkdir(parents=True)
    for name, content in ARCHIVES.items():
        (raw / name).write_bytes(content)
    return raw


class TinyMNIST(datasets.MNIST):  # type: ignore[misc] # torchvision ships no type hints
    mirrors: ClassVar[list[str]] = ["file:///no/such/mirror/"]  # no test reaches the network
    resources: ClassVar[list[tuple[str, str]]] = [
        (name, hashlib.md5(content, usedforsecurity=False).hexdigest())
        for name, content in ARCHIVES.items()
    ]


class TinyDataModule(MNISTDataModule):
    """200 training and 50 test images, ten classes, in MNIST's file format."""

    name = "tiny"
    dataset = TinyMNIST
    digests: ClassVar[dict[Split, tuple[str, str]]] = {
        "train": digest(*TRAIN),
        "test": digest(*TEST),
    }
    mean_std = (0.5196, 0.2631)


class SpiedDataModule(TinyDataModule):
    """Notes which splits are read."""

    read_splits: ClassVar[list[Split]] = []  # emptied by the fixture that uses it

    def read(self, split: Split) -> Arrays:
        self.read_splits.append(split)
        return super().read(split)
