"""Accuracies over the epochs as figures: of all rows of the documents, and of one experiment."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from digitlab.reproduce.plots import DATASETS, STYLES, label_row, make_figure, say_nothing
from digitlab.reproduce.results import Curve, Result
from digitlab.reproduce.rows import Row
from digitlab.reproduce.statistics import Interval, summarize
from digitlab.reproduce.tables import FRAMEWORKS
from digitlab.runs import Framework

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
            _draw_mean(axes, curves, framework, f"{name}, n = {len(runs)}", _deviation)
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
        _draw_mean(axes, training, framework, "training", _range, **TRAINING)
        _draw_mean(axes, validation, framework, "validation", _range)
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


def _draw_mean(
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
