"""A data set of a user's own is held to what loaders go on from."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torchvision import datasets

from digitlab.cli import main
from digitlab.data import DigitsDataModule, ImageDataModule, MNISTDataModule
from digitlab.data.download import Split
from tests import tiny

Read = Callable[..., tuple[Any, Any]]


class OwnDataModule(ImageDataModule):
    """Digits, spoilt by a function of images and labels."""

    name = "own"
    spoil: Read = staticmethod(lambda images, labels: (images, labels))

    def read(self, split: Split) -> tuple[Any, Any]:
        return self.spoil(*DigitsDataModule().read(split))


def test_what_the_rules_ask_for_is_served_as_it_is() -> None:
    images, labels = OwnDataModule().arrays("test")
    theirs = DigitsDataModule().arrays("test")
    assert np.array_equal(images, theirs[0])
    assert np.array_equal(labels, theirs[1])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda x, y: (x / 255, y), r"images are float64 \(360, 28, 28\): .* from 0 to 255, uint8"),
        (lambda x, y: (x[:, None], y), r"images are uint8 \(360, 1, 28, 28\): .* \(N, 28, 28\)"),
        (lambda x, y: (x[:, ::2, ::2], y), r"images are uint8 \(360, 14, 14\)"),
        (lambda x, y: (x[:0], y[:0]), r"images are uint8 \(0, 28, 28\): .* at least one"),
        (lambda x, y: (torch.tensor(x), y), "images are Tensor: they must be a NumPy array"),
        (lambda x, y: (x, y.tolist()), "labels are list: they must be a NumPy array"),
        (lambda x, y: (x, y[:-1]), r"labels are int64 \(359,\): .* for each image, int64 \(360,\)"),
        (lambda x, y: (x, y.astype(np.uint8)), r"labels are uint8 \(360,\): .* int64 \(360,\)"),
        (lambda x, y: (x, np.eye(10)[y]), r"labels are float64 \(360, 10\)"),
        (lambda x, y: (x, y + 1), "labels are from 1 to 10: .* from 0 to 9, the places in class_n"),
        (lambda x, y: (x, y - 1), "labels are from -1 to 8: they must be from 0 to 9"),
    ],
)
def test_what_cannot_be_served_is_refused_with_the_rule(
    spoil: Read, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(OwnDataModule, "spoil", staticmethod(spoil))
    with pytest.raises(ValueError, match=rf"^OwnDataModule\.read\('test'\): the {message}"):
        OwnDataModule().setup("test")


def test_a_fit_refuses_pixels_from_0_to_1_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # They would be divided by 255 once more, and the network would learn nothing.
    monkeypatch.setattr(OwnDataModule, "spoil", staticmethod(lambda x, y: (x / 255, y)))
    options = ["--data", f"{__name__}.OwnDataModule", "--trainer.default_root_dir", "unused"]
    assert main(["fit", "--model", "LinearClassifier", *options]) == 2
    error = capsys.readouterr().err
    assert error.startswith("digitlab: error: OwnDataModule.read('train'): the images are float64")
    assert error.count("\n") == 1


def test_labels_may_be_of_as_many_classes_as_have_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OwnDataModule, "class_names", tuple("abcdefghijklmnopqrstuvwxyz"))
    monkeypatch.setattr(OwnDataModule, "spoil", staticmethod(lambda x, y: (x, y + 16)))
    assert OwnDataModule().arrays("test")[1].max() == 25


class OwnFiles(datasets.MNIST):  # type: ignore[misc] # torchvision ships no type hints
    """Files that lie there unpacked, and can be fetched from nowhere."""

    resources: ClassVar[list[tuple[str, str]]] = []


class OwnFilesDataModule(MNISTDataModule):
    """The tiny data set, in files of a user's own."""

    dataset = OwnFiles
    digests = tiny.TinyDataModule.digests


@pytest.fixture
def own_files(tmp_path: Path) -> Path:
    raw = tmp_path / "OwnFiles" / "raw"
    raw.mkdir(parents=True)
    for split, arrays in (("train", tiny.TRAIN), ("test", tiny.TEST)):
        for kind, array in zip(("images", "labels"), arrays, strict=True):
            (raw / tiny.NAMES[split, kind]).write_bytes(tiny.idx(array))
    return raw


def test_files_without_archives_are_read(own_files: Path) -> None:
    images, labels = OwnFilesDataModule(root=str(own_files.parents[1])).arrays("test")
    assert np.array_equal(images, tiny.TEST[0])
    assert np.array_equal(labels, tiny.TEST[1])


def test_where_there_are_no_archives_the_missing_file_is_asked_for(own_files: Path) -> None:
    (own_files / "t10k-labels-idx1-ubyte").unlink()
    message = (
        r"raw: t10k-labels-idx1-ubyte is missing, and OwnFiles names no archive to fetch: put the "
        "four unpacked files there, or set DIGITLAB_DATA or --data.root"
    )
    with pytest.raises(OSError, match=message):
        OwnFilesDataModule(root=str(own_files.parents[1])).arrays("test")


def test_where_there_are_no_archives_digests_that_differ_are_told_of(own_files: Path) -> None:
    file = own_files / "t10k-labels-idx1-ubyte"
    file.write_bytes(file.read_bytes()[:-1] + b"\x07")
    message = "t10k-labels-idx1-ubyte is .* put the right one there, or correct the digests that go"
    with pytest.raises(ValueError, match=message):
        OwnFilesDataModule(root=str(own_files.parents[1])).arrays("test")
