"""The rows that can be reproduced: every shipped config, with its published figure."""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple

from digitlab import run_folder
from digitlab.errors import InputError
from digitlab.run_folder import Framework

CONFIGS = Path("configs")
_TORCH_ONLY = {"dropout_in_evaluation", "label_smoothing"}
SPEED = {"steps_per_execution", "channels_last", "fused", "threads"}
"""Settings that change how fast a network is trained and, by rounding at most, results."""
_DOCUMENTS = re.compile(r"linear|([AB])(\d+)(_as_published)?")


class Row(NamedTuple):
    """A config, as its opening comment introduces it: `# B3: LeNet-5 …. Published: 99%.`."""

    name: str  # the documents' run, such as `B3`, or the config's name, such as `digits/lenet5`
    config: Path  # the YAML file
    published: str = ""  # the figure in the documents' words; empty if there is none

    @property
    def dataset(self) -> str:
        """The data set, after which the config's folder is named."""
        return self.config.parent.name

    @property
    def in_documents(self) -> bool:
        """Whether it is a run of the documents."""
        return bool(_DOCUMENTS.fullmatch(self.name))

    @property
    def experiment(self) -> str:
        """The rows shown together: `B1` for B1 and B1_as_published, `digits` for all digits."""
        if self.in_documents:
            return self.name.removesuffix("_as_published")
        return self.dataset if self.dataset == "digits" else self.config.stem

    @property
    def published_accuracy(self) -> float | None:
        """The published accuracy in per cent, without words such as "almost"."""
        figures = re.findall(r"([\d.]+)%", self.published)
        return float(figures[-1]) if figures else None

    def read_settings(self) -> dict[str, Any]:
        """Read the config's settings.

        Raises:
            ValueError: The config is damaged, or has no model.
        """
        settings = run_folder.read_settings(self.config)
        if "model" not in settings:
            raise InputError(f"{self.config} names no model: it is damaged, or not a config")
        return settings

    @property
    def recipe(self) -> str:
        """A digest of the config's settings, except those of `SPEED`."""
        settings = _without_speed(self.read_settings())
        return hashlib.sha256(
            json.dumps(settings, sort_keys=True, default=str).encode()
        ).hexdigest()[:12]

    @property
    def frameworks(self) -> tuple[Framework, ...]:
        """Where it can be trained: some settings have no counterpart in Keras."""
        model = self.read_settings()["model"]
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


def read_rows(folder: Path = CONFIGS) -> dict[str, Row]:
    """Read the rows of a folder of configs: the documents' in their order, then the others.

    Raises:
        ValueError: There are no configs, or two of the same name.
    """
    rows = [_read_row(path) for path in sorted(folder.glob("*/*.yaml"))]
    if not rows:
        raise ValueError(
            f"there are no configs in {folder}: run the command in a clone of digitlab"
        )
    for name, count in Counter(row.name for row in rows).items():
        if count > 1:
            raise ValueError(f"{count} configs open with `# {name}:`: only one may")
    return {row.name: row for row in sorted(rows, key=_order)}


def choose(names: Sequence[str], rows: dict[str, Row]) -> list[Row]:
    """Choose rows by their names, case aside; without a name, the documents' rows.

    Raises:
        ValueError: There is no row of that name.
    """
    if not names:
        return [row for row in rows.values() if row.in_documents]
    folded = {name.lower(): row for name, row in rows.items()}
    for name in names:
        if name.lower() not in folded:
            nearest = get_close_matches(name.lower(), folded, n=1)
            hint = f"did you mean {folded[nearest[0]].name}?" if nearest else ", ".join(rows)
            raise ValueError(f"there is no row {name}: {hint}")
    return list({name.lower(): folded[name.lower()] for name in names}.values())


def by_experiment(rows: Mapping[str, Row]) -> dict[str, dict[str, Row]]:
    """Collect the rows of each experiment, in the rows' order."""
    experiments: dict[str, dict[str, Row]] = {}
    for name, row in rows.items():
        experiments.setdefault(row.experiment, {})[name] = row
    return experiments


def _read_row(config: Path) -> Row:
    lines = config.read_text("utf-8", errors="replace").splitlines()
    comment = " ".join(line[2:] for line in lines if line.startswith("# "))
    head = comment.partition(":")[0]
    published = comment.partition("Published: ")[2].partition(". ")[0].rstrip(".")
    name = head if _DOCUMENTS.fullmatch(head) else f"{config.parent.name}/{config.stem}"
    return Row(name, config, published)


def _order(row: Row) -> tuple[str, int, str]:
    found = _DOCUMENTS.fullmatch(row.name)
    if not found:
        return "other", 0, row.name
    return found[1] or "", int(found[2] or 0), row.name
