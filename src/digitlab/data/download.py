"""The one way by which image files are read: fetched under a lock, and checked before use."""

import gzip
import hashlib
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray
from torchvision.datasets.utils import check_integrity

from digitlab.files import atomic_write

Arrays = tuple[NDArray[np.uint8], NDArray[np.int64]]
"""Images, uint8 `(N, 28, 28)`, and labels, int64 `(N,)`."""
Split = Literal["train", "test"]

_FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}


def sha256(array: NDArray[Any]) -> str:
    """Compute the SHA-256 digest of an array's values as bytes, in hexadecimal.

    Examples:
        >>> sha256(np.array([7, 2, 1], np.uint8))[:16]
        'd0192c1be3755623'
    """
    return hashlib.sha256(np.ascontiguousarray(array, dtype=np.uint8).data).hexdigest()


def check_arrays(arrays: Arrays, classes: int) -> None:
    """Check that a split, which may be read by a user's own code, is what loaders go on from.

    Args:
        arrays: What `ImageDataModule.read` gave.
        classes: Number of the data set's classes.

    Raises:
        ValueError: Images or labels have another type or shape, or a label is of no class.

    Examples:
        >>> check_arrays((np.zeros((2, 28, 28), np.uint8), np.array([0, 9])), classes=10)
    """
    images, labels = (part if isinstance(part, np.ndarray) else np.array(None) for part in arrays)
    if images.dtype != np.uint8 or images.shape[1:] != (28, 28) or not len(images):
        raise ValueError(
            f"the images are {_describe(arrays[0])}: they must be a NumPy array of pixels from 0 "
            "to 255, uint8 (N, 28, 28), and at least one"
        )
    if labels.dtype != np.int64 or labels.shape != images.shape[:1]:
        raise ValueError(
            f"the labels are {_describe(arrays[1])}: they must be a NumPy array with one for each "
            f"image, int64 ({len(images)},)"
        )
    if labels.min() < 0 or labels.max() >= classes:
        raise ValueError(
            f"the labels are from {labels.min()} to {labels.max()}: they must be from 0 to "
            f"{classes - 1}, the places in class_names"
        )


def _describe(part: Any) -> str:
    return f"{part.dtype} {part.shape}" if isinstance(part, np.ndarray) else type(part).__name__


def read_split(dataset: type[Any], root: Path, split: Split, digests: tuple[str, str]) -> Arrays:
    """Read a split of a data set in MNIST's format, after downloading what is missing.

    Processes that share `root` take turns, so that none reads a file that another is unpacking. A
    file that is not as it should be, as a killed process may leave it, is unpacked again if its
    archive is intact. Where nothing can be fetched, nothing is left in `root`.

    Args:
        dataset: torchvision's `MNIST` or a subclass.
        root: The folder that holds `<name of the class>/raw`.
        split: The split to read.
        digests: SHA-256 of the images and of the labels, as `sha256` gives them.

    Returns:
        Images, uint8 `(N, 28, 28)`, and labels, int64 `(N,)`.

    Raises:
        OSError: Files are missing or archives damaged, and they cannot be downloaded; or files
            cannot be read or written.
        ValueError: The contents of an unpacked file are not what the digest says, and there is no
            intact archive of it.
    """
    if root.exists() and not root.is_dir():
        raise ValueError(f"root is {root}: a file, where there should be a folder of data sets")
    raw = root / dataset.__name__ / "raw"
    with _turn(root, raw):
        arrays = _read(dataset, root, split, digests)
        if arrays is None and _unpack_again(dataset, raw, split):
            arrays = _read(dataset, root, split, digests)
    if arrays is None:
        raise ValueError(_damaged(dataset, raw, split, digests))
    return arrays


@contextmanager
def _turn(root: Path, raw: Path) -> Iterator[None]:
    """Keep other processes out of the root; after a failure, take back what is empty in it."""
    with suppress(OSError):  # torchvision fails on the same folder below, with what is missing
        root.mkdir(parents=True, exist_ok=True)
    if not os.access(root, os.W_OK):
        yield  # nothing is unpacked into a folder that cannot be written: no turns are needed
        return
    file = root / ".digitlab.lock"
    with FileLock(file, mode=0o666):  # whoever shares the folder takes turns, of any user
        made = [folder for folder in (raw, raw.parent) if not folder.exists()]
        try:
            yield
        except BaseException:
            with suppress(OSError):  # a folder that has a file stays
                for folder in made:
                    folder.rmdir()
            with suppress(OSError):  # another user's
                file.unlink()  # those who wait for it notice, and make another
            raise


def _read(dataset: type[Any], root: Path, split: Split, digests: tuple[str, str]) -> Arrays | None:
    """Fetch what is missing, and read a split; None if a file is not what its digest says."""
    raw = root / dataset.__name__ / "raw"
    # torchvision would prefer the cache that its old versions left to the files that are meant.
    no_cache = {"_check_legacy_exist": lambda self: False}
    dataset = type(dataset.__name__, (dataset,), no_cache)
    try:
        source = dataset(root, train=split == "train", download=True)
    # Damaged bytes lead torchvision's reader to AssertionError, KeyError, RuntimeError, ...
    except Exception as error:
        if missing := _missing(dataset, raw):
            raise OSError(_not_available(dataset, raw, missing, error)) from error
        if isinstance(error, OSError):
            fault = f"{error.strerror or error}: {error.filename or raw}"
            remedy = "check the permissions and the space there, and run the command again"
            raise OSError(error.errno, f"{fault}: {remedy}") from error
        return None
    images, labels = source.data.numpy(), source.targets.numpy()
    good = (sha256(images), sha256(labels)) == digests and images.shape == (len(labels), 28, 28)
    return (images, labels) if good else None


def _unpack_again(dataset: type[Any], raw: Path, split: Split) -> bool:
    """Replace a split's files from those archives that are intact, and tell if there are any."""
    md5 = dict(dataset.resources)
    archives = [raw / f"{name}.gz" for name in _FILES[split]]
    try:
        known = [archive for archive in archives if archive.name in md5]
        intact = [archive for archive in known if check_integrity(archive, md5[archive.name])]
        for archive in intact:
            # A link to another data set's file is replaced, and that file left as it is.
            with atomic_write(archive.with_suffix("")) as beside:
                beside.write_bytes(gzip.decompress(archive.read_bytes()))
    except OSError:  # in a folder that cannot be written, say; the file is called damaged then
        return False
    return bool(intact)


def _missing(dataset: type[Any], raw: Path) -> str | None:
    """The first archive that has not been unpacked, and what keeps it from that.

    A user's data set may name no archives: then it is the first file that is not there.
    """
    if not dataset.resources:
        names = (name for of_split in _FILES.values() for name in of_split)
        return next((f"{name} is missing" for name in names if not (raw / name).exists()), None)
    for name, md5 in dataset.resources:
        archive = raw / name
        if archive.with_suffix("").exists():
            continue
        if not archive.exists():
            return f"{name} is missing"
        return f"{name} is {'not unpacked' if check_integrity(archive, md5) else 'damaged'}"
    return None


def _damaged(dataset: type[Any], raw: Path, split: Split, digests: tuple[str, str]) -> str:
    images, labels = (raw / name for name in _FILES[split])
    content = images.read_bytes()
    # A header has a magic number and the sizes; the labels are at fault if the images are not.
    header = struct.pack(">4I", 0x803, len(content) // (28 * 28), 28, 28)
    intact = content[:16] == header and hashlib.sha256(content[16:]).hexdigest() == digests[0]
    remedy = "delete it and run the command again"
    if not dataset.resources:  # nothing would come in its place
        remedy = f"put the right one there, or correct the digests that go with {dataset.__name__}"
    return f"{labels if intact else images} is damaged or of another data set: {remedy}"


def _not_available(dataset: type[Any], raw: Path, missing: str, error: Exception) -> str:
    reason = (str(error).strip() or type(error).__name__).splitlines()[-1]
    fault, files = f"fetching it failed ({reason})", "the four .gz archives"
    if not dataset.resources:
        fault, files = f"{dataset.__name__} names no archive to fetch", "the four unpacked files"
    return (
        f"{raw}: {missing}, and {fault}: put {files} there, "
        "or set DIGITLAB_DATA or --data.root to the folder that holds them"
    )
