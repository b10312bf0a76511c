"""The options of `digitlab reproduce`."""

import re
from argparse import ArgumentError
from pathlib import Path
from typing import Literal

from joblib import cpu_count
from jsonargparse import ArgumentParser, Namespace

from digitlab.cli import COMMANDS
from digitlab.messages import explain


def read_options(command: str, words: list[str]) -> Namespace:
    """Read and check a command line.

    Raises:
        ValueError: It is wrong; the message says in one line how.
    """
    parser = ArgumentParser(
        prog=f"digitlab {command}", description=COMMANDS[command], exit_on_error=False
    )
    _add_training(parser)
    _add_reports(parser)
    try:
        given = parser.parse_args(words)
    except ArgumentError as error:
        if found := re.search(r"[Uu]nrecognized arguments: ([^-\s]\S*)", str(error)):
            raise ValueError(f"{found[1]} stands behind an option: name the rows first") from error
        names = [name for action in parser._actions for name in action.option_strings]
        raise ValueError(explain(str(error), [name.lstrip("-") for name in names])) from error
    _check(given)
    given.workers = given.workers or max(1, cpu_count() // given.threads)
    return given


def _add_training(parser: ArgumentParser) -> None:
    add = parser.add_argument
    of_rows = "Rows, such as B3 or digits/lenet5. Default: the documents' rows."
    add("rows", nargs="*", default=[], help=of_rows)
    add("--framework", type=Literal["torch", "keras", "both"], default="both", help="What to use.")
    add("--seeds", type=int, default=3, help="Number of seeds.")
    add("--first_seed", type=int, default=0, help="The lowest seed.")
    out = Path("runs", "reproduce")
    add("--out", type=Path, default=out, help="Folder of results.csv, the runs and the report.")
    of_workers = "Runs beside each other. Default: the number of CPU cores, divided by the threads."
    add("--workers", type=int | None, default=None, help=of_workers)
    add("--threads", type=int, default=1, help="CPU threads of each run.")
    of_curves = "Validate after each so many optimizer steps, for finer curves; PyTorch only."
    add("--validate_every", type=int | None, default=None, help=of_curves)


def _add_reports(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add("--report", action="store_true", help="Train nothing: write tables and plots from --out.")
    of_pages = "With --report: Markdown pages to write the tables into, between marks."
    add("--pages", type=Path, default=[], nargs="+", help=of_pages)
    of_against = "With --report: results.csv whose prediction intervals judge the runs of --out."
    add("--against", type=Path | None, default=None, help=of_against)
    of_explain = (
        "Train every combination of the settings in which two rows or configs differ, and say how "
        "much of the difference each setting makes."
    )
    add("--explain", metavar="ROW:ROW", help=of_explain)


def _check(given: Namespace) -> None:
    least = {"seeds": 1, "first_seed": 0, "workers": 1, "threads": 1, "validate_every": 1}
    for name, low in least.items():
        if given[name] is not None and given[name] < low:
            raise ValueError(f"{name} is {given[name]}: give at least {low}")
    if (given.pages or given.against) and not given.report:
        raise ValueError("pages and against say what --report does: give it too")
    for page in given.pages:
        if not page.is_file():
            raise ValueError(f"there is no page {page}: give Markdown files")
    if given.report and (given.rows or given.explain):
        raise ValueError("report is of all that --out has: leave rows and --explain out")
    if given.explain and (given.validate_every or given.framework == "keras"):
        raise ValueError("explain trains in PyTorch: leave --framework and --validate_every out")
    if given.explain and given.rows:
        raise ValueError(f"explain is {given.explain}: leave the rows out, {' '.join(given.rows)}")
