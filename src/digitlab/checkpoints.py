"""Checkpoint files: written whole or not at all, and read only if they are whole."""

import io
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
    """
    if not path.is_file():
        raise ValueError(
            f"there is no checkpoint {path}: train the run that it belongs to, or name another"
        )
    try:
        _check_sums(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged byte can lead the unpickler anywhere
        raise ValueError(
            f"{path} is damaged or no checkpoint of plain tensors: give one that loads with "
            "torch.load(..., weights_only=True)"
        ) from error


def _check_sums(path: Path) -> None:
    """Compare the check sums in an archive, which `torch.load` does not do for all of it."""
    if is_zipfile(path):  # and not one of torch before 1.6
        with ZipFile(path) as archive:
            if damaged := archive.testzip():
                raise BadZipFile(f"{damaged} is damaged")


class WholeCheckpoints(TorchCheckpointIO):
    """Writes a trainer's checkpoints beside their target, and lets them take its place when whole.

    Lightning's own are not written through to the disk, and where the folder for temporary files
    is on another file system, a crash may leave an empty file.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None
    ) -> None:
        """Write a checkpoint.

        Raises:
            OSError: The disk is full, say; then the old file is as it was.
        """
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        content = io.BytesIO()  # torch's own writer says of a full disk no more than "error"
        torch.save(checkpoint, content)
        with runs.whole(path) as beside:
            beside.write_bytes(content.getbuffer())

    def load_checkpoint(
        self, path: Any, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint of tensors and plain values, as `read` does."""
        checkpoint: dict[str, Any] = read(Path(path))
        return checkpoint
