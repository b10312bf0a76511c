"""What n runs say about a mean, about one more run, and about a difference.

Accuracies of seeds are taken as independent draws of a normal distribution. All values may be in
any unit, as long as it is one. Means and variances are Python's, which are exact before they are
rounded once: runs that all gave the same have a deviation of 0, not of 1e-14.
"""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, stdev, variance
from typing import Literal

import numpy as np
from scipy import stats

Interval = tuple[float, float]
Verdict = Literal["equivalent", "different", "inconclusive"]

ALPHA = 0.05


@dataclass(frozen=True)
class Summary:
    """What n values say.

    Args:
        n: Number of values, at least 1.
        mean: Their mean.
        deviation: Standard deviation, of n − 1 degrees of freedom; NaN for one value.
        mean_interval: 95% confidence interval of the mean; infinite for one value.
        prediction_interval: 95% prediction interval for one more value; infinite for one value.
    """

    n: int
    mean: float
    deviation: float
    mean_interval: Interval
    prediction_interval: Interval


def summarize(values: Sequence[float]) -> Summary:
    r"""Summarize values by Student's t.

    The mean lies in $\bar x ± t_{0.975, n-1}\, s / \sqrt n$, one more value in
    $\bar x ± t_{0.975, n-1}\, s \sqrt{1 + 1/n}$, each in 95 of 100 repetitions of all n.

    Examples:
        >>> summary = summarize([97.0, 98.0, 99.0])
        >>> summary.mean, summary.deviation
        (98.0, 1.0)
        >>> [round(end, 2) for end in summary.mean_interval]
        [95.52, 100.48]
        >>> [round(end, 2) for end in summary.prediction_interval]
        [93.03, 102.97]

    Raises:
        ValueError: There are no values.
    """
    n = len(values)
    if n == 0:
        raise ValueError("there are no values to summarize")
    center = float(mean(values))
    if n == 1:
        everything = (-math.inf, math.inf)
        return Summary(n, center, math.nan, everything, everything)
    deviation = float(stdev(values))
    quantile = float(stats.t.ppf(1 - ALPHA / 2, n - 1))
    of_mean = quantile * deviation / math.sqrt(n)
    of_one = quantile * deviation * math.sqrt(1 + 1 / n)
    return Summary(
        n,
        center,
        deviation,
        (center - of_mean, center + of_mean),
        (center - of_one, center + of_one),
    )


@dataclass(frozen=True)
class Comparison:
    """The difference of two means, and whether it is smaller than a margin.

    Args:
        difference: Our mean minus theirs.
        interval: Its 95% confidence interval (Welch); infinite where a side has fewer than 2, or
            neither side scatters at all.
        p_equivalence: p-value of "the means differ by the margin or more".
        p_difference: Two-sided p-value of "the means are equal".
        verdict: `equivalent` where the first is refuted at 5%, otherwise `different` where the
            second is, and otherwise `inconclusive`: too few runs to tell.
    """

    difference: float
    interval: Interval
    p_equivalence: float
    p_difference: float
    verdict: Verdict


def compare(ours: Sequence[float], theirs: Sequence[float], margin: float) -> Comparison:
    """Compare two means by two one-sided tests.

    Both sides are taken as independent samples; their variances may differ (Welch 1947). Runs of
    one seed in both frameworks may share initial weights and order of images: that makes the
    difference vary less than is assumed, and equivalence harder to show.

    Args:
        ours: One side's values.
        theirs: The other side's.
        margin: The largest difference that does not matter, above 0, in the values' unit.

    Reference:
        Schuirmann 1987, "A comparison of the two one-sided tests procedure and the power approach
        for assessing the equivalence of average bioavailability".

    Raises:
        ValueError: A side is empty, or the margin is not above 0.
    """
    if not ours or not theirs or margin <= 0:
        counts = f"{len(ours)} and {len(theirs)} values"
        raise ValueError(f"{counts}, margin {margin}: give some of each")
    difference = float(mean(ours) - mean(theirs))
    if min(len(ours), len(theirs)) < 2:
        return Comparison(difference, (-math.inf, math.inf), 1.0, 1.0, "inconclusive")
    if variance(ours) == variance(theirs) == 0:
        # All runs of a side agree, by chance as they are few: how far others scatter is unknown.
        return Comparison(difference, (-math.inf, math.inf), 1.0, 1.0, "inconclusive")
    p_equivalence, p_difference, interval = _welch(ours, theirs, margin)
    verdict: Verdict = "inconclusive"
    if p_equivalence < ALPHA:
        verdict = "equivalent"
    elif p_difference < ALPHA:
        verdict = "different"
    return Comparison(difference, interval, p_equivalence, p_difference, verdict)


def _welch(
    ours: Sequence[float], theirs: Sequence[float], margin: float
) -> tuple[float, float, Interval]:
    """Give the p-values of a difference of the margin, and of none, and the 95% interval."""
    left, right = np.asarray(ours, float), np.asarray(theirs, float)
    with warnings.catch_warnings():
        # SciPy warns of a side whose values are all the same, whose variance is 0 indeed.
        warnings.filterwarnings("ignore", "Precision loss", RuntimeWarning)
        test = stats.ttest_ind(left, right, equal_var=False)
        above = stats.ttest_ind(left, right - margin, equal_var=False, alternative="greater")
        below = stats.ttest_ind(left, right + margin, equal_var=False, alternative="less")
    ends = test.confidence_interval(1 - ALPHA)
    interval = (float(ends.low), float(ends.high))
    return float(max(above.pvalue, below.pvalue)), float(test.pvalue), interval
