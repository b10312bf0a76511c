from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from digitlab.data import DigitsDataModule, FashionMNISTDataModule, MNISTDataModule
from digitlab.data.datasets import enlarge
from digitlab.data.download import sha256
from tests import tiny
from tests.tiny import TinyDataModule


def test_the_environment_names_the_folder_unless_root_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny.write(tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    TinyDataModule().setup("test")  # the session's folder, which the environment names
    monkeypatch.setenv("DIGITLAB_DATA", str(tmp_path / "nowhere"))
    TinyDataModule(root="data").setup("test")
    with pytest.raises(OSError, match="nowhere/TinyMNIST/raw: "):
        TinyDataModule().setup("test")
    monkeypatch.delenv("DIGITLAB_DATA")
    TinyDataModule().setup("test")
    assert not (tmp_path / "nowhere").exists()


def test_digits_have_a_fixed_stratified_fifth_for_testing() -> None:
    data = DigitsDataModule()
    images, labels = data.arrays("train")
    test_images, test_labels = data.arrays("test")
    assert (images.shape, test_images.shape) == ((1437, 28, 28), (360, 28, 28))
    assert set(Counter(test_labels.tolist()).values()) <= {35, 36, 37}
    pixels = images / 255
    assert (round(float(pixels.mean()), 4), round(float(pixels.std()), 4)) == data.mean_std
    assert (images.min(), images.max()) == (0, 255)
    assert {array.dtype.name for array in (labels, test_labels)} == {"int64"}
    # The same bytes on every machine.
    assert [sha256(array)[:16] for array in (images, test_images, labels, test_labels)] == [
        "3c4afb416f0227e5",
        "7cdb4120c69b9b99",
        "472176d28e5c3fca",
        "da1a2ec12e5c2ed7",
    ]


def test_a_scan_is_enlarged_as_torch_interpolates() -> None:
    scans = load_digits().images[:50]
    reference = torch.nn.functional.interpolate(
        torch.from_numpy(scans * 255 // 16)[:, None], size=(28, 28), mode="bilinear"
    )
    ours = torch.from_numpy(np.stack([enlarge(scan) for scan in scans]))[:, None]
    # Pillow rounds to a grey level after each of the two directions.
    torch.testing.assert_close(ours.double(), reference, rtol=0, atol=1.0)


def test_digits_other_than_the_known_ones_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    known = DigitsDataModule.scan_digests
    monkeypatch.setattr(DigitsDataModule, "scan_digests", ("0" * 64, known[1]))
    with pytest.raises(ValueError, match="reinstall scikit-learn"):
        DigitsDataModule().setup("fit")


@pytest.mark.parametrize(
    ("module", "test_counts"),
    [
        (MNISTDataModule, [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]),
        (FashionMNISTDataModule, [1000] * 10),
    ],
    ids=["mnist", "fashion_mnist"],
)
@pytest.mark.usefixtures("real_data")
def test_real_data_sets_have_their_published_facts(
    module: type[MNISTDataModule], test_counts: list[int]
) -> None:
    data = module()
    assert len(set(data.class_names)) == 10
    images, labels = data.arrays("train")
    assert images.shape == (60_000, 28, 28)
    assert data.arrays("test")[0].shape == (10_000, 28, 28)
    assert sorted(set(labels.tolist())) == list(range(10))
    mean = images.sum(dtype=np.int64) / images.size
    square = np.square(images, dtype=np.uint16).sum(dtype=np.int64) / images.size
    moments = mean / 255, np.sqrt(square - mean**2) / 255
    assert tuple(round(float(moment), 4) for moment in moments) == data.mean_std
    assert np.bincount(data.arrays("test")[1]).tolist() == test_counts
