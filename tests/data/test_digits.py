from collections import Counter

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from digitlab.data import DigitsDataModule
from digitlab.data.datasets import enlarge
from digitlab.data.download import sha256


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


def test_digits_are_the_same_bytes_on_every_machine() -> None:
    data = DigitsDataModule()
    assert [sha256(data.arrays(split)[0])[:16] for split in ("train", "test")] == [
        "3c4afb416f0227e5",
        "7cdb4120c69b9b99",
    ]


def test_a_scan_is_enlarged_as_torch_interpolates() -> None:
    scans = load_digits().images[:50]
    reference = torch.nn.functional.interpolate(
        torch.from_numpy(scans * 255 // 16)[:, None], size=(28, 28), mode="bilinear"
    )
    ours = torch.from_numpy(np.stack([enlarge(scan) for scan in scans]))[:, None]
    # Pillow rounds to a grey level after each of the two directions.
    torch.testing.assert_close(ours.double(), reference, rtol=0, atol=1.0)


def test_other_digits_than_the_known_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DigitsDataModule, "digests", ("0" * 64, DigitsDataModule.digests[1]))
    with pytest.raises(ValueError, match="reinstall scikit-learn"):
        DigitsDataModule().setup("fit")
