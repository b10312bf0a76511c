"""The figures of `digitlab reproduce --report`."""

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from digitlab.reproduce.results import Curve, Result
from digitlab.reproduce.rows import Row
from digitlab.reproduce.statistics import Interval, summarize
from digitlab.reproduce.tables import FRAMEWORKS, group
from digitlab.run_folder import Framework

DPI = 150

DATASETS = {"mnist": "MNIST", "fashion_mnist": "Fashion-MNIST", "digits": "digits"}


@dataclass(frozen=True)
class Style:
    """How a framework is drawn, in every figure."""

    color: str
    marker: str
    shift: float  # of a row's height, so that frameworks do not cover each other


STYLES: dict[Framework, Style] = {
    "torch": Style("#0072B2", "o", -0.17),
    "keras": Style("#D55E00", "s", 0.17),
}
_PUBLISHED = "#000000"


def draw_published(rows: Mapping[str, Row], results: Sequence[Result]) -> Figure:
    """Draw what was published, and what was measured, a line for each row.

    Thick: 95% interval of the mean. Thin: 95% prediction interval for one more run. An axis holds
    what was published, each run, and the intervals of three or more runs; those of two, which are
    ten times as wide, end at its edge. "More than" is an arrow.
    """
    groups = group(results)
    figure, facets = _draw_facets(rows, groups, alone="linear")
    for axes, facet in facets:
        ends: list[float] = []
        for place, row in enumerate(facet):
            if row.published_accuracy is not None:
                style: dict[str, Any] = {"color": _PUBLISHED, "mfc": "none", "ms": 8, "zorder": 4}
                axes.plot(row.published_accuracy, place, _published_marker(row), **style)
                ends.append(row.published_accuracy)
            for framework in FRAMEWORKS:
                values = groups.get((row.name, framework), [])
                _draw_mean(axes, place, framework, values, prediction=True)
                ends += values
                ends += summarize(values).prediction_interval if len(values) > 2 else ()
        space = 0.04 * (max(ends) - min(ends)) or 0.1
        axes.set_xlim(min(ends) - space, min(max(ends), 100) + space)
    if facets:
        facets[-1][0].set_xlabel("accuracy on the test split, %")
        marks = {"D": "published", ">": "published: more than"}
        hollow = [
            Line2D([], [], marker=marker, color=_PUBLISHED, ls="", mfc="none", ms=8, label=label)
            for marker, label in marks.items()
        ]
        _add_legend(figure, [*hollow, *_framework_handles()], _interval_handles())
    return figure


def draw_gap(rows: Mapping[str, Row], results: Sequence[Result]) -> Figure:
    """Draw by how much the last weights are better on the training split than on the test split.

    Thick: 95% interval of the mean, to the axis' edge where it is wider. Dots: the runs.
    """
    gaps = group(results, lambda result: result.train_accuracy - result.test_accuracy)
    figure, facets = _draw_facets(rows, gaps)
    for axes, facet in facets:
        ends = [0.0]
        axes.axvline(0, color="black", linewidth=0.8, zorder=1)
        for place, row in enumerate(facet):
            for framework, style in STYLES.items():
                values = gaps.get((row.name, framework), [])
                _draw_mean(axes, place, framework, values)
                where = [place + style.shift] * len(values)
                axes.plot(values, where, ".", color=style.color, ms=4, alpha=0.5, zorder=2)
                ends += values
                ends += summarize(values).mean_interval if len(values) > 2 else ()
        space = 0.04 * (max(ends) - min(ends)) or 0.1
        axes.set_xlim(min(ends) - space, max(ends) + space)
    if facets:
        facets[-1][0].set_xlabel("accuracy on training split − test split, percentage points")
        run = Line2D([], [], marker=".", color="gray", ls="", ms=4, label="a run")
        _add_legend(figure, [*_framework_handles(), run], _interval_handles()[:1])
    return figure


def _draw_facets(
    rows: Mapping[str, Row],
    groups: Mapping[tuple[str, Framework], list[float]],
    alone: str | None = None,
) -> tuple[Figure, list[tuple[Axes, list[Row]]]]:
    """Make axes, one below the other, with a line for each of the documents' rows measured.

    Args:
        rows: The rows.
        groups: What was measured.
        alone: A row that gets axes of its own, as it would stretch those of its data set.
    """
    facets: dict[str, list[Row]] = {}
    for row in rows.values():
        if row.in_documents and any((row.name, framework) in groups for framework in FRAMEWORKS):
            title = DATASETS[row.dataset] + (f", {alone}" if row.name == alone else "")
            facets.setdefault(title, []).append(row)
    heights = [len(facet) + 0.8 for facet in facets.values()]  # 0.8: title and ticks
    figure = make_figure(8, 1.3 + 0.4 * sum(heights))
    if not facets:
        return say_nothing(figure), []
    grid = figure.subplots(len(facets), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axes, (title, facet) in zip(grid, facets.items(), strict=True):
        axes.set_title(title, loc="left", fontsize=10)
        axes.set_yticks(range(len(facet)), [label_row(row) for row in facet], fontsize=8)
        axes.set_ylim(len(facet) - 0.5, -0.5)  # the first row is at the top
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x", alpha=0.3)
        for place in range(1, len(facet), 2):
            axes.axhspan(place - 0.5, place + 0.5, color="black", alpha=0.04, linewidth=0)
    return figure, [*zip(grid, facets.values(), strict=True)]


def _draw_mean(
    axes: Axes, place: float, framework: Framework, values: list[float], prediction: bool = False
) -> None:
    if not values:
        return
    style, summary = STYLES[framework], summarize(values)
    intervals: list[tuple[Interval, float]] = [(summary.mean_interval, 3.5)]
    if prediction:
        intervals.append((summary.prediction_interval, 1))
    for interval, width in intervals:
        if summary.n > 1:
            axes.plot(interval, [place + style.shift] * 2, color=style.color, linewidth=width)
    look: dict[str, Any] = {"color": style.color, "mec": "white", "ms": 7, "zorder": 3}
    axes.plot(summary.mean, place + style.shift, style.marker, **look)


def label_row(row: Row) -> str:
    """Name a row and its config."""
    name, stem = row.name.removesuffix("_as_published"), row.config.stem
    return name if name == stem else f"{name} {stem}"


def _published_marker(row: Row) -> str:
    return ">" if re.search(r"\b(more than|over)\b", row.published) else "D"


def _framework_handles() -> list[Line2D]:
    return [
        Line2D([], [], marker=style.marker, color=style.color, ls="", ms=7, label=FRAMEWORKS[name])
        for name, style in STYLES.items()
    ]


def _interval_handles() -> list[Line2D]:
    widths = {"95% interval of the mean": 3.5, "95% prediction interval for one more run": 1}
    return [Line2D([], [], color="gray", lw=width, label=label) for label, width in widths.items()]


def _add_legend(figure: Figure, handles: list[Line2D], intervals: list[Line2D]) -> None:
    handles = [*handles, *intervals]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, fontsize=8, frameon=False)


def make_figure(width: float, height: float) -> Figure:
    """Make an empty figure of that many inches."""
    return Figure(figsize=(width, height), dpi=DPI, layout="constrained")


def say_nothing(figure: Figure) -> Figure:
    """Say in an empty figure why it is empty."""
    figure.text(0.5, 0.5, "no such run of the documents' rows", ha="center", va="center")
    return figure


TRAINING: dict[str, Any] = {"linestyle": "--", "markerfacecolor": "white"}
"""How curves of training differ from those of validation."""

Band = Callable[[Sequence[float]], Interval]
"""Where the band around a mean ends, from the values of the runs."""


def draw_curves(rows: Mapping[str, Row], results: Sequence[Result]) -> Figure:
    """Draw the accuracy on the validated split over the epochs, axes for each row.

    Lines are means over runs, and bands one standard deviation to each side, which unlike the
    lowest and highest run does not grow with the number of runs. Runs without a curve are left out.
    """
    groups = _group(results)
    shown = [
        row
        for row in rows.values()
        if row.in_documents and any((row.name, framework) in groups for framework in FRAMEWORKS)
    ]
    columns = min(4, len(shown))
    lines = math.ceil(len(shown) / columns) if shown else 0
    figure = make_figure(2.7 * max(columns, 2), 0.5 + 2.1 * max(lines, 1))
    if not shown:
        return say_nothing(figure)
    grid = [*figure.subplots(lines, columns, squeeze=False).flat]
    for axes in grid[len(shown) :]:
        axes.set_visible(False)
    for axes, row in zip(grid, shown, strict=False):
        for framework, name in FRAMEWORKS.items():
            runs = groups.get((row.name, framework), [])
            curves = [_by_epoch(run, run.val_curve) for run in runs]
            _draw_mean_curve(axes, curves, framework, f"{name}, n = {len(runs)}", _deviation)
        _finish(axes, f"{label_row(row)}\n{DATASETS[row.dataset]}")
        axes.legend(fontsize=7, loc="lower right")
    figure.supxlabel("epoch", fontsize=10)
    figure.supylabel("accuracy on the validated split, %", fontsize=10)
    return figure


def draw_experiment(rows: Mapping[str, Row], results: Sequence[Result]) -> Figure | None:
    """Draw the accuracies of training and validation, axes for each config and framework.

    Lines are means over runs, and bands reach from the lowest to the highest. Points of training
    are means over an epoch, while the weights changed. None where no run has a curve.

    Args:
        rows: The rows of one experiment.
        results: All runs.
    """
    groups = _group(result for result in results if result.row in rows)
    keys = [
        key for name in rows for framework in FRAMEWORKS if (key := (name, framework)) in groups
    ]
    if not keys:
        return None
    figure = make_figure(0.3 + 2.5 * max(len(keys), 2), 2.8)
    grid = figure.subplots(1, len(keys), squeeze=False, sharey=True)[0]
    for axes, (name, framework) in zip(grid, keys, strict=True):
        runs = groups[name, framework]
        training = [_by_epoch(run, run.train_curve) for run in runs]
        validation = [_by_epoch(run, run.val_curve) for run in runs]
        _draw_mean_curve(axes, training, framework, "training", _range, **TRAINING)
        _draw_mean_curve(axes, validation, framework, "validation", _range)
        _finish(axes, f"{name}\n{FRAMEWORKS[framework]}, n = {len(runs)}")
        axes.set_xlabel("epoch", fontsize=8)
    grid[0].set_ylabel("accuracy, %", fontsize=8)
    look: dict[str, Any] = {"color": "gray", "marker": "o", "ms": 3.5}
    handles = [
        Line2D([], [], label="training", **look, **TRAINING),
        Line2D([], [], label="validation", **look),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    return figure


def _group(results: Iterable[Result]) -> dict[tuple[str, Framework], list[Result]]:
    """Collect the runs with a curve of the same row and framework."""
    groups: dict[tuple[str, Framework], list[Result]] = {}
    for result in results:
        if result.val_curve:
            groups.setdefault((result.row, result.framework), []).append(result)
    return groups


def _draw_mean_curve(
    axes: Axes,
    curves: list[list[tuple[float, float]]],
    framework: Framework,
    label: str,
    band: Band,
    **look: Any,
) -> None:
    at: dict[float, list[float]] = {}
    for epoch, accuracy in (point for curve in curves for point in curve):
        at.setdefault(epoch, []).append(accuracy)
    if not at:
        return
    epochs, style = sorted(at), STYLES[framework]
    means = [summarize(at[epoch]).mean for epoch in epochs]
    look = {"color": style.color, "marker": style.marker, "ms": 3.5, "label": label, **look}
    axes.plot(epochs, means, **look)
    if len(curves) > 1:
        low, high = zip(*(band(at[epoch]) for epoch in epochs), strict=True)
        axes.fill_between(epochs, low, high, color=style.color, alpha=0.2, linewidth=0)


def _deviation(values: Sequence[float]) -> Interval:
    summary = summarize(values)
    return summary.mean - summary.deviation, summary.mean + summary.deviation


def _range(values: Sequence[float]) -> Interval:
    return min(values), max(values)


def _finish(axes: Axes, title: str) -> None:
    axes.set_title(title, fontsize=8)
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.3)


def _by_epoch(run: Result, curve: Curve) -> list[tuple[float, float]]:
    """Give a curve in epochs and per cent; the first training point ends the first epoch."""
    steps_per_epoch = (run.train_curve or run.val_curve)[0][0]
    return [(step / steps_per_epoch, 100 * accuracy) for step, accuracy in curve]
