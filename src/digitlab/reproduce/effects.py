"""What a full factorial grid says: the effect of each factor, and how the effects interact.

All seeds are in all cells, so each effect is a difference within seeds, one value a seed: what a
seed adds to all cells cancels out. The values' mean and 95% t interval are what is reported.
"""

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from digitlab.reproduce.factors import Factor
from digitlab.reproduce.results import read_lines

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
