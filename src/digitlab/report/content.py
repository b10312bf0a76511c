"""What a run folder holds, and what of it is missing."""

import csv
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from digitlab import run_folder
from digitlab.callbacks.logging import HistoryRow

CURVES = ("train_accuracy", "val_accuracy", "train_loss", "val_loss")

NEEDED = (
    *("model.class_path", "data.class_path", "data.init_args"),
    *("trainer.accelerator", "trainer.precision", "seed_everything"),
)


@dataclass(frozen=True)
class Run:
    """A run as its folder tells of it.

    Args:
        folder: The run folder.
        config: All settings.
        settings: The text of config.yaml.
        metrics: Of metrics.json; empty before there is one.
        history: Of history.csv, a row an epoch; empty before there is one.
        missing: Sentences on what is not there, and why.
    """

    folder: Path
    config: dict[str, Any]
    settings: str
    metrics: dict[str, Any]
    history: list[HistoryRow]
    missing: tuple[str, ...]

    @property
    def name(self) -> str:
        """The last two parts of the folder's path, such as `mnist-lenet5/version_0`."""
        return "/".join(self.folder.resolve().parts[-2:])

    @property
    def framework(self) -> run_folder.Framework:
        """What the run was trained with, also where it has not ended yet."""
        # Only the options of `keras fit` have an output.
        guess = "keras" if "output" in self.config else "torch"
        return "keras" if self.metrics.get("framework", guess) == "keras" else "torch"


def read_run(folder: Path) -> Run:
    """Read what is in a run folder; of a run that has not ended, or was damaged, what there is.

    Raises:
        ValueError, OSError: config.yaml cannot be read, or lacks what every run has.
    """
    settings = _text(folder / "config.yaml")
    try:
        config = yaml.safe_load(settings)
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"{folder / 'config.yaml'} is damaged: it is no valid YAML") from error
    for name in NEEDED:
        if not _has(config, *name.split(".")):
            raise ValueError(
                f"{folder / 'config.yaml'} is of no run, as it lacks {name}: give the folder that "
                "digitlab fit named at its end"
            )
    missing = []
    metrics: dict[str, Any] = {}
    history: list[HistoryRow] = []
    try:
        metrics = _read_metrics(folder)
    except ValueError as error:
        missing.append(str(error))
    try:
        history = _read_history(folder / "history.csv")
    except ValueError as error:
        missing.append(str(error))
    return Run(folder, config, settings, metrics, history, tuple(missing))


def _has(settings: Any, *names: str) -> bool:
    for name in names:
        if not isinstance(settings, dict) or name not in settings:
            return False
        settings = settings[name]
    return True


def _read_metrics(folder: Path) -> dict[str, Any]:
    path = folder / "metrics.json"
    if not path.is_file():
        raise ValueError("There is no metrics.json: the run has not ended, so no figures are final")
    try:
        metrics: Any = json.loads(_text(path))
    except (ValueError, RecursionError) as error:
        raise ValueError("metrics.json is damaged: it is no valid JSON") from error
    if not isinstance(metrics, dict):
        raise ValueError("metrics.json is damaged: it holds no entries by name")
    return metrics


def _read_history(path: Path) -> list[HistoryRow]:
    if not path.is_file():
        raise ValueError("There is no history.csv: no epoch was finished in this folder")
    try:
        lines = [*csv.DictReader(_text(path).splitlines())]
        rows = [{name: _number(line[name]) for name in ("epoch", *CURVES)} for line in lines]
    except (KeyError, TypeError, ValueError, csv.Error) as error:
        raise ValueError(
            "history.csv is damaged: its columns or numbers are not a run's"
        ) from error
    return [row for row in rows if row["epoch"] is not None]


def _number(text: str) -> float | None:
    """Read a number; None where there is none, or none that could be drawn."""
    number = float(text) if text else math.nan
    return number if math.isfinite(number) else None


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is damaged: it is no UTF-8 text") from error
