"""The data sets: MNIST, Fashion-MNIST and scikit-learn's digits."""

import os
import re
from typing import Any, ClassVar, TypeGuard

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torchvision import datasets

from digitlab.data.datamodule import ImageDataModule, stratified_split
from digitlab.data.download import Arrays, Split, read_split, sha256
from digitlab.data.photographs import PreparedImage, prepare_digit, prepare_garment
from digitlab.files import expand_path


class MNISTDataModule(ImageDataModule):
    """MNIST: 60,000 training and 10,000 test images of handwritten digits.

    Missing archives are downloaded from torchvision's mirrors. Images and labels must have the
    known SHA-256 digests, so that no run uses damaged files or those of another data set.

    Reference: LeCun, Bottou, Bengio and Haffner, Gradient-based learning applied to document
    recognition, 1998.

    Args:
        root: The folder for `MNIST/raw`. Unset: the environment variable `DIGITLAB_DATA`, else
            `data`; so a saved configuration does not depend on one machine's folders.
        **kwargs: See `ImageDataModule`.
    """

    name: str = "mnist"
    dataset: ClassVar[type[Any]] = datasets.MNIST
    digests: ClassVar[dict[Split, tuple[str, str]]] = {
        "train": (
            "741c988805d008ac6e4c904b69001ba184c24b2c540a4ef403f4c71b676cf757",
            "1feba77c54802fa5339a11837ea4b2866434b83314ec45192930f1df69120c13",
        ),
        "test": (
            "6d87418db22cc8025d05968bec9bd5c3932904b23485740db143a061a2c9d161",
            "ddeff807876a9661a1110d45c266c86239a3a1b7d37da0c3716a7a683c852ff5",
        ),
    }
    mean_std = (0.1307, 0.3081)

    def __init__(self, root: str | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.root = root

    def read(self, split: Split) -> Arrays:
        """Read a whole split and verify its digests.

        Raises:
            OSError: A file is missing or damaged and cannot be downloaded.
            ValueError: A file belongs to another data set, or a subclass has no digests of its own.
        """
        root = expand_path(self.root or os.environ.get("DIGITLAB_DATA") or "data")
        own = f"{type(self).__name__}.digests"
        given = self.digests.get(split) if isinstance(self.digests, dict) else None
        if self._depth("dataset") < self._depth("digests") or not _are_digests(given):
            raise ValueError(
                f"{own} lacks the SHA-256 digests of {self.dataset.__name__}'s {split} split: give "
                f'{{"{split}": (of the images, of the labels), ...}}, as '
                "digitlab.data.download.sha256 computes them from files that you trust"
            )
        remedy = None if self._depth("digests") <= 1 else f"give {own} of its own files"
        return read_split(self.dataset, root, split, given, remedy)

    def _depth(self, name: str) -> int:
        """Return where an attribute is defined: 0 in the object, 1 in its class, then above."""
        layers = [vars(self), *map(vars, type(self).__mro__)]
        return next(i for i, layer in enumerate(layers) if name in layer)


class FashionMNISTDataModule(MNISTDataModule):
    """Fashion-MNIST: 60,000 training and 10,000 test images of clothes, in MNIST's format.

    Reference: Xiao, Rasul and Vollgraf, Fashion-MNIST: a novel image dataset for benchmarking
    machine learning algorithms, arXiv 1708.07747, 2017.

    Args:
        root: The folder for `FashionMNIST/raw`. Unset: the environment variable `DIGITLAB_DATA`,
            else `data`.
        **kwargs: See `ImageDataModule`.
    """

    name: str = "fashion_mnist"
    dataset = datasets.FashionMNIST
    class_names = tuple(datasets.FashionMNIST.classes)
    digests: ClassVar[dict[Split, tuple[str, str]]] = {
        "train": (
            "2e487a6c89124f78f2d7521542223cafe96f7123c3ca13d447772ac6ecbb3012",
            "657fbd221bfc9f4198cc14b5619cc33ec57c58dd0e47af4d99d6650759e869a7",
        ),
        "test": (
            "c867c93ff95360594e8ec3287995350b824dd110b11595c0e13d5423f621867a",
            "3d0e6c6ea990b53b6f8f500a41cac93881d981b315f84578b7d915342ade01e9",
        ),
    }
    mean_std = (0.2860, 0.3530)

    def prepare_image(self, image: Image.Image) -> PreparedImage:
        """Prepare a product picture as the data set's authors did theirs."""
        return prepare_garment(image)


class DigitsDataModule(ImageDataModule):
    """Digits: scikit-learn's 1,797 scans, 1,437 to train on and 360 to test on, with no download.

    The scans have 8x8 pixels from 0 to 16. They are scaled to 0..255 and enlarged to 28x28 by
    Pillow's bilinear filter, whose integer arithmetic gives the same result on every machine. The
    data set comes without a test split, so a fixed, stratified fifth is used.

    Reference: Alpaydin and Kaynak, Optical recognition of handwritten digits, UCI Machine Learning
    Repository, 1998 (its test set).
    """

    name: str = "digits"
    digests: ClassVar[tuple[str, str]] = (
        "8f26b2bd9d135c256808f68f14fdabddde6d9c7f869ae419704b051f0f14b3b3",
        "8ba4f891220f5e4c9c819638d1602d74b83618f167043c6da52a2a247841ddf0",
    )
    mean_std = (0.3047, 0.3245)

    def prepare_image(self, image: Image.Image) -> PreparedImage:
        """Prepare an image of a digit as MNIST's, but let it fill the height, as these scans do."""
        return prepare_digit(image, box=28)

    def read(self, split: Split) -> Arrays:
        """Read a split of scikit-learn's scans, enlarged.

        Raises:
            ValueError: The installed scans do not have the known digests.
        """
        from sklearn.datasets import load_digits  # takes a second to import

        scans, labels = load_digits(return_X_y=True)
        if (sha256(scans), sha256(labels)) != self.digests:
            raise ValueError("scikit-learn's digits are not the known ones: reinstall scikit-learn")
        chosen = stratified_split(labels, 360)[split == "test"]
        return np.stack([enlarge(scans[i]) for i in chosen]), labels[chosen].astype(np.int64)


def _are_digests(given: Any) -> TypeGuard[tuple[str, str]]:
    return (
        isinstance(given, tuple | list)
        and len(given) == 2
        and all(isinstance(it, str) and re.fullmatch("[0-9a-f]{64}", it) for it in given)
    )


def enlarge(scan: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Enlarge a scan, `(64,)` or `(8, 8)`, values 0..16, to an image, uint8 `(28, 28)`."""
    grey = (scan.reshape(8, 8) * 255 // 16).astype(np.uint8)
    return np.asarray(Image.fromarray(grey).resize((28, 28), Image.Resampling.BILINEAR))
