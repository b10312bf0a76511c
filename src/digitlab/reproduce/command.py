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

from digitlab.cli import COMMANDS
from digitlab.messages import explain
from digitlab.reproduce import results
from digitlab.reproduce.explain import prepare_explain
from digitlab.reproduce.queue import Item, Queue
from digitlab.reproduce.report import write_report
from digitlab.reproduce.results import Result
from digitlab.reproduce.rows import Row, choose, read_rows
from digitlab.reproduce.statistics import summarize
from digitlab.runs import Framework

OUT = Path("runs", "reproduce")


def prepare(command: str, options: list[str]) -> Callable[[], int | None]:
    """Check all input of a reproduction, and return what is then left to do.

    That gives the exit code: 1 where a run failed.

    Raises:
        ValueError, OSError: The input is bad.
    """
    parser = _make_parser(command)
    try:
        given = parser.parse_args(options)
    except ArgumentError as error:
        if found := re.search(r"[Uu]nrecognized arguments: ([^-\s]\S*)", str(error)):
            raise ValueError(f"{found[1]} stands behind an option: name the rows first") from error
        names = [name for action in parser._actions for name in action.option_strings]
        raise ValueError(explain(str(error), [name.lstrip("-") for name in names])) from error
    _check_numbers(given)
    rows = read_rows()
    if given.report:
        return partial(write_report, given.out, rows, given.pages, given.against)
    if given.pages or given.against:
        raise ValueError("pages and against say what --report does: give it too")
    seeds = range(given.first_seed, given.first_seed + given.seeds)
    if given.explain:
        if given.rows:
            raise ValueError(f"explain is {given.explain}: leave the rows out, {given.rows}")
        return prepare_explain(
            given.explain, rows, given.out, seeds, _workers(given), given.threads
        )
    frameworks = get_args(Framework) if given.framework == "both" else (given.framework,)
    _check_frameworks(given, frameworks)
    items = [
        Item(row, framework, seed)
        for seed in seeds  # so that an interrupted queue has every row with some seeds
        for row in choose(given.rows, rows)
        for framework in frameworks
        if framework in row.frameworks
    ]
    if not items:
        raise ValueError(f"framework is {given.framework}: {', '.join(given.rows)} needs torch")
    return partial(_reproduce, given, items)


def _make_parser(command: str) -> ArgumentParser:
    parser = ArgumentParser(
        prog=f"digitlab {command}", description=COMMANDS[command], exit_on_error=False
    )
    add = parser.add_argument
    add(
        "rows",
        nargs="*",
        default=[],
        help="Rows, such as B3 or digits/lenet5. Default: the documents' rows.",
    )
    add("--framework", type=Literal["torch", "keras", "both"], default="both", help="What to use.")
    add("--seeds", type=int, default=3, help="Number of seeds.")
    add("--first_seed", type=int, default=0, help="The lowest seed.")
    add("--out", type=Path, default=OUT, help="Folder of results.csv, the runs and the report.")
    add(
        "--workers",
        type=int | None,
        default=None,
        help="Runs beside each other. Default: the number of CPU cores, divided by the threads.",
    )
    add("--threads", type=int, default=1, help="CPU threads of each run.")
    add(
        "--validate_every",
        type=int | None,
        default=None,
        help="Validate each time after so many optimizer steps, for finer curves, in PyTorch.",
    )
    add("--report", action="store_true", help="Train nothing: write tables and plots from --out.")
    add(
        "--pages",
        type=Path,
        default=[],
        nargs="+",
        help="With --report: Markdown pages to write the tables into, between marks.",
    )
    add(
        "--against",
        type=Path | None,
        default=None,
        help="With --report: results.csv whose prediction intervals judge the runs of --out.",
    )
    add(
        "--explain",
        metavar="ROW:ROW",
        help="Train every combination of the settings in which two rows or configs differ, and "
        "say how much each setting makes out.",
    )
    return parser


def _check_numbers(given: Namespace) -> None:
    least = {"seeds": 1, "first_seed": 0, "workers": 1, "threads": 1, "validate_every": 1}
    for name, low in least.items():
        if given[name] is not None and given[name] < low:
            raise ValueError(f"{name} is {given[name]}: give at least {low}")


def _check_frameworks(given: Namespace, frameworks: Sequence[Framework]) -> None:
    if "keras" not in frameworks:
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


def _workers(given: Namespace) -> int:
    workers: int = given.workers or max(1, cpu_count() // given.threads)
    return workers


def _reproduce(given: Namespace, items: list[Item]) -> int:
    table = given.out / "results.csv"
    seconds = _measured_seconds(results.read(table))

    def is_done(item: Item) -> bool:
        key = (item.row.name, item.framework, item.seed)
        return key in {result.key for result in results.read(table)}

    def record(item: Item, folder: Path) -> str:
        config = f"{item.row.dataset}/{item.row.config.stem}"
        result = Result.of_run(item.row.name, config, folder)
        results.add(table, [result])
        return f"{result.test_accuracy:.2%}"

    options = ["--trainer.val_check_interval", str(given.validate_every)]
    queue = Queue(
        given.out,
        is_done,
        record,
        lambda item: seconds.get((item.row.name, item.framework)),
        _workers(given),
        given.threads,
        options if given.validate_every else [],
    )
    try:
        failed = queue.work(items)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"the same command goes on from what is in {table}") from None
    _print_summary(results.read(table), {item.row.name: item.row for item in items})
    print(f"\nResults are in {table}. digitlab reproduce --report --out {given.out} draws them.")
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
                figure = f"{summary.mean:.2f} ± {summary.deviation:.2f}"
                print(f"{name:28} {framework:10} {summary.n:3}  {figure:15} {row.published}")
