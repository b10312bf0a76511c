"""The figures of `digitlab reproduce --report`."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from digitlab.reproduce.results import Result
from digitlab.reproduce.rows import Row
from digitlab.reproduce.statistics import summarize
from digitlab.reproduce.tables import Groups, group, group_accuracies
from digitlab.run_folder import FRAMEWORKS, Framework

DPI = 150
# Of Okabe and Ito's palette, for readers with any colour vision.
BLUE, ORANGE = "#0072B2", "#D55E00"
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


def draw_published(rows: Mapping[str, Row], results: Sequence[Result]) -> Figure:
    """Draw the published and the measured accuracies, a line for each row.

    Thick: 95% interval of the mean. Thin: 95% prediction interval for one more run. An axis shows
    the published figures, each run, and the intervals of three or more runs; those of two, which
    are ten times as wide, end at its edge. "More than" is an arrow.
    """

    def draw_figures(axes: Axes, facet: list[Row]) -> list[float]:
        ends = []
        for place, row in enumerate(facet):
            if row.published_accuracy is not None:
                marker = ">" if re.search(r"\b(more than|over)\b", row.published) else "D"
                axes.plot(row.published_accuracy, place, marker, zorder=4, **_PUBLISHED)
                ends.append(row.published_accuracy)
        return ends

    marks = {"D": "published", ">": "published: more than"}
    hollow = [_handle(label, marker=marker, **_PUBLISHED) for marker, label in marks.items()]
    label, groups = "accuracy on the test split, %", group_accuracies(results)
    return _draw_facets(rows, groups, label, draw_figures, hollow, (), intervals=2, alone="linear")


def draw_gap(rows: Mapping[str, Row], results: Sequence[Result]) -> Figure:
    """Draw how much better the last weights are on the training split than on the test split.

    Thick: 95% interval of the mean, to the axis' edge where it is wider. Dots: the runs.
    """
    gaps = group(results, lambda result: 100 * (result.train_accuracy - result.test_accuracy))

    def draw_runs(axes: Axes, facet: list[Row]) -> list[float]:
        axes.axvline(0, color="black", linewidth=0.8, zorder=1)
        for place, row in enumerate(facet):
            for framework, style in STYLES.items():
                values = gaps.get((row.name, framework), [])
                where = [place + style.shift] * len(values)
                # Above the intervals, whose zorder is 2.
                axes.plot(values, where, ".", color=style.color, ms=4, alpha=0.5, zorder=2.5)
        return [0.0]

    dot = _handle("a run", marker=".", color="gray", ms=4)
    label = "accuracy on training split − test split, percentage points"
    return _draw_facets(rows, gaps, label, draw_runs, (), (dot,), intervals=1)


def _draw_facets(
    rows: Mapping[str, Row],
    groups: Groups[float],
    label: str,
    draw: Callable[[Axes, list[Row]], list[float]],
    before: Sequence[Line2D],
    after: Sequence[Line2D],
    intervals: int,
    alone: str | None = None,
) -> Figure:
    """Draw axes for each data set, with a line for each of the documents' rows measured.

    The row `alone` gets its own axes, as it would stretch those of its data set. `draw` draws what
    is beside the means, and returns values that the axis must show; the legend has its handles
    `before` and `after` those of the frameworks.
    """
    facets: dict[str, list[Row]] = {}
    for row in _measured_rows(rows, groups):
        title = DATASETS.get(row.dataset, row.dataset) + (f", {alone}" if row.name == alone else "")
        facets.setdefault(title, []).append(row)
    heights = [len(facet) + 0.8 for facet in facets.values()]  # 0.8: title and ticks
    figure = _make_figure(8, 1.3 + 0.4 * sum(heights))
    if not facets:
        return _show_nothing(figure)
    grid = figure.subplots(len(facets), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axes, (title, facet) in zip(grid, facets.items(), strict=True):
        axes.set_title(title, loc="left", fontsize=10)
        axes.set_yticks(range(len(facet)), [_label_row(row) for row in facet], fontsize=8)
        axes.set_ylim(len(facet) - 0.5, -0.5)  # the first row is at the top
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x", alpha=0.3)
        for place in range(1, len(facet), 2):
            axes.axhspan(place - 0.5, place + 0.5, color="black", alpha=0.04, linewidth=0)
        ends = draw(axes, facet) + _draw_means(axes, facet, groups, intervals)
        space = 0.04 * (max(ends) - min(ends)) or 0.1
        axes.set_xlim(min(ends) - space, min(max(ends), 100) + space)
    grid[-1].set_xlabel(label)
    styles = [
        _handle(FRAMEWORKS[name], marker=style.marker, color=style.color, ms=7)
        for name, style in STYLES.items()
    ]
    widths = [*_INTERVALS.items()][:intervals]
    lines = [_handle(name, linestyle="-", color="gray", lw=width) for name, width in widths]
    _add_legend(figure, [*before, *styles, *after, *lines], columns=3)
    return figure


def _draw_means(axes: Axes, facet: list[Row], groups: Groups[float], intervals: int) -> list[float]:
    """Draw each row's means with intervals, and return all that the axis must show."""
    ends: list[float] = []
    for place, row in enumerate(facet):
        for framework, style in STYLES.items():
            values = groups.get((row.name, framework), [])
            if not values:
                continue
            summary = summarize(values)
            shown = (summary.mean_interval, summary.prediction_interval)[:intervals]
            if summary.n > 1:
                for interval, width in zip(shown, _INTERVALS.values(), strict=False):
                    height = [place + style.shift] * 2
                    axes.plot(interval, height, color=style.color, linewidth=width)
            dot: dict[str, Any] = {"color": style.color, "mec": "white", "ms": 7, "zorder": 3}
            axes.plot(summary.mean, place + style.shift, style.marker, **dot)
            ends += values
            ends += shown[-1] if summary.n > 2 else ()
    return ends


def draw_validation_curves(rows: Mapping[str, Row], results: Sequence[Result]) -> Figure:
    """Draw the accuracy on the validated split over the epochs, axes for each row.

    Lines are means over runs, and bands one standard deviation to each side, which unlike the
    lowest and highest run does not grow with the number of runs. Runs without a curve are left out.
    """
    groups = _group_curves(results)
    shown = _measured_rows(rows, groups)
    columns = min(4, len(shown))
    lines = math.ceil(len(shown) / columns) if shown else 0
    figure = _make_figure(2.7 * max(columns, 2), 0.5 + 2.1 * max(lines, 1))
    if not shown:
        return _show_nothing(figure)
    grid = [*figure.subplots(lines, columns, squeeze=False).flat]
    for axes in grid[len(shown) :]:
        axes.set_visible(False)
    for axes, row in zip(grid, shown, strict=False):
        for framework, name in FRAMEWORKS.items():
            runs = groups.get((row.name, framework), [])
            curves = [validation for _, validation in runs]
            _draw_mean_curve(axes, curves, framework, False, label=f"{name}, n = {len(runs)}")
        _finish_axes(axes, f"{_label_row(row)}\n{DATASETS.get(row.dataset, row.dataset)}")
        axes.legend(fontsize=7, loc="lower right")
    figure.supxlabel("epoch", fontsize=10)
    figure.supylabel("accuracy on the validated split, %", fontsize=10)
    return figure


def draw_experiment(rows: Mapping[str, Row], results: Sequence[Result]) -> Figure | None:
    """Draw the accuracies of training and validation, axes for each config and framework.

    Lines are means over runs, and bands reach from the lowest to the highest. Points of training
    are means over an epoch, while the weights changed. None if no run of these rows has a curve.
    """
    groups = _group_curves(results)
    keys = [(row, framework) for row in rows for framework in FRAMEWORKS]
    keys = [key for key in keys if key in groups]
    if not keys:
        return None
    figure = _make_figure(0.3 + 2.5 * max(len(keys), 2), 2.8)
    grid = figure.subplots(1, len(keys), squeeze=False, sharey=True)[0]
    for axes, (name, framework) in zip(grid, keys, strict=True):
        training, validation = zip(*groups[name, framework], strict=True)
        _draw_mean_curve(axes, training, framework, True, **_TRAINING)
        _draw_mean_curve(axes, validation, framework, True)
        _finish_axes(axes, f"{name}\n{FRAMEWORKS[framework]}, n = {len(training)}")
        axes.set_xlabel("epoch", fontsize=8)
    grid[0].set_ylabel("accuracy, %", fontsize=8)
    look: dict[str, Any] = {"color": "gray", "marker": "o", "ms": 3.5, "linestyle": "-"}
    handles = [_handle("training", **(look | _TRAINING)), _handle("validation", **look)]
    _add_legend(figure, handles, columns=2)
    return figure


def _group_curves(results: Sequence[Result]) -> Groups[tuple[Points, Points]]:
    """Collect the curves of training and validation, in epochs and per cent."""

    def by_epoch(run: Result) -> tuple[Points, Points]:
        steps = (run.train_curve or run.val_curve)[0][0]  # the first training point ends an epoch
        training, validation = (
            [(step / steps, 100 * accuracy) for step, accuracy in curve]
            for curve in (run.train_curve, run.val_curve)
        )
        return training, validation

    return group((result for result in results if result.val_curve), by_epoch)


def _draw_mean_curve(
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


def _finish_axes(axes: Axes, title: str) -> None:
    axes.set_title(title, fontsize=8)
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.3)


def _measured_rows(rows: Mapping[str, Row], groups: Groups[Any]) -> list[Row]:
    """Return the documents' rows that were measured."""
    measured = {name for name, _ in groups}
    return [row for row in rows.values() if row.in_documents and row.name in measured]


def _label_row(row: Row) -> str:
    name, stem = row.name.removesuffix("_as_published"), row.config.stem
    return name if name == stem else f"{name} {stem}"


def _handle(label: str, **options: Any) -> Line2D:
    return Line2D([], [], label=label, **({"linestyle": ""} | options))


def _add_legend(figure: Figure, handles: list[Line2D], columns: int) -> None:
    options: dict[str, Any] = {"ncols": columns, "fontsize": 8, "frameon": False}
    figure.legend(handles=handles, loc="outside lower center", **options)


def _make_figure(width: float, height: float) -> Figure:
    return Figure(figsize=(width, height), dpi=DPI, layout="constrained")


def _show_nothing(figure: Figure) -> Figure:
    figure.text(0.5, 0.5, "no such run of the documents' rows", ha="center", va="center")
    return figure
