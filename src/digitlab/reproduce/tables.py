"""Results as Markdown tables: a line for each row, in the rows' order, accuracies in per cent.

Results of unknown rows are left out, and so are rows without a result.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import NamedTuple, TypeVar

from digitlab.reproduce.results import Result
from digitlab.reproduce.rows import Row
from digitlab.reproduce.statistics import Comparison, Interval, adjust, compare, summarize
from digitlab.run_folder import FRAMEWORKS, Framework

T = TypeVar("T")
Groups = dict[tuple[str, Framework], list[T]]
"""Values of the runs of a row in a framework."""

NONE = "—"
_PAIRS = "pairs"
MARGINS = {"mnist": 0.5, "fashion_mnist": 1.0, "digits": 1.5}
"""Per data set, the largest difference between two means that does not matter, in points.

The documents distinguish recipes by 2 points (95 and 97%, 85 and 87%), so half of that or less is
no finding of theirs. It must also exceed the effect of seeds, or no affordable number of runs
would prove it: one run's standard deviation is about .2 points on MNIST, .4 on Fashion-MNIST, and
.2 to 1.9 on the digits, whose test split has 360 images, .28 points each.
"""


def group(results: Iterable[Result], value: Callable[[Result], T]) -> Groups[T]:
    """Collect a value of all runs by row and framework."""
    groups: Groups[T] = {}
    for result in results:
        groups.setdefault((result.row, result.framework), []).append(value(result))
    return groups


def group_accuracies(results: Iterable[Result]) -> Groups[float]:
    """Collect the accuracies on the test split, in per cent, by row and framework."""
    return group(results, lambda result: 100 * result.test_accuracy)


def rows_of(results: Iterable[Result], known: Mapping[str, Row]) -> dict[str, Row]:
    """Return the rows of some results: the known ones in their order, then the others."""
    found = {result.row: Path(f"{result.config}.yaml") for result in results}
    names = [name for name in known if name in found]
    published = {name: known[name].published for name in names}
    return {
        name: Row(name, found[name], published.get(name, ""))
        for name in dict.fromkeys([*names, *found])
    }


def markdown_table(
    head: Sequence[str], lines: Iterable[Sequence[str]], aligned: bool = False
) -> str:
    """Make a Markdown table; aligned, its columns line up in a terminal, too."""
    lines = [head, *lines]
    widths = [max(map(len, column)) if aligned else 0 for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * (width or 3) for width in widths])
    padded = (map(str.ljust, line, widths) for line in lines)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in padded)


def _columns_table(columns: Mapping[str, Sequence[str]]) -> str:
    """Make an aligned Markdown table of the columns that have a value."""
    shown = {name: cells for name, cells in columns.items() if {*cells} - {"", NONE}}
    return markdown_table([*shown], zip(*shown.values(), strict=True), aligned=True)


def intervals_table(rows: Mapping[str, Row], results: Sequence[Result]) -> str:
    """Show the intervals of the mean and of one more run, and say what a row lacks."""
    seeds = group(results, lambda result: result.seed)
    several, every = len({framework for _, framework in seeds}) > 1, {it.seed for it in results}
    lines, lacking = [], []
    for row, framework, values in ordered(rows, group_accuracies(results)):
        summary = summarize(values)
        start = [name_cell(row), FRAMEWORKS[framework] if several else "", str(summary.n)]
        deviation = NONE if summary.n == 1 else f"{summary.deviation:.2f}"
        intervals = (*map(interval_cell, summary[3:]), row.published or NONE)
        lines.append([*start, f"{summary.mean:.2f}", deviation, *intervals])
        if missing := every - {*seeds[row.name, framework]}:
            named = " in ".join(filter(None, start[:2]))
            lacking.append(f"{named} {', '.join(map(str, sorted(missing)))}")
    head = ["row", "framework", "n", "mean, %", "SD", "95% of the mean", "95% of one more run"]
    columns = zip(*lines, strict=True)
    text = _columns_table(dict(zip([*head, "published"], columns, strict=True)))
    if any(len(found) == 1 for found in seeds.values()):
        text += "\n\nOne run has no interval."
    if lacking:
        text += (
            f"\n\nSeeds that other rows have, and these lack: {'; '.join(lacking)}. A run that "
            "failed is in no mean."
        )
    return text


class Pair(NamedTuple):
    """Two groups of runs, compared."""

    name: str  # `ours − theirs`
    found: Comparison
    margin: float | None  # in points
    runs: str  # how many are compared, for display
    data: str = ""  # the data set and framework of rows that are compared with each other


def compare_frameworks(
    rows: Mapping[str, Row], results: Sequence[Result], margin: float | None = None
) -> dict[str, Pair]:
    """Compare the frameworks on each row that both trained: a faithful port must be equivalent.

    Unpaired, although runs of a seed may share initial weights and order of images: the difference
    then varies less than assumed, and equivalence is harder to show.

    Args:
        rows: The rows by their names.
        results: Results of their runs.
        margin: In points; None takes the data set's of `MARGINS`, if it has one.
    """
    groups, pairs = group_accuracies(results), {}
    for name, row in rows.items():
        ours, theirs = (groups.get((name, framework), []) for framework in FRAMEWORKS)
        if ours and theirs:
            limit = margin or MARGINS.get(row.dataset)
            label = f"{name_cell(row)}, {' − '.join(FRAMEWORKS.values())}"
            found = compare(ours, theirs, limit)
            pairs[name] = Pair(label, found, limit, f"{len(ours)} and {len(theirs)}")
    return pairs


def compare_rows(
    rows: Mapping[str, Row], results: Sequence[Result], margin: float | None = None
) -> list[Pair]:
    """Compare each two rows of a data set and framework, the one with the higher mean first.

    Paired by the seeds that both have, if these are at least two; otherwise all runs are compared.
    The p-values of one data set and framework are adjusted for the number of pairs.
    """
    seeds = group(results, lambda result: (result.seed, 100 * result.test_accuracy))
    families: dict[tuple[str, Framework], list[tuple[Row, dict[int, float]]]] = {}
    for row, framework, values in ordered(rows, seeds):
        families.setdefault((row.dataset, framework), []).append((row, dict(values)))
    pairs: list[Pair] = []
    for (dataset, framework), family in families.items():
        limit = margin or MARGINS.get(dataset)
        family.sort(key=lambda member: -summarize([*member[1].values()]).mean)
        data = f"{dataset}, {FRAMEWORKS[framework]}"
        compared = [
            _compare_runs(f"{name_cell(one)} − {name_cell(other)}", ours, theirs, limit, data)
            for (one, ours), (other, theirs) in combinations(family, 2)
        ]
        adjusted = adjust([pair.found for pair in compared])
        pairs += [pair._replace(found=it) for pair, it in zip(compared, adjusted, strict=True)]
    return pairs


def _compare_runs(
    name: str, ours: dict[int, float], theirs: dict[int, float], margin: float | None, data: str
) -> Pair:
    common = sorted(ours.keys() & theirs.keys())
    paired = len(common) > 1
    seeds = (common, common) if paired else (ours, theirs)
    values = [ours[seed] for seed in seeds[0]], [theirs[seed] for seed in seeds[1]]
    runs = f"{len(common)} {_PAIRS}" if paired else f"{len(ours)} and {len(theirs)}"
    return Pair(name, compare(*values, margin, paired), margin, runs, data)


def differences_table(pairs: Sequence[Pair]) -> str:
    """Show differences with intervals and verdicts, and say how they were tested."""
    cells: dict[str, list[str]] = {
        "rows": [pair.name for pair in pairs],
        "data": [pair.data for pair in pairs],
        "difference": [signed(pair.found.difference) for pair in pairs],
        "95% interval": [difference_cells(pair.found)[1] for pair in pairs],
        "runs": [pair.runs for pair in pairs],
        "margin": [f"{pair.margin:g}" if pair.margin else NONE for pair in pairs],
        "verdict": [pair.found.verdict for pair in pairs],
    }
    text = "Percentage points"
    for name in ("data", "runs", "margin"):
        if len({*cells[name]}) == 1:
            (value,) = {*cells.pop(name)}
            text += f"; {name}: {value}" if value not in ("", NONE) else ""
    return f"{_columns_table(cells)}\n\n{' '.join([f'{text}.', *_explain(pairs)])}"


def _explain(pairs: Sequence[Pair]) -> Iterator[str]:
    """Say how these pairs were tested, and nothing about others."""
    known = [pair for pair in pairs if math.isfinite(pair.found.interval[0])]
    if any(_PAIRS in pair.runs for pair in known):
        yield "Runs of the same seed are compared with each other: paired t-tests."
    if not all(_PAIRS in pair.runs for pair in known):
        yield "Runs without common seeds are compared as independent samples: Welch's t-tests."
    most = max(Counter(pair.data for pair in pairs if pair.data).values(), default=0)
    if most > 1:
        yield (
            f"Verdicts are adjusted for {most} pairs by Holm's method; intervals are not, so one "
            "that excludes 0 may be inconclusive."
        )
    if any(pair.margin is None for pair in pairs):
        yield "Nothing is equivalent without a margin: --margin gives one."
    if len(known) < len(pairs):
        yield "No interval: it needs two runs, and differences that are not all the same."


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
    for row, framework, runs in ordered(rows, group(new, lambda result: result)):
        before = groups.get((row.name, framework), [math.nan])
        low, high = summarize(before).prediction_interval
        for result in sorted(runs, key=lambda run: run.seed):
            value, verdict = 100 * result.test_accuracy, NONE
            if math.isfinite(low):
                # 1e-9: rounding, where all runs of the reference have the same accuracy.
                inside.append(low - 1e-9 <= value <= high + 1e-9)
                verdict = "inside" if inside[-1] else "outside"
            run = [name_cell(row), FRAMEWORKS[framework], str(result.seed), f"{value:.2f}"]
            lines.append([*run, interval_cell((low, high)), verdict])
    head = ["row", "framework", "seed", "accuracy, %", "95% prediction interval", "verdict"]
    closing = f"{sum(inside)} of {len(inside)} inside; 95% are expected."
    if known := sum(result.key in keys for result in results):
        new_seed = 1 + max(result.seed for result in reference)
        closing += (
            f" Not judged, as the reference has their seeds: {known}; "
            f"--first_seed {new_seed} makes other runs."
        )
    return f"{markdown_table(head, lines)}\n\n{closing}"


def signed(value: float) -> str:
    """Write a difference with its sign.

    >>> signed(0.456), signed(-0.001), signed(-1)
    ('+0.46', '+0.00', '−1.00')
    """
    return f"{round(value, 2) + 0.0:+.2f}".replace("-", "−")  # + 0.0: no negative zero


def name_cell(row: Row) -> str:
    """Write a row's name, which may have a character that ends a table's cell."""
    return row.name if row.in_documents else f"`{row.name}`".replace("|", r"\|")


def difference_cells(found: Comparison) -> tuple[str, str]:
    """Write a difference, and its interval if it is known."""
    interval = ", ".join(map(signed, found.interval))
    return signed(found.difference), f"[{interval}]" if math.isfinite(found.interval[0]) else NONE


def interval_cell(ends: Interval) -> str:
    """Write an interval of accuracies in per cent."""
    low, high = max(ends[0], 0), min(ends[1], 100)
    return f"[{low:.2f}, {high:.2f}]" if math.isfinite(ends[0]) else NONE


def ordered(rows: Mapping[str, Row], groups: Groups[T]) -> Iterator[tuple[Row, Framework, list[T]]]:
    """Iterate over the rows and frameworks that have values."""
    for name, row in rows.items():
        for framework in FRAMEWORKS:
            if values := groups.get((name, framework)):
                yield row, framework, values
