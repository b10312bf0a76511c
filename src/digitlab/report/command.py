"""The command line of `digitlab report`."""

import os
import re
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from digitlab import files, run_folder
from digitlab.cli.messages import parse_words, word_parser
from digitlab.errors import InputError, reading_input
from digitlab.report.content import classify, read_runs
from digitlab.report.page import render
from digitlab.terminal import printable


def run(name: str, help: str, options: list[str]) -> int:
    """Write a report of runs; return the exit code."""
    with reading_input():
        given = _parse(name, help, options)
        folders = {folder.resolve(): folder for word in given.runs for folder in find_runs(word)}
        runs = read_runs([*folders.values()])
        out = given.out or (runs[0].folder if len(runs) == 1 else Path()) / "report.html"
        if out.suffix not in (".html", ".htm"):
            raise InputError(f"out is {out}: give a file that ends in .html")
        if not out.absolute().parent.is_dir():
            raise InputError(f"there is no folder {out.parent}: make it first")
        if out.is_dir():
            raise InputError(f"out is {out}, which is a folder: give a file")
        if not os.access(out.absolute().parent, os.W_OK):
            raise InputError(f"{out.parent} may not be written: give --out FILE.html elsewhere")
    for run in runs:
        classify(run, given.import_modules)
    files.write_text(out, render(runs))
    for run in runs:
        if run.why:
            print(printable(f"{run.folder}: no predictions could be made: {run.why}"))
    print(f"Written to {printable(out)}")
    return 0


def find_runs(word: str) -> list[Path]:
    """Find a run, or all runs in a folder; a ValueError says that there is none."""
    folder = files.expand_path(word)
    if word == "latest" or not folder.is_dir() or (folder / "config.yaml").exists():
        return [run_folder.find_run(word)]
    found = {path.parent for path in folder.rglob("version_*/config.yaml")}
    if not found:
        return [run_folder.find_run(word)]  # which says what a run folder is
    return [run_folder.find_run(str(path)) for path in sorted(found, key=_by_numbers)]


def _by_numbers(path: Path) -> list[str | int]:
    """Sort version_10 behind version_9."""
    parts = re.split(r"([0-9]+)", str(path))
    return [int(part) if place % 2 else part for place, part in enumerate(parts)]


def make_parser(name: str, help: str) -> ArgumentParser:
    """Make the command's parser, which shells complete from, too."""
    parser = word_parser(name, help)
    of_runs = (
        "Run folders, of either framework; folders of runs, such as runs; or latest, the run that "
        "was started last."
    )
    parser.add_argument("runs", nargs="*", default=[], metavar="RUN_DIR", help=of_runs)
    of_out = (
        "The page, FILE.html; an older one is replaced. Default: report.html in the run folder, or "
        "for several runs in the current folder."
    )
    parser.add_argument("--out", metavar="FILE", type=Path | None, default=None, help=of_out)
    of_modules = (
        "Also show layers and predictions of runs whose model or data is in a module of your own: "
        "it is imported, which runs its code."
    )
    parser.add_argument("--import_modules", type=bool, default=False, help=of_modules)
    return parser


def _parse(name: str, help: str, options: list[str]) -> Namespace:
    given = parse_words(make_parser(name, help), options, "runs")
    if not given.runs:
        raise InputError("no run is named: give run folders, a folder of runs, or latest")
    return given
