import math
from itertools import product

import numpy as np
import pandas as pd
import pytest

from digitlab.reproduce.effects import (
    Measured,
    arrange,
    draw_effects,
    effects_table,
    interactions_table,
)
from digitlab.reproduce.factors import Factor

FACTORS = [Factor(name, "off", "on") for name in ("dropout", "scaling", "epsilon")]
# What a seed adds to all cells, which no effect may depend on.
SEEDS = np.array([0.0, 5.0, -3.0])


def made_up(dropout: float, scaling: float, epsilon: float, both: float) -> Measured:
    """Accuracies with these effects, where dropout and scaling together add `both` more."""
    accuracies = np.zeros((3, 2, 2, 2))
    for i, j, k in product((0, 1), repeat=3):
        accuracies[:, i, j, k] = 90 + SEEDS + i * dropout + j * scaling + k * epsilon + i * j * both
    return Measured("B1", "B2", FACTORS, accuracies)


def cells(table: str, start: str) -> list[str]:
    """The cells of the one line that starts so."""
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]
    (found,) = [line for line in lines if line and line[0].startswith(start)]
    return found


def test_effects_that_add_up_are_recovered_whatever_the_seeds() -> None:
    measured = made_up(1.0, 2.0, 0.0, both=0.0)
    for i, effect in enumerate((1.0, 2.0, 0.0)):
        for found in (measured.alone(i), measured.last(i), measured.average(i)):
            assert found == pytest.approx([effect] * 3)
    assert measured.alone(*measured.all) == pytest.approx([3.0] * 3)
    for pair in ((0, 1), (0, 2), (1, 2)):
        assert measured.interaction(*pair) == pytest.approx([0.0] * 3)


def test_an_interaction_belongs_to_its_pair_alone() -> None:
    measured = made_up(1.0, 2.0, 0.5, both=-0.8)
    assert measured.interaction(0, 1) == pytest.approx([-0.8] * 3)
    assert measured.interaction(1, 0) == pytest.approx([-0.8] * 3)
    assert measured.interaction(0, 2) == pytest.approx([0.0] * 3)
    assert measured.alone(0) == pytest.approx([1.0] * 3)  # scaling is not switched
    assert measured.last(0) == pytest.approx([0.2] * 3)  # it is
    assert measured.average(0) == pytest.approx([0.6] * 3)  # it is in half of the cells
    assert measured.alone(0, 1) == pytest.approx([2.2] * 3)
    assert measured.last(0, 1) == pytest.approx([2.2] * 3)
    table = effects_table(measured)
    assert cells(table, "dropout and")[3:5] == ["+2.20", "+2.20"]
    assert cells(table.replace("dropout and", ""), "dropout")[3:6] == ["+1.00", "+0.20", "+0.60"]
    assert cells(table, "everything")[3] == "+2.70"


def test_an_interval_is_of_the_differences_within_seeds() -> None:
    measured = made_up(1.0, 2.0, 0.0, both=0.0)
    measured.accuracies[:, 1] += np.array([-0.1, 0.0, 0.1])[:, None, None]  # of dropout's effect
    half = 4.303 * 0.1 / math.sqrt(3)  # t of 2 degrees of freedom; seeds differ 50 times as much
    table = effects_table(measured)
    assert cells(table.replace("dropout and", ""), "dropout")[3] == f"+1.00 ± {half:.2f}"
    assert "Means of 3 seeds ± their 95% t intervals" in table


def test_the_first_two_factors_interaction_comes_first_and_then_the_largest() -> None:
    measured = made_up(1.0, 2.0, 0.5, both=0.0)
    measured.accuracies[:, :, 1, 1] += 0.7  # scaling and epsilon
    lines = interactions_table(measured).splitlines()[2:5]
    assert [line.split("|")[1].strip() for line in lines][:2] == [
        "dropout × scaling",
        "scaling × epsilon",
    ]
    assert "+0.70" in lines[1]


def test_a_grid_is_arranged_by_its_factors_and_a_seed_that_lacks_a_cell_is_left_out() -> None:
    lines = [
        {"g": g, "f": f, "seed": seed, "accuracy": (50 + 10 * f + g + seed) / 100}
        for seed in (7, 3)
        for g, f in ((1, 0), (0, 0), (0, 1), (1, 1))
    ]
    half = [{"g": 0, "f": 0, "seed": 1, "accuracy": 0.5}]
    arranged = arrange(pd.DataFrame(lines + half), ["f", "g"])
    assert arranged == pytest.approx(np.array([[[53, 54], [63, 64]], [[57, 58], [67, 68]]]))


def test_the_figure_shows_the_effects_and_how_the_first_two_interact() -> None:
    bars, interaction = draw_effects(made_up(1.0, 2.0, 0.5, both=-0.8)).axes
    names = [label.get_text().splitlines()[0] for label in bars.get_yticklabels()]
    assert names == ["dropout", "scaling", "epsilon", "all together"]
    lines = [line for line in interaction.lines if line.get_linestyle() == "-"]
    means = [np.asarray(line.get_ydata(), float) for line in lines]
    seed = float(SEEDS.mean())
    # Without scaling dropout adds 1.0, with it 0.2; epsilon's 0.5 is in half of the cells.
    assert means[0] == pytest.approx(np.array([90.25, 91.25]) + seed)
    assert means[1] == pytest.approx(np.array([92.25, 92.45]) + seed)
