"""The figures of `digitlab reproduce --report`."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from digitlab.callbacks.pictures import COLORS
from digitlab.reproduce.results import Result
from digitlab.reproduce.rows import Row
from digitlab.reproduce.statistics import summarize
from digitlab.reproduce.tables import Groups, group, group_accuracies
from digitlab.run_folder import FRAMEWORKS, Framework

DPI = 150
BLUE, ORANGE, *_ = COLORS
DATASETS = {"mnist": "MNIST", "fashion_mnist": "Fashion-MNIST", "digits": "digits"}


class Style(NamedTuple):
    """How a framework is drawn, in every figure."""

    color: str
    marker: str
    shift: float  # of a row's height, so that frameworks do not cover each other


STYLES: dict[Framework, Style] = {
    "torch": Style(BLUE, "o", -0.17),
    "keras": Style(ORANGE, "s", 0.17),
}
_PUBLISHED: dict[str, Any] = {"color": "#000000", "mfc": "none", "ms": 8}
_INTERVALS = {"95% interval of the mean": 3.5, "95% prediction interval for one more run": 1}
"""The intervals' line widths."""
_TRAINING: dict[str, Any] = {"linestyle": "--", "markerfacecolor": "white"}
"""How curves of training differ from those of validation."""

Points = list[tuple[float, float]]


def draw_accuracies(rows: Mapping[str, Row], results: Sequence[Result]) -> Figure:
    """Draw the measured accuracies, and those that were published, a line for each row.

    Dots: the runs. Thick: 95% interval of the mean. Thin: 95% prediction interval for one more run.
    "More than" is an arrow.
    """
    groups = group_accuracies(results)
    return draw_lines(rows, groups, "accuracy on the test split, %", whole=True)


def draw_lines(rows: Mapping[str, Row], groups: Groups[float], label: str, whole: bool) -> Figure:
    """Draw runs, means and intervals, a line for each row, and axes for each data set.

    An axis shows each run, and the intervals of three or more runs; those of two, which are ten
    times as wide, end at its edge.

    Args:
        rows: The rows by their names.
        groups: Values of their runs.
        label: What the values are.
        whole: Whether these are accuracies, in per cent. Otherwise there are no prediction
            intervals, and no published figures, but a line at 0.
    """
    facets: dict[str, list[Row]] = {}
    for row in measured_rows(rows, groups):
        facets.setdefault(DATASETS.get(row.dataset, row.dataset), []).append(row)
    both = len({framework for _, framework in groups}) > 1
    heights = [len(facet) + 0.8 for facet in facets.values()]  # 0.8: title and ticks
    figure = make_figure(8, 1.3 + 0.4 * sum(heights))
    grid = figure.subplots(len(facets), 1, squeeze=False, height_ratios=heights)[:, 0]
    shown: set[str] = set()
    for axes, (title, facet) in zip(grid, facets.items(), strict=True):
        axes.set_title(title, loc="left", fontsize=10)
        axes.set_yticks(range(len(facet)), [label_row(row) for row in facet], fontsize=8)
        axes.set_ylim(len(facet) - 0.5, -0.5)  # the first row is at the top
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x", alpha=0.3)
        for place in range(1, len(facet), 2):
            axes.axhspan(place - 0.5, place + 0.5, color="black", alpha=0.04, linewidth=0)
        ends = [] if whole else [0.0]
        for place, row in enumerate(facet):
            if whole and row.published_accuracy is not None:
                marker = ">" if re.search(r"\b(more than|over)\b", row.published) else "D"
                axes.plot(row.published_accuracy, place, marker, zorder=4, **_PUBLISHED)
                ends.append(row.published_accuracy)
                shown.add(marker)
            for framework in FRAMEWORKS:
                if values := groups.get((row.name, framework)):
                    style = STYLES[framework] if both else STYLES[framework]._replace(shift=-0.0)
                    ends += _draw_values(axes, place, values, style, 1 + whole)
                    shown.add(framework)
        if not whole:
            axes.axvline(0, color="black", linewidth=0.8, zorder=1)
        space = 0.04 * (max(ends) - min(ends)) or 0.1
        low = max(min(ends), 0) if whole else min(ends)
        axes.set_xlim(low - space, min(max(ends), 100) + space)
    grid[-1].set_xlabel(label)
    marks = {"D": "published", ">": "published: more than"}
    handles = [_handle(text, marker=it, **_PUBLISHED) for it, text in marks.items() if it in shown]
    handles += [
        _handle(FRAMEWORKS[name], marker=style.marker, color=style.color, ms=7)
        for name, style in STYLES.items()
        if name in shown
    ]
    handles.append(_handle("a run", marker=".", color="gray", ms=4))
    if any(len(values) > 1 for values in groups.values()):
        widths = [*_INTERVALS.items()][: 1 + whole]
        handles += [_handle(name, linestyle="-", color="gray", lw=width) for name, width in widths]
    _add_legend(figure, handles, columns=3)
    return figure


def _draw_values(
    axes: Axes, place: float, values: Sequence[float], style: Style, intervals: int
) -> list[float]:
    """Draw runs and their mean with intervals, and return all that the axis must show."""
    summary, height = summarize(values), place + style.shift
    beside = height + math.copysign(0.14, style.shift)  # away from the other framework
    shown = (summary.mean_interval, summary.prediction_interval)[:intervals]
    if summary.n > 1:
        for interval, width in zip(shown, _INTERVALS.values(), strict=False):
            axes.plot(interval, [height] * 2, color=style.color, linewidth=width)
    dot: dict[str, Any] = {"color": style.color, "mec": "white", "ms": 7, "zorder": 3}
    axes.plot(summary.mean, height, style.marker, **dot)
    axes.plot(values, [beside] * len(values), ".", color=style.color, ms=5, mew=0, alpha=0.6)
    return [*values, *(shown[-1] if summary.n > 2 else ())]


def draw_curves(rows: Mapping[str, Row], results: Sequence[Result], columns: int = 4) -> Figure:
    """Draw the accuracies of training and validation, axes for each config and framework.

    Lines are means over runs, and bands reach from the lowest to the highest. Points of training
    are means over an epoch, while the weights changed. Runs without a curve are left out.
    """
    groups = group_curves(results)
    keys = [(row, framework) for row in rows for framework in FRAMEWORKS]
    keys = [key for key in keys if key in groups]
    columns = min(columns, len(keys))
    lines = -(-len(keys) // columns)
    figure = make_figure(0.3 + 2.5 * max(columns, 2), (3 + 11 * lines) / 5)
    grid = [*figure.subplots(lines, columns, squeeze=False, sharey=True).flat]
    for axes, (name, framework) in zip(grid, keys, strict=False):
        training, validation = zip(*groups[name, framework], strict=True)
        draw_mean_curve(axes, training, framework, True, **_TRAINING)
        draw_mean_curve(axes, validation, framework, True)
        finish_axes(axes, f"{name}\n{FRAMEWORKS[framework]}, n = {len(training)}")
        axes.set_xlabel("epoch", fontsize=8)
    for axes in grid[len(keys) :]:
        axes.set_visible(False)
    for axes in grid[::columns]:
        axes.set_ylabel("accuracy, %", fontsize=8)
    look: dict[str, Any] = {"color": "gray", "marker": "o", "ms": 3.5, "linestyle": "-"}
    handles = [_handle("training", **(look | _TRAINING)), _handle("validation", **look)]
    _add_legend(figure, handles, columns=2)
    return figure


def group_curves(results: Sequence[Result]) -> Groups[tuple[Points, Points]]:
    """Collect the curves of training and validation, in epochs and per cent."""

    def by_epoch(run: Result) -> tuple[Points, Points]:
        steps = (run.train_curve or run.val_curve)[0][0]  # the first training point ends an epoch
        training, validation = (
            [(step / steps, 100 * accuracy) for step, accuracy in curve]
            for curve in (run.train_curve, run.val_curve)
        )
        return training, validation

    return group((result for result in results if result.val_curve), by_epoch)


def draw_mean_curve(
    axes: Axes, curves: Sequence[Points], framework: Framework, extremes: bool, **options: Any
) -> None:
    """Draw the mean of some curves in a band, from the lowest to the highest or of deviations."""
    points = [point for curve in curves for point in curve]
    if not points:
        return
    at = pd.DataFrame(points, columns=["epoch", "accuracy"]).groupby("epoch")["accuracy"]
    means, style = at.mean(), STYLES[framework]
    look: dict[str, Any] = {"color": style.color, "marker": style.marker, "ms": 3.5}
    axes.plot(means.index, means, **(look | options))
    if len(curves) > 1:
        band = (at.min(), at.max()) if extremes else (means - at.std(), means + at.std())
        axes.fill_between(means.index, *band, color=style.color, alpha=0.2, linewidth=0)


def finish_axes(axes: Axes, title: str) -> None:
    """Give axes over epochs their title, ticks and grid."""
    axes.set_title(title, fontsize=8)
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.3)


def measured_rows(rows: Mapping[str, Row], groups: Groups[Any]) -> list[Row]:
    """Return the rows that were measured."""
    measured = {name for name, _ in groups}
    return [row for row in rows.values() if row.name in measured]


def label_row(row: Row) -> str:
    """Name a row: `B3 lenet5`, or a config's own name."""
    if not row.in_documents:
        return row.name
    name, stem = row.name.removesuffix("_as_published"), row.config.stem
    return name if name == stem else f"{name} {stem}"


def _handle(label: str, **options: Any) -> Line2D:
    return Line2D([], [], label=label, **({"linestyle": ""} | options))


def _add_legend(figure: Figure, handles: list[Line2D], columns: int) -> None:
    options: dict[str, Any] = {"ncols": columns, "fontsize": 8, "frameon": False}
    figure.legend(handles=handles, loc="outside lower center", **options)


def make_figure(width: float, height: float) -> Figure:
    """Make an empty figure of this size in inches."""
    return Figure(figsize=(width, height), dpi=DPI, layout="constrained")
