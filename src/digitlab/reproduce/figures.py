"""The figures of `digitlab reproduce --report`."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from digitlab.reproduce.results import Result
from digitlab.reproduce.rows import Row
from digitlab.reproduce.statistics import Interval, summarize
from digitlab.reproduce.tables import FRAMEWORKS, Groups, group, group_accuracies
from digitlab.run_folder import Framework

DPI = 150
BLUE, ORANGE = (
    "#0072B2",
    "#D55E00",
)  # of Okabe and Ito's palette, for readers with any colour vision
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
Band = Callable[[Sequence[float]], Interval]


def draw_published(rows: Mapping[str, Row], results: Sequence[Result]) -> Figure:
    """Draw the published and the measured accuracies, a line for each row.

    Thick: 95% interval of the mean. Thin: 95% prediction interval for one more run. An axis shows
    the published figures, each run, and the intervals of three or more runs; those of two, which
    are ten times as wide, end at its edge. "More than" is an arrow.
    """
    groups = group_accuracies(results)
    figure, facets = _make_facets(rows, groups, alone="linear")
    for axes, facet in facets:
        ends = []
        for place, row in enumerate(facet):
            if row.published_accuracy is not None:
                marker = ">" if re.search(r"\b(more than|over)\b", row.published) else "D"
                axes.plot(row.published_accuracy, place, marker, zorder=4, **_PUBLISHED)
                ends.append(row.published_accuracy)
        ends += _draw_means(axes, facet, groups, prediction=True)
        space = 0.04 * (max(ends) - min(ends)) or 0.1
        axes.set_xlim(min(ends) - space, min(max(ends), 100) + space)
    marks = {"D": "published", ">": "published: more than"}
    hollow = [_handle(label, marker=marker, **_PUBLISHED) for marker, label in marks.items()]
    return _finish_facets(figure, facets, "accuracy on the test split, %", hollow, [], 2)


def draw_gap(rows: Mapping[str, Row], results: Sequence[Result]) -> Figure:
    """Draw how much better the last weights are on the training split than on the test split.

    Thick: 95% interval of the mean, to the axis' edge where it is wider. Dots: the runs.
    """
    gaps = group(results, lambda result: 100 * (result.train_accuracy - result.test_accuracy))
    figure, facets = _make_facets(rows, gaps)
    for axes, facet in facets:
        axes.axvline(0, color="black", linewidth=0.8, zorder=1)
        ends = [0.0, *_draw_means(axes, facet, gaps, prediction=False)]
        for place, row in enumerate(facet):
            for framework, style in STYLES.items():
                values = gaps.get((row.name, framework), [])
                where = [place + style.shift] * len(values)
                axes.plot(values, where, ".", color=style.color, ms=4, alpha=0.5, zorder=2)
        space = 0.04 * (max(ends) - min(ends)) or 0.1
        axes.set_xlim(min(ends) - space, max(ends) + space)
    label = "accuracy on training split − test split, percentage points"
    dot = _handle("a run", marker=".", color="gray", ms=4)
    return _finish_facets(figure, facets, label, [], [dot], 1)


def _make_facets(
    rows: Mapping[str, Row], groups: Groups[float], alone: str | None = None
) -> tuple[Figure, list[tuple[Axes, list[Row]]]]:
    """Make axes for each data set, with a line for each of the documents' rows measured.

    Args:
        rows: The rows.
        groups: The measured values.
        alone: A row that gets its own axes, as it would stretch those of its data set.
    """
    facets: dict[str, list[Row]] = {}
    for row in _measured_rows(rows, groups):
        title = DATASETS[row.dataset] + (f", {alone}" if row.name == alone else "")
        facets.setdefault(title, []).append(row)
    heights = [len(facet) + 0.8 for facet in facets.values()]  # 0.8: title and ticks
    figure = _make_figure(8, 1.3 + 0.4 * sum(heights))
    if not facets:
        return _show_nothing(figure), []
    grid = figure.subplots(len(facets), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axes, (title, facet) in zip(grid, facets.items(), strict=True):
        axes.set_title(title, loc="left", fontsize=10)
        axes.set_yticks(range(len(facet)), [_label_row(row) for row in facet], fontsize=8)
        axes.set_ylim(len(facet) - 0.5, -0.5)  # the first row is at the top
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x", alpha=0.3)
        for place in range(1, len(facet), 2):
            axes.axhspan(place - 0.5, place + 0.5, color="black", alpha=0.04, linewidth=0)
    return figure, [*zip(grid, facets.values(), strict=True)]


def _draw_means(
    axes: Axes, facet: list[Row], groups: Groups[float], prediction: bool
) -> list[float]:
    """Draw each row's means with intervals, and give all that the axis must show."""
    ends: list[float] = []
    for place, row in enumerate(facet):
        for framework, style in STYLES.items():
            values = groups.get((row.name, framework), [])
            if not values:
                continue
            summary = summarize(values)
            intervals = [summary.mean_interval, summary.prediction_interval][: 1 + prediction]
            if summary.n > 1:
                for interval, width in zip(intervals, _INTERVALS.values(), strict=False):
                    height = [place + style.shift] * 2
                    axes.plot(interval, height, color=style.color, linewidth=width)
            dot: dict[str, Any] = {"color": style.color, "mec": "white", "ms": 7, "zorder": 3}
            axes.plot(summary.mean, place + style.shift, style.marker, **dot)
            ends += values
            ends += intervals[-1] if summary.n > 2 else ()
    return ends


def _finish_facets(
    figure: Figure,
    facets: list[tuple[Axes, list[Row]]],
    label: str,
    before: list[Line2D],
    after: list[Line2D],
    intervals: int,
) -> Figure:
    """Add the label below the last axes, and the legend."""
    if facets:
        facets[-1][0].set_xlabel(label)
        styles = [
            _handle(FRAMEWORKS[name], marker=style.marker, color=style.color, ms=7)
            for name, style in STYLES.items()
        ]
        widths = [*_INTERVALS.items()][:intervals]
        lines = [Line2D([], [], color="gray", lw=width, label=name) for name, width in widths]
        _add_legend(figure, [*before, *styles, *after, *lines], columns=3)
    return figure


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
            _draw_mean_curve(axes, curves, framework, f"{name}, n = {len(runs)}", _deviation)
        _finish_axes(axes, f"{_label_row(row)}\n{DATASETS[row.dataset]}")
        axes.legend(fontsize=7, loc="lower right")
    figure.supxlabel("epoch", fontsize=10)
    figure.supylabel("accuracy on the validated split, %", fontsize=10)
    return figure


def draw_experiment(rows: Mapping[str, Row], results: Sequence[Result]) -> Figure | None:
    """Draw the accuracies of training and validation, axes for each config and framework.

    Lines are means over runs, and bands reach from the lowest to the highest. Points of training
    are means over an epoch, while the weights changed. None if no run has a curve.

    Args:
        rows: The rows of one experiment.
        results: All runs.
    """
    groups = _group_curves(results)
    keys = [
        key for name in rows for framework in FRAMEWORKS if (key := (name, framework)) in groups
    ]
    if not keys:
        return None
    figure = _make_figure(0.3 + 2.5 * max(len(keys), 2), 2.8)
    grid = figure.subplots(1, len(keys), squeeze=False, sharey=True)[0]
    for axes, (name, framework) in zip(grid, keys, strict=True):
        training, validation = zip(*groups[name, framework], strict=True)
        _draw_mean_curve(axes, training, framework, "training", _extremes, **_TRAINING)
        _draw_mean_curve(axes, validation, framework, "validation", _extremes)
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
    axes: Axes,
    curves: Sequence[Points],
    framework: Framework,
    label: str,
    band: Band,
    **options: Any,
) -> None:
    at: dict[float, list[float]] = {}
    for epoch, accuracy in (point for curve in curves for point in curve):
        at.setdefault(epoch, []).append(accuracy)
    if not at:
        return
    epochs, style = sorted(at), STYLES[framework]
    means = [summarize(at[epoch]).mean for epoch in epochs]
    look: dict[str, Any] = {"color": style.color, "marker": style.marker, "ms": 3.5}
    axes.plot(epochs, means, label=label, **(look | options))
    if len(curves) > 1:
        low, high = zip(*(band(at[epoch]) for epoch in epochs), strict=True)
        axes.fill_between(epochs, low, high, color=style.color, alpha=0.2, linewidth=0)


def _deviation(values: Sequence[float]) -> Interval:
    summary = summarize(values)
    return summary.mean - summary.deviation, summary.mean + summary.deviation


def _extremes(values: Sequence[float]) -> Interval:
    return min(values), max(values)


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
