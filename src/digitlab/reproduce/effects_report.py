"""What `--explain` writes: Markdown tables of the effects and interactions, and a figure."""

from collections.abc import Callable
from itertools import combinations
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from digitlab.reproduce.effects import Measured, Values
from digitlab.reproduce.factors import IMAGES
from digitlab.reproduce.statistics import summarize

_BLUE, _ORANGE = "#0072B2", "#D55E00"  # of Okabe and Ito's palette


def effects_table(measured: Measured) -> str:
    """Write each factor's effect, and that of the first two and of all, as Markdown."""
    rows = [[f"nothing: {measured.first}", "", _level(measured.cell(())), "", "", ""]]
    for i, factor in enumerate(measured.factors):
        rows.append([factor.name, f"{factor.first} → {factor.second}", *_effects(measured, i)])
        rows[-1].append(_difference(measured.average(i)))
    if len(measured.factors) > 2:
        names = " and ".join(factor.name for factor in measured.factors[:2])
        rows.append([names, "", *_effects(measured, 0, 1), ""])
    rows.append([f"everything: {measured.second}", "", *_effects(measured, *measured.all), ""])
    head = ["switched", "from → to", "accuracy", "alone", "last", "on average"]
    return f"{_markdown(head, rows)}\n\n{_describe_effects(measured)}"


def interactions_table(measured: Measured) -> str:
    """Write the interaction of each pair as Markdown: the first two's, then the largest first."""
    pairs = list(combinations(measured.all, 2))
    sizes = {pair: abs(float(measured.interaction(*pair).mean())) for pair in pairs}
    rows = [
        [
            " × ".join(measured.factors[i].name for i in pair),
            _difference(measured.interaction(*pair)),
        ]
        for pair in sorted(pairs, key=lambda pair: (pair != (0, 1), -sizes[pair]))
    ]
    return (
        f"{_markdown(['factors', 'interaction'], rows)}\n\n"
        "Percentage points: how much more switching the one adds with the other switched than "
        "without, averaged over all settings of the remaining factors; 0 where effects add up. "
        f"{_describe_intervals(measured)}"
    )


def _effects(measured: Measured, *factors: int) -> list[str]:
    effects = (measured.alone(*factors), measured.last(*factors))
    return [_level(measured.cell(factors)), *map(_difference, effects)]


def _describe_effects(measured: Measured) -> str:
    text = (
        f"Accuracy in per cent: {measured.first} with that switched. Effects in percentage points: "
        f"alone, from {measured.first}; last, to {measured.second} with all others switched "
        f"before; on average, over all settings of the others. {_describe_intervals(measured)}"
    )
    if any(factor.name == IMAGES for factor in measured.factors):
        text += " The images evaluated are the same for all seeds, so that no interval tells how "
        text += "other images would do."
    return text


def _describe_intervals(measured: Measured) -> str:
    n = len(measured.accuracies)
    if n == 1:
        return "One seed, so no intervals."
    return f"Means of {n} seeds ± their 95% t intervals, of differences within seeds."


def _level(values: Values) -> str:
    return _say(values, "")


def _difference(values: Values) -> str:
    return _say(values, "+")


def _say(values: Values, sign: str) -> str:
    mean, half = _mean_and_half(values)
    said = f"{round(mean, 2) + 0.0:{sign}.2f}".replace("-", "−")  # + 0.0: no negative zero
    return f"{said} ± {half:.2f}" if half else said


def _mean_and_half(values: Values) -> tuple[float, float]:
    """Give the mean and half its 95% interval, 0 where it is not known."""
    summary = summarize(values.tolist())
    half = summary.mean_interval[1] - summary.mean
    return summary.mean, half if np.isfinite(half) else 0.0


def _markdown(head: list[str], rows: list[list[str]]) -> str:
    """Write a table whose columns are aligned, so that it also can be read in a terminal."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    rule = ["-" * width for width in widths]
    lines = (head, rule, *rows)
    return "\n".join(
        f"| {' | '.join(text.ljust(width) for text, width in zip(line, widths, strict=True))} |"
        for line in lines
    )


def draw_effects(measured: Measured) -> Figure:
    """Draw each factor's effect alone and on average, and how the first two interact."""
    both = len(measured.factors) > 1
    height = 1.6 + 0.55 * (len(measured.factors) + 1)
    figure = Figure(figsize=(10 if both else 6, height), dpi=150, layout="constrained")
    if both:
        left, right = figure.subplots(1, 2, width_ratios=(3, 2))
        _draw_interaction(right, measured)
    else:
        left = figure.subplots()
    _draw_bars(left, measured)
    n = len(measured.accuracies)
    figure.suptitle(
        f"From {measured.first} to {measured.second}: means of {n} seeds, 95% intervals",
        fontsize="medium",
    )
    return figure


def _draw_bars(axes: Axes, measured: Measured) -> None:
    kinds: list[tuple[str, Callable[[int], Values], str, str, float]] = [
        (f"alone, from {measured.first}", measured.alone, "o", _BLUE, -0.13),
        ("averaged over the others", measured.average, "s", _ORANGE, 0.13),
    ]
    for label, effect, marker, color, shift in kinds:
        means, halves = zip(*(_mean_and_half(effect(i)) for i in measured.all), strict=True)
        places = [i + shift for i in measured.all]
        style: dict[str, Any] = {"fmt": marker, "color": color, "label": label}
        axes.errorbar(means, places, xerr=halves, capsize=3, **style)
    mean, half = _mean_and_half(measured.alone(*measured.all))
    total = len(measured.factors)
    axes.errorbar([mean], [total], xerr=[half], fmt="D", color="black", capsize=3)
    names = [f"{f.name}\n{f.first} → {f.second}" for f in measured.factors]
    axes.set_yticks([*measured.all, total], [*names, "all together"])
    axes.set_ylim(total + 0.5, -0.5)  # the first on top
    axes.axvline(0, color="grey", linewidth=0.8)
    axes.axhline(total - 0.5, color="grey", linewidth=0.5)
    axes.grid(axis="x", alpha=0.3)
    axes.set_xlabel("effect on accuracy, percentage points")
    axes.legend(fontsize="small")


def _draw_interaction(axes: Axes, measured: Measured) -> None:
    first, second = measured.factors[:2]
    for level, (value, marker, color) in enumerate(
        ((second.first, "o", _BLUE), (second.second, "s", _ORANGE))
    ):
        ends = [_mean_and_half(measured.marginal({0: i, 1: level})) for i in (0, 1)]
        means, halves = zip(*ends, strict=True)
        style: dict[str, Any] = {"fmt": f"{marker}-", "color": color, "label": value}
        axes.errorbar((0, 1), means, yerr=halves, capsize=3, **style)
    axes.set_xticks((0, 1), (first.first, first.second))
    axes.set_xlim(-0.3, 1.3)
    axes.set_xlabel(first.name)
    averaged = ", averaged over the others" if len(measured.factors) > 2 else ""
    axes.set_ylabel(f"accuracy, %{averaged}")
    axes.grid(alpha=0.3)
    axes.legend(title=second.name, fontsize="small", title_fontsize="small")
