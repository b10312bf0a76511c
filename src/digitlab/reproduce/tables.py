"""Results as Markdown tables: a line for each row, in the rows' order, accuracies in per cent.

Results of unknown rows are left out, and so are rows without a result.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import TypeVar

from digitlab.reproduce.results import Result
from digitlab.reproduce.rows import Row
from digitlab.reproduce.statistics import Comparison, Interval, compare, summarize
from digitlab.run_folder import FRAMEWORKS, Framework
from digitlab.terminal import command

T = TypeVar("T")
Groups = dict[tuple[str, Framework], list[T]]
"""Values of the runs of a row in a framework."""

NONE = "—"
MARGINS = {"mnist": 0.5, "fashion_mnist": 1.0, "digits": 1.5}
"""Per data set, the largest difference between two means that does not matter, in points.

The documents distinguish recipes by 2 points (95 and 97%, 85 and 87%), so half of that or less is
no finding of theirs. It must also exceed the effect of seeds, or no affordable number of runs
would prove it: one run's standard deviation is about .2 points on MNIST, .4 on Fashion-MNIST, and
.2 to 1.9 on the digits, whose test split has 360 images, .28 points each.
"""

AS_PUBLISHED = (
    ("NN 128", "B1_as_published", "B2"),
    ("LeNet-5", "B3", "B4"),
    ("NN 128", "B5_as_published", "B8"),
    ("LeNet-5", "B6", "B9"),
    ("LeNet1", "B7", "B10"),
)
"""Document B's comparisons: a network, its row in PyTorch, and its row in Keras."""

_INTERVALS = ("95% interval of the mean", "95% prediction interval for one more run")
_MEANS = ("PyTorch, % (n)", "Keras, % (n)")
_DIFFERENCE = ("difference, points", "95% interval")


def group(results: Iterable[Result], value: Callable[[Result], T]) -> Groups[T]:
    """Collect a value of all runs by row and framework."""
    groups: Groups[T] = {}
    for result in results:
        groups.setdefault((result.row, result.framework), []).append(value(result))
    return groups


def group_accuracies(results: Iterable[Result]) -> Groups[float]:
    """Collect the accuracies on the test split, in per cent, by row and framework."""
    return group(results, lambda result: 100 * result.test_accuracy)


def markdown_table(
    head: Sequence[str], lines: Iterable[Sequence[str]], aligned: bool = False
) -> str:
    """Make a Markdown table; aligned, its columns line up in a terminal, too."""
    lines = [head, *lines]
    widths = [max(map(len, column)) if aligned else 0 for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * (width or 3) for width in widths])
    padded = (map(str.ljust, line, widths) for line in lines)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in padded)


def results_table(rows: Mapping[str, Row], results: Sequence[Result], aligned: bool = False) -> str:
    """Show the measured accuracies of both frameworks beside the published figure."""
    groups = group_accuracies(results)
    lines = []
    for row in rows.values():
        values = _by_framework(groups, row.name)
        if any(values):
            config = f"`{row.dataset}/{row.config.stem}`"
            start = [row.name if row.in_documents else NONE, config, row.published or NONE]
            lines.append([*start, *chain.from_iterable(map(_measured_cells, values))])
    head = ["row", "config", "published", "PyTorch, %", "n", "Keras, %", "n"]
    return markdown_table(head, lines, aligned)


def intervals_table(rows: Mapping[str, Row], results: Sequence[Result]) -> str:
    """Show the intervals of the mean and of one more run; empty cells for a single run."""
    lines = []
    for row, framework, values in _ordered(rows, group_accuracies(results)):
        summary = summarize(values)
        deviation = NONE if summary.n == 1 else f"{summary.deviation:.2f}"
        measured = (str(summary.n), f"{summary.mean:.2f}", deviation)
        intervals = (*map(_interval_cell, summary[3:]), row.published or NONE)
        lines.append([_name_cell(row), FRAMEWORKS[framework], *measured, *intervals])
    head = ["row", "framework", "n", "mean, %", "standard deviation", *_INTERVALS, "published"]
    return markdown_table(head, lines)


def experiment_table(rows: Mapping[str, Row], results: Sequence[Result]) -> str:
    """Show the runs of an experiment's rows, whether the frameworks agree, and their command."""
    runs = [result for result in results if result.row in rows]
    groups = group_accuracies(runs)
    lines = []
    for row, framework, values in _ordered(rows, groups):
        measured = (*_measured_cells(values), *map(_interval_cell, summarize(values)[3:]))
        lines.append([_name_cell(row), FRAMEWORKS[framework], *measured])
    head = ["row", "framework", "test accuracy, %", "n", *_INTERVALS]
    parts = [markdown_table(head, lines)]
    for row, found, margin in _comparisons(rows, groups):
        difference, interval = _difference_cells(found)
        shown = "" if interval == NONE else f", 95% interval {interval}"
        parts.append(
            f"{_name_cell(row)}, {' − '.join(FRAMEWORKS.values())}: {difference} points{shown}; "
            f"**{found.verdict}**, by a margin of {margin} points."
        )
    return "\n\n".join([*parts, f"Trained by `{_command(rows, runs)}`."])


def same_recipe_table(rows: Mapping[str, Row], results: Sequence[Result]) -> str:
    """Compare the frameworks on the same config: a faithful port must be equivalent.

    Rows of data sets without a margin in `MARGINS` are left out.
    """
    groups = group_accuracies(results)
    lines = []
    for row, found, margin in _comparisons(rows, groups):
        means = map(_mean_cell, _by_framework(groups, row.name))
        difference, interval = _difference_cells(found)
        p = f"{found.p_equivalence:.3f}" if found.p_equivalence >= 0.001 else "< 0.001"
        p = NONE if interval == NONE else p
        start = [_name_cell(row), *means, difference, interval]
        lines.append([*start, f"{margin}", p, found.verdict])
    head = ["row", *_MEANS, *_DIFFERENCE, "margin", "p (not equivalent)", "verdict"]
    return markdown_table(head, lines)


def as_published_table(rows: Mapping[str, Row], results: Sequence[Result]) -> str:
    """Compare the frameworks as document B does, each with the document's own recipe for it.

    Here "different" is the document's finding, not a failure: initial values, scaling and epsilon
    differ, and dropout stays on where the PyTorch program evaluates NN 128.
    """
    groups = group_accuracies(results)
    lines = []
    for network, *names in AS_PUBLISHED:
        ours, theirs = (groups.get(key, []) for key in zip(names, FRAMEWORKS, strict=True))
        pair = [rows[name] for name in names if name in rows]
        if ours and theirs and len(pair) == 2 and pair[0].dataset in MARGINS:
            found = compare(ours, theirs, MARGINS[pair[0].dataset])
            published = [row.published or NONE for row in pair]
            start = [" : ".join(names), network, pair[0].dataset, *published]
            shown = (_mean_cell(ours), _mean_cell(theirs), *_difference_cells(found))
            lines.append([*start, *shown, found.verdict])
    head = ["rows", "network", "data set", "PyTorch, published", "Keras, published"]
    head += [*_MEANS, *_DIFFERENCE, 'verdict ("different": so are the recipes)']
    return markdown_table(head, lines)


def prediction_table(
    rows: Mapping[str, Row], results: Sequence[Result], reference: Sequence[Result]
) -> str:
    """Compare new runs with the 95% prediction intervals of other runs, and count those inside.

    Runs compared with one interval are inside or outside together more often than by chance, as
    the interval itself is off by chance: 95% holds on average over rows. Runs with the row,
    framework and seed of a reference are left out; rows with fewer than two have no interval.
    """
    keys = {result.key for result in reference}
    new = [result for result in results if result.key not in keys]
    groups = group_accuracies(reference)
    lines, inside = [], []
    for row, framework, runs in _ordered(rows, group(new, lambda result: result)):
        before = groups.get((row.name, framework), [math.nan])
        low, high = summarize(before).prediction_interval
        for result in sorted(runs, key=lambda run: run.seed):
            value, verdict = 100 * result.test_accuracy, NONE
            if math.isfinite(low):
                # 1e-9: rounding, where all runs of the reference have the same accuracy.
                inside.append(low - 1e-9 <= value <= high + 1e-9)
                verdict = "inside" if inside[-1] else "outside"
            run = [_name_cell(row), FRAMEWORKS[framework], str(result.seed), f"{value:.2f}"]
            lines.append([*run, _interval_cell((low, high)), verdict])
    head = ["row", "framework", "seed", "accuracy, %", "95% prediction interval", "verdict"]
    closing = f"{sum(inside)} of {len(inside)} inside; 95% are expected."
    if known := sum(result.key in keys for result in results):
        new_seed = 1 + max(result.seed for result in reference)
        closing += (
            f" Not judged, as the reference has their seeds: {known}; "
            f"--first_seed {new_seed} makes other runs."
        )
    return f"{markdown_table(head, lines)}\n\n{closing}"


def _measured_cells(values: list[float]) -> tuple[str, str]:
    """Return mean ± standard deviation, and n; empty cells if nothing was measured."""
    if not values:
        return "", ""
    summary = summarize(values)
    deviation = "" if summary.n == 1 else f" ± {summary.deviation:.2f}"
    return f"{summary.mean:.2f}{deviation}", str(summary.n)


def signed(value: float) -> str:
    """Write a difference with its sign.

    >>> signed(0.456), signed(-0.001), signed(-1)
    ('+0.46', '+0.00', '−1.00')
    """
    return f"{round(value, 2) + 0.0:+.2f}".replace("-", "−")  # + 0.0: no negative zero


def _name_cell(row: Row) -> str:
    return row.name if row.in_documents else f"`{row.name}`"


def _mean_cell(values: list[float]) -> str:
    return f"{summarize(values).mean:.2f} ({len(values)})"


def _difference_cells(found: Comparison) -> tuple[str, str]:
    interval = ", ".join(map(signed, found.interval))
    return signed(found.difference), f"[{interval}]" if math.isfinite(found.interval[0]) else NONE


def _interval_cell(ends: Interval) -> str:
    low, high = max(ends[0], 0), min(ends[1], 100)
    return f"[{low:.2f}, {high:.2f}]" if math.isfinite(ends[0]) else NONE


def _by_framework(groups: Groups[float], name: str) -> list[list[float]]:
    return [groups.get((name, framework), []) for framework in FRAMEWORKS]


def _ordered(
    rows: Mapping[str, Row], groups: Groups[T]
) -> Iterator[tuple[Row, Framework, list[T]]]:
    for name, row in rows.items():
        for framework in FRAMEWORKS:
            if values := groups.get((name, framework)):
                yield row, framework, values


def _comparisons(
    rows: Mapping[str, Row], groups: Groups[float]
) -> Iterator[tuple[Row, Comparison, float]]:
    """Compare the frameworks on each row that both trained and whose data set has a margin."""
    for name, row in rows.items():
        ours, theirs = _by_framework(groups, name)
        margin = MARGINS.get(row.dataset)
        if ours and theirs and margin:
            yield row, compare(ours, theirs, margin), margin


def _command(rows: Mapping[str, Row], runs: Sequence[Result]) -> str:
    """Return the command that trains an experiment's runs."""
    seeds, frameworks = {run.seed for run in runs}, {run.framework for run in runs}
    words = [name for name in rows if any(run.row == name for run in runs)]
    words += [] if len(frameworks) > 1 else ["--framework", *frameworks]
    words += ["--seeds", f"{max(seeds) - min(seeds) + 1}"]
    words += ["--first_seed", f"{min(seeds)}"] if min(seeds) else []
    return command("digitlab", "reproduce", *words)
