import math

import numpy as np
import pytest

from digitlab.reproduce.statistics import compare, summarize

# Student's t as printed in tables, 0.975 quantile, by degrees of freedom.
PRINTED_T = {1: 12.706, 2: 4.303, 4: 2.776, 9: 2.262}


@pytest.mark.parametrize("n", [2, 3, 5, 10])
def test_intervals_are_those_of_the_printed_table_of_t(n: int) -> None:
    values = list(np.random.default_rng(n).normal(98, 0.3, n))
    mean = sum(values) / n
    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / (n - 1))
    summary = summarize(values)
    assert summary.n == n
    assert summary.mean == pytest.approx(mean)
    assert summary.deviation == pytest.approx(deviation)
    t = PRINTED_T[n - 1]
    printed = 2e-4  # the table's rounding, relative to t
    half = t * deviation / math.sqrt(n)
    assert summary.mean_interval[1] - mean == pytest.approx(half, rel=printed)
    half = t * deviation * math.sqrt(1 + 1 / n)
    assert mean - summary.prediction_interval[0] == pytest.approx(half, rel=printed)


def test_of_100_prediction_intervals_95_hold_the_next_run() -> None:
    draws = np.random.default_rng(0).normal(98, 0.3, (4000, 6))
    inside = 0
    for *runs, one_more in draws:
        low, high = summarize(runs).prediction_interval
        inside += low <= one_more <= high
    assert inside / len(draws) == pytest.approx(0.95, abs=0.011)  # 3 standard errors


def test_one_run_says_nothing_of_others() -> None:
    summary = summarize([98.0])
    assert summary.mean == 98.0
    assert math.isnan(summary.deviation)
    assert summary.mean_interval == summary.prediction_interval == (-math.inf, math.inf)


def test_runs_that_all_gave_the_same_do_not_deviate_at_all() -> None:
    assert summarize([0.1] * 3).deviation == 0.0


def test_no_values_are_refused() -> None:
    with pytest.raises(ValueError, match="no values"):
        summarize([])


def test_welch_s_degrees_of_freedom_are_those_of_the_side_that_scatters() -> None:
    ours, theirs = [97.75] * 3, [97.2, 97.4, 97.9, 98.1, 98.4]
    found = compare(ours, theirs, margin=1.0)
    assert found.difference == pytest.approx(97.75 - 97.8)
    half = PRINTED_T[4] * math.sqrt(np.var(theirs, ddof=1) / 5)  # and not of 3 + 5 − 2
    assert found.interval[1] - found.difference == pytest.approx(half, rel=2e-4)


def test_both_sides_that_scatter_alike_have_student_s_degrees_of_freedom() -> None:
    ours = [97.0, 97.1, 97.2, 97.3, 97.4]
    found = compare(ours, [value + 0.5 for value in ours], margin=1.0)
    half = 2.306 * math.sqrt(2 * 0.025 / 5)  # t of 8 degrees of freedom; 0.025 is the variance
    assert found.interval == pytest.approx((-0.5 - half, -0.5 + half), rel=1e-3)


def test_a_true_difference_of_the_margin_is_seldom_called_equivalent() -> None:
    verdicts = simulate(1000, difference=0.5)
    assert verdicts.count("equivalent") / len(verdicts) <= 0.05 + 0.021  # 3 standard errors


def test_eight_runs_a_side_mostly_show_that_nothing_differs() -> None:
    verdicts = simulate(200, difference=0.0)
    assert verdicts.count("equivalent") / len(verdicts) >= 0.85


def test_a_difference_beyond_the_margin_is_found() -> None:
    verdicts = simulate(50, difference=2.0)
    assert set(verdicts) == {"different"}


def simulate(times: int, difference: float) -> list[str]:
    """Verdicts on 8 runs a side of deviation .3, margin .5."""
    draws = np.random.default_rng(1).normal(98, 0.3, (times, 2, 8))
    return [
        compare(list(ours + difference), list(theirs), margin=0.5).verdict for ours, theirs in draws
    ]


def test_too_few_or_too_scattered_runs_prove_nothing() -> None:
    assert compare([98.0], [98.0, 98.1], margin=0.5).verdict == "inconclusive"
    assert compare([95.0, 97.0, 99.0], [95.5, 97.0, 98.5], margin=0.5).verdict == "inconclusive"


def test_a_small_difference_that_is_certain_is_equivalent_all_the_same() -> None:
    found = compare([98.0, 98.01, 98.02], [98.1, 98.11, 98.12], margin=0.5)
    assert found.p_difference < 0.05
    assert found.verdict == "equivalent"


@pytest.mark.parametrize("theirs", [97.75, 98.5])
def test_runs_that_all_agree_by_chance_prove_nothing(theirs: float) -> None:
    found = compare([97.75, 97.75], [theirs, theirs], margin=0.5)
    assert found.verdict == "inconclusive"
    assert found.interval == (-math.inf, math.inf)


def test_the_variances_of_two_sides_are_not_pooled() -> None:
    # Many runs that hardly scatter and few that do: pooled, the few would look as certain.
    ours = [98.0, 98.01] * 20
    theirs = [97.6, 98.0, 98.4]
    assert compare(ours, theirs, margin=0.5).verdict == "inconclusive"
    assert compare(ours, [98.0, 98.01, 98.02], margin=0.5).verdict == "equivalent"


def test_one_side_that_does_not_scatter_is_compared_without_a_warning() -> None:
    assert compare([97.75, 97.75], [97.7, 97.75, 97.8], margin=0.5).verdict == "equivalent"


@pytest.mark.parametrize(("ours", "margin"), [([], 0.5), ([98.0, 98.1], 0.0)])
def test_an_empty_side_and_no_margin_are_refused(ours: list[float], margin: float) -> None:
    with pytest.raises(ValueError, match=r"values, margin"):
        compare(ours, [98.0, 98.1], margin)
