"""The contents of a run folder: settings, scores and history, and which files are missing."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from digitlab import run_folder

CURVES = ("train_accuracy", "val_accuracy", "train_loss", "val_loss")
"""The columns of history.csv that are drawn."""


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
        ValueError, OSError: config.yaml cannot be read, or lacks a setting that every run has.
    """
    config = run_folder.read_config(folder, run_folder.NEEDED)
    settings = (folder / "config.yaml").read_text("utf-8")
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
        metrics: Any = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError("metrics.json is damaged: it is not valid JSON") from error
    if not isinstance(metrics, dict):
        raise ValueError("metrics.json is damaged: it is not a JSON object")
    return metrics


def _read_history(path: Path) -> pd.DataFrame:
    if not path.is_file():
        raise ValueError("There is no history.csv: no epoch was finished in this folder")
    try:
        history = pd.read_csv(path, usecols=["epoch", *CURVES]).astype(float)
    except ValueError as error:
        raise ValueError("history.csv is damaged: its columns or numbers are wrong") from error
    return history.replace([np.inf, -np.inf], np.nan)  # which cannot be drawn
