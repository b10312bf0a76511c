"""Project the hours of `digitlab reproduce` for all the documents' rows, from a sample.

    python -m benchmarks.executors [--seeds 10] [--rounds 3] [--out executors.json]

The seconds of training are those of docs/results/results.csv. Measured here: what a run costs
beside its training, in a process of its own and in a worker that has imported once, and what the
command itself takes, which no worker shares. They are CPU times, which other processes hardly
change; a run has one thread.
"""

import heapq
import json
import subprocess
import sys
import tempfile
from argparse import ArgumentParser
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from statistics import median
from time import process_time
from typing import Any

from benchmarks.machine import describe_machine, versions
from digitlab.cli import main as digitlab
from digitlab.reproduce.executors import Processes
from digitlab.reproduce.results import read
from digitlab.reproduce.rows import choose, read_rows

RECORD = Path("docs", "results", "results.csv")
WORKERS = (2, 16, 256)
SHORT = "digits/linear"
"""A config that is trained in about a second."""


def main() -> None:
    """Run the command line."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=10, help="Runs of each row and framework.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--head", type=int, help="Train so many runs, and print the CPU seconds.")
    parser.add_argument("--out", type=Path, help="JSON file.")
    args = parser.parse_args()
    if args.head:
        print(head_seconds(args.head))
        return
    alone, warm = {}, {}
    for framework in ("torch", "keras"):
        alone[framework] = [seconds_alone(framework) for _ in range(args.rounds)]
        with Processes(1) as executor:
            calls = [executor.submit(seconds_of_fit, framework) for _ in range(1 + args.rounds)]
            warm[framework] = [call.result() for call in calls][1:]
    command = [sys.executable, "-m", "benchmarks.executors", "--head"]
    runs = (2, 8)
    few, many = (float(subprocess.check_output([*command, str(n)]).split()[-1]) for n in runs)
    each = (many - few) / (runs[1] - runs[0])
    result = {
        "machine": describe_machine(1, "cpu"),
        "versions": versions(),
        "seeds": args.seeds,
        "alone": alone,
        "warm": warm,
        "serial": {"once": few - runs[0] * each, "each": each},
    }
    print(table(result))
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) + "\n", "utf-8")


def seconds_of_fit(framework: str) -> float:
    """Train a short run in this process; return its CPU seconds."""
    with tempfile.TemporaryDirectory() as folder:
        place = ["--trainer.default_root_dir", folder, "--trainer.accelerator", "cpu"]
        started = process_time()
        if digitlab(["fit", "--config", SHORT, "--framework", framework, *place]):
            raise RuntimeError("the run failed")
        return process_time() - started


def seconds_alone(framework: str) -> float:
    """Train the same in a process of its own; return all of its CPU seconds."""
    program = (
        f"from time import *; from benchmarks.executors import *; seconds_of_fit({framework!r}); "
        "print(process_time())"
    )
    return float(subprocess.check_output([sys.executable, "-c", program]).split()[-1])


def head_seconds(runs: int) -> float:
    """Reproduce short runs; return the CPU seconds of this process alone."""
    with tempfile.TemporaryDirectory() as folder:
        framework = ["--framework", "torch"]
        digitlab(["reproduce", SHORT, "--seeds", str(runs), *framework, "--out", folder])
    return process_time()  # without its workers


def training_seconds(seeds: int) -> list[tuple[str, float]]:
    """List framework and seconds of training of all runs, in the order of the rows."""
    recorded: dict[tuple[str, ...], list[float]] = defaultdict(list)
    for result in read(RECORD):
        if result.train_seconds:
            for key in (result.row,), (result.row, result.framework):
                recorded[key].append(result.train_seconds)
    runs: list[tuple[str, float]] = []
    for row in choose([], read_rows()):
        for framework in row.frameworks:
            # Where a framework has no time, the row's other one stands for it.
            seconds = median(recorded[row.name, framework] or recorded[row.name,])
            runs += [(framework, seconds)] * seeds
    return runs


def hours(runs: Iterable[float], workers: int) -> float:
    """Give each run, in order, to the first worker that is free; return the last one's end."""
    ends = [0.0] * workers
    for seconds in runs:
        heapq.heapreplace(ends, ends[0] + seconds)
    return max(ends) / 3600


def table(result: dict[str, Any]) -> str:
    """Make a Markdown table of the projected hours by the number of workers."""
    runs = training_seconds(result["seeds"])
    serial = (result["serial"]["once"] + len(runs) * result["serial"]["each"]) / 3600
    lines = [
        "| workers | a process per run, hours | workers that import once, hours |",
        "|---" * 3 + "|",
    ]
    for workers in WORKERS:
        cells = [str(workers)]
        for how in ("alone", "warm"):
            beside = {framework: median(times) for framework, times in result[how].items()}
            of_workers = hours([beside[framework] + it for framework, it in runs], workers)
            cells.append(f"{of_workers + serial:.2f}")
        lines.append(f"| {' | '.join(cells)} |")
    costs = (
        f"{framework} {median(result['alone'][framework]):.1f} and "
        f"{median(result['warm'][framework]):.1f} s"
        for framework in result["alone"]
    )
    return (
        "\n".join(lines) + f"\n\n{len(runs)} runs, {sum(it for _, it in runs) / 3600:.1f} hours of "
        f"training; the longest takes {max(it for _, it in runs) / 3600:.2f}. A run costs beside "
        f"it, in its own process and in a worker: {', '.join(costs)}. Serial: {3600 * serial:.0f} "
        "s of the command itself."
    )


if __name__ == "__main__":
    main()
