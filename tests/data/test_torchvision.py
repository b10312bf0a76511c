"""KMNIST, QMNIST and EMNIST, compared with torchvision's own reading of the same files."""

import gzip
import hashlib
import string
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from torchvision import datasets

from digitlab.cli import main
from digitlab.data import (
    EMNISTDataModule,
    KMNISTDataModule,
    MNISTDataModule,
    QMNISTDataModule,
    TorchvisionDataModule,
)
from digitlab.data.download import Split
from tests import tiny
from tests.commands import config_of, fit, refusal
from tests.data import made

SPLITS: tuple[Split, Split] = ("train", "test")


def md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def unpack(raw: Path) -> None:
    for path in raw.glob("*.gz"):
        path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
        path.unlink()


EMNIST = {"balanced": 47, "byclass": 62, "bymerge": 47, "letters": 26, "digits": 10, "mnist": 10}


@pytest.mark.parametrize("name", ["kmnist", "qmnist", *EMNIST])
def test_each_has_torchvision_s_images_and_labels(name: str, tmp_path: Path) -> None:
    split: Any = {"split": name} if name in EMNIST else {}
    kind, theirs = {
        "kmnist": (KMNISTDataModule, datasets.KMNIST),
        "qmnist": (QMNISTDataModule, datasets.QMNIST),
    }.get(name, (EMNISTDataModule, datasets.EMNIST))
    if split:
        made.emnist(tmp_path, name, EMNIST[name], first=name == "letters")
    else:
        getattr(made, name)(tmp_path)
    data = kind(root=str(tmp_path), **split)
    assert data.name == (f"emnist_{name}" if split else name)
    assert len(data.class_names) == EMNIST.get(name, 10)
    read = {part: data.arrays(part) for part in SPLITS}
    if name == "kmnist":
        unpack(tmp_path / "KMNIST/raw")
    for part, (images, labels) in read.items():
        reference = theirs(tmp_path, train=part == "train", **split)
        expected = reference.data.numpy()
        assert np.array_equal(images, expected.transpose(0, 2, 1) if split else expected)
        assert np.array_equal(images, (tiny.TRAIN if part == "train" else tiny.TEST)[0])
        assert labels.min() == 0
        targets = [reference[i][1] for i in range(len(reference))]
        names = string.digits if name == "qmnist" else reference.classes
        assert [data.class_names[it] for it in labels] == [names[it] for it in targets]


def test_emnist_is_downloaded_once_and_read_from_its_zip_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made.emnist(tmp_path / "made", "letters", 26, first=1)
    source = tmp_path / "gzip.zip"
    made.zipped(tmp_path / "made/EMNIST/raw", source)
    monkeypatch.setattr(datasets.EMNIST, "url", source.as_uri())
    monkeypatch.setattr(datasets.EMNIST, "md5", md5(source.read_bytes()))
    for _ in range(2):
        data = EMNISTDataModule("letters", root=str(tmp_path / "new"))
        assert np.array_equal(data.arrays("test")[0], tiny.TEST[0])
        assert data.arrays("train")[1][:3].tolist() == [0, 1, 2]
        assert data.verification == "archive verified"
        source.unlink(missing_ok=True)
    assert [path.name for path in (tmp_path / "new/EMNIST/raw").iterdir()] == ["gzip.zip"]


@pytest.mark.promise("data")
@pytest.mark.parametrize("fault", ["cut", "another member", "another file"])
def test_a_damaged_zip_file_is_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    made.emnist(tmp_path / "made", "letters", 26, first=1)
    raw = tmp_path / "EMNIST/raw"
    raw.mkdir(parents=True)
    made.zipped(tmp_path / "made/EMNIST/raw", raw / "gzip.zip")
    monkeypatch.setattr(datasets.EMNIST, "url", (raw / "gzip.zip").as_uri())
    monkeypatch.setattr(datasets.EMNIST, "md5", "0" * 32)
    if fault == "cut":
        (raw / "gzip.zip").write_bytes((raw / "gzip.zip").read_bytes()[:-30])
    split: Any = "digits" if fault == "another member" else "letters"
    if fault == "another file":
        (raw / "gzip.zip").rename(tmp_path / "gzip.zip")
        monkeypatch.setattr(datasets.EMNIST, "url", (tmp_path / "gzip.zip").as_uri())
    with pytest.raises(OSError, match=r"gzip.zip is (damaged|missing), and downloading") as error:
        EMNISTDataModule(split, root=str(tmp_path)).read("train")
    assert len(str(error.value).splitlines()) == 1
    assert fault != "another file" or not list(raw.iterdir())


# What is verified.


@pytest.mark.promise("data")
def test_archives_are_verified_by_torchvision_s_digests_and_unpacked_files_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made.kmnist(tmp_path)
    data = KMNISTDataModule(root=str(tmp_path))
    assert data.verification == ""
    data.setup()
    assert data.verification == "not verified"
    known = [(name, md5(content)) for name, content in tiny.ARCHIVES.items()]
    monkeypatch.setattr(datasets.KMNIST, "resources", known)
    data = KMNISTDataModule(root=str(tmp_path))
    data.setup()
    assert data.verification == "archive verified"
    unpack(tmp_path / "KMNIST/raw")
    made.kmnist(tmp_path / "other")
    raw = tmp_path / "other/KMNIST/raw"
    (raw / "train-labels-idx1-ubyte.gz").unlink()
    (tmp_path / "KMNIST/raw/train-labels-idx1-ubyte").rename(raw / "train-labels-idx1-ubyte")
    data = KMNISTDataModule(root=str(tmp_path / "other"))
    data.setup()
    assert data.verification == "not verified"  # one of the four files is not
    tiny_data = tiny.TinyDataModule()
    tiny_data.setup()
    assert tiny_data.verification == "SHA-256 verified"


@pytest.mark.promise("download")
def test_a_download_must_have_torchvision_s_digest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirror = tiny.write(tmp_path / "mirror")
    monkeypatch.setattr(datasets.KMNIST, "mirrors", [f"{mirror.as_uri()}/"])
    data = KMNISTDataModule(root=str(tmp_path / "data"))
    with pytest.raises(OSError, match="is another file, by its MD5 digest") as error:
        data.read("test")
    line = str(error.value)
    assert f"downloading it from {mirror.as_uri()}/t10k-images-idx3-ubyte.gz failed" in line
    assert "put train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz, t10k-images" in line
    assert "--data.root to the folder that has KMNIST/raw" in line
    assert "--config digits/lenet5 needs no download" in line
    assert not (tmp_path / "data").exists()


class OfMNIST(MNISTDataModule):
    """A subclass that names other data, and nothing else."""

    name = "of_mnist"
    dataset = datasets.KMNIST


def test_digests_and_statistics_of_another_data_set_are_not_inherited(tmp_path: Path) -> None:
    made.kmnist(tmp_path)
    data = OfMNIST(root=str(tmp_path), normalization="standard")
    data.setup()
    assert data.verification == "not verified"
    assert vars(OfMNIST)["mean_std"] is None  # and not MNIST's
    loader = data.train_eval_dataloader()
    pixels = np.concatenate([images.numpy() for images, _ in loader])
    assert abs(pixels.mean()) < 1e-4
    assert abs(pixels.std() - 1) < 1e-4


class OwnDigests(TorchvisionDataModule):
    dataset = datasets.KMNIST
    digests: ClassVar[Any] = tiny.TinyDataModule.digests


def test_digests_of_a_class_are_compared_and_must_be_digests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made.kmnist(tmp_path)
    data = OwnDigests(root=str(tmp_path))
    data.setup()
    assert (data.verification, data.digests_read) == ("SHA-256 verified", {})
    for digests in ({"train": ("0", "1")}, {}, "abc", {"test": None}):
        monkeypatch.setattr(OwnDigests, "digests", digests)
        with pytest.raises(ValueError, match=r"OwnDigests.digests of the train split is .* None"):
            OwnDigests(root=str(tmp_path)).read("train")
    with pytest.raises(ValueError, match="TorchvisionDataModule has no dataset"):
        TorchvisionDataModule()


# Runs.


def test_a_network_has_as_many_outputs_as_the_data_have_classes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made.emnist(tmp_path, "balanced", 47)
    monkeypatch.setenv("DIGITLAB_DATA", str(tmp_path))
    config = config_of(fit(tmp_path / "runs", "--data", "EMNISTDataModule"))
    assert config["model"]["init_args"]["num_classes"] == 47
    digests = config["data"]["init_args"]["digests"]
    assert {name: len(pair) for name, pair in digests.items()} == {"train": 2, "test": 2}


@pytest.mark.promise("data")
def test_a_run_says_what_was_verified_and_later_refuses_other_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made.kmnist(tmp_path)
    monkeypatch.setenv("DIGITLAB_DATA", str(tmp_path))
    folder = fit(tmp_path / "runs", "--data", "KMNISTDataModule")
    assert "\nImages: not verified\n" in capsys.readouterr().out
    assert main(["fit", "--run", str(folder), "--trainer.max_epochs", "2"]) == 0
    before = (folder / "config.yaml").read_text("utf-8")
    assert "\ndata:  # not verified\n" in before
    assert main(["test", "--run", str(folder)]) == 0
    capsys.readouterr()
    for path in (tmp_path / "KMNIST/raw").glob("*images*"):
        content = gzip.decompress(path.read_bytes())
        changed = content[:300] + bytes([content[300] ^ 1]) + content[301:]
        path.write_bytes(gzip.compress(changed))
    for command in ("test", "fit"):
        line = refusal(capsys, command, "--run", str(folder), "--trainer.max_epochs", "3")
        assert "images or labels are not those of data.digests" in line
    assert (folder / "config.yaml").read_text("utf-8") == before
