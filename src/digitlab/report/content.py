"""What a run folder holds, and what of it is missing."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import yaml

from digitlab import run_folder
from digitlab.errors import InputError

CURVES = ("train_accuracy", "val_accuracy", "train_loss", "val_loss")
"""The columns of history.csv that are drawn."""

NEEDED = (
    *("model.class_path", "data.class_path", "data.init_args"),
    *("trainer.accelerator", "trainer.precision", "seed_everything"),
)
"""The settings without which a run's network and data cannot be made."""


class Run(NamedTuple):
    """The settings and results of a run, read from its folder."""

    folder: Path
    config: dict[str, Any]
    settings: str  # the text of config.yaml
    metrics: dict[str, Any]  # empty before there is a metrics.json
    history: pd.DataFrame  # a line for each epoch; empty before there is a history.csv
    missing: tuple[str, ...]  # a sentence for each missing or damaged file

    @property
    def name(self) -> str:
        """The last two parts of the folder's path, such as `mnist-lenet5/version_0`."""
        return "/".join(self.folder.resolve().parts[-2:])

    @property
    def framework(self) -> run_folder.Framework:
        """The framework of the training, also before the run has ended."""
        # In version 0.1, only the options of Keras runs had an output, and none named a framework.
        old = "keras" if "output" in self.config else "torch"
        named = self.metrics.get("framework", self.config.get("framework", old))
        return "keras" if named == "keras" else "torch"


def read_run(folder: Path) -> Run:
    """Read a run folder, even if the run has not ended or files are damaged.

    Raises:
        ValueError, OSError: config.yaml cannot be read, or lacks what every run has.
    """
    path = folder / "config.yaml"
    settings = _text(path)
    try:
        config = yaml.safe_load(settings)
    except (yaml.YAMLError, RecursionError) as error:
        raise InputError(f"{path} is damaged: it is no valid YAML") from error
    for name in NEEDED:
        value = config
        for key in name.split("."):
            if not isinstance(value, dict) or key not in value:
                raise InputError(
                    f"{path} is of no run, as it lacks {name}: give the folder that digitlab fit "
                    "named at its end"
                )
            value = value[key]
    missing: list[str] = []
    metrics = _read(_read_metrics, folder / "metrics.json", {}, missing)
    history = _read(_read_history, folder / "history.csv", pd.DataFrame(), missing)
    return Run(folder, config, settings, metrics, history, tuple(missing))


def _read(read: Callable[[Path], Any], path: Path, otherwise: Any, missing: list[str]) -> Any:
    try:
        return read(path)
    except ValueError as error:
        missing.append(str(error))
        return otherwise


def _read_metrics(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError("There is no metrics.json: the run has not ended, so no figures are final")
    try:
        metrics: Any = json.loads(_text(path))
    except (ValueError, RecursionError) as error:
        raise ValueError("metrics.json is damaged: it is no valid JSON") from error
    if not isinstance(metrics, dict):
        raise ValueError("metrics.json is damaged: it holds no entries by name")
    return metrics


def _read_history(path: Path) -> pd.DataFrame:
    if not path.is_file():
        raise ValueError("There is no history.csv: no epoch was finished in this folder")
    try:
        history = pd.read_csv(path, usecols=["epoch", *CURVES]).astype(float)
    except ValueError as error:
        raise ValueError("history.csv is damaged: its columns or numbers are wrong") from error
    return history.replace([np.inf, -np.inf], np.nan)  # which cannot be drawn


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is damaged: it is no UTF-8 text") from error
