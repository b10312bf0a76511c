"""Intervals of means and of one more run, and tests of differences, from n runs.

Accuracies of seeds are taken as independent draws of a normal distribution, in any unit. Means and
variances are computed exactly and rounded once, by Python's `statistics`: equal values have a
deviation of 0, not of 1e-14.
"""

import math
import warnings
from collections.abc import Sequence
from statistics import mean, stdev, variance
from typing import Literal, NamedTuple

import numpy as np
from scipy import stats

Interval = tuple[float, float]
Verdict = Literal["equivalent", "different", "inconclusive"]

ALPHA = 0.05
_EVERYTHING = (-math.inf, math.inf)


class Summary(NamedTuple):
    """Mean, deviation and intervals of n values; for one value, NaN and infinite intervals."""

    n: int
    mean: float
    deviation: float  # standard deviation with n − 1 degrees of freedom
    mean_interval: Interval  # 95% confidence interval of the mean
    prediction_interval: Interval  # 95% prediction interval for one more value


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
        return Summary(n, center, math.nan, _EVERYTHING, _EVERYTHING)
    deviation = float(stdev(values))
    scale = float(stats.t.ppf(1 - ALPHA / 2, n - 1)) * deviation
    of_mean, of_one = scale / math.sqrt(n), scale * math.sqrt(1 + 1 / n)
    mean_interval = (center - of_mean, center + of_mean)
    return Summary(n, center, deviation, mean_interval, (center - of_one, center + of_one))


class Comparison(NamedTuple):
    """The difference of two means, and whether it is smaller than a margin.

    The verdict is `equivalent` if the first null hypothesis is rejected at 5%, otherwise
    `different` if the second is, otherwise `inconclusive`: too few runs to tell.
    """

    difference: float  # our mean minus theirs
    interval: Interval  # its 95% confidence interval (Welch); infinite if it is unknown
    p_equivalence: float  # of "the means differ by the margin or more"
    p_difference: float  # two-sided, of "the means are equal"
    verdict: Verdict


def compare(ours: Sequence[float], theirs: Sequence[float], margin: float) -> Comparison:
    """Compare two means by two one-sided tests (TOST).

    Both sides are taken as independent samples whose variances may differ (Welch 1947). Runs of
    one seed in both frameworks may share initial weights and order of images: then the difference
    varies less than assumed, and equivalence is harder to show.

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
    # If all runs of a side agree, which few runs do by chance, their spread is unknown.
    if min(len(ours), len(theirs)) < 2 or variance(ours) == variance(theirs) == 0:
        return Comparison(difference, _EVERYTHING, 1.0, 1.0, "inconclusive")
    left, right = np.asarray(ours, float), np.asarray(theirs, float)
    with warnings.catch_warnings():
        # SciPy warns of a side whose values are all the same.
        warnings.filterwarnings("ignore", "Precision loss", RuntimeWarning)
        test = stats.ttest_ind(left, right, equal_var=False)
        above = stats.ttest_ind(left, right - margin, equal_var=False, alternative="greater")
        below = stats.ttest_ind(left, right + margin, equal_var=False, alternative="less")
    p_equivalence, p_difference = float(max(above.pvalue, below.pvalue)), float(test.pvalue)
    verdict: Verdict = "inconclusive"
    if p_equivalence < ALPHA:
        verdict = "equivalent"
    elif p_difference < ALPHA:
        verdict = "different"
    ends = test.confidence_interval(1 - ALPHA)
    interval = (float(ends.low), float(ends.high))
    return Comparison(difference, interval, p_equivalence, p_difference, verdict)
