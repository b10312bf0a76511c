"""The result of a comparison: a table of checks, and a verdict."""

from dataclasses import dataclass
from typing import Literal

Verdict = Literal["passed", "passed_float32", "failed"]


@dataclass(frozen=True)
class Check:
    """A row of a parity table.

    Args:
        name: The quantity compared, such as `logits, float64`.
        compared: Number of values compared; a check that compared nothing fails.
        difference: Largest absolute difference, relative to the largest absolute value, unless the
            function that makes the check says otherwise.
        tolerance: Largest difference that passes.
        note: Details for the reader, such as the parameter that differs most.
        informational: Whether the row is for information only and cannot fail.
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


HEADING = f"{'check':43}  {'compared':>13}  difference  tolerance  verdict"


def format_check(check: Check) -> str:
    """Format a check as a row below `HEADING`.

    Examples:
        >>> print(format_check(Check("loss, float64", 1, 2e-15, 1e-12)).replace("  " * 15, "..."))
        loss, float64...          1     2.0e-15    1.0e-12  passed
    """
    verdict = "info" if check.informational else "passed" if check.passed else "FAILED"
    difference, tolerance = (
        f"{number:.1e}" if number % 1 else f"{number:g}"
        for number in (check.difference, check.tolerance)
    )
    row = (
        f"{check.name:43}  {check.compared:>13,}  {difference:>10}  {tolerance:>9}  "
        f"{verdict:7}  {check.note}"
    )
    return row.rstrip()


@dataclass(frozen=True)
class Report:
    """The result of comparing a pair; as a string, a table.

    Args:
        checks: The rows of the table.
        first_divergence: Name of the first Keras layer that differs; None if none does.
        only_float32: Why nothing was compared in float64, with the layer and the remedy; empty if
            it was.
    """

    checks: tuple[Check, ...]
    first_divergence: str | None = None
    only_float32: str = ""

    @property
    def verdict(self) -> Verdict:
        """`passed`, in float64; `passed_float32`, which hides differences below 1e-5; `failed`."""
        required = [check for check in self.checks if not check.informational]
        if not required or not all(check.passed for check in required):
            return "failed"
        return "passed_float32" if self.only_float32 else "passed"

    @property
    def passed(self) -> bool:
        """Whether the pair passed in float64."""
        return self.verdict == "passed"

    def assert_passed(self, allow_float32: bool = False) -> None:
        """Fail a test if the comparison failed.

        Args:
            allow_float32: Whether a pair may pass that was compared in float32 alone.

        Raises:
            AssertionError: It failed; the message is the table.
        """
        if not self.passed and not (allow_float32 and self.verdict == "passed_float32"):
            is_weak = self.verdict == "passed_float32"
            reason = "were compared in float32 alone" if is_weak else "do not compute the same"
            raise AssertionError(f"the two {reason}\n{self}")

    def __str__(self) -> str:
        lines = [HEADING, *map(format_check, self.checks)]
        if self.only_float32:
            lines.append(f"compared in float32 alone: {self.only_float32}")
        if self.first_divergence is not None:
            lines.append(f"the first Keras layer that differs: {self.first_divergence}")
        return "\n".join(lines)
