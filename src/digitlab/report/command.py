"""The command line of `digitlab report`."""

import csv
import json
import math
import re
from argparse import ArgumentError
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser, Namespace

from digitlab import files, run_folder
from digitlab.callbacks.logging import HistoryRow
from digitlab.cli import COMMANDS
from digitlab.cli.messages import explain
from digitlab.report.page import render
from digitlab.report.predictions import predict

CURVES = ("train_accuracy", "val_accuracy", "train_loss", "val_loss")
"""The columns of history.csv that are drawn."""

NEEDED = (
    *("model.class_path", "data.class_path", "data.init_args"),
    *("trainer.accelerator", "trainer.precision", "seed_everything"),
)
"""The settings without which a run's network and data cannot be made."""


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


def prepare(command: str, options: list[str]) -> Callable[[], None]:
    """Check all input of a report, and return the writing that is then left to do.

    Raises:
        ValueError, OSError: The input is bad.
    """
    given = _read_options(command, options)
    folders = {folder.resolve(): folder for folder in map(run_folder.find_run, given.runs)}
    found = [read_run(folder) for folder in folders.values()]
    beside = found[0].folder if len(found) == 1 else Path()
    out = given.out or beside / "report.html"
    if out.suffix not in (".html", ".htm"):
        raise ValueError(f"out is {out}: give a file that ends in .html")
    if not out.absolute().parent.is_dir():
        raise ValueError(f"there is no folder {out.parent}: make it first")
    if out.is_dir():
        raise ValueError(f"out is {out}, which is a folder: give a file")
    return partial(_write, command, found, out)


def _read_options(command: str, words: list[str]) -> Namespace:
    parser = ArgumentParser(
        prog=f"digitlab {command}", description=COMMANDS[command], exit_on_error=False
    )
    of_runs = "Run folders, of either framework, or latest, the run that was started last."
    parser.add_argument("runs", nargs="*", default=[], metavar="RUN_DIR", help=of_runs)
    of_out = (
        "The page, FILE.html, which takes the place of an older one. Default: report.html in the "
        "run folder, or for several runs in the current folder."
    )
    parser.add_argument("--out", type=Path | None, default=None, help=of_out)
    try:
        given = parser.parse_args(words)
    except ArgumentError as error:
        if found := re.search(r"[Uu]nrecognized arguments: ([^-\s]\S*)", str(error)):
            raise ValueError(f"{found[1]} stands behind an option: name the runs first") from error
        raise ValueError(explain(str(error), ["out", "help"])) from error
    if not given.runs:
        raise ValueError("report is of runs: name run folders, or latest")
    return given


def _write(command: str, found: list[Run], out: Path) -> None:
    page = render([(run, predict(command, run)) for run in found])
    files.write_text(out, page)
    print(f"Written to {out}")
