"""What claims are judged by, and how a judgement is put in words."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from digitlab.reproduce.results import Result
from digitlab.reproduce.statistics import summarize
from digitlab.run_folder import Framework


class Evidence:
    """Results, and the same rows with finer curves, by row and framework.

    Args:
        results: Results of whole runs.
        convergence: Results of runs that were validated many times an epoch.
    """

    def __init__(self, results: Sequence[Result], convergence: Sequence[Result]) -> None:
        self._results = results
        self._convergence = convergence

    def runs(self, row: str, framework: Framework = "torch") -> list[Result]:
        """Give a row's results, in the order of the seeds."""
        found = [result for result in self._results if result.key[:2] == (row, framework)]
        return sorted(found, key=lambda result: result.seed)

    def accuracies(self, row: str, framework: Framework = "torch") -> list[float]:
        """Give a row's test accuracies in per cent."""
        return [100 * result.test_accuracy for result in self.runs(row, framework)]

    def steps_to(self, accuracy: float, row: str) -> list[float]:
        """Give after how many optimizer steps each run was first validated at `accuracy`.

        In PyTorch; infinite for a run that did not reach it.
        """
        curves = [it.val_curve for it in self._convergence if it.key[:2] == (row, "torch")]
        return [
            next((step for step, value in curve if value >= accuracy), math.inf) for curve in curves
        ]


@dataclass(frozen=True)
class Judged:
    """A claim that was measured.

    Args:
        claim: What the document says.
        document: `A` or `B`.
        measure: What was measured, with its 95% interval and the number of runs.
        verdict: `true`, `false`, `partly`, or what else the measure says.
        command: What measures it again.
    """

    claim: str
    document: str
    measure: str
    verdict: str
    command: str


def claims_table(judged: Sequence[Judged]) -> str:
    """Make a Markdown table of claims."""
    lines = ["| claim | measured | verdict | command |", "|---|---|---|---|"]
    lines += [
        f"| {it.document}: {it.claim} | {it.measure} | **{it.verdict}** | `{it.command}` |"
        for it in judged
    ]
    return "\n".join(lines)


def format_mean(values: Sequence[float]) -> str:
    """Say a mean in per cent with its 95% interval.

    Examples:
        >>> format_mean([97.0, 98.0, 99.0])
        '98.00% [95.52, 100.48] (n 3)'
    """
    summary = summarize(values)
    return f"{summary.mean:.2f}% {format_interval(summary.mean_interval)} (n {summary.n})"


def format_interval(interval: tuple[float, float], form: str = ".2f") -> str:
    """Say an interval.

    Examples:
        >>> format_interval((0.5, 1.25), "+.1f")
        '[+0.5, +1.2]'
    """
    return f"[{interval[0]:{form}}, {interval[1]:{form}}]"


def format_steps(steps: Sequence[float]) -> str:
    """Say a mean number of optimizer steps, or in how many runs the goal was reached at all.

    Examples:
        >>> format_steps([300, math.inf])
        'in 1 of 2 runs'
    """
    reached = [value for value in steps if math.isfinite(value)]
    if len(reached) < len(steps):
        return f"in {len(reached)} of {len(steps)} runs"
    summary = summarize(steps)
    low, high = summary.mean_interval
    return f"{summary.mean:,.0f} [{max(low, 0):,.0f}, {high:,.0f}] (n {summary.n})"
