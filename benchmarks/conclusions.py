"""Judge what the documents conclude by the results in docs/results."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from scipy import stats

from digitlab.models import MLP, LeNet1, LeNet5
from digitlab.reproduce import results
from digitlab.reproduce.results import Result
from digitlab.reproduce.statistics import ALPHA, compare, summarize
from digitlab.run_folder import FRAMEWORKS, Framework

RECORD = Path("docs", "results")


def claims_table() -> str:
    """Judge the claims by the recorded results, as a Markdown table."""
    measured = results.read(RECORD / "results.csv")
    convergence = results.read(RECORD / "convergence" / "results.csv")
    lines = ["| claim | measured | verdict | command |", "|---|---|---|---|"]
    lines += [
        f"| {it.document}: {it.claim} | {it.measure} | **{it.verdict}** | `{it.command}` |"
        for it in judge(Evidence(measured, convergence))
    ]
    return "\n".join(lines)


class Finding(NamedTuple):
    """A claim of document A or B, what was measured, a verdict, and the command that measures it.

    The measure has its 95% interval and the number of runs.
    """

    claim: str
    document: str
    measure: str
    verdict: str
    command: str


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


def judge(evidence: Evidence) -> list[Finding]:
    """Judge all claims for which there are results."""
    return [judged for claim in _CLAIMS for judged in claim(evidence)]


def _fewer_parameters(evidence: Evidence) -> list[Finding]:
    counts = {
        name: sum(parameter.numel() for parameter in model.parameters())
        for name, model in (("NN 128", MLP([128])), ("LeNet-5", LeNet5()), ("LeNet1", LeNet1()))
    }
    fewer = [name for name in ("LeNet-5", "LeNet1") if counts[name] < counts["NN 128"]]
    measure = ", ".join(f"{name} {count:,}" for name, count in counts.items()) + "; exact"
    verdict = ("false", f"true of {' and '.join(fewer)} alone", "true")[len(fewer)]
    command = "digitlab fit --config configs/mnist/lenet5.yaml"
    return [Finding("LeNet has fewer parameters than NN 128", "B", measure, verdict, command)]


def _converges_faster(evidence: Evidence) -> list[Finding]:
    names = {"LeNet-5": "B3", "NN 128": "B1"}
    return _faster(evidence, "LeNet converges faster than NN 128 (MNIST)", names)


def _adam_faster(evidence: Evidence) -> list[Finding]:
    names = {"Adam": "B3", "SGD, 0.001, momentum 0.9": "mnist/lenet5_sgd"}
    return _faster(evidence, "Adam is much faster than SGD (LeNet-5, MNIST)", names)


def _faster(evidence: Evidence, claim: str, rows: dict[str, str]) -> list[Finding]:
    (fast, slow), found, verdicts = rows, [], []
    for accuracy in (0.95, 0.98):
        steps = {name: evidence.steps_to(accuracy, row) for name, row in rows.items()}
        if min(len(values) for values in steps.values()) < 2:
            return []
        found.append(
            f"steps to {accuracy:.0%}: "
            + ", ".join(f"{name} {_steps(values)}" for name, values in steps.items())
        )
        verdicts.append(_ranked(steps[fast], steps[slow]))
    verdict = verdicts[0] if len(set(verdicts)) == 1 else "partly"
    n = min(len(values) for values in steps.values())
    command = f"digitlab reproduce {' '.join(rows.values())} --framework torch --seeds {n} "
    command += "--validate_every 75 --out docs/results/convergence"
    return [Finding(claim, "B", "; ".join(found), verdict, command)]


def _ranked(fast: Sequence[float], slow: Sequence[float]) -> str:
    """Test whether `fast` is the smaller, by ranks: a run that never got there is the last."""
    for verdict, alternative in (("true", "less"), ("false", "greater")):
        if stats.mannwhitneyu(fast, slow, alternative=alternative).pvalue < ALPHA / 2:
            return verdict
    return "not shown"


def _ends_higher(evidence: Evidence) -> list[Finding]:
    pairs = {"MNIST": ("B3", "B1"), "Fashion-MNIST": ("B6", "B5")}
    return _better(evidence, "LeNet ends higher than NN 128", "LeNet-5 − NN 128", pairs)


def _deeper_helps(evidence: Evidence) -> list[Finding]:
    pairs = {"PyTorch's recipe": ("B7", "B6"), "Keras's recipe": ("B10", "B9")}
    claim = "deeper convolutions help (Fashion-MNIST)"
    return _better(evidence, claim, "LeNet1 − LeNet-5", pairs)


def _better(
    evidence: Evidence, claim: str, name: str, pairs: dict[str, tuple[str, str]]
) -> list[Finding]:
    found, ends = [], []
    for where, (better, worse) in pairs.items():
        ours, theirs = evidence.accuracies(better), evidence.accuracies(worse)
        if min(len(ours), len(theirs)) < 2:
            return []
        difference = compare(ours, theirs, margin=1.0)
        low, high = difference.interval
        found.append(
            f"{name}, {where}: {difference.difference:+.2f} pp [{low:+.2f}, {high:+.2f}] "
            f"(n {len(ours)}, {len(theirs)})"
        )
        ends.append(_sign(low, high))
    verdict = ends[0] if len(set(ends)) == 1 else "partly"
    rows = " ".join(row for pair in pairs.values() for row in pair)
    command = f"digitlab reproduce {rows} --framework torch --seeds 10"
    return [Finding(claim, "B", "; ".join(found), verdict, command)]


def _sign(low: float, high: float) -> str:
    return "true" if low > 0 else "false" if high < 0 else "not shown"


def _mnist_is_easy(evidence: Evidence) -> list[Finding]:
    simple = {"softmax regression": "linear", "NN 128": "B2", "LeNet-5": "B4"}
    found = {name: evidence.accuracies(row) for name, row in simple.items()}
    fashion = evidence.accuracies("B9")
    if min(len(values) for values in (*found.values(), fashion)) < 2:
        return []
    shares = {name: sum(value >= 99 for value in values) for name, values in found.items()}
    harder = compare(found["LeNet-5"], fashion, margin=1.0)
    measure = (
        "runs at 99% or more: "
        + ", ".join(f"{name} {shares[name]} of {len(found[name])}" for name in simple)
        + f"; LeNet-5 errs {harder.difference:.2f} pp {_interval(harder.interval)} more "
        "often on Fashion-MNIST"
    )
    reached = [name for name in simple if shares[name] > len(found[name]) / 2]
    verdict = f"true of {', '.join(reached)}" if reached else "exaggerated"
    claim = "MNIST is too easy, very simple algorithms reach 99%; take Fashion-MNIST"
    command = "digitlab reproduce linear B2 B4 B9 --framework torch --seeds 10"
    return [Finding(claim, "B", measure, verdict, command)]


def _needs_a_new_architecture(evidence: Evidence) -> list[Finding]:
    found = []
    for row, what in (("B10", "5 epochs"), ("B11", "5 + 5 epochs")):
        for framework, name in FRAMEWORKS.items():
            if len(values := evidence.accuracies(row, framework)) > 1:
                found.append(f"LeNet1, {what}, {name}: {_mean(values)}")
    longest = [evidence.accuracies("B11", framework) for framework in FRAMEWORKS]
    lows = [summarize(values).mean_interval[0] for values in longest if len(values) > 1]
    if not lows:
        return []
    verdict = "false: the same network passes it" if min(lows) > 91 else "not refuted"
    command = "digitlab reproduce B10 B11 --seeds 10"
    claim = "Fashion-MNIST needs a new architecture to pass 91%"
    return [Finding(claim, "B", "; ".join(found), verdict, command)]


def _overfits(evidence: Evidence) -> list[Finding]:
    found, verdicts = [], []
    for framework, name in FRAMEWORKS.items():
        before = {run.seed: run for run in evidence.runs("B10", framework)}
        pairs = [
            (before[run.seed], run) for run in evidence.runs("B11", framework) if run.seed in before
        ]
        if len(pairs) < 2:
            continue
        # A run of B11 starts from B10's weights of the same seed, so differences are paired.
        gap = summarize([_gap(second) - _gap(first) for first, second in pairs])
        test = [100 * (second.test_accuracy - first.test_accuracy) for first, second in pairs]
        found.append(
            f"{name} (n {gap.n} pairs): train − test accuracy {gap.mean:+.2f} pp "
            f"{_interval(gap.mean_interval)}, test accuracy {summarize(test).mean:+.2f} pp "
            f"{_interval(summarize(test).mean_interval)}"
        )
        verdicts.append(_sign(*gap.mean_interval))
    if not found:
        return []
    verdict = verdicts[0] if len(set(verdicts)) == 1 else "partly"
    command = "digitlab reproduce B10 B11 --seeds 10"
    return [Finding("five more epochs overfit more (B11)", "B", "; ".join(found), verdict, command)]


def _gap(run: Result) -> float:
    return 100 * (run.train_accuracy - run.test_accuracy)


def _seconds_an_epoch(evidence: Evidence) -> list[Finding]:
    found = []
    for framework, name in FRAMEWORKS.items():
        times: dict[str, list[float]] = {}
        for run in evidence.runs("A1", framework):
            if run.train_seconds:
                times.setdefault(run.device, []).append(run.train_seconds / 20)
        for device, seconds in times.items():
            summary = summarize(seconds)
            found.append(
                f"{name} on {device}: {summary.mean:.1f} s "
                f"{_interval(summary.mean_interval, '.1f')} (n {summary.n})"
            )
    if not found:
        return []
    claim = "MLP 512-512 takes 2 s an epoch on a K520 GPU"
    verdict = "not testable without a K520"
    command = "digitlab reproduce A1 --seeds 10"
    return [Finding(claim, "A", "; ".join(found), verdict, command)]


def _linear_error(evidence: Evidence) -> list[Finding]:
    values = evidence.accuracies("linear")
    if len(values) < 2:
        return []
    summary = summarize([100 - value for value in values])
    measure = (
        f"softmax regression: error {summary.mean:.2f}% {_interval(summary.mean_interval)} "
        f"(n {summary.n})"
    )
    verdict = "another method: softmax regression errs less than that linear classifier"
    verdict = verdict if summary.mean_interval[1] < 12 else "not refuted"
    command = "digitlab reproduce linear --framework torch --seeds 10"
    claim = "a linear classifier had 12% error in 1998"
    return [Finding(claim, "A", measure, verdict, command)]


def _best_error(evidence: Evidence) -> list[Finding]:
    rows = ("A1", "A2", "A3", "B1", "B2", "B3", "B4")
    errors = {row: [100 - value for value in evidence.accuracies(row)] for row in rows}
    errors = {row: values for row, values in errors.items() if len(values) > 1}
    if not errors:
        return []
    row, values = min(errors.items(), key=lambda item: summarize(item[1]).mean)
    summary = summarize(values)
    measure = (
        f"the lowest mean error of {len(errors)} rows is {row}'s: {_mean(values)}; "
        f"the best single run {min(min(them) for them in errors.values()):.2f}%"
    )
    low, high = summary.mean_interval
    verdict = "inconclusive" if low <= 0.5 else "not by these networks"
    verdict = "reached" if high <= 0.5 else verdict
    command = "digitlab reproduce A1 A2 A3 B1 B2 B3 B4 --framework torch --seeds 10"
    return [Finding("the last models reach 0.5% error", "A", measure, verdict, command)]


_CLAIMS: tuple[Callable[[Evidence], list[Finding]], ...] = (
    _fewer_parameters,
    _converges_faster,
    _ends_higher,
    _mnist_is_easy,
    _deeper_helps,
    _needs_a_new_architecture,
    _adam_faster,
    _overfits,
    _seconds_an_epoch,
    _linear_error,
    _best_error,
)


def _mean(values: Sequence[float]) -> str:
    """Say a mean in per cent with its 95% interval.

    Examples:
        >>> _mean([97.0, 98.0, 99.0])
        '98.00% [95.52, 100.48] (n 3)'
    """
    summary = summarize(values)
    return f"{summary.mean:.2f}% {_interval(summary.mean_interval)} (n {summary.n})"


def _interval(interval: tuple[float, float], form: str = ".2f") -> str:
    """Say an interval.

    Examples:
        >>> _interval((0.5, 1.25), "+.1f")
        '[+0.5, +1.2]'
    """
    return f"[{interval[0]:{form}}, {interval[1]:{form}}]"


def _steps(steps: Sequence[float]) -> str:
    """Say a mean number of optimizer steps, or in how many runs the goal was reached at all.

    Examples:
        >>> _steps([300, math.inf])
        'in 1 of 2 runs'
    """
    reached = [value for value in steps if math.isfinite(value)]
    if len(reached) < len(steps):
        return f"in {len(reached)} of {len(steps)} runs"
    summary = summarize(steps)
    low, high = summary.mean_interval
    return f"{summary.mean:,.0f} [{max(low, 0):,.0f}, {high:,.0f}] (n {summary.n})"
