"""Intervals of means and of one more run, and tests of differences, from n runs.

Accuracies of seeds are taken as independent draws of a normal distribution, in any unit. Means and
variances are computed exactly and rounded once, by Python's `statistics`: equal values have a
deviation of 0, not of 1e-14.
"""

import math
import warnings
from collections.abc import Sequence
from statistics import mean, stdev, variance
from typing import Any, Literal, NamedTuple

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
    """The difference of two means, and whether it is smaller than a margin."""

    difference: float  # our mean minus theirs
    interval: Interval  # its 95% confidence interval; infinite if it is unknown
    p_equivalence: float  # of "the means differ by the margin or more"; 1 without a margin
    p_difference: float  # two-sided, of "the means are equal"

    @property
    def verdict(self) -> Verdict:
        """What was shown at 5%; `inconclusive` where the runs are too few to tell.

        `equivalent` if the first null hypothesis is rejected, otherwise `different` if the second
        is.
        """
        if self.p_equivalence < ALPHA:
            return "equivalent"
        return "different" if self.p_difference < ALPHA else "inconclusive"


def compare(
    ours: Sequence[float], theirs: Sequence[float], margin: float | None, paired: bool = False
) -> Comparison:
    """Compare two means by two one-sided t-tests (TOST).

    Unpaired, both sides are taken as independent samples whose variances may differ (Welch 1947).
    Paired, what a seed adds to both sides cancels, and only the differences vary.

    Args:
        ours: One side's values.
        theirs: The other side's; if paired, of the same seeds in the same order.
        margin: The largest difference that does not matter, above 0, in the values' unit; None if
            equivalence is not asked for.
        paired: Whether to test the differences within pairs.

    Reference:
        Schuirmann 1987, "A comparison of the two one-sided tests procedure and the power approach
        for assessing the equivalence of average bioavailability".

    Raises:
        ValueError: A side is empty, pairs are incomplete, or the margin is not above 0.
    """
    if not ours or not theirs or (margin is not None and margin <= 0):
        counts = f"{len(ours)} and {len(theirs)} values"
        raise ValueError(f"{counts}, margin {margin}: give some of each")
    # Rounded, as 97.6 - 97.5 and 96.6 - 96.5 differ by 1e-14, which is no spread.
    pairs = [round(a - b, 9) for a, b in zip(ours, theirs, strict=True)] if paired else []
    difference = float(mean(pairs) if paired else mean(ours) - mean(theirs))
    # If all runs of a side agree, which few runs do by chance, their spread is unknown.
    sides = [pairs] if paired else [ours, theirs]
    if min(map(len, sides)) < 2 or all(variance(side) == 0 for side in sides):
        return Comparison(difference, _EVERYTHING, 1.0, 1.0)

    def test(shift: float, alternative: str) -> Any:
        if paired:
            return stats.ttest_1samp(pairs, shift, alternative=alternative)
        shifted = np.asarray(theirs, float) + shift
        return stats.ttest_ind(ours, shifted, equal_var=False, alternative=alternative)

    with warnings.catch_warnings():
        # SciPy warns of a side whose values are all the same.
        warnings.filterwarnings("ignore", "Precision loss", RuntimeWarning)
        two_sided = test(0, "two-sided")
        one_sided = (test(-margin, "greater"), test(margin, "less")) if margin else ()
    p_equivalence = max((float(each.pvalue) for each in one_sided), default=1.0)
    ends = two_sided.confidence_interval(1 - ALPHA)
    interval = (float(ends.low), float(ends.high))
    return Comparison(difference, interval, p_equivalence, float(two_sided.pvalue))


def adjust(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """Adjust p-values of several comparisons, so that all verdicts of a kind together err in 5%.

    Intervals stay those of each comparison alone.

    Reference:
        Holm 1979, "A simple sequentially rejective multiple test procedure"; for comparing
        classifiers: Demšar 2006, "Statistical comparisons of classifiers over multiple data sets".
    """
    columns = [
        holm([getattr(found, name) for found in comparisons])
        for name in ("p_equivalence", "p_difference")
    ]
    return [
        found._replace(p_equivalence=p_equivalence, p_difference=p_difference)
        for found, p_equivalence, p_difference in zip(comparisons, *columns, strict=True)
    ]


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values by Holm's method: the smallest of m times m, the next times m - 1, ….

    >>> [round(p, 3) for p in holm([0.01, 0.04, 0.03])]
    [0.03, 0.06, 0.06]
    """
    p = np.asarray(p_values, float)
    order = np.argsort(p)
    adjusted = np.empty_like(p)
    adjusted[order] = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    return [float(value) for value in np.minimum(adjusted, 1)]
