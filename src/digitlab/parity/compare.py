"""What a comparison of the two frameworks comes to."""

from collections.abc import Sequence
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
        difference: Largest absolute difference, relative to the largest absolute value.
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


def format_checks(checks: Sequence[Check]) -> str:
    """Lay out checks as a table in plain text, a row each under a row of headings.

    Examples:
        >>> print(format_checks([Check("loss", 1, 2e-15, 1e-12), Check("logits", 0, 0.0, 1e-5)]))
        check   compared  difference  tolerance  verdict
        loss           1     2.0e-15    1.0e-12  passed
        logits         0           0    1.0e-05  FAILED
    """
    rows = [("check", "compared", "difference", "tolerance", "verdict", "note")]
    for check in checks:
        verdict = "passed" if check.passed else "FAILED"
        rows.append(
            (
                check.name,
                f"{check.compared:,}",
                _short(check.difference),
                _short(check.tolerance),
                "for information" if check.informational else verdict,
                check.note,
            )
        )
    if not any(check.note for check in checks):
        rows = [(*row[:-1], "") for row in rows]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    sides = "<>>><<"
    lines = [
        "  ".join(f"{c:{side}{width}}" for c, side, width in zip(row, sides, widths, strict=True))
        for row in rows
    ]
    return "\n".join(line.rstrip() for line in lines)


def _short(number: float) -> str:
    return f"{number:.1e}" if number % 1 else f"{number:g}"
