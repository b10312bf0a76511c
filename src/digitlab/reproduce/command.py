"""`digitlab reproduce`: train the documents' rows over seeds, and report what came out."""

import re
from argparse import ArgumentError
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, get_args

from joblib import cpu_count
from jsonargparse import ArgumentParser, Namespace
from matplotlib.figure import Figure
from PIL import Image

from digitlab import files
from digitlab.cli.messages import explain
from digitlab.errors import reading_input
from digitlab.reproduce import figures, results, tables
from digitlab.reproduce.claims import judge
from digitlab.reproduce.evidence import Evidence, claims_table
from digitlab.reproduce.explain import prepare_explain, read_explain
from digitlab.reproduce.queue import Item, Queue
from digitlab.reproduce.results import Result
from digitlab.reproduce.rows import Row, by_experiment, choose, read_rows
from digitlab.reproduce.statistics import summarize
from digitlab.run_folder import Framework

HELP = ""


def read_options(command: str, words: list[str]) -> Namespace:
    """Read and check a command line.

    Raises:
        ValueError: It is wrong; the message says in one line how.
    """
    parser = ArgumentParser(prog=f"digitlab {command}", description=HELP, exit_on_error=False)
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


PAGE_TABLE = re.compile(r"<!-- table ([\w-]+) -->")
"""The mark in a page above a table, which ends at `<!-- /table -->`."""


def write_report(
    out: Path, rows: dict[str, Row], pages: Sequence[Path] = (), against: Path | None = None
) -> None:
    """Write tables.md and the figures beside the results, and the tables into pages.

    Args:
        out: The folder of results.csv; what it has besides is that of `read_tables`.
        rows: The rows by their names.
        pages: Markdown files, in which what is between the marks of a table is replaced.
        against: A results.csv whose prediction intervals judge the runs in `out`.

    Raises:
        ValueError, OSError: There are no results, or a page asks for a table that is not there.
    """
    measured = results.read(out / "results.csv")
    if not measured:
        raise ValueError(f"there are no results in {out}: name the --out of digitlab reproduce")
    named = read_tables(out, rows)
    if against:
        reference = results.read(against)
        if not reference:
            raise ValueError(f"there are no results in {against}: give another results.csv")
        named["against"] = tables.prediction_table(rows, measured, reference)
        print(named["against"])
    filled = {page: fill(page.read_text("utf-8"), named, page) for page in pages}

    text = "\n\n".join(f"## {name}\n\n{table}" for name, table in named.items())
    files.write_text(out / "tables.md", text + "\n")
    drawn = draw_figures(rows, measured)
    (out / "curves").mkdir(exist_ok=True)
    for name, figure in drawn.items():
        _write_figure(out / f"{name}.png", figure)
    for page, page_text in filled.items():
        files.write_text(page, page_text)
    written = [out / "tables.md", *(out / f"{name}.png" for name in drawn), *pages]
    print(f"{len(measured)} runs; written: {', '.join(map(str, written))}")


def draw_figures(rows: dict[str, Row], measured: Sequence[Result]) -> dict[str, Figure]:
    """Draw all figures, by their names; those of experiments are `curves/B3` and such."""
    drawn = {
        "published": figures.draw_published(rows, measured),
        "curves": figures.draw_curves(rows, measured),
        "gap": figures.draw_gap(rows, measured),
    }
    for name, its_rows in by_experiment(rows).items():
        if figure := figures.draw_experiment(its_rows, measured):
            drawn[f"curves/{name}"] = figure
    return drawn


def read_tables(out: Path, rows: dict[str, Row]) -> dict[str, str]:
    """Make all tables that a folder's results allow, as Markdown by their names.

    Args:
        out: The folder with results.csv; it may have `rerun` and `convergence`, folders with the
            results of other seeds and of finer curves, and folders of `--explain`.
        rows: The rows by their names.
    """
    measured = results.read(out / "results.csv")
    named = {
        "results": tables.results_table(rows, measured),
        "intervals": tables.intervals_table(rows, measured),
        "same-recipe": tables.same_recipe_table(rows, measured),
        "as-published": tables.as_published_table(rows, measured),
    }
    for name, its_rows in by_experiment(rows).items():
        if any(result.row in its_rows for result in measured):
            named[f"row-{name}"] = tables.experiment_table(its_rows, measured)
    convergence = results.read(out / "convergence" / "results.csv")
    named["claims"] = claims_table(judge(Evidence(measured, convergence)))
    if rerun := results.read(out / "rerun" / "results.csv"):
        named["rerun"] = tables.prediction_table(rows, rerun, measured)
    for grid in sorted(out.glob("explain-*/grid.csv")):
        try:
            named |= read_explain(grid.parent)
        except ValueError as error:  # it is still under way
            print(error)
    return named


def fill(text: str, named: dict[str, str], page: Path) -> str:
    """Put tables between their marks in a page's text.

    Raises:
        ValueError: The page asks for a table that there is not, or does not end it.
    """

    def replace(found: re.Match[str]) -> str:
        if found[1] not in named:
            raise ValueError(f"{page} has a table {found[1]}: choose from {', '.join(named)}")
        return f"<!-- table {found[1]} -->\n{named[found[1]]}\n<!-- /table -->"

    pattern = f"{PAGE_TABLE.pattern}\n(?:(?!<!-- table ).)*?<!-- /table -->"
    text, count = re.subn(pattern, replace, text, flags=re.DOTALL)
    if count != len(PAGE_TABLE.findall(text)):
        raise ValueError(f"{page} has a table without an end: write <!-- /table --> below it")
    return text


def _write_figure(path: Path, figure: Figure) -> None:
    """Write a figure, whole or not at all, in 64 colours: a third of the size, the same look."""
    with files.atomic_write(path) as beside:
        figure.savefig(beside)
        with Image.open(beside) as image:
            small = image.convert("RGB").quantize(64, dither=Image.Dither.NONE)
        small.save(beside, optimize=True)


RECORD = Path("docs", "results", "results.csv")
"""In a clone of digitlab, the runs that its documentation shows."""


def prepare(command: str, options: list[str]) -> Callable[[], int | None]:
    """Check all input of a reproduction, and return what is then left to do.

    That gives the exit code: 1 where a run failed.

    Raises:
        ValueError, OSError: The input is bad.
    """
    given = read_options(command, options)
    rows = read_rows()
    if given.report:
        return partial(write_report, given.out, rows, given.pages, given.against)
    seeds = range(given.first_seed, given.first_seed + given.seeds)
    if given.explain:
        where = given.out
        return prepare_explain(given.explain, rows, where, seeds, given.workers, given.threads)
    frameworks = get_args(Framework) if given.framework == "both" else (given.framework,)
    items = [
        Item(row, framework, seed)
        for seed in seeds  # so that an interrupted queue has every row with some seeds
        for row in choose(given.rows, rows)
        for framework in frameworks
        if framework in row.frameworks
    ]
    if not items:
        raise ValueError(f"framework is {given.framework}: {', '.join(given.rows)} needs torch")
    _check_frameworks(given, items)
    _check_recipes(given.out / "results.csv", items)
    return partial(_reproduce, given, items)


def _check_recipes(table: Path, items: list[Item]) -> None:
    recipes = {item.row.name: item.row.recipe for item in items}
    for result in results.read(table):
        if recipes.get(result.row, result.recipe) != result.recipe:
            raise ValueError(
                f"{table} has runs of {result.row} with other settings than {result.config}.yaml "
                "has now: move it away, or give another --out"
            )


def _check_frameworks(given: Namespace, items: list[Item]) -> None:
    if all(item.framework == "torch" for item in items):
        return
    if not (find_spec("keras") and find_spec("tensorflow")):
        raise ValueError(
            f"framework is {given.framework}, and Keras is not installed: give --framework torch, "
            'or pip install "digitlab[parity]"'
        )
    if given.validate_every:
        raise ValueError(
            f"validate_every is {given.validate_every}, and Keras validates once an epoch: give "
            "--framework torch"
        )


def _reproduce(given: Namespace, items: list[Item]) -> int:
    table = given.out / "results.csv"
    seconds = _measured_seconds(results.read(table))

    def is_done(item: Item) -> bool:
        key = (item.row.name, item.framework, item.seed)
        return key in {result.key for result in results.read(table)}

    def record(item: Item, folder: Path) -> str:
        result = Result.of_run(item.row, folder)
        results.add(table, [result])
        return f"{result.test_accuracy:.2%}"

    every = ["--trainer.val_check_interval", str(given.validate_every)]
    options = [*every, "--model.steps_per_execution", "1"]  # Lightning counts what it calls
    queue = Queue(
        given.out,
        is_done,
        record,
        lambda item: seconds.get((item.row.name, item.framework)),
        given.workers,
        given.threads,
        options if given.validate_every else [],
    )
    failed = queue.work(items)
    if measured := results.read(table):
        _print_summary(measured, {item.row.name: item.row for item in items})
        report = f"digitlab reproduce --report --out {given.out}"
        print(f"\nResults are in {table}. What to do next:\n  {report}")
        if RECORD.exists() and table != RECORD:
            print(f"  {report} --against {RECORD}  # are they as expected?")
    for item in failed:
        print(f"{item} failed: see {queue.log(item)}")
    return 1 if failed else 0


def _measured_seconds(measured: list[Result]) -> dict[tuple[str, str], float]:
    times = defaultdict(list)
    for result in measured:
        if result.train_seconds:
            times[result.row, result.framework].append(result.train_seconds)
    return {key: sum(values) / len(values) for key, values in times.items()}


def _print_summary(measured: list[Result], rows: dict[str, Row]) -> None:
    print(f"\n{'row':28} {'framework':10} {'n':>3}  {'mean ± sd, %':15} published")
    for name, row in rows.items():
        for framework in get_args(Framework):
            values = [r.test_accuracy for r in measured if r.key[:2] == (name, framework)]
            if values:
                summary = summarize([100 * value for value in values])
                deviation = f" ± {summary.deviation:.2f}" if summary.n > 1 else ""
                figure = f"{summary.mean:.2f}{deviation}"
                print(f"{name:28} {framework:10} {summary.n:3}  {figure:15} {row.published}")


def run(name: str, help: str, options: list[str]) -> int:
    """Read the input and do the work; give the exit code."""
    with reading_input():
        work = prepare(name, options)
    return work() or 0
