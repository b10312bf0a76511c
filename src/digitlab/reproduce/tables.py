"""Results as Markdown tables: a line for each row, in the rows' order, accuracies in per cent.

Results of rows that are not among those given are left out, and so are rows without a result.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

from digitlab.reproduce.results import Result
from digitlab.reproduce.rows import Row
from digitlab.reproduce.statistics import Comparison, Interval, compare, summarize
from digitlab.run_folder import Framework

NONE = "—"


def markdown_table(head: list[str], lines: list[list[str]]) -> str:
    """Make a Markdown table."""
    all_lines = [head, ["---"] * len(head), *lines]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in all_lines)


def name_cell(row: Row) -> str:
    """Name a row; a config's name is code."""
    return row.name if row.in_documents else f"`{row.name}`"


def measured_cell(values: list[float]) -> tuple[str, str]:
    """Give mean ± standard deviation, and n; nothing where nothing was measured."""
    if not values:
        return "", ""
    summary = summarize(values)
    deviation = "" if math.isnan(summary.deviation) else f" ± {summary.deviation:.2f}"
    return f"{summary.mean:.2f}{deviation}", str(summary.n)


def mean_cell(values: list[float]) -> str:
    """Give the mean, and n behind it."""
    return f"{summarize(values).mean:.2f} ({len(values)})"


def difference_cell(found: Comparison) -> tuple[str, str]:
    """Give a difference and its interval, with their signs."""
    ends = [_signed(end) for end in found.interval]
    interval_cell = f"[{', '.join(ends)}]" if is_known(found.interval) else NONE
    return _signed(found.difference), interval_cell


def p_equivalence_cell(found: Comparison) -> str:
    """Give the p-value of "the means differ by the margin or more"."""
    if not is_known(found.interval):
        return NONE
    return f"{found.p_equivalence:.3f}" if found.p_equivalence >= 0.001 else "< 0.001"


def interval_cell(ends: Interval) -> str:
    """Give an interval of accuracies, as far as there are such accuracies."""
    low, high = max(ends[0], 0), min(ends[1], 100)
    return f"[{low:.2f}, {high:.2f}]" if is_known(ends) else NONE


def is_known(interval_cell: Interval) -> bool:
    """Say whether an interval tells anything."""
    return all(math.isfinite(end) for end in interval_cell)


def _signed(value: float) -> str:
    return f"{round(value, 2) + 0.0:+.2f}".replace("-", "−")  # + 0.0: no negative zero


FRAMEWORKS: dict[Framework, str] = {"torch": "PyTorch", "keras": "Keras"}
"""The frameworks' names for a reader, in the order in which they are shown."""

MARGINS = {"mnist": 0.5, "fashion_mnist": 1.0, "digits": 1.5}
"""Per data set, the largest difference between two means that does not matter, in points.

The documents tell recipes apart by 2 points (95 and 97%, 85 and 87%): half of that or less is no
finding of theirs. It must also be more than seeds alone shift, or no number of runs that anyone
trains would prove it: one run's standard deviation is about .2 points on MNIST, .4 on
Fashion-MNIST, and .2 to 1.9 on the digits, of which 360 are tested, .28 points each.
"""

AS_PUBLISHED = (
    ("NN 128", "B1_as_published", "B2"),
    ("LeNet-5", "B3", "B4"),
    ("NN 128", "B5_as_published", "B8"),
    ("LeNet-5", "B6", "B9"),
    ("LeNet1", "B7", "B10"),
)
"""What document B sets side by side: a network, its row in PyTorch, and its row in Keras."""


def group(
    results: Iterable[Result],
    value: Callable[[Result], float] = lambda result: result.test_accuracy,
) -> dict[tuple[str, Framework], list[float]]:
    """Collect a value of all runs of the same row and framework, in per cent.

    Args:
        results: The runs.
        value: What to take of a run, in [0, 1]; the accuracy on the test split unless it is said.
    """
    groups: dict[tuple[str, Framework], list[float]] = {}
    for result in results:
        groups.setdefault((result.row, result.framework), []).append(100 * value(result))
    return groups


def results_table(rows: Mapping[str, Row], results: Sequence[Result]) -> str:
    """Set what was measured in both frameworks beside what was published."""
    groups = group(results)
    lines = [
        [
            row.name if row.in_documents else NONE,
            f"`{row.dataset}/{row.config.stem}`",
            row.published or NONE,
            *(
                cell
                for framework in FRAMEWORKS
                for cell in measured_cell(groups.get((row.name, framework), []))
            ),
        ]
        for row in rows.values()
        if any((row.name, framework) in groups for framework in FRAMEWORKS)
    ]
    return markdown_table(["row", "config", "published", "PyTorch, %", "n", "Keras, %", "n"], lines)


def intervals_table(rows: Mapping[str, Row], results: Sequence[Result]) -> str:
    """Say what the runs tell of the mean, and of one more run; nothing where there is one run."""
    lines = []
    for (name, framework), values in _ordered(rows, group(results)):
        summary = summarize(values)
        lines.append(
            [
                name_cell(rows[name]),
                FRAMEWORKS[framework],
                str(summary.n),
                f"{summary.mean:.2f}",
                NONE if math.isnan(summary.deviation) else f"{summary.deviation:.2f}",
                interval_cell(summary.mean_interval),
                interval_cell(summary.prediction_interval),
                rows[name].published or NONE,
            ]
        )
    head = ["row", "framework", "n", "mean, %", "standard deviation", "95% interval of the mean"]
    return markdown_table([*head, "95% prediction interval for one more run", "published"], lines)


def experiment_table(rows: Mapping[str, Row], results: Sequence[Result]) -> str:
    """Show an experiment's runs, whether the frameworks agree, and the command that trains them.

    Args:
        rows: The rows of the experiment.
        results: The runs, at least one of them of these rows.
    """
    runs = [result for result in results if result.row in rows]
    groups = group(runs)
    lines = []
    for (name, framework), values in _ordered(rows, groups):
        summary = summarize(values)
        intervals = (summary.mean_interval, summary.prediction_interval)
        shown = [name_cell(rows[name]), FRAMEWORKS[framework], *measured_cell(values)]
        lines.append([*shown, *map(interval_cell, intervals)])
    head = ["row", "framework", "test accuracy, %", "n", "95% interval of the mean"]
    parts = [markdown_table([*head, "95% prediction interval for one more run"], lines)]
    for name, row in rows.items():
        ours, theirs = (groups.get((name, framework), []) for framework in FRAMEWORKS)
        margin = MARGINS.get(row.dataset)
        if ours and theirs and margin:
            parts.append(_agreement(row, compare(ours, theirs, margin), margin))
    return "\n\n".join([*parts, f"Trained by `{_command(rows, runs)}`."])


def same_recipe_table(rows: Mapping[str, Row], results: Sequence[Result]) -> str:
    """Compare the frameworks on the same config: equivalent is what a faithful port must be.

    Rows of data sets that have no margin in `MARGINS` are left out.
    """
    groups = group(results)
    lines = []
    for row in rows.values():
        ours, theirs = (groups.get((row.name, framework), []) for framework in FRAMEWORKS)
        margin = MARGINS.get(row.dataset)
        if ours and theirs and margin:
            found = compare(ours, theirs, margin)
            shown = [mean_cell(ours), mean_cell(theirs), *difference_cell(found), f"{margin}"]
            lines.append([name_cell(row), *shown, p_equivalence_cell(found), found.verdict])
    head = ["row", "PyTorch, % (n)", "Keras, % (n)", "difference, points", "95% interval", "margin"]
    return markdown_table([*head, "p (not equivalent)", "verdict"], lines)


def as_published_table(rows: Mapping[str, Row], results: Sequence[Result]) -> str:
    """Compare the frameworks as document B does, each by the document's own recipe for it.

    Here "different" is what the document says, and no failure: initial values, scaling and
    epsilon differ, and dropout stays on where the PyTorch program evaluates NN 128.
    """
    groups = group(results)
    lines = []
    for network, *names in AS_PUBLISHED:
        ours = groups.get((names[0], "torch"), [])
        theirs = groups.get((names[1], "keras"), [])
        if ours and theirs and all(name in rows for name in names):
            pair = [rows[name] for name in names]
            found = compare(ours, theirs, MARGINS[pair[0].dataset])
            published = [row.published or NONE for row in pair]
            shown = [mean_cell(ours), mean_cell(theirs), *difference_cell(found), found.verdict]
            lines.append([" : ".join(names), network, pair[0].dataset, *published, *shown])
    head = ["rows", "network", "data set", "PyTorch, published", "Keras, published"]
    head += ["PyTorch, % (n)", "Keras, % (n)", "difference, points", "95% interval"]
    return markdown_table([*head, 'verdict ("different": so are the recipes)'], lines)


def prediction_table(
    rows: Mapping[str, Row], results: Sequence[Result], reference: Sequence[Result]
) -> str:
    """Judge new runs by the 95% prediction intervals of other runs, and count those inside.

    Runs judged by one interval are inside or outside together more often than by chance, as the
    interval itself is off by chance: 95% holds on average over rows.

    Args:
        rows: The rows to judge.
        results: The new runs; those with the row, framework and seed of a reference are left out.
        reference: The runs that the intervals are of; rows with fewer than two are not judged.
    """
    keys = {result.key for result in reference}
    new = [result for result in results if result.row in rows and result.key not in keys]
    groups, names, frameworks = group(reference), [*rows], [*FRAMEWORKS]
    new.sort(key=lambda r: (names.index(r.row), frameworks.index(r.framework), r.seed))
    lines, inside = [], []
    for result in new:
        before = groups.get((result.row, result.framework), [math.nan])
        low, high = summarize(before).prediction_interval
        value, verdict = 100 * result.test_accuracy, NONE
        if is_known((low, high)):
            # 1e-9: rounding, where the reference's runs all gave the same.
            inside.append(low - 1e-9 <= value <= high + 1e-9)
            verdict = "inside" if inside[-1] else "outside"
        run = [name_cell(rows[result.row]), FRAMEWORKS[result.framework], str(result.seed)]
        lines.append([*run, f"{value:.2f}", interval_cell((low, high)), verdict])
    head = ["row", "framework", "seed", "accuracy, %", "95% prediction interval", "verdict"]
    closing = f"{sum(inside)} of {len(inside)} inside; 95% are expected."
    if known := sum(result.key in keys for result in results):
        new_seed = 1 + max(result.seed for result in reference)
        closing += (
            f" Not judged, as the reference has their seeds: {known}; "
            f"--first_seed {new_seed} makes other runs."
        )
    return f"{markdown_table(head, lines)}\n\n{closing}"


def _agreement(row: Row, found: Comparison, margin: float) -> str:
    difference, interval = difference_cell(found)
    shown = "" if interval == NONE else f", 95% interval {interval}"
    frameworks = " − ".join(FRAMEWORKS.values())
    return (
        f"{name_cell(row)}, {frameworks}: {difference} points{shown}; "
        f"**{found.verdict}**, by a margin of {margin} points."
    )


def _command(rows: Mapping[str, Row], runs: Sequence[Result]) -> str:
    """Give the command that trains an experiment's runs."""
    measured, seeds = {run.row for run in runs}, {run.seed for run in runs}
    names = " ".join(name for name in rows if name in measured)
    frameworks = {run.framework for run in runs}
    framework = "" if len(frameworks) > 1 else f" --framework {frameworks.pop()}"
    first = f" --first_seed {min(seeds)}" if min(seeds) else ""
    return f"digitlab reproduce {names}{framework} --seeds {max(seeds) - min(seeds) + 1}{first}"


def _ordered(
    rows: Mapping[str, Row], groups: Mapping[tuple[str, Framework], list[float]]
) -> list[tuple[tuple[str, Framework], list[float]]]:
    keys = [(name, framework) for name in rows for framework in FRAMEWORKS]
    return [(key, groups[key]) for key in keys if key in groups]
