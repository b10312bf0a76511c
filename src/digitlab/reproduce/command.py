"""`digitlab reproduce`: train rows over seeds, and report the results."""

from collections.abc import Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from shutil import get_terminal_size
from statistics import mean
from textwrap import fill
from typing import Literal

from joblib import cpu_count
from jsonargparse import ArgumentParser, Namespace
from jsonargparse.typing import NonNegativeInt, PositiveInt, restricted_number_type

from digitlab import files, terminal
from digitlab.cli.messages import parse_words, word_parser
from digitlab.errors import InputError, reading_input
from digitlab.reproduce import figures, results, tables
from digitlab.reproduce.executors import train_items
from digitlab.reproduce.results import Result
from digitlab.reproduce.rows import Row, choose, read_rows
from digitlab.reproduce.worker import Item
from digitlab.run_folder import Framework
from digitlab.terminal import printable

RECORD = Path("docs", "results", "results.csv")
"""In a clone of digitlab, the runs that its documentation shows."""

MOST_LINES = 24
"""Longer tables, of more than 6 rows' pairs, are written to tables.md alone."""

Margin = restricted_number_type(
    "Margin", float, [(">", 0), ("<=", 100)], docstring="Percentage points, up to 100."
)


def run(name: str, help: str, options: list[str]) -> int:
    """Train rows or report their results; return the exit code."""
    with reading_input():
        given = _parse(name, help, options)
        rows = read_rows()
    if given.report:
        write_report(given.out, rows, given.rows, given.margin, given.against)
        return 0
    seeds = range(given.first_seed, given.first_seed + given.seeds)
    with reading_input():
        items = _choose_items(given, rows, seeds)
    return _train(given, items)


def _parse(name: str, help: str, options: list[str]) -> Namespace:
    given = parse_words(make_parser(name, help), options, "rows")
    names = "framework seeds first_seed workers threads scheduler fetch validate_every"
    words = [word.split("=")[0] for word in options]
    if given.report and (unused := [it for it in names.split() if f"--{it}" in words]):
        raise InputError(
            f"{unused[0]} is an option of the training, and --report trains nothing: train first, "
            "without --report"
        )
    if given.against and not given.report:
        raise InputError("against is an option of --report: give it too")
    if given.scheduler and given.workers:
        raise InputError("workers is an option of dask worker, --nworkers: leave --workers out")
    if given.fetch and not given.scheduler:
        raise InputError("fetch copies from a cluster's workers: give --scheduler, too")
    given.workers = given.workers or max(1, cpu_count() // given.threads)
    return given


def make_parser(name: str, help: str) -> ArgumentParser:
    """Make the command's parser, which shells complete from, too."""
    parser = word_parser(name, help)
    add = parser.add_argument
    text = "Configs, such as my.yaml or digits/lenet5. Default: the documents'; with --report, all."
    add("rows", nargs="*", default=[], help=text)
    frameworks = Literal["torch", "keras", "both"]
    text = "Framework to train in. Default: torch; for the documents' rows both, if Keras is there."
    add("--framework", type=frameworks | None, default=None, help=text)
    add("--seeds", metavar="N", type=PositiveInt, default=3, help="Number of seeds.")
    add(
        "--first_seed",
        metavar="SEED",
        type=NonNegativeInt,
        default=0,
        help="The lowest seed. Default: 0.",
    )
    text = "Folder of results.csv, the runs and the report."
    add("--out", metavar="FOLDER", type=Path, default=Path("runs", "reproduce"), help=text)
    text = "Runs at a time. Default: the number of CPU cores, divided by the threads."
    add("--workers", metavar="N", type=PositiveInt | None, default=None, help=text)
    add("--threads", metavar="N", type=PositiveInt, default=1, help="CPU threads of each run.")
    text = "Train on a Dask cluster, whose scheduler has this address: tcp://HOST:8786."
    add("--scheduler", metavar="ADDRESS", type=str | None, default=None, help=text)
    text = "With --scheduler: copy the run folders from the workers."
    add("--fetch", action="store_true", help=text)
    text = "Validate every so many optimizer steps, for finer curves; PyTorch only."
    add("--validate_every", metavar="N", type=PositiveInt | None, default=None, help=text)
    add("--report", action="store_true", help="Train nothing: write tables and plots from --out.")
    text = "Largest difference that does not matter, in percentage points. Default: the data set's."
    add("--margin", metavar="POINTS", type=Margin | None, default=None, help=text)
    text = "With --report: results.csv whose prediction intervals judge the runs of --out."
    add("--against", metavar="FILE", type=Path | None, default=None, help=text)
    return parser


def _choose_items(given: Namespace, rows: dict[str, Row], seeds: range) -> list[Item]:
    chosen = choose(given.rows, rows)
    has_keras = bool(find_spec("keras") and find_spec("tensorflow"))
    if not given.framework and not has_keras and any(row.in_documents for row in chosen):
        print("Keras is not installed: training in PyTorch only")

    def frameworks(row: Row) -> Sequence[Framework]:
        asked = given.framework or ("both" if row.in_documents and has_keras else "torch")
        return [it for it in row.frameworks if asked in ("both", it)]

    items = [
        Item(row, framework, seed)
        for seed in seeds  # first, so that an interrupted queue has every row with some seeds
        for row in chosen
        for framework in frameworks(row)
    ]
    if not items:
        raise InputError(f"framework is {given.framework}: {', '.join(given.rows)} needs torch")
    if any(item.framework == "keras" for item in items):
        if not has_keras:
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
                f"{table} has runs of {result.row} with other settings than its config has now: "
                "move it away, or give another --out"
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

    def record(item: Item, result: Result) -> str:
        results.add(table, [result])
        return f"{result.test_accuracy:.2%}"

    options = []
    if given.validate_every:
        every = ["--trainer.val_check_interval", str(given.validate_every)]
        options = [*every, "--model.steps_per_execution", "1"]  # Lightning counts calls, not steps
    failed = train_items(
        *(items, given.out, is_done, record),
        workers=given.workers,
        threads=given.threads,
        scheduler=given.scheduler,
        fetch=given.fetch,
        options=options,
        expected_seconds=lambda item: seconds.get((item.row.name, item.framework)),
    )
    rows = {item.row.name: item.row for item in items}
    if measured := [result for result in results.read(table) if result.row in rows]:
        _show(make_tables(tables.rows_of(measured, rows), measured, given.margin))
        margin = ["--margin", f"{given.margin:g}"] if given.margin else []
        words = [*given.rows, "--report", "--out", given.out, *margin]
        report = terminal.command("digitlab", "reproduce", *words)
        print(f"\nResults are in {printable(table)}. What to do next:\n  {report}")
        if table != RECORD and any(result.row in rows for result in results.read(RECORD)):
            print(f"  {report} --against {RECORD}  # are they as expected?")
    return 1 if failed else 0


def write_report(
    out: Path,
    known: Mapping[str, Row],
    names: Sequence[str] = (),
    margin: float | None = None,
    against: Path | None = None,
) -> None:
    """Write tables.md and figures of the results in a folder.

    Args:
        out: The folder with results.csv.
        known: The rows whose order and published figures are known, by their names.
        names: The rows to report, as the results or `choose` name them; all if there are none.
        margin: The largest difference that does not matter, in points; None takes the data set's.
        against: A results.csv whose prediction intervals judge the runs.
    """
    with reading_input():
        measured = _choose_results(out / "results.csv", known, names)
        rows = tables.rows_of(measured, known)
        sections = make_tables(rows, measured, margin)
        if against:
            reference = _choose_results(against, known)
            sections["against"] = tables.prediction_table(rows, measured, reference)
    sections["devices"] = results.list_devices(measured)  # over which the figures pool
    drawn = {"accuracies": figures.draw_accuracies(rows, measured)}
    if any(result.val_curve for result in measured):
        drawn["curves"] = figures.draw_curves(rows, measured)
    parts = [f"## {name}\n\n{table}" for name, table in sections.items()]
    parts += [f"![{name}]({name}.png)" for name in drawn]
    files.write_text(out / "tables.md", "\n\n".join(parts) + "\n")
    for name, figure in drawn.items():
        files.write_figure(out / f"{name}.png", figure)
    _show(sections)
    written = [out / "tables.md", *(out / f"{name}.png" for name in drawn)]
    print(printable(f"\n{len(measured)} runs; written: {', '.join(map(str, written))}", keep="\n"))


def make_tables(
    rows: Mapping[str, Row], measured: Sequence[Result], margin: float | None = None
) -> dict[str, str]:
    """Make the tables that results allow, as Markdown by their names."""
    made = {"accuracies": tables.intervals_table(rows, measured)}
    if pairs := [*tables.compare_frameworks(rows, measured, margin).values()]:
        made["frameworks"] = tables.differences_table(pairs)
    if pairs := tables.compare_rows(rows, measured, margin):
        made["differences"] = tables.differences_table(pairs)
    return made


def _show(sections: Mapping[str, str]) -> None:
    for name, table in sections.items():
        count = len(table.splitlines())
        if count > MOST_LINES:
            table = f"{name}: {count} lines, which --report writes to tables.md"
        width = get_terminal_size().columns  # a terminal wraps inside words
        wrap = partial(fill, width=width, break_on_hyphens=False, break_long_words=False)
        lines = [line if line.startswith("|") else wrap(line) for line in table.splitlines()]
        print(printable("\n" + "\n".join(lines), keep="\n"))


def _choose_results(
    path: Path, known: Mapping[str, Row], names: Sequence[str] = ()
) -> list[Result]:
    measured = results.read(path)
    if not measured:
        raise InputError(
            f"there are no results in {path}: train first, without --report, or name the --out "
            "of digitlab reproduce, or its results.csv"
        )
    rows = list(dict.fromkeys(result.row for result in measured))
    chosen = [name if name in rows else choose([name], known)[0].name for name in names] or rows
    if missing := [name for name in chosen if name not in rows]:
        raise InputError(f"{path} has no run of {', '.join(missing)}: it has {', '.join(rows)}")
    return sorted((it for it in measured if it.row in chosen), key=lambda it: chosen.index(it.row))
