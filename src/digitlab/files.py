"""Files that are written atomically: a crash or a full disk leaves the old file or the new one."""

import csv
import io
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a path of the same suffix to write to; the file is renamed to `path` at the end.

    A crash, of the machine too, or a full disk leaves the old file or the new one, never a part.
    """
    beside = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        yield beside
        _fsync(beside)  # or a crash of the machine may leave the new name with an empty file
        os.replace(beside, path)
        _fsync(path.parent)
    finally:
        beside.unlink(missing_ok=True)


def remove_partial_files(folder: Path) -> None:
    """Remove the files below a folder that `atomic_write` left when its process was killed."""
    for path in folder.rglob(".*"):
        if (writer := re.match(r"\.(\d+)\.", path.name)) and not _is_alive(int(writer[1])):
            path.unlink(missing_ok=True)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)  # sends nothing, but checks that it could
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # another user's
    return True


def _fsync(path: Path) -> None:
    """Flush a file, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically, as UTF-8."""
    with atomic_write(path) as beside:
        beside.write_text(text, encoding="utf-8")


def write_figure(path: Path, figure: Any) -> None:
    """Write a matplotlib figure atomically."""
    with atomic_write(path) as beside:
        figure.savefig(beside)


def write_image(path: Path, picture: Any) -> None:
    """Write a Pillow image atomically."""
    with atomic_write(path) as beside:
        picture.save(beside)


def write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write a CSV file atomically; the columns are those of the first row."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())
