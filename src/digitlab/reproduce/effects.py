"""What `--explain` writes: Markdown tables of the effects and interactions, and a figure."""

import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from digitlab.reproduce.factors import IMAGES, Factor
from digitlab.reproduce.results import read_lines
from digitlab.reproduce.statistics import summarize

Values = NDArray[np.float64]
"""One value for each seed."""


@dataclass(frozen=True)
class Measured:
    """The accuracies of a full factorial grid between two configs.

    Args:
        first: The first config's name.
        second: The second's.
        factors: What differs between them.
        accuracies: In per cent, `(seeds, 2, ..., 2)`: a dimension for each factor, where 0 is the
            first config's value and 1 the second's.
    """

    first: str
    second: str
    factors: list[Factor]
    accuracies: NDArray[np.float64]

    @property
    def all(self) -> tuple[int, ...]:
        """The positions of all factors."""
        return tuple(range(len(self.factors)))

    def cell(self, switched: Collection[int]) -> Values:
        """Give the accuracies of the first config with some factors' values the second's."""
        return self.marginal({i: int(i in switched) for i in self.all})

    def alone(self, *factors: int) -> Values:
        """Give what switching these factors alone adds to the first config's accuracy."""
        return self.cell(factors) - self.cell(())

    def last(self, *factors: int) -> Values:
        """Give what switching these factors adds where all others have been switched before."""
        return self.cell(self.all) - self.cell({*self.all} - {*factors})

    def average(self, factor: int) -> Values:
        """Give a factor's main effect: what switching it adds, averaged over the others."""
        return self._mean(np.diff(self.accuracies, axis=factor + 1))

    def interaction(self, factor: int, other: int) -> Values:
        """Give how much more switching a factor adds with the other switched than without.

        It is $(a_{11} - a_{01}) - (a_{10} - a_{00})$, averaged over all settings of the remaining
        factors: a difference of two effects, without the half that some books put before it. It is
        the same with the two exchanged, and 0 where effects simply add up.
        """
        return self._mean(np.diff(np.diff(self.accuracies, axis=factor + 1), axis=other + 1))

    def marginal(self, levels: dict[int, int]) -> Values:
        """Give the accuracies with some factors at 0 or 1, averaged over the others."""
        index: list[Any] = [levels.get(i, slice(None)) for i in self.all]
        return self._mean(self.accuracies[(slice(None), *index)])

    @staticmethod
    def _mean(values: NDArray[np.float64]) -> Values:
        mean: Values = values.reshape(len(values), -1).mean(axis=1)
        return mean


def read_measured(folder: Path) -> Measured:
    """Read a grid: those of its seeds that are in all cells.

    Raises:
        ValueError: There is no grid, or no seed is in all cells.
    """
    if not (folder / "factors.json").is_file():
        raise ValueError(f"{folder} is no explanation, as it has no factors.json: run --explain")
    about = json.loads((folder / "factors.json").read_text("utf-8"))
    factors = [Factor(**factor) for factor in about["factors"]]
    accuracies = arrange(read_lines(folder / "grid.csv"), [factor.name for factor in factors])
    if not len(accuracies):
        raise ValueError(
            f"{folder / 'grid.csv'} has no seed in all {2 ** len(factors)} cells: run the same "
            "--explain again, which goes on where it was"
        )
    return Measured(about["first"], about["second"], factors, accuracies)


def arrange(lines: Sequence[dict[str, str]], factors: Sequence[str]) -> NDArray[np.float64]:
    """Arrange a grid's lines as accuracies in per cent, `(seeds, 2, ..., 2)`.

    A seed that lacks a cell is left out.

    Examples:
        >>> lines = [{"f": "0", "seed": "7", "accuracy": "0.5"}]
        >>> lines += [{"f": "1", "seed": "7", "accuracy": "0.75"}]
        >>> arrange(lines, ["f"]).tolist()
        [[50.0, 75.0]]
    """
    cells: dict[int, dict[tuple[int, ...], float]] = {}
    for line in lines:
        levels = tuple(int(line[name]) for name in factors)
        cells.setdefault(int(line["seed"]), {})[levels] = 100 * float(line["accuracy"])
    shape = (2,) * len(factors)
    complete = [seed for seed in sorted(cells) if len(cells[seed]) == 2 ** len(factors)]
    rows = [[cells[seed][levels] for levels in np.ndindex(shape)] for seed in complete]
    return np.array(rows, float).reshape(len(complete), *shape)


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
