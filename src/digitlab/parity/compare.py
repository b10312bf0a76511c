"""What a comparison of the two frameworks comes to."""

from dataclasses import dataclass

import numpy as np

from digitlab.parity.layout import Array

TOLERANCES = {"float64": 1e-12, "float32": 1e-5}
"""Largest difference that rounding may leave, relative to the largest value."""


@dataclass(frozen=True)
class Check:
    """A row of a parity table.

    Args:
        name: What was compared, such as `logits, float64`.
        compared: Number of values compared; a check that compared nothing fails.
        difference: Largest absolute difference, relative to the largest absolute value, unless the
            function that makes the check says otherwise.
        tolerance: Largest difference that passes.
        note: What a reader must know to judge the row, such as the parameter that differs most.
        informational: Whether the row is only for information, and fails nothing.
    """

    name: str
    compared: int
    difference: float
    tolerance: float
    note: str = ""
    informational: bool = False

    @property
    def passed(self) -> bool:
        """Whether something was compared and agreed; NaN agrees with nothing."""
        return self.compared > 0 and self.difference <= self.tolerance


def relative_difference(ours: Array, theirs: Array) -> float:
    """Give the largest absolute difference of two arrays, relative to their largest value.

    It is infinite where the shapes differ, and NaN where a value of either is NaN.

    Examples:
        >>> relative_difference(np.array([1.0, 4.0]), np.array([1.0, 5.0]))
        0.2
        >>> relative_difference(np.zeros(2), np.zeros(3))
        inf
    """
    if ours.shape != theirs.shape:
        return float("inf")
    if not ours.size:
        return 0.0
    difference = float(np.abs(ours.astype(np.float64) - theirs.astype(np.float64)).max())
    largest = float(max(np.abs(ours).max(), np.abs(theirs).max()))
    return difference / largest if largest else difference


HEADING = f"{'check':43}  {'compared':>13}  difference  tolerance  verdict"
"""The line above a table of checks."""


def format_check(check: Check) -> str:
    """Lay out a check as a row below `HEADING`.

    Examples:
        >>> print(format_check(Check("loss, float64", 1, 2e-15, 1e-12)).replace("  " * 15, "..."))
        loss, float64...          1     2.0e-15    1.0e-12  passed
    """
    verdict = "info" if check.informational else "passed" if check.passed else "FAILED"
    row = (
        f"{check.name:43}  {check.compared:>13,}  {_short(check.difference):>10}  "
        f"{_short(check.tolerance):>9}  {verdict:7}  {check.note}"
    )
    return row.rstrip()


def _short(number: float) -> str:
    return f"{number:.1e}" if number % 1 else f"{number:g}"
