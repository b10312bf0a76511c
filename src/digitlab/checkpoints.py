"""Checkpoint files: written whole or not at all, and read only if they are whole."""

import io
import pickle
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile, is_zipfile

import torch
from lightning.fabric.plugins import TorchCheckpointIO

from digitlab import runs


def read(path: Path) -> Any:
    """Read what `torch.save` wrote, tensors on the CPU, running no code that is in it.

    Raises:
        ValueError: There is no such file, a byte of it was changed, or it holds more than tensors
            and plain values.
        OSError: It cannot be read.
    """
    if not path.is_file():
        raise ValueError(
            f"there is no checkpoint {path}: train the run that it belongs to, or name another"
        )
    content = io.BytesIO(path.read_bytes())  # so that later errors are not of the disk
    try:
        _check_sums(content)
        return torch.load(content, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # a damaged byte can lead the unpickler anywhere
        raise ValueError(
            f"{path} is damaged or no checkpoint of plain tensors: give one that loads with "
            "torch.load(..., weights_only=True)"
        ) from error


def _check_sums(content: io.BytesIO) -> None:
    """Compare the check sums in an archive, which `torch.load` does not do for all of it."""
    if is_zipfile(content):  # and not one of torch before 1.6
        with ZipFile(content) as archive:
            if damaged := archive.testzip():
                raise BadZipFile(f"{damaged} is damaged")
    content.seek(0)


class WholeCheckpoints(TorchCheckpointIO):
    """Writes a trainer's checkpoints beside their target, and lets them take its place when whole.

    Lightning's own are not written through to the disk, and where the folder for temporary files
    is on another file system, a crash may leave an empty file.
    """

    def __init__(self) -> None:
        super().__init__()
        self._is_readable = False  # as is known once one was read back

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None
    ) -> None:
        """Write a checkpoint.

        Raises:
            OSError: The disk is full, say; then the old file is as it was.
            ValueError: A callback's state, say, is more than tensors and plain values, so that it
                could not be read again.
        """
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        content = io.BytesIO()  # torch's own writer says of a full disk no more than "error"
        torch.save(checkpoint, content)
        if not self._is_readable:
            content.seek(0)
            try:
                torch.load(content, map_location="cpu", weights_only=True)
            except pickle.UnpicklingError as error:
                raise ValueError(
                    f"{path} would hold more than tensors and plain values, and could not be read "
                    f"again: {str(error).splitlines()[0]}"
                ) from error
            self._is_readable = True
        with runs.whole(path) as beside:
            beside.write_bytes(content.getbuffer())

    def load_checkpoint(
        self, path: Any, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint of tensors and plain values, as `read` does."""
        checkpoint: dict[str, Any] = read(Path(path))
        return checkpoint
