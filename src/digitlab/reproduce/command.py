"""`digitlab reproduce`: train the documents' rows over seeds, and report the results."""

import re
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from statistics import mean
from typing import Literal, get_args

from joblib import cpu_count
from jsonargparse import ArgumentParser, Namespace
from matplotlib.figure import Figure
from PIL import Image

from digitlab import files, terminal
from digitlab.cli.messages import parse_words
from digitlab.errors import InputError, reading_input
from digitlab.reproduce import figures, results, tables
from digitlab.reproduce.effects import UnfinishedError
from digitlab.reproduce.explain import explain_difference, explanation_tables
from digitlab.reproduce.queue import Item, Queue
from digitlab.reproduce.results import Result
from digitlab.reproduce.rows import Row, by_experiment, choose, read_rows
from digitlab.run_folder import Framework
from digitlab.terminal import printable

RECORD = Path("docs", "results", "results.csv")
"""In a clone of digitlab, the runs that its documentation shows."""

PAGE_TABLE = re.compile(r"<!-- table ([\w-]+) -->")
"""The mark above a table in a page; the table ends at `<!-- /table -->`."""


def run(name: str, help: str, options: list[str]) -> int:
    """Train rows, report their results or explain their difference; return the exit code.

    Raises:
        InputError: The input is bad.
    """
    with reading_input():
        given = _parse(name, help, options)
        rows = read_rows()
    if given.report:
        write_report(given.out, rows, given.pages, given.against)
        return 0
    seeds = range(given.first_seed, given.first_seed + given.seeds)
    if given.explain:
        return explain_difference(
            given.explain, rows, given.out, seeds, given.workers, given.threads
        )
    with reading_input():
        items = _choose_items(given, rows, seeds)
    return _train(given, items)


def _parse(name: str, help: str, options: list[str]) -> Namespace:
    given = parse_words(_make_parser(name, help), options, "rows")
    least = {"seeds": 1, "first_seed": 0, "workers": 1, "threads": 1, "validate_every": 1}
    for option, low in least.items():
        if given[option] is not None and given[option] < low:
            raise InputError(f"{option} is {given[option]}: give at least {low}")
    if (given.pages or given.against) and not given.report:
        raise InputError("pages and against are options of --report: give it too")
    for page in given.pages:
        if not page.is_file():
            raise InputError(f"there is no page {page}: give Markdown files")
    if given.report and (given.rows or given.explain):
        raise InputError("report covers all results in --out: leave rows and --explain out")
    if given.explain and (given.validate_every or given.framework == "keras"):
        raise InputError("explain trains in PyTorch: leave --framework and --validate_every out")
    if given.explain and given.rows:
        raise InputError(f"explain is {given.explain}: leave the rows out, {' '.join(given.rows)}")
    given.workers = given.workers or max(1, cpu_count() // given.threads)
    return given


def _make_parser(name: str, help: str) -> ArgumentParser:
    parser = ArgumentParser(prog=f"digitlab {name}", description=help, exit_on_error=False)
    add = parser.add_argument
    text = "Rows, such as B3 or digits/lenet5. Default: the documents' rows."
    add("rows", nargs="*", default=[], help=text)
    frameworks = Literal["torch", "keras", "both"]
    add("--framework", type=frameworks, default="both", help="Framework to train in.")
    add("--seeds", type=int, default=3, help="Number of seeds.")
    add("--first_seed", type=int, default=0, help="The lowest seed.")
    text = "Folder of results.csv, the runs and the report."
    add("--out", type=Path, default=Path("runs", "reproduce"), help=text)
    text = "Runs at a time. Default: the number of CPU cores, divided by the threads."
    add("--workers", type=int | None, default=None, help=text)
    add("--threads", type=int, default=1, help="CPU threads of each run.")
    text = "Validate every so many optimizer steps, for finer curves; PyTorch only."
    add("--validate_every", type=int | None, default=None, help=text)
    add("--report", action="store_true", help="Train nothing: write tables and plots from --out.")
    text = "With --report: Markdown pages to write the tables into, between marks."
    add("--pages", type=Path, default=[], nargs="+", help=text)
    text = "With --report: results.csv whose prediction intervals judge the runs of --out."
    add("--against", type=Path | None, default=None, help=text)
    text = (
        "Train every combination of the settings in which two rows or configs differ, and show how "
        "much of the difference each setting makes."
    )
    add("--explain", metavar="ROW:ROW", help=text)
    return parser


def _choose_items(given: Namespace, rows: dict[str, Row], seeds: range) -> list[Item]:
    frameworks = get_args(Framework) if given.framework == "both" else (given.framework,)
    items = [
        Item(row, framework, seed)
        for seed in seeds  # first, so that an interrupted queue has every row with some seeds
        for row in choose(given.rows, rows)
        for framework in frameworks
        if framework in row.frameworks
    ]
    if not items:
        raise InputError(f"framework is {given.framework}: {', '.join(given.rows)} needs torch")
    if any(item.framework == "keras" for item in items):
        if not (find_spec("keras") and find_spec("tensorflow")):
            raise InputError(
                f"framework is {given.framework}, and Keras is not installed: give --framework "
                'torch, or pip install "digitlab[parity]"'
            )
        if given.validate_every:
            raise InputError(
                f"validate_every is {given.validate_every}, and Keras validates once an epoch: "
                "give --framework torch"
            )
    table = given.out / "results.csv"
    recipes = {item.row.name: item.row.recipe for item in items}
    for result in results.read(table):
        if recipes.get(result.row, result.recipe) != result.recipe:
            raise InputError(
                f"{table} has runs of {result.row} with other settings than {result.config}.yaml "
                "has now: move it away, or give another --out"
            )
    return items


def _train(given: Namespace, items: list[Item]) -> int:
    table = given.out / "results.csv"
    timed = (result for result in results.read(table) if result.train_seconds)
    known = tables.group(timed, lambda result: result.train_seconds or 0.0)
    seconds = {key: mean(values) for key, values in known.items()}

    def is_done(item: Item) -> bool:
        key = (item.row.name, item.framework, item.seed)
        return key in {result.key for result in results.read(table)}

    def record(item: Item, folder: Path) -> str:
        result = Result.of_run(item.row, folder)
        results.add(table, [result])
        return f"{result.test_accuracy:.2%}"

    options = []
    if given.validate_every:
        every = ["--trainer.val_check_interval", str(given.validate_every)]
        options = [*every, "--model.steps_per_execution", "1"]  # Lightning counts calls, not steps
    queue = Queue(
        *(given.out, is_done, record),
        expected_seconds=lambda item: seconds.get((item.row.name, item.framework)),
        workers=given.workers,
        threads=given.threads,
        options=options,
    )
    failed = queue.work(items)
    if measured := results.read(table):
        rows = {item.row.name: item.row for item in items}
        print(printable(f"\n{tables.results_table(rows, measured, aligned=True)}", keep="\n"))
        report = terminal.command("digitlab", "reproduce", "--report", "--out", given.out)
        print(f"\nResults are in {printable(table)}. What to do next:\n  {report}")
        if RECORD.exists() and table != RECORD:
            print(f"  {report} --against {RECORD}  # are they as expected?")
    for item in failed:
        print(printable(f"{item} failed: see {queue.log(item)}"))
    return 1 if failed else 0


def write_report(
    out: Path, rows: dict[str, Row], pages: Sequence[Path] = (), against: Path | None = None
) -> None:
    """Write tables.md and the figures beside the results in `out`, and the tables into pages.

    Args:
        out: The folder, as `read_tables` reads it.
        rows: The rows by their names.
        pages: Markdown files, in which the tables between marks are replaced.
        against: A results.csv whose prediction intervals judge the runs in `out`.

    Raises:
        InputError: There are no results, a file is damaged, or a page asks for a table that does
            not exist.
    """
    with reading_input():
        measured = _read_results(out / "results.csv")
        named = read_tables(out, rows)
        if against:
            named["against"] = tables.prediction_table(rows, measured, _read_results(against))
            print(printable(named["against"], keep="\n"))
        filled = {page: fill(_read_page(page), named, page) for page in pages}

    text = "\n\n".join(f"## {name}\n\n{table}" for name, table in named.items())
    drawn = {
        "published": figures.draw_published(rows, measured),
        "curves": figures.draw_validation_curves(rows, measured),
        "gap": figures.draw_gap(rows, measured),
    }
    for name, its_rows in by_experiment(rows).items():
        if figure := figures.draw_experiment(its_rows, measured):
            drawn[f"curves/{name}"] = figure
    (out / "curves").mkdir(exist_ok=True)
    for path, content in {out / "tables.md": text + "\n", **filled}.items():
        files.write_text(path, content)
    for name, figure in drawn.items():
        _write_figure(out / f"{name}.png", figure)
    written = [out / "tables.md", *(out / f"{name}.png" for name in drawn), *pages]
    print(printable(f"{len(measured)} runs; written: {', '.join(map(str, written))}"))


def _read_results(path: Path) -> list[Result]:
    measured = results.read(path)
    if not measured:
        raise InputError(
            f"there are no results in {path}: name the --out of digitlab reproduce, or its "
            "results.csv"
        )
    return measured


def _read_page(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except ValueError as error:
        raise InputError(f"{path} is not a page in UTF-8: {error}") from error


def read_tables(out: Path, rows: dict[str, Row]) -> dict[str, str]:
    """Make all tables that a folder's results allow, as Markdown by their names.

    Beside results.csv it may have `rerun`, a folder with the results of other seeds, and folders of
    `--explain`.
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
    if rerun := results.read(out / "rerun" / "results.csv"):
        named["rerun"] = tables.prediction_table(rows, rerun, measured)
    for grid in sorted(out.glob("explain-*/grid.csv")):
        try:
            named |= explanation_tables(grid.parent)
        except UnfinishedError as error:
            print(printable(error))
    return named


def fill(text: str, named: dict[str, str], page: Path) -> str:
    """Put tables between their marks in a page's text.

    Raises:
        InputError: The page asks for a table that does not exist, or lacks the mark of its end.
    """

    def replace(found: re.Match[str]) -> str:
        if found[1] not in named:
            raise InputError(f"{page} has a table {found[1]}: choose from {', '.join(named)}")
        return f"<!-- table {found[1]} -->\n{named[found[1]]}\n<!-- /table -->"

    pattern = f"{PAGE_TABLE.pattern}\n(?:(?!<!-- table ).)*?<!-- /table -->"
    text, count = re.subn(pattern, replace, text, flags=re.DOTALL)
    if count != len(PAGE_TABLE.findall(text)):
        raise InputError(f"{page} has a table without an end: write <!-- /table --> below it")
    return text


def _write_figure(path: Path, figure: Figure) -> None:
    """Write a figure atomically, in 64 colours: a third of the size, and it looks the same."""
    with files.atomic_write(path) as beside:
        figure.savefig(beside)
        with Image.open(beside) as image:
            small = image.convert("RGB").quantize(64, dither=Image.Dither.NONE)
        small.save(beside, optimize=True)
