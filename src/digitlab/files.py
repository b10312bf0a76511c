"""Paths and files: paths are expanded, and files are written atomically.

A crash or a full disk leaves the old file or the new one.
"""

import csv
import errno
import io
import os
import platform
import re
import shutil
import sys
from argparse import Namespace
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from zlib import crc32

import yaml

_VARIABLE = re.compile(r"\$(?:([A-Za-z_]\w*)|\{([A-Za-z_]\w*)\})", re.ASCII)
_PATH_SETTING = re.compile(
    r"(\w+_)?(root|dir|dirpath|path|folder|file|weights|checkpoint|runs?|json|csv|prepared|out"
    r"|against|pages)"
)


def expand_path(path: str | Path) -> Path:
    """Expand `~` and variables as a shell does, but leave a path with a `$` that exists."""

    def value(found: re.Match[str]) -> str:
        name = found[1] or found[2]
        if not os.environ.get(name):
            raise ValueError(f"{path} names the variable {name}, which is not set: set it first")
        return os.environ[name]

    text = os.path.expanduser(path)
    if "$" in text and not os.path.lexists(text):
        text = os.path.expanduser(_VARIABLE.sub(value, text))
    return Path(text)


def expand_settings(settings: Any, name: str = "") -> Any:
    """Expand the paths in parsed settings, in place: values of settings named like a path."""
    if isinstance(settings, Namespace):
        expand_settings(vars(settings))
    elif isinstance(settings, dict):
        settings |= {key: expand_settings(value, key) for key, value in settings.items()}
    elif isinstance(settings, list):
        settings[:] = [expand_settings(value, name) for value in settings]
    elif isinstance(settings, Path):
        return expand_path(settings)
    elif isinstance(settings, str) and name != "class_path" and _PATH_SETTING.fullmatch(name):
        expanded = expand_path(settings)
        return settings if Path(settings) == expanded else str(expanded)
    return settings


_HERE = f"{crc32(platform.node().encode()):08x}"  # process numbers are those of one machine
_PARTIAL = re.compile(r"\.(\d+)(?:@([0-9a-f]{8}))?\.")
_SUFFIXES = (".ckpt", ".csv", ".h5", ".html", ".json", ".keras", ".png", ".yaml")


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a path of the same suffix to write to; it is renamed to `path` at the end.

    A crash, of the machine too, or a full disk leaves the old file or the new one, never a part; an
    `OSError` names `path`. Partial files of killed processes beside it are removed. A folder is
    written in the same way, if there is none before.
    """
    _remove_partial(_hidden(path.parent))
    # Not the whole name, which may have as many characters as a name can.
    beside = path.with_name(f".{os.getpid()}@{_HERE}.{path.name[-40:]}")
    try:
        with naming(path, beside):
            yield beside
            if beside.is_file():
                _fsync(beside)  # or a crash of the machine may leave the new name, but no content
            os.replace(beside, path)
            _fsync(path.parent)
    finally:
        _remove(beside)


@contextmanager
def naming(path: Path, *instead_of: Path) -> Iterator[None]:
    """Let an error of the operating system name a path, if it names none or one of `instead_of`."""
    try:
        yield
    except OSError as error:
        is_named = error.filename not in (None, *map(str, instead_of), *instead_of)
        if is_named or error.errno is None:  # a library's own, of the network, say
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def remove_partial_files(folder: Path) -> None:
    """Remove from a run folder what killed processes had begun to write, at any version."""
    _remove_partial([*_hidden(folder), *_hidden(folder / "checkpoints")], _SUFFIXES)


def _hidden(folder: Path) -> list[Path]:
    with suppress(OSError):  # it cannot be read, or there is none
        return [path for path in folder.iterdir() if path.name.startswith(".")]
    return []


def _remove_partial(paths: Iterable[Path], old: Iterable[str] = ()) -> None:
    """Remove what processes of this machine that have ended had begun to write.

    Version 0.1 named no machine: of its files, those with suffixes in `old` are removed.
    """
    for path in paths:
        if not (found := _PARTIAL.match(path.name)) or _is_alive(int(found[1])):
            continue
        if found[2] == _HERE or (not found[2] and path.suffix in old):
            _remove(path)


def _remove(path: Path) -> None:
    with suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _is_alive(process: int) -> bool:
    if sys.platform == "win32":
        return True  # signal 0 would be a Ctrl-C there
    try:
        os.kill(process, 0)  # sends nothing, but checks that it could
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass  # another user's, or not a process number
    return True


_UNSUPPORTED = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOTTY}
_LOST = {errno.EIO, errno.ENOSPC, errno.EDQUOT}


def _fsync(path: Path) -> None:
    """Flush a file, or the names in a folder, to the disk, if the file system knows how."""
    is_folder = path.is_dir()
    try:
        descriptor = os.open(path, os.O_RDWR if sys.platform == "win32" else os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        # Windows opens no folder. SMB and some of FUSE's file systems flush none.
        if error.errno in _LOST or not (is_folder or error.errno in _UNSUPPORTED):
            raise


class _UniqueKeys(yaml.SafeLoader):  # type: ignore[misc]  # PyYAML has no types
    def compose_mapping_node(self, anchor: Any) -> Any:
        node = super().compose_mapping_node(anchor)
        lines: dict[str, int] = {}
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            line = key.start_mark.line + 1
            if first := lines.get(key.value):
                raise ValueError(
                    f"{key.value} is given twice, in lines {first} and {line}: keep one"
                )
            lines[key.value] = line
        return node


def load_yaml(text: str) -> Any:
    """Read YAML, but refuse a key that is given twice; errors begin with "not valid YAML"."""
    try:
        settings = yaml.load(text, _UniqueKeys)
        if not _is_finite(settings):  # jsonargparse would never finish
            raise ValueError("it has more than 10,000 values: does an alias contain itself?")
        return settings
    except RecursionError as error:
        raise ValueError("not valid YAML: it is nested too deeply") from error
    # PyYAML's own conversions fail in many ways, such as that of `!!int` without a number.
    except Exception as error:
        raise ValueError(f"not valid YAML: {error}") from error


def _is_finite(settings: Any) -> bool:
    left = [settings]
    for _ in range(10_000):
        if not left:
            return True
        value = left.pop()
        left += value.values() if isinstance(value, dict) else value if type(value) is list else ()
    return False


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
    writer.writerows({name: csv_cell(value) for name, value in row.items()} for row in rows)
    write_text(path, text.getvalue())


_FORMULA = re.compile(r"'*[=+\-@\t\r\n]")


def csv_cell(value: Any) -> Any:
    """Put an apostrophe before text that a spreadsheet would compute as a formula.

    >>> csv_cell("=1+1"), csv_cell(-1), csv_cell("-1")
    ("'=1+1", -1, '-1')
    """
    if not isinstance(value, str) or not _FORMULA.match(value):
        return value
    try:
        float(value)
    except ValueError:
        return f"'{value}"
    return value


def from_csv_cell(text: str) -> str:
    """Return the text that `csv_cell` was given."""
    return text[1:] if text.startswith("'") and _FORMULA.match(text) else text
