"""The command line of `digitlab report`."""

import re
from argparse import ArgumentError
from collections.abc import Callable
from functools import partial
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from digitlab import files, run_folder
from digitlab.cli.messages import explain
from digitlab.errors import reading_input
from digitlab.report.content import Run, read_run
from digitlab.report.page import render
from digitlab.report.predictions import predict

"""The columns of history.csv that are drawn."""
"""The settings without which a run's network and data cannot be made."""

HELP = ""


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
    parser = ArgumentParser(prog=f"digitlab {command}", description=HELP, exit_on_error=False)
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


def run(name: str, help: str, options: list[str]) -> int:
    """Read the input and do the work; give the exit code."""
    with reading_input():
        work = prepare(name, options)
    return work() or 0
