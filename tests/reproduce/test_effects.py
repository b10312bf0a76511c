import math
from itertools import product

import numpy as np
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
    """Accuracies with these effects, of which dropout and scaling together add `both` more."""
    accuracies = np.zeros((3, 2, 2, 2))
    for i, j, k in product((0, 1), repeat=3):
        accuracies[:, i, j, k] = 90 + SEEDS + i * dropout + j * scaling + k * epsilon + i * j * both
    return Measured("B1", "B2", FACTORS, accuracies)


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
    (line,) = (it for it in effects_table(measured).splitlines() if it.startswith("| dropout  "))
    assert [cell.strip() for cell in line.split("|")[4:7]] == ["+1.00", "+0.20", "+0.60"]
    (together,) = (it for it in effects_table(measured).splitlines() if "everything" in it)
    assert "| +2.70 " in together


def test_an_interval_is_of_the_differences_within_seeds() -> None:
    measured = made_up(1.0, 2.0, 0.0, both=0.0)
    measured.accuracies[:, 1] += np.array([-0.1, 0.0, 0.1])[:, None, None]  # of dropout's effect
    half = 4.303 * 0.1 / math.sqrt(3)  # t of 2 degrees of freedom; seeds differ 50 times as much
    table = effects_table(measured)
    (line,) = (line for line in table.splitlines() if line.startswith("| dropout  "))
    assert f"+1.00 ± {half:.2f}" in line
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


def test_a_seed_that_lacks_a_cell_is_left_out() -> None:
    lines = [
        {"f": str(level), "seed": str(seed), "accuracy": str(0.9 + 0.01 * level)}
        for seed, level in ((0, 0), (0, 1), (1, 0))
    ]
    assert arrange(lines, ["f"]) == pytest.approx(np.array([[90.0, 91.0]]))


def test_the_figure_has_the_effects_and_how_the_first_two_interact() -> None:
    bars, interaction = draw_effects(made_up(1.0, 2.0, 0.5, both=-0.8)).axes
    names = [label.get_text().splitlines()[0] for label in bars.get_yticklabels()]
    assert names == ["dropout", "scaling", "epsilon", "all together"]
    lines = [line for line in interaction.lines if line.get_linestyle() == "-"]
    means = [np.asarray(line.get_ydata(), float) for line in lines]
    seed = float(SEEDS.mean())
    # Without scaling dropout adds 1.0, with it 0.2; epsilon's 0.5 is in half of the cells.
    assert means[0] == pytest.approx(np.array([90.25, 91.25]) + seed)
    assert means[1] == pytest.approx(np.array([92.25, 92.45]) + seed)
