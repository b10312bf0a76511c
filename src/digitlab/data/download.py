"""Files of data sets in MNIST's format, IDX: downloaded if missing, and verified at every read."""

import gzip
import hashlib
import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from http.client import HTTPException
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Any, Literal
from urllib.error import HTTPError
from urllib.request import Request, urlopen
from zipfile import BadZipFile, ZipFile

import numpy as np
from numpy.typing import NDArray

from digitlab.files import atomic_write

Arrays = tuple[NDArray[np.uint8], NDArray[np.int64]]
"""Images, uint8 `(N, S, S)`, and labels, int64 `(N,)`."""
Split = Literal["train", "test"]
Verified = Literal["SHA-256 verified", "archive verified", "not verified"]
"""How files were compared with published digests, the surest first: by the SHA-256 of their
values, by the MD5 of their archive, or not at all."""

_TYPES = {8: ">u1", 9: ">i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}  # by the IDX header
_MD5 = partial(hashlib.md5, usedforsecurity=False)
_TIMEOUT = 60  # seconds without a byte, after which a mirror is given up
_LARGE = 2**26  # bytes; larger downloads are announced, as they take minutes


def sha256(array: NDArray[Any]) -> str:
    """Compute the SHA-256 digest of an array's values as bytes, in hexadecimal.

    Examples:
        >>> sha256(np.array([7, 2, 1], np.uint8))[:16]
        'd0192c1be3755623'
    """
    return hashlib.sha256(np.ascontiguousarray(array, dtype=np.uint8).data).hexdigest()


@dataclass(frozen=True)
class IDXFile:
    """A file with the images or labels of a split, and where its archive is found."""

    name: str  # of the unpacked file
    urls: Sequence[str] = ()  # of its archive, mirrors of one another
    md5: str = ""  # of the archive, if it is known
    member: str = ""  # the file in the archive, if that is a zip file
    convert: Callable[[NDArray[Any]], NDArray[Any]] = np.asarray  # makes (N, 28, 28) or (N,)

    @property
    def archive(self) -> str:
        """Name of the archive beside the unpacked file."""
        return PurePosixPath(self.urls[0]).name if self.urls else f"{self.name}.gz"

    def match(self, array: NDArray[Any], digest: str | None) -> NDArray[np.uint8] | None:
        """Convert the array of a file, if it has the shape and, if one is given, the digest."""
        shape = (28, 28) if "images" in self.name else ()
        try:
            array = self.convert(array)
        except (IndexError, ValueError):  # it has fewer dimensions
            return None
        fits = array.dtype == np.uint8 and array.shape[1:] == shape and array.ndim
        return array if fits and digest in (None, sha256(array)) else None


def read_file(
    file: IDXFile, folder: Path, digest: str | None, names: Sequence[str], remedy: str
) -> tuple[NDArray[np.uint8], Verified]:
    """Read a file from its archive, or unpacked if there is no intact one; download it if needed.

    Downloads are verified first and then written atomically, so processes that share `folder` need
    no lock, and a failed download leaves nothing behind. An intact file with another SHA-256
    `digest` is never overwritten: it may belong to another data set. Without a digest the MD5 of an
    archive is compared, and an unpacked file is not verified. The archives' `names` and `remedy`
    are for messages.
    """
    fault, unknown = f"{file.archive} is missing", None
    for name in dict.fromkeys((file.archive, f"{file.name}.gz", file.name)):
        if not (path := folder / name).exists():
            continue
        try:
            content = _member(path, file.member) if path.suffix == ".zip" else path.read_bytes()
            array = file.match(_decode(content), digest)
        except ValueError:
            fault = f"{name} is damaged"
            continue
        if array is None:
            unknown = path
        elif digest:
            return array, "SHA-256 verified"
        else:
            is_archive = name == file.archive and file.md5 == _md5(path, path.stat().st_mtime_ns)
            return array, "archive verified" if is_archive else "not verified"
    if unknown:
        raise ValueError(f"{unknown} is damaged or of another data set: {remedy}")
    try:
        array = _download(file, folder, digest)
    except OSError as error:
        sources = f" from {' or '.join(file.urls)}" if file.urls else ""
        place = "/".join(folder.parts[-2:])
        raise OSError(
            f"{folder}: {fault}, and downloading it{sources} failed ({error}): put "
            f"{', '.join(names)} there, packed or unpacked, or set DIGITLAB_DATA or --data.root to "
            f"the folder that has {place} (the data of --config digits/lenet5 needs no download)"
        ) from error
    return array, "SHA-256 verified" if digest else "archive verified"


@cache
def _md5(path: Path, modified: int) -> str:
    """Compute the MD5 digest of a file, once until it is modified."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, _MD5).hexdigest()


def _member(file: Path | BytesIO, name: str) -> bytes:
    """Read a file of a zip file, or raise a `ValueError` if that is damaged or lacks it."""
    try:
        with ZipFile(file) as archive:
            return archive.read(name)
    except (BadZipFile, KeyError, EOFError, zlib.error, RuntimeError) as error:
        raise ValueError(f"the archive is damaged: {error}") from error


def _decode(content: bytes) -> NDArray[Any]:
    """Decode an IDX file of any shape and type, compressed or not."""
    try:
        if content[:2] == b"\x1f\x8b":
            content = gzip.decompress(content)
        zero, kind, dimensions = struct.unpack_from(">HBB", content)
        if zero:
            raise ValueError("it does not begin with two zeros")
        shape = struct.unpack_from(f">{dimensions}I", content, 4)
        # From a bytearray, because torch warns about arrays that cannot be written to.
        array = np.frombuffer(bytearray(content), _TYPES[kind], offset=4 + 4 * dimensions)
        return array.reshape(shape)
    except (EOFError, OSError, zlib.error, struct.error, KeyError, ValueError) as error:
        raise ValueError(f"the file is damaged: {error}") from error


def _download(file: IDXFile, folder: Path, digest: str | None) -> NDArray[np.uint8]:
    """Download an archive from the first mirror that has the right one."""
    fault: Exception | str = "no address of it is known"
    for url in file.urls:
        request = Request(url, headers={"User-Agent": "digitlab"})
        try:
            with urlopen(request, timeout=_TIMEOUT) as response:
                if (size := int(response.headers.get("Content-Length") or 0)) > _LARGE:
                    print(f"Downloading {url}, {size / 1e6:.0f} MB", flush=True)
                content: bytes = response.read()
            if not digest and _MD5(content).hexdigest() != file.md5:
                raise ValueError(f"{url} is another file, by its MD5 digest")
            inner = _member(BytesIO(content), file.member) if file.member else content
            if (array := file.match(_decode(inner), digest)) is None:
                raise ValueError(f"{url} is another file")
        except (HTTPException, OSError, ValueError) as error:
            if isinstance(error, HTTPError):
                error.close()  # it holds the connection
            fault = str(error) or type(error).__name__
            continue
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_write(folder / file.archive) as beside:
            beside.write_bytes(content)
        return array
    raise OSError(fault)
