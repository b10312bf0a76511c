import math

import numpy as np
import pytest
from scipy import stats

from digitlab.reproduce.statistics import Comparison, adjust, compare, holm, summarize

# Student's t as printed in tables, 0.975 quantile, by degrees of freedom.
PRINTED_T = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 9: 2.262}
PRINTED = 2e-4  # the table's rounding, relative to t


@pytest.mark.parametrize("n", [2, 3, 5, 10])
def test_intervals_are_those_of_the_printed_table_of_t(n: int) -> None:
    values = list(np.random.default_rng(n).normal(98, 0.3, n))
    mean, deviation = np.mean(values), np.std(values, ddof=1)
    summary = summarize(values)
    assert summary.n == n
    assert summary.mean == pytest.approx(mean)
    assert summary.deviation == pytest.approx(deviation)
    half = PRINTED_T[n - 1] * deviation / math.sqrt(n)
    assert summary.mean_interval[1] - mean == pytest.approx(half, rel=PRINTED)
    half = PRINTED_T[n - 1] * deviation * math.sqrt(1 + 1 / n)
    assert mean - summary.prediction_interval[0] == pytest.approx(half, rel=PRINTED)


def test_intervals_need_two_values_and_any_summary_one() -> None:
    summary = summarize([98.0])
    assert summary.mean == 98.0
    assert math.isnan(summary.deviation)
    assert summary.mean_interval == summary.prediction_interval == (-math.inf, math.inf)
    assert summarize([0.1] * 3).deviation == 0.0
    with pytest.raises(ValueError, match="no values"):
        summarize([])


@pytest.mark.parametrize("shift", [-0.4, -0.1, 0.0, 0.25, 0.6])
def test_equivalent_means_that_welch_s_90_per_cent_interval_lies_within_the_margin(
    shift: float,
) -> None:
    # Reference: Welch's formulas written out, and the equivalence of two one-sided tests at 5%
    # with the two-sided 90% interval.
    ours = np.random.default_rng(5).normal(98 + shift, 0.3, 6)
    theirs = np.random.default_rng(6).normal(98, 0.15, 4)
    parts = np.var(ours, ddof=1) / 6, np.var(theirs, ddof=1) / 4
    error, difference = math.sqrt(sum(parts)), ours.mean() - theirs.mean()
    freedom = sum(parts) ** 2 / (parts[0] ** 2 / 5 + parts[1] ** 2 / 3)
    least = abs(difference) + stats.t.ppf(0.95, freedom) * error
    inside, outside = (compare(list(ours), list(theirs), least * k) for k in (1.001, 0.999))
    assert inside.verdict == "equivalent"
    assert outside.verdict != "equivalent"
    for margin in (0.5 * least, least, 2 * least):
        found = compare(list(ours), list(theirs), margin)
        p = stats.t.cdf((abs(difference) - margin) / error, freedom)
        assert found.p_equivalence == pytest.approx(p)
        assert found.p_difference == pytest.approx(2 * stats.t.sf(abs(difference) / error, freedom))
        half = stats.t.ppf(0.975, freedom) * error
        assert found.interval == pytest.approx((difference - half, difference + half))


@pytest.mark.parametrize(
    ("ours", "theirs", "verdict"),
    [
        ([98.0], [98.0, 98.1], "inconclusive"),
        ([95.0, 97.0, 99.0], [95.5, 97.0, 98.5], "inconclusive"),
        ([98.0, 98.01, 98.02], [98.1, 98.11, 98.12], "equivalent"),  # and certainly different
        ([97.75, 97.75], [97.75, 97.75], "inconclusive"),  # all agree by chance
        ([97.75, 97.75], [98.5, 98.5], "inconclusive"),
        ([98.0, 98.01] * 20, [97.6, 98.0, 98.4], "inconclusive"),  # pooled: as certain as ours
        ([98.0, 98.01] * 20, [98.0, 98.01, 98.02], "equivalent"),
        ([96.0, 96.1, 96.2], [98.0, 98.1, 98.2], "different"),
        ([97.75, 97.75], [97.7, 97.75, 97.8], "equivalent"),  # without SciPy's warning
    ],
)
def test_a_verdict_needs_enough_runs_that_vary_little(
    ours: list[float], theirs: list[float], verdict: str
) -> None:
    assert compare(ours, theirs, margin=0.5).verdict == verdict


def test_sides_without_any_spread_have_no_interval() -> None:
    assert compare([97.75] * 2, [98.5] * 2, margin=0.5).interval == (-math.inf, math.inf)


@pytest.mark.parametrize(("ours", "margin"), [([], 0.5), ([98.0, 98.1], 0.0)])
def test_an_empty_side_and_no_margin_are_refused(ours: list[float], margin: float) -> None:
    with pytest.raises(ValueError, match=r"values, margin"):
        compare(ours, [98.0, 98.1], margin)


def test_pairs_are_judged_by_their_differences_whatever_the_seeds_add_to_both() -> None:
    seeds = np.array([0.0, 3.0, -2.0, 5.0])
    effect = np.array([0.9, 1.0, 1.1, 1.0])
    found = compare(list(95 + seeds + effect), list(95 + seeds), margin=0.5, paired=True)
    half = PRINTED_T[3] * np.std(effect, ddof=1) / math.sqrt(4)
    assert found.difference == pytest.approx(1.0)
    assert found.interval == pytest.approx((1 - half, 1 + half), rel=PRINTED)
    assert found.verdict == "different"
    assert (
        compare(list(95 + seeds + effect), list(95 + seeds), margin=0.5).verdict == "inconclusive"
    )


@pytest.mark.parametrize("shift", [-0.4, 0.0, 0.25])
def test_pairs_are_equivalent_where_the_90_per_cent_interval_lies_within_the_margin(
    shift: float,
) -> None:
    theirs = np.random.default_rng(6).normal(98, 1, 6)
    ours = theirs + shift + np.random.default_rng(5).normal(0, 0.2, 6)
    error = np.std(ours - theirs, ddof=1) / math.sqrt(6)
    least = abs(np.mean(ours - theirs)) + stats.t.ppf(0.95, 5) * error
    verdicts = [compare(list(ours), list(theirs), least * k, True).verdict for k in (1.001, 0.999)]
    assert verdicts[0] == "equivalent"
    assert verdicts[1] != "equivalent"


def test_pairs_that_differ_by_rounding_alone_have_no_spread() -> None:
    ours, theirs = [97.6, 10.1, 50.3], [97.5, 10.0, 50.2]
    assert len({a - b for a, b in zip(ours, theirs, strict=True)}) > 1
    found = compare(ours, theirs, margin=0.5, paired=True)
    assert (found.interval, found.verdict) == ((-math.inf, math.inf), "inconclusive")
    assert compare(ours, ours, margin=0.5, paired=True).difference == 0.0
    with pytest.raises(ValueError, match="shorter"):
        compare(ours, theirs[:2], margin=0.5, paired=True)


def test_without_a_margin_nothing_is_equivalent() -> None:
    ours, theirs = [98.0, 98.01, 98.02], [98.0, 98.02, 98.01]
    assert compare(ours, theirs, margin=0.5).verdict == "equivalent"
    assert compare(ours, theirs, margin=None).verdict == "inconclusive"
    assert compare(ours, [96.0, 96.1, 96.2], margin=None).verdict == "different"


def test_p_values_are_adjusted_as_in_holm_s_procedure() -> None:
    # By hand: 4 · 0.005, then 3 · 0.01, then 2 · 0.03, then 0.04, never below the one before.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([0.04]) == [0.04]
    assert holm([]) == []


def test_of_many_comparisons_only_clear_ones_keep_their_verdict() -> None:
    found = [Comparison(1.0, (0.1, 1.9), 1.0, p) for p in (0.001, 0.03, 0.04)]
    assert [it.verdict for it in found] == ["different"] * 3
    assert [it.verdict for it in adjust(found)] == ["different", "inconclusive", "inconclusive"]
    assert [it.interval for it in adjust(found)] == [(0.1, 1.9)] * 3
    same = [Comparison(0.0, (-0.1, 0.1), p, 1.0) for p in (0.001, 0.04)]
    assert [it.verdict for it in adjust([*same, *found])][:2] == ["equivalent", "inconclusive"]
