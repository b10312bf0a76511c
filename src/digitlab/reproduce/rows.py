"""The rows that can be reproduced: configs, with their published figures."""

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from digitlab import run_folder
from digitlab.cli.configs import LOCAL, ROW, Config, find_config, list_configs, shipped_folder
from digitlab.errors import InputError
from digitlab.run_folder import Framework

_TORCH_ONLY = {"dropout_in_evaluation", "label_smoothing"}
SPEED = {"steps_per_execution", "channels_last", "fused", "threads"}
"""Settings that change how fast a network is trained and, by rounding at most, results."""


class Row(NamedTuple):
    """A config, with the figure of its comment, `# B3: LeNet-5 …. Published: 99%.`."""

    name: str  # the documents' run, such as `B3`, or folder and file, such as `digits/lenet5`
    config: Path  # the YAML file
    published: str = ""  # the figure in the documents' words; empty if there is none

    @property
    def dataset(self) -> str:
        """The data set, after which the config's folder is named."""
        return self.config.parent.name

    @property
    def run_folder(self) -> str:
        """A name for the folders of its runs, which no other config has."""
        path = self.config.resolve()
        name = f"{path.parent.name}-{path.stem}"
        if any(folder.resolve() in path.parents for folder in (LOCAL, shipped_folder())):
            return name
        return f"{name}-{hashlib.sha256(os.fsencode(path)).hexdigest()[:6]}"

    @property
    def in_documents(self) -> bool:
        """Whether it is a run of the documents."""
        return bool(ROW.fullmatch(self.name))

    @property
    def published_accuracy(self) -> float | None:
        """The published accuracy in per cent, without words such as "almost"."""
        figures = re.findall(r"([\d.]+)%", self.published)
        return float(figures[-1]) if figures else None

    def _read_settings(self) -> dict[str, Any]:
        settings = run_folder.read_settings(self.config)
        if "model" not in settings:
            raise InputError(f"{self.config} names no model: it is damaged, or not a config")
        return settings

    @property
    def recipe(self) -> str:
        """A digest of the config's settings, except those of `SPEED`."""
        settings = _without_speed(self._read_settings())
        text = json.dumps(settings, sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    @property
    def frameworks(self) -> tuple[Framework, ...]:
        """Where it can be trained: some settings have no counterpart in Keras."""
        model = self._read_settings()["model"]
        arguments = model.get("init_args") if isinstance(model, dict) else None
        return ("torch",) if _TORCH_ONLY & {*(arguments or {})} else ("torch", "keras")

    @property
    def after(self) -> Path | None:
        """The config whose last weights it starts from, if any."""
        stem = self.config.stem
        first = stem.removesuffix("_continued")
        return self.config.with_stem(first) if first != stem else None


def _without_speed(settings: Any) -> Any:
    if not isinstance(settings, dict):
        return settings
    kept = {name: _without_speed(value) for name, value in settings.items() if name not in SPEED}
    if kept.keys() <= {"class_path", "init_args"} and not kept.get("init_args"):
        return kept.get("class_path", {})  # as if only the class was named
    return kept


def read_rows() -> dict[str, Row]:
    """Read the rows of all known configs: the documents' in their order, then the others."""
    rows = [_read_row(config) for config in list_configs().values() if "/" in config.name]
    return {row.name: row for row in sorted(rows, key=_order)}


def choose(names: Sequence[str], rows: Mapping[str, Row]) -> list[Row]:
    """Choose rows by what `--config` takes, each once; without a name, the documents' rows.

    Raises:
        InputError: There is no such config, or two of one name, whose results would be mixed.
    """
    if not names:
        return [row for row in rows.values() if row.in_documents]
    chosen: dict[str, Row] = {}
    for row in map(find_row, names):
        if chosen.setdefault(row.name, row) != row:
            raise InputError(
                f"{chosen[row.name].config} and {row.config} would both be {row.name} in the "
                "results: rename a file or its folder"
            )
    return [*chosen.values()]


def find_row(given: str) -> Row:
    """Find a row by what `--config` takes: a path, the name of a config or a document's run.

    Raises:
        InputError: There is none.
    """
    found = find_config(given)
    if not found.name:  # it may be the path of a known config
        with suppress(OSError):  # which was removed meanwhile
            known = (it for it in list_configs().values() if it.path.samefile(found.path))
            found = next(known, found)
    return _read_row(found)


def _read_row(config: Config) -> Row:
    published = config.comment.partition("Published: ")[2].partition(". ")[0].rstrip(".")
    if not config.row and ROW.fullmatch(config.comment.partition(":")[0]):
        published = ""  # of the config that this one is a copy of
    path = config.path
    if path.parent.name in ("", ".."):
        path = Path(os.path.abspath(path))  # whose folder has a name
    return Row(config.row or f"{path.parent.name}/{path.stem}", path, published)


def _order(row: Row) -> tuple[str, int, str]:
    if not (found := ROW.fullmatch(row.name)):
        return "other", 0, row.name
    return found[1] or "", int(found[2] or 0), row.name
