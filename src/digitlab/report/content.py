"""The contents of a run folder: settings, scores and history, and which files are missing."""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from PIL import Image

from digitlab import run_folder

LARGEST = 2**23
"""Pixels of a picture that is shown; a damaged one may claim billions."""


class RunContent(NamedTuple):
    """The settings and results of a run, read from its folder."""

    folder: Path
    config: dict[str, Any]
    settings: str  # the text of config.yaml
    metrics: dict[str, Any]  # empty before there is a metrics.json
    history: pd.DataFrame  # a line for each epoch; empty before there is a history.csv
    missing: tuple[str, ...]  # a sentence for each missing or damaged file

    @property
    def samples(self) -> Image.Image | None:
        """The picture of training images; None if there is none that can be read."""
        path = self.folder / "samples.png"
        with suppress(OSError, SyntaxError, ValueError), Image.open(path, formats=["PNG"]) as found:
            if found.width * found.height < LARGEST:
                return found.convert("RGB")
        return None

    @property
    def name(self) -> str:
        """The last two parts of the folder's path, such as `mnist-lenet5/version_0`."""
        return run_folder.short_name(self.folder)

    @property
    def framework(self) -> run_folder.Framework:
        """The framework of the training, also before the run has ended."""
        # In version 0.1, only the options of Keras runs had an output, and none named a framework.
        old = "keras" if "output" in self.config else "torch"
        named = self.metrics.get("framework", self.config.get("framework", old))
        return "keras" if named == "keras" else "torch"


def read_run(folder: Path) -> RunContent:
    """Read a run folder, even if the run has not ended or files are damaged.

    Raises:
        ValueError, OSError: config.yaml cannot be read, or lacks a setting that every run has.
    """
    config = run_folder.read_config(folder, run_folder.NEEDED)
    settings = (folder / "config.yaml").read_text("utf-8")
    missing: list[str] = []
    absent = "the run has not ended, so no figures are final"
    metrics = _read(run_folder.read_metrics, folder / "metrics.json", {}, absent, missing)
    absent, nothing = "no epoch was finished in this folder", pd.DataFrame()
    history = _read(run_folder.read_history, folder / "history.csv", nothing, absent, missing)
    return RunContent(folder, config, settings, metrics, history, tuple(missing))


def _read(
    read: Callable[[Path], Any], path: Path, otherwise: Any, absent: str, missing: list[str]
) -> Any:
    if not path.exists():
        missing.append(f"There is no {path.name}: {absent}")
        return otherwise
    try:
        return read(path.parent)
    except (ValueError, OSError) as error:
        missing.append(str(error))
        return otherwise
