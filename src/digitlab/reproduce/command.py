"""`digitlab reproduce`: train the documents' rows over seeds, and report what came out."""

from collections import defaultdict
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import get_args

from jsonargparse import Namespace

from digitlab.reproduce import results
from digitlab.reproduce.explain import prepare_explain
from digitlab.reproduce.options import read_options
from digitlab.reproduce.queue import Item, Queue
from digitlab.reproduce.report import write_report
from digitlab.reproduce.results import Result
from digitlab.reproduce.rows import Row, choose, read_rows
from digitlab.reproduce.statistics import summarize
from digitlab.runs import Framework

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
