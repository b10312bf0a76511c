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
from digitlab.data.download import Arrays, IDXFile, Split, read_split, sha256
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

    def __init__(self, root: str | None = None, **kwargs: Any) -> None:
        if not hasattr(self, "dataset"):
            raise ValueError(f"{type(self).__name__} has no dataset: give a class that has one")
        super().__init__(**kwargs)
        self.root = root
        if self._depth("dataset") < self._depth("mean_std"):
            self.mean_std = None

    def files(self, split: Split) -> tuple[IDXFile, IDXFile]:
        """Return the files of a split's images and labels."""
        prefix = {"train": "train", "test": "t10k"}[split]
        md5 = dict(self.dataset.resources)

        def file(name: str, shape: tuple[int, ...]) -> IDXFile:
            mirrors = self.dataset.mirrors if f"{name}.gz" in md5 else []
            urls = tuple(f"{mirror}{name}.gz" for mirror in mirrors)
            return IDXFile(name, shape, urls, md5.get(f"{name}.gz", ""))

        return file(f"{prefix}-images-idx3-ubyte", (28, 28)), file(
            f"{prefix}-labels-idx1-ubyte", ()
        )

    def read(self, split: Split) -> Arrays:
        """Read a whole split, and verify it.

        Raises:
            OSError: A file is missing or damaged and cannot be downloaded.
            ValueError: A file belongs to another data set, or `digests` are none.
        """
        own = f"{type(self).__name__}.digests"
        digests = self.digests if self._depth("digests") <= self._depth("dataset") else None
        given: Any = digests.get(split) if isinstance(digests, dict) else digests
        if digests is not None and not _are_digests(given):
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
        if self._depth("digests") > 1 or not files[split][0].urls:
            remedy = f"replace it, or give {own} of its own files"
        folder = root / self.dataset.__name__ / "raw"
        arrays, verified = read_split(files[split], folder, given, [*names], remedy)
        self.verified[split] = verified
        return arrays

    def _depth(self, name: str) -> int:
        """Return where an attribute is defined: 0 in the object, 1 in its class, then above."""
        layers = [vars(self), *map(vars, type(self).__mro__)]
        return next(i for i, layer in enumerate(layers) if name in layer)


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

    def files(self, split: Split) -> tuple[IDXFile, IDXFile]:
        """Return a split's files; a label is the first of eight numbers on its image."""

        def file(resource: tuple[str, str], shape: tuple[int, ...], convert: Any) -> IDXFile:
            url, md5 = resource
            return IDXFile(PurePosixPath(url).stem, shape, (url,), md5, convert=convert)

        images, labels = self.dataset.resources[split]
        return file(images, (28, 28), np.asarray), file(labels, (), _first_column)


def _first_column(labels: NDArray[Any]) -> NDArray[Any]:
    return labels[:, 0].astype(np.uint8)


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
        root: The folder for `EMNIST/raw`. Unset: the environment variable `DIGITLAB_DATA`, else
            `data`.
        **kwargs: See `ImageDataModule`.
    """  # noqa: E501  # a table's row is one line

    dataset = datasets.EMNIST

    def __init__(
        self,
        split: Literal["balanced", "byclass", "bymerge", "letters", "digits", "mnist"] = "balanced",
        root: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(root, **kwargs)
        self.split = split
        self.name = f"emnist_{split}"
        names = self.dataset.classes_split_dict[split]
        self.class_names = tuple(name for name in names if name != "N/A")  # the 0 of letters

    def files(self, split: Split) -> tuple[IDXFile, IDXFile]:
        """Return a split's files, in the archive of all."""

        def file(kind: str, shape: tuple[int, ...], convert: Any) -> IDXFile:
            name = f"emnist-{self.split}-{split}-{kind}"
            urls, md5 = (self.dataset.url,), self.dataset.md5
            return IDXFile(name, shape, urls, md5, f"gzip/{name}.gz", convert)

        labels = np.asarray if self.split != "letters" else _from_zero
        return file("images-idx3-ubyte", (28, 28), _upright), file("labels-idx1-ubyte", (), labels)


def _upright(images: NDArray[Any]) -> NDArray[Any]:
    return images.transpose(0, 2, 1).copy()


def _from_zero(labels: NDArray[Any]) -> NDArray[Any]:
    return labels - 1


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
