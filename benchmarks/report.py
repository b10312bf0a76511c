"""Tables and a plot of the results of `benchmarks.step_time`."""

from collections.abc import Callable, Iterator
from statistics import mean, median
from typing import Any

from matplotlib.figure import Figure
from scipy.stats import quantile_test

from benchmarks.contest import Turn
from benchmarks.targets import TARGETS, Rounds
from benchmarks.variants import MODELS

Summary = dict[str, Any]


def summarize(turns: list[Turn]) -> Summary:
    """Summarize microseconds per step; the mean includes the ends of epochs."""
    rounds = [turn.microseconds for turn in turns]
    return {
        "rounds": rounds,
        "median": median(rounds),
        "min": min(rounds),
        "max": max(rounds),
        "mean": mean(rounds),
        "cpu_rounds": [turn.cpu_microseconds for turn in turns],
    }


def tables(result: dict[str, Any]) -> str:
    """Make all tables of a measurement, as Markdown."""
    headings = {
        "times": "Microseconds per optimizer step:",
        "cpu": "Microseconds of CPU time per optimizer step, of all threads together:",
        "multiples": "Time of each variant as a multiple of digitlab's, round by round:",
        "targets": "Against the targets:",
    }
    made = named_tables(result)
    parts = [made["machine"], *(f"{text}\n\n{made[name]}" for name, text in headings.items())]
    return "\n\n".join(parts)


def named_tables(result: dict[str, Any]) -> dict[str, str]:
    """Make the tables of a measurement by their names, and a sentence, `machine`."""
    measured = rounds_of(result, "rounds")
    counts = {len(rounds) for summaries in measured.values() for rounds in summaries.values()}
    rounds = " to ".join(map(str, sorted({min(counts), max(counts)})))
    lines = {
        "machine": [f"{describe(result)}; medians of {rounds} rounds (smallest to largest)."],
        "times": _by_variant(measured, _microseconds),
        "cpu": _by_variant(rounds_of(result, "cpu_rounds"), _microseconds),
        "multiples": _by_variant(measured, _multiple),
        "targets": _against_targets(measured),
    }
    return {name: "\n".join(table) for name, table in lines.items()}


def describe(result: dict[str, Any]) -> str:
    """Describe the machine and the versions of a measurement."""
    machine = result["machine"]
    threads = f"{machine['threads']} thread{'s' * (machine['threads'] > 1)}"
    where = [machine["cpu"], f"{machine['cores']} cores", threads]
    where += [machine["gpu"]] if "gpu" in machine else []
    return ", ".join([*where, *(f"{name} {v}" for name, v in result["versions"].items())])


def rounds_of(result: dict[str, Any], name: str) -> dict[str, dict[str, Rounds]]:
    """Return one of the lists of all rounds, by model and variant."""
    return {
        model: {variant: summary[name] for variant, summary in summaries.items()}
        for model, summaries in result["models"].items()
    }


def _by_variant(
    measured: dict[str, dict[str, Rounds]], cell: Callable[[dict[str, Rounds], str], str]
) -> Iterator[str]:
    """Make the lines of a table with a row for each variant and a column for each model."""
    yield from _head("variant", *(MODELS[model].title for model in measured))
    for variant in dict.fromkeys(name for rounds in measured.values() for name in rounds):
        yield _row(variant, *(cell(rounds, variant) for rounds in measured.values()))


def _microseconds(rounds: dict[str, Rounds], variant: str) -> str:
    times = rounds.get(variant)
    return f"{median(times):,.0f} ({min(times):,.0f}-{max(times):,.0f})" if times else ""


def _multiple(rounds: dict[str, Rounds], variant: str) -> str:
    if variant not in rounds or "digitlab" not in rounds:
        return ""
    return _range(ratios(rounds[variant], rounds["digitlab"]))


def _against_targets(measured: dict[str, dict[str, Rounds]]) -> Iterator[str]:
    """Make the lines of a table with a row for each ratio and a column for each model."""
    by_ratio: dict[str, dict[str, str]] = {}
    for target in TARGETS:
        for model, rounds in measured.items():
            sides, bound = target.sides(rounds), target.bounds.get(model)
            if sides and bound is not None:
                found = ratios(*(rounds[side] for side in sides))
                met = median(found) <= bound if target.at_most else median(found) >= bound
                cell = f"{_range(found)} {'≤' if target.at_most else '≥'}{bound}"
                row = by_ratio.setdefault(" / ".join(sides), {})
                row[model] = cell if met else f"**{cell} missed**"
    yield from _head("ratio", *(MODELS[model].title for model in measured))
    for ratio, row in by_ratio.items():
        yield _row(ratio, *(row.get(model, "") for model in measured))


def ratio_table(result: dict[str, Any], pairs: list[str]) -> str:
    """Make a table of ratios of CPU time, `A:B`, with the exact 95% interval of each median."""
    lines = _head("model", "ratio", "median", "95% interval", "rounds")
    for model, rounds in rounds_of(result, "cpu_rounds").items():
        for pair in pairs:
            ours, _, theirs = pair.partition(":")
            found = ratios(rounds[ours], rounds[theirs])
            low, high = quantile_test(found, p=0.5).confidence_interval(0.95)
            cells = (f"{ours} / {theirs}", f"{median(found):.3f}", f"{low:.3f} to {high:.3f}")
            lines.append(_row(MODELS[model].title, *cells, str(len(found))))
    return "\n".join(lines)


def ratios(times: Rounds, others: Rounds) -> Rounds:
    """Divide round by round."""
    return [time / other for time, other in zip(times, others, strict=True)]


def _range(values: Rounds) -> str:
    return f"{median(values):.2f} ({min(values):.2f}-{max(values):.2f})"


def _head(*names: str) -> list[str]:
    return [_row(*names), _row(*["---"] * len(names))]


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def draw(result: dict[str, Any]) -> Figure:
    """Draw the medians as bars, a panel for each model, with the rounds' ranges."""
    models = result["models"]
    figure = Figure(figsize=(10, 3 * -(-len(models) // 2)), layout="constrained")
    panels = figure.subplots(-(-len(models) // 2), 2, squeeze=False).flat
    for model, panel in zip(models, panels, strict=False):
        summaries = models[model]
        medians = [summary["median"] for summary in summaries.values()]
        ranges = [
            [summary["median"] - summary["min"] for summary in summaries.values()],
            [summary["max"] - summary["median"] for summary in summaries.values()],
        ]
        ours = [name.startswith("digitlab") for name in summaries]
        colors = ["tab:orange" if our else "tab:gray" for our in ours]
        panel.barh(list(summaries), medians, xerr=ranges, color=colors, capsize=2)
        panel.invert_yaxis()
        panel.set(title=MODELS[model].title, xlabel="µs per optimizer step")
    for panel in panels:  # that are left over
        panel.set_axis_off()
    return figure
