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
    measured = rounds_of(result, "rounds")
    parts = {
        "": [f"{describe(result)}; {_number_of_rounds(result)}."],
        "Microseconds per optimizer step:": _by_variant(measured, _microseconds),
        "Microseconds of CPU time per optimizer step, of all threads together:": _by_variant(
            rounds_of(result, "cpu_rounds"), _microseconds
        ),
        "Time of each variant as a multiple of digitlab's, round by round:": _by_variant(
            measured, _multiple
        ),
        "Against the targets:": _against_targets({"": result}),
    }
    return "\n\n".join(
        "\n".join([*([heading, ""] if heading else []), *lines]) for heading, lines in parts.items()
    )


def named_tables(results: dict[str, dict[str, Any]]) -> dict[str, str]:
    """Make the tables of measurements on several CPUs, by a letter for each."""
    machines = (
        f"- **{letter}**: {describe(result)}; {_number_of_rounds(result)}"
        for letter, result in results.items()
    )
    return {"machines": "\n".join(machines), "targets": "\n".join(_against_targets(results))}


def describe(result: dict[str, Any]) -> str:
    """Describe the machine and the versions of a measurement."""
    machine = result["machine"]
    threads = f"{machine['threads']} thread{'s' * (machine['threads'] > 1)}"
    where = [machine["cpu"], machine.get("instructions", ""), f"{machine['cores']} cores", threads]
    where += [machine.get("gpu", "")]
    return ", ".join(
        [*filter(None, where), *(f"{name} {v}" for name, v in result["versions"].items())]
    )


def _number_of_rounds(result: dict[str, Any]) -> str:
    measured = rounds_of(result, "rounds").values()
    counts = {len(rounds) for model in measured for rounds in model.values()}
    numbers = " to ".join(map(str, sorted({min(counts), max(counts)})))
    return f"medians of {numbers} rounds (smallest to largest)"


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


def _against_targets(results: dict[str, dict[str, Any]]) -> Iterator[str]:
    """Make the lines of a table: a row for each ratio and CPU, a column for each model."""
    rows: dict[tuple[str, str], dict[str, str]] = {}
    models: dict[str, None] = {}
    for target in TARGETS:
        for letter, result in results.items():
            for model, rounds in rounds_of(result, "rounds").items():
                sides = target.sides(rounds)
                bound = target.bound(model, result["machine"].get("instructions", ""))
                if sides and bound is not None:
                    found = ratios(*(rounds[side] for side in sides))
                    met = median(found) <= bound if target.at_most else median(found) >= bound
                    cell = f"{_range(found)} {'≤' if target.at_most else '≥'}{bound}"
                    row = rows.setdefault((" / ".join((target.ours, sides[1])), letter), {})
                    row[model] = cell if met else f"**{cell} missed**"
                    models[model] = None
    columns = [model for model in MODELS if model in models]
    yield from _head("ratio", "CPU", *(MODELS[model].title for model in columns))
    for (ratio, letter), row in rows.items():
        yield _row(ratio, letter, *(row.get(model, "") for model in columns))


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


def draw(results: dict[str, dict[str, Any]]) -> Figure:
    """Draw the medians as bars, a panel for each model, with the rounds' ranges, CPU by CPU."""
    shown = [model for model in MODELS if any(model in it["models"] for it in results.values())]
    figure = Figure(figsize=(10, 3.6 * -(-len(shown) // 2)), layout="constrained")
    panels = figure.subplots(-(-len(shown) // 2), 2, squeeze=False).flat
    height = 0.8 / len(results)
    for model, panel in zip(shown, panels, strict=False):
        names = [name for it in results.values() for name in it["models"].get(model, {})]
        names = [*dict.fromkeys(names)]
        for number, (letter, result) in enumerate(results.items()):
            of_cpu = result["models"].get(model, {})
            drawn = [(names.index(name) + number * height, it) for name, it in of_cpu.items()]
            panel.barh(
                [place for place, _ in drawn],
                [it["median"] for _, it in drawn],
                height,
                xerr=[
                    [it["median"] - it["min"] for _, it in drawn],
                    [it["max"] - it["median"] for _, it in drawn],
                ],
                label=f"CPU {letter}",
                capsize=2,
            )
        middle = height * (len(results) - 1) / 2
        panel.set_yticks([place + middle for place in range(len(names))], names)
        panel.invert_yaxis()
        panel.legend()
        panel.set(title=MODELS[model].title, xlabel="µs per optimizer step")
    for panel in panels:  # that are left over
        panel.set_axis_off()
    return figure
