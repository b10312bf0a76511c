"""Effects and interactions of a grid's factors, as numbers, Markdown tables and a figure."""

import json
from collections.abc import Callable, Collection, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jsonargparse.typing import NotEmptyStr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from digitlab.errors import InputError
from digitlab.reproduce.factors import IMAGES, Factor
from digitlab.reproduce.figures import BLUE, DPI, ORANGE
from digitlab.reproduce.results import damaged, read_table
from digitlab.reproduce.statistics import summarize
from digitlab.reproduce.tables import markdown_table, signed

Values = NDArray[np.float64]
"""One value for each seed."""


class Measured(NamedTuple):
    """The accuracies of a full factorial grid between two configs."""

    first: str  # the first config's name
    second: str
    factors: list[Factor]
    # In per cent, (seeds, 2, ..., 2): a dimension for each factor, 0 for the first config's value
    # and 1 for the second's.
    accuracies: NDArray[np.float64]

    @property
    def all(self) -> tuple[int, ...]:
        """The positions of all factors."""
        return tuple(range(len(self.factors)))

    def cell(self, switched: Collection[int]) -> Values:
        """Return the first config's accuracies with some factors switched to the second's value."""
        return self.marginal({i: int(i in switched) for i in self.all})

    def alone(self, *factors: int) -> Values:
        """Return the effect of switching only these factors in the first config."""
        return self.cell(factors) - self.cell(())

    def last(self, *factors: int) -> Values:
        """Return the effect of switching these factors after all others."""
        return self.cell(self.all) - self.cell({*self.all} - {*factors})

    def average(self, factor: int) -> Values:
        """Return a factor's main effect: that of switching it, averaged over the others."""
        return _mean(np.diff(self.accuracies, axis=factor + 1))

    def interaction(self, factor: int, other: int) -> Values:
        """Return how much larger a factor's effect is with the other switched than without.

        It is $(a_{11} - a_{01}) - (a_{10} - a_{00})$, averaged over all settings of the remaining
        factors: a difference of two effects, without the half that some books put before it. It is
        symmetric, and 0 where effects simply add up.
        """
        return _mean(np.diff(np.diff(self.accuracies, axis=factor + 1), axis=other + 1))

    def marginal(self, levels: dict[int, int]) -> Values:
        """Return the accuracies with some factors at 0 or 1, averaged over the others."""
        index: list[Any] = [levels.get(i, slice(None)) for i in self.all]
        return _mean(self.accuracies[(slice(None), *index)])


def _mean(values: NDArray[np.float64]) -> Values:
    mean: Values = values.reshape(len(values), -1).mean(axis=1)
    return mean


class UnfinishedError(InputError):
    """A grid has no seed in all of its cells yet."""


def read_measured(folder: Path) -> Measured:
    """Read a grid: its seeds that have all cells.

    Raises:
        UnfinishedError: No seed has all cells.
        InputError: A file is damaged.
    """
    index = folder / "factors.json"
    if not index.is_file():
        raise UnfinishedError(f"{folder} has no factors.json: run --explain first")
    try:
        about = json.loads(index.read_text("utf-8"))
        factors = [Factor(*map(NotEmptyStr, named.values())) for named in about["factors"]]
        names = NotEmptyStr(about["first"]), NotEmptyStr(about["second"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise damaged(index, "it does not describe a grid") from error
    accuracies = arrange(read_grid(folder, factors), [factor.name for factor in factors])
    if not len(accuracies):
        raise UnfinishedError(
            f"{folder / 'grid.csv'} has no seed in all {2 ** len(factors)} cells: run the same "
            "--explain again, which trains the missing ones"
        )
    return Measured(*names, factors, accuracies)


def read_grid(folder: Path, factors: Sequence[Factor]) -> pd.DataFrame:
    """Read the accuracies of a grid, whose columns are the factors, seed and accuracy.

    Raises:
        InputError: grid.csv is damaged.
    """
    path, names = folder / "grid.csv", [factor.name for factor in factors]
    table, columns = read_table(path), [*names, "seed", "accuracy"]
    try:
        grid = (table if path.exists() else table.reindex(columns=columns))[columns].astype(float)
    except (KeyError, ValueError) as error:
        raise damaged(path, str(error)) from error
    if not (grid[names].isin([0, 1]).all(axis=None) and grid["accuracy"].between(0, 1).all()):
        raise damaged(path, "a factor is neither 0 nor 1, or an accuracy is not from 0 to 1")
    if not grid["seed"].ge(0).all() or grid.duplicated([*names, "seed"]).any():
        raise damaged(path, "a line has no seed, or is repeated")
    return grid


def arrange(grid: pd.DataFrame, factors: Sequence[str]) -> NDArray[np.float64]:
    """Arrange a grid's lines as accuracies in per cent, `(seeds, 2, ..., 2)`.

    A seed that lacks a cell is left out.

    Examples:
        >>> grid = pd.DataFrame({"f": [0, 1], "seed": [7, 7], "accuracy": [0.5, 0.75]})
        >>> arrange(grid, ["f"]).tolist()
        [[50.0, 75.0]]
    """
    seeds = sorted({*grid["seed"]})
    ways = pd.MultiIndex.from_product([seeds, *[(0, 1)] * len(factors)])
    accuracies = grid.set_index(["seed", *factors])["accuracy"].reindex(ways).to_numpy(float)
    cells = 100 * accuracies.reshape(len(seeds), *(2,) * len(factors))
    arranged: NDArray[np.float64] = cells[~np.isnan(cells).any(axis=tuple(range(1, cells.ndim)))]
    return arranged


def effects_table(measured: Measured) -> str:
    """Write each factor's effect, and that of the first two and of all, as Markdown."""

    def effects(*factors: int) -> list[str]:
        both = measured.alone(*factors), measured.last(*factors)
        return [_write(measured.cell(factors), "{:.2f}".format), *map(_write, both)]

    nothing, *_ = effects()
    lines = [[f"nothing: {measured.first}", "", nothing, "", "", ""]]
    for i, factor in enumerate(measured.factors):
        change = f"{factor.first} → {factor.second}"
        lines.append([factor.name, change, *effects(i), _write(measured.average(i))])
    if len(measured.factors) > 2:
        names = " and ".join(factor.name for factor in measured.factors[:2])
        lines.append([names, "", *effects(0, 1), ""])
    lines.append([f"everything: {measured.second}", "", *effects(*measured.all), ""])
    head = ["switched", "from → to", "accuracy", "alone", "last", "on average"]
    text = (
        f"Accuracy in per cent: {measured.first} with that switched. Effects in percentage points: "
        f"alone, from {measured.first}; last, to {measured.second} with all others switched "
        f"before; on average, over all settings of the others. {_describe_intervals(measured)}"
    )
    if any(factor.name == IMAGES for factor in measured.factors):
        text += (
            " The images evaluated are the same for all seeds, so that no interval tells how other "
            "images would do."
        )
    return f"{markdown_table(head, lines, aligned=True)}\n\n{text}"


def interactions_table(measured: Measured) -> str:
    """Write the interaction of each pair as Markdown: the first two's, then the largest first."""
    effects = {pair: measured.interaction(*pair) for pair in combinations(measured.all, 2)}
    order = sorted(effects, key=lambda pair: (pair != (0, 1), -abs(effects[pair].mean())))
    names = (" × ".join(measured.factors[i].name for i in pair) for pair in order)
    lines = [[name, _write(effects[pair])] for name, pair in zip(names, order, strict=True)]
    return (
        f"{markdown_table(['factors', 'interaction'], lines, aligned=True)}\n\n"
        "Percentage points: how much more switching the one adds with the other switched than "
        "without, averaged over all settings of the remaining factors; 0 where effects add up. "
        f"{_describe_intervals(measured)}"
    )


def _describe_intervals(measured: Measured) -> str:
    n = len(measured.accuracies)
    if n == 1:
        return "One seed, so no intervals."
    return f"Means of {n} seeds ± their 95% t intervals, of differences within seeds."


def _write(values: Values, form: Callable[[float], str] = signed) -> str:
    mean, half = _mean_and_half(values)
    return f"{form(mean)} ± {half:.2f}" if half else form(mean)


def _mean_and_half(values: Values) -> tuple[float, float]:
    """Return the mean and half its 95% interval, 0 for one seed."""
    summary = summarize(values.tolist())
    half = summary.mean_interval[1] - summary.mean
    return summary.mean, half if np.isfinite(half) else 0.0


def draw_effects(measured: Measured) -> Figure:
    """Draw each factor's effect alone and on average, and how the first two interact."""
    both = len(measured.factors) > 1
    height = 1.6 + 0.55 * (len(measured.factors) + 1)
    figure = Figure(figsize=(10 if both else 6, height), dpi=DPI, layout="constrained")
    widths = (3, 2) if both else (1,)
    axes = figure.subplots(1, len(widths), width_ratios=widths, squeeze=False)[0]
    if both:
        _draw_interaction(axes[1], measured)
    _draw_bars(axes[0], measured)
    n = len(measured.accuracies)
    title = f"From {measured.first} to {measured.second}: means of {n} seeds, 95% intervals"
    figure.suptitle(title, fontsize="medium")
    return figure


def _draw_bars(axes: Axes, measured: Measured) -> None:
    total = len(measured.factors)
    alone = [measured.alone(i) for i in measured.all]
    average = [measured.average(i) for i in measured.all]
    together = [measured.alone(*measured.all)]
    places = np.arange(total)
    label = f"alone, from {measured.first}"
    _draw_points(axes, places - 0.13, alone, "x", fmt="o", color=BLUE, label=label)
    label = "averaged over the others"
    _draw_points(axes, places + 0.13, average, "x", fmt="s", color=ORANGE, label=label)
    _draw_points(axes, [total], together, "x", fmt="D", color="black")
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
    levels = ((second.first, "o-", BLUE), (second.second, "s-", ORANGE))
    for level, (label, fmt, color) in enumerate(levels):
        ends = [measured.marginal({0: i, 1: level}) for i in (0, 1)]
        _draw_points(axes, (0, 1), ends, "y", fmt=fmt, color=color, label=label)
    axes.set_xticks((0, 1), (first.first, first.second))
    axes.set_xlim(-0.3, 1.3)
    axes.set_xlabel(first.name)
    averaged = ", averaged over the others" if len(measured.factors) > 2 else ""
    axes.set_ylabel(f"accuracy, %{averaged}")
    axes.grid(alpha=0.3)
    axes.legend(title=second.name, fontsize="small", title_fontsize="small")


def _draw_points(
    axes: Axes, places: Any, effects: Sequence[Values], along: str, **style: Any
) -> None:
    """Draw means with their 95% intervals, in the direction `x` or `y`."""
    means, halves = zip(*map(_mean_and_half, effects), strict=True)
    options = {"x": places, "y": places, along: means, f"{along}err": halves}
    axes.errorbar(capsize=3, **options, **style)
