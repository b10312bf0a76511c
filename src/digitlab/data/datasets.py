"""The data sets: those of torchvision in MNIST's format, and scikit-learn's digits."""

import os
import re
from pathlib import PurePosixPath
from typing import Any, ClassVar, Literal, TypeGuard

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torchvision import datasets

from digitlab.data.datamodule import ImageDataModule, stratified_split
from digitlab.data.download import Arrays, IDXFile, Split, read_file, sha256
from digitlab.data.photographs import PreparedImage, prepare_digit, prepare_garment
from digitlab.files import expand_path


class TorchvisionDataModule(ImageDataModule):
    """A data set of torchvision in MNIST's file format: a subclass names its class, `dataset`.

    Missing archives are downloaded from torchvision's addresses. If the class has SHA-256 digests
    of the images and labels, every read compares them, so that no run uses damaged files or those
    of another data set. If it has none, archives are compared with torchvision's MD5 digests, and
    unpacked files are not verified. The screen and config.yaml say which it was.

    Digests and `mean_std` that are inherited from above the class that names `dataset` belong to
    another data set, and are not used.

    Args:
        root: The folder for `<name of torchvision's class>/raw`. Unset: the environment variable
            `DIGITLAB_DATA`, else `data`; so a saved configuration does not depend on one machine's
            folders.
        **kwargs: See `ImageDataModule`.
    """

    dataset: ClassVar[type[Any]]
    """torchvision's `MNIST` or a subclass, which has the addresses of its archives."""
    digests: ClassVar[dict[Split, tuple[str, str]] | None] = None
    """SHA-256 of the images and the labels of each split, as `digitlab.data.download.sha256`
    computes them."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Let a class that names another data set inherit nothing that is of the one above."""
        super().__init_subclass__(**kwargs)
        if "dataset" in vars(cls):
            cls.digests, cls.mean_std = (vars(cls).get(it) for it in ("digests", "mean_std"))

    def __init__(self, root: str | None = None, **kwargs: Any) -> None:
        if not hasattr(self, "dataset"):
            raise ValueError(f"{type(self).__name__} has no dataset: give a class that has one")
        super().__init__(**kwargs)
        self.root = root

    def files(self, split: Split) -> list[IDXFile]:
        """Return the files of a split's images and labels."""
        prefix, md5 = {"train": "train", "test": "t10k"}[split], dict(self.dataset.resources)
        names = (f"{prefix}-{kind}-ubyte" for kind in ("images-idx3", "labels-idx1"))
        return [
            IDXFile(
                name,
                [f"{it}{name}.gz" for it in self.dataset.mirrors if f"{name}.gz" in md5],
                md5.get(f"{name}.gz", ""),
            )
            for name in names
        ]

    def read(self, split: Split) -> Arrays:
        """Read a whole split, and verify it.

        Raises:
            OSError: A file is missing or damaged and cannot be downloaded.
            ValueError: A file belongs to another data set, or `digests` are none.
        """
        own = f"{type(self).__name__}.digests"
        given: Any = self.digests
        if isinstance(given, dict):
            given = given.get(split) or "missing"
        if given is not None and not _are_digests(given):
            raise ValueError(
                f"{own} of the {split} split is {given!r}: give two SHA-256 digests, of the images "
                "and of the labels, as digitlab.data.download.sha256 computes them, or None for all"
            )
        root = expand_path(self.root or os.environ.get("DIGITLAB_DATA") or "data")
        if root.exists() and not root.is_dir():
            raise ValueError(f"root is {root}: it is a file, give the folder with the data sets")
        files = {name: self.files(name) for name in ("train", "test")}
        names = dict.fromkeys(file.archive for pair in files.values() for file in pair)
        remedy = "move it away and run the command again"
        if "digests" not in vars(type(self)) or not files[split][0].urls:
            remedy = f"replace it, or give {own} of its own files"
        folder = root / self.dataset.__name__ / "raw"
        (images, one), (labels, other) = (
            read_file(file, folder, digest, [*names], remedy)
            for file, digest in zip(files[split], given or (None, None), strict=True)
        )
        self.verified[split] = max(one, other)  # in the order of the alphabet
        return images, labels.astype(np.int64)


class MNISTDataModule(TorchvisionDataModule):
    """MNIST: 60,000 training and 10,000 test images of handwritten digits.

    Reference: LeCun, Bottou, Bengio and Haffner, Gradient-based learning applied to document
    recognition, 1998.
    """

    name: str = "mnist"
    dataset = datasets.MNIST
    digests: ClassVar[dict[Split, tuple[str, str]] | None] = {
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


class FashionMNISTDataModule(TorchvisionDataModule):
    """Fashion-MNIST: 60,000 training and 10,000 test images of clothes, in MNIST's format.

    Reference: Xiao, Rasul and Vollgraf, Fashion-MNIST: a novel image dataset for benchmarking
    machine learning algorithms, arXiv 1708.07747, 2017.
    """

    name: str = "fashion_mnist"
    dataset = datasets.FashionMNIST
    class_names = tuple(datasets.FashionMNIST.classes)
    digests: ClassVar[dict[Split, tuple[str, str]] | None] = {
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


class KMNISTDataModule(TorchvisionDataModule):
    """Kuzushiji-MNIST: 60,000 training and 10,000 test images of ten cursive Japanese characters.

    Only the archives are verified, by torchvision's MD5 digests.

    Reference: Clanuwat, Bober-Irizar, Kitamoto, Lamb, Yamamoto and Ha, Deep learning for classical
    Japanese literature, arXiv 1812.01718, 2018.
    """

    name: str = "kmnist"
    dataset = datasets.KMNIST
    class_names = tuple(datasets.KMNIST.classes)


class QMNISTDataModule(TorchvisionDataModule):
    """QMNIST: MNIST's 60,000 training images, and 60,000 test images that MNIST's were taken from.

    The first 10,000 test images are MNIST's. Only the archives are verified, by torchvision's MD5
    digests.

    Reference: Yadav and Bottou, Cold case: the lost MNIST digits, arXiv 1905.10498, 2019.
    """

    name: str = "qmnist"
    dataset = datasets.QMNIST

    def files(self, split: Split) -> list[IDXFile]:
        """Return a split's files; a label is the first of eight numbers on its image."""
        converts: Any = (np.asarray, lambda labels: labels[:, 0].astype(np.uint8))
        return [
            IDXFile(PurePosixPath(url).stem, [url], md5, convert=convert)
            for (url, md5), convert in zip(self.dataset.resources[split], converts, strict=True)
        ]


class EMNISTDataModule(TorchvisionDataModule):
    """EMNIST: handwritten letters and digits in six selections, from the same source as MNIST.

    | split | classes | training images | test images |
    |---|---|---|---|
    | balanced | 47: digits, capitals, and the 11 small letters that look unlike their capitals | 112,800 | 18,800 |
    | byclass | 62: digits, capitals and small letters | 697,932 | 116,323 |
    | bymerge | 47, as balanced | 697,932 | 116,323 |
    | letters | 26: each a capital and its small letter | 124,800 | 20,800 |
    | digits | 10 | 240,000 | 40,000 |
    | mnist | 10 | 60,000 | 10,000 |

    The files have rows and columns interchanged; here images are upright. Labels count from 0, also
    those of `letters`, whose files count from 1. All are in one archive of 0.56 GB, which is the
    only thing that is verified, by torchvision's MD5 digest.

    Reference: Cohen, Afshar, Tapson and van Schaik, EMNIST: an extension of MNIST to handwritten
    letters, arXiv 1702.05373, 2017.

    Args:
        split: The selection.
        **kwargs: See `TorchvisionDataModule`.
    """  # noqa: E501  # a table's row is one line

    dataset = datasets.EMNIST

    def __init__(
        self,
        split: Literal["balanced", "byclass", "bymerge", "letters", "digits", "mnist"] = "balanced",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.split = split
        self.name = f"emnist_{split}"
        names = self.dataset.classes_split_dict[split]
        self.class_names = tuple(name for name in names if name != "N/A")  # the 0 of letters

    def files(self, split: Split) -> list[IDXFile]:
        """Return a split's files, in the archive of all."""
        name, first = f"emnist-{self.split}-{split}", self.split == "letters"
        converts: dict[str, Any] = {
            f"{name}-images-idx3-ubyte": lambda images: images.transpose(0, 2, 1).copy(),
            f"{name}-labels-idx1-ubyte": lambda labels: labels - np.uint8(first),
        }
        url, md5 = self.dataset.url, self.dataset.md5
        return [
            IDXFile(it, [url], md5, f"gzip/{it}.gz", convert) for it, convert in converts.items()
        ]


class DigitsDataModule(ImageDataModule):
    """Digits: scikit-learn's 1,797 scans, 1,437 to train on and 360 to test on, with no download.

    The scans have 8x8 pixels from 0 to 16. They are scaled to 0..255 and enlarged to 28x28 by
    Pillow's bilinear filter, whose integer arithmetic gives the same result on every machine. The
    data set comes without a test split, so a fixed, stratified fifth is used.

    Reference: Alpaydin and Kaynak, Optical recognition of handwritten digits, UCI Machine Learning
    Repository, 1998 (its test set).
    """

    name: str = "digits"
    scan_digests: ClassVar[tuple[str, str]] = (
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
        if (sha256(scans), sha256(labels)) != self.scan_digests:
            raise ValueError("scikit-learn's digits are not the known ones: reinstall scikit-learn")
        self.verified[split] = "SHA-256 verified"
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
