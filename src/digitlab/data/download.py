"""Data sets in MNIST's file format: downloaded if missing, verified by SHA-256 at every read."""

import gzip
import hashlib
import struct
import zlib
from http.client import HTTPException
from pathlib import Path
from typing import Any, Literal
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np
from numpy.typing import NDArray

from digitlab.files import atomic_write

Arrays = tuple[NDArray[np.uint8], NDArray[np.int64]]
"""Images, uint8 `(N, 28, 28)`, and labels, int64 `(N,)`."""
Split = Literal["train", "test"]

_PREFIXES: dict[Split, str] = {"train": "train", "test": "t10k"}
_TYPES = {8: ">u1", 9: ">i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}  # by the IDX header
_TIMEOUT = 60  # seconds without a byte, after which a mirror is given up


def sha256(array: NDArray[Any]) -> str:
    """Compute the SHA-256 digest of an array's values as bytes, in hexadecimal.

    Examples:
        >>> sha256(np.array([7, 2, 1], np.uint8))[:16]
        'd0192c1be3755623'
    """
    return hashlib.sha256(np.ascontiguousarray(array, dtype=np.uint8).data).hexdigest()


def read_split(
    dataset: type[Any],
    root: Path,
    split: Split,
    digests: tuple[str, str],
    remedy: str | None = None,
) -> Arrays:
    """Read a split of a data set in MNIST's format; download missing and damaged files.

    A file is read from its `.gz` archive, or unpacked if there is no intact archive. Downloads are
    verified first and then written atomically, so processes that share `root` need no lock, and a
    failed download leaves nothing behind. An intact file with another digest is never overwritten:
    it may belong to another data set.

    Args:
        dataset: torchvision's `MNIST` or a subclass. It names the mirrors and their archives.
        root: The folder that contains `<class name>/raw`.
        split: The split to read.
        digests: SHA-256 of the images and of the labels, as computed by `sha256`.
        remedy: What the error says of a file with another digest, instead of replacing it.

    Returns:
        Images, uint8 `(N, 28, 28)`, and labels, int64 `(N,)`.

    Raises:
        OSError: A file is missing or damaged and cannot be downloaded, or cannot be read.
        ValueError: `root` is a file, or a file is intact but has another digest.
    """
    if root.exists() and not root.is_dir():
        raise ValueError(f"root is {root}: it is a file, give the folder with the data sets")
    raw, prefix = root / dataset.__name__ / "raw", _PREFIXES[split]
    if remedy is None:
        remedy = "move it away and run the command again"
        if not dataset.resources:  # a new file could not be downloaded
            remedy = f"replace it, or correct the digests given for {dataset.__name__}"
    files = (f"{prefix}-images-idx3-ubyte", (28, 28)), (f"{prefix}-labels-idx1-ubyte", ())
    images, labels = (
        _read_file(dataset, raw / name, digest, shape, remedy)
        for (name, shape), digest in zip(files, digests, strict=True)
    )
    return images, labels.astype(np.int64)


def _read_file(
    dataset: type[Any], unpacked: Path, digest: str, shape: tuple[int, ...], remedy: str
) -> NDArray[np.uint8]:
    """Read uint8 `(N, *shape)` from `unpacked` or from the archive beside it."""
    archive, raw = unpacked.with_name(f"{unpacked.name}.gz"), unpacked.parent
    fault, unknown = f"{archive.name} is missing", None
    for path in (archive, unpacked):
        if not path.exists():
            continue
        content = path.read_bytes()
        try:
            array = _decode(content)
        except ValueError:
            fault = f"{path.name} is damaged"
            continue
        if _matches(array, digest, shape):
            return array
        unknown = path
    if unknown:
        raise ValueError(f"{unknown} is damaged or of another data set: {remedy}")
    try:
        return _download(dataset, archive, digest, shape)
    except OSError as error:
        raise OSError(
            f"{raw}: {fault}, and downloading it failed ({error}): put the files there, as .gz "
            "archives or unpacked, or set DIGITLAB_DATA or --data.root to the folder with the data"
        ) from error


def _decode(content: bytes) -> NDArray[Any]:
    """Decode an IDX file of any shape and type, compressed or not.

    Raises:
        ValueError: The file is damaged.
    """
    if content[:2] == b"\x1f\x8b":
        try:
            content = gzip.decompress(content)
        except (EOFError, OSError, zlib.error) as error:
            raise ValueError(f"the archive is damaged: {error}") from error
    try:
        zero, kind, dimensions = struct.unpack_from(">HBB", content)
        shape = struct.unpack_from(f">{dimensions}I", content, 4)
        # From a bytearray, because torch warns about arrays that cannot be written to.
        array = np.frombuffer(bytearray(content), _TYPES[kind], offset=4 + 4 * dimensions)
        array = array.reshape(shape)
    except (struct.error, KeyError, ValueError) as error:
        raise ValueError(f"the file is damaged: {error}") from error
    if zero:
        raise ValueError("the file is damaged: it does not begin with two zeros")
    return array


def _matches(array: NDArray[Any], digest: str, shape: tuple[int, ...]) -> bool:
    """Return whether an array is uint8 `(N, *shape)` of a digest."""
    fits = array.dtype == np.uint8 and array.ndim == 1 + len(shape) and array.shape[1:] == shape
    return fits and sha256(array) == digest


def _download(
    dataset: type[Any], archive: Path, digest: str, shape: tuple[int, ...]
) -> NDArray[np.uint8]:
    """Download an archive from the first mirror that has the right one.

    Raises:
        OSError: No mirror has it, or it cannot be written.
    """
    if archive.name not in dict(dataset.resources):
        raise OSError(f"{dataset.__name__} names no archive of it")
    fault: Exception | None = None
    for mirror in dataset.mirrors:
        request = Request(mirror + archive.name, headers={"User-Agent": "digitlab"})
        try:
            with urlopen(request, timeout=_TIMEOUT) as response:
                content: bytes = response.read()
            array = _decode(content)
            if not _matches(array, digest, shape):
                raise ValueError(f"{mirror} has another file of this name")
        except (HTTPException, OSError, ValueError) as error:
            if isinstance(error, HTTPError):
                error.close()  # it holds the connection
            fault = error
            continue
        archive.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(archive) as beside:
            beside.write_bytes(content)
        return array
    raise OSError(str(fault) or type(fault).__name__) from fault
