"""Measure digitlab beside busy processes, against its fair share of the machine.

    DIGITLAB_DATA=data python -m benchmarks.neighbours [--busy 0 2 6] [--out neighbours.json]

Each run is a whole command, from its start to its end, first on the idle machine, then beside
processes that only count. The fair share of each of its threads is one of equal parts of the cores,
but never more than a core. A ratio of 1 means that it took as long as that share allows.
"""

import json
import os
import subprocess
import sys
import tempfile
from argparse import ArgumentParser
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from typing import Any

from benchmarks.machine import describe_machine, versions

TARGET = 1.3
"""Times of the fair share, at most."""
GIVEN_UP = 4.0
"""Times of the fair share after which a run is ended."""

LENET5 = ["--config", "mnist/lenet5", "--trainer.max_epochs", "1"]
PASSIVE = {"OMP_WAIT_POLICY": "passive"}
# By name: the options of `digitlab fit`, its threads, and variables of its environment.
RUNS: dict[str, tuple[list[str], int, dict[str, str]]] = {
    "README's first run": (["--config", "digits/lenet5"], 1, {}),
    "LeNet-5 on MNIST, an epoch": (LENET5, 1, {}),
    "Keras: LeNet-5 on digits": (["--config", "digits/lenet5", "--framework", "keras"], 1, {}),
    "LeNet-5, 2 threads": (LENET5, 2, {}),
    "LeNet-5, 2 threads, passive": (LENET5, 2, PASSIVE),
}


def main() -> None:
    """Run the command line."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--runs", nargs="+", default=list(RUNS), choices=RUNS)
    parser.add_argument("--busy", nargs="+", type=int, default=[0, 2, 6], help="The first is 0.")
    parser.add_argument("--out", type=Path, help="JSON file; other runs in it are kept.")
    args = parser.parse_args()
    old = json.loads(args.out.read_text("utf-8")) if args.out and args.out.exists() else {}
    runs: dict[str, Any] = old.get("runs", {})
    for name in args.runs:
        runs[name] = {}
        for busy in args.busy:
            idle = runs[name].get("0")
            limit = GIVEN_UP * idle / fair_share(name, busy) if idle else None
            with neighbours(busy):
                runs[name][str(busy)] = measure(*RUNS[name], limit)
            print(name, busy, runs[name][str(busy)], flush=True)
        result = {"machine": describe_machine(1, "cpu"), "versions": versions(), "runs": runs}
        if args.out:
            args.out.write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    print(table(result))


def fair_share(name: str, busy: int) -> float:
    """Return the part of a core that each thread of a run gets beside busy processes."""
    threads = RUNS[name][1]
    return min(1.0, len(os.sched_getaffinity(0)) / (busy + threads))


@contextmanager
def neighbours(number: int) -> Iterator[None]:
    """Keep so many processes busy in the `with` block."""
    command = [sys.executable, "-c", "while True: pass"]
    processes = [subprocess.Popen(command) for _ in range(number)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def measure(
    options: list[str], threads: int, variables: dict[str, str], limit: float | None
) -> float | None:
    """Return the seconds of a run; None if it took longer than `limit`."""
    # As a user has it: no variable limits the threads.
    unset = {"OMP_NUM_THREADS", "MKL_NUM_THREADS", "OMP_WAIT_POLICY"}
    own = {name: value for name, value in os.environ.items() if name not in unset}
    with tempfile.TemporaryDirectory() as folder:
        place = ["--trainer.default_root_dir", folder, "--trainer.accelerator", "cpu"]
        place += ["--threads", str(threads)]
        command = [sys.executable, "-m", "digitlab", "fit", *options, *place]
        started = perf_counter()
        try:
            subprocess.run(
                command,
                env={**own, "CUDA_VISIBLE_DEVICES": "", **variables},
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                timeout=limit,
                check=True,
            )
        except subprocess.TimeoutExpired:
            return None
    return perf_counter() - started


def table(result: dict[str, Any]) -> str:
    """Make a Markdown table: the seconds on the idle machine, then ratios to the fair share."""
    runs = result["runs"]
    busy = [int(number) for number in next(iter(runs.values())) if number != "0"]
    heads = ["run", "alone, seconds", *(f"beside {number} busy processes" for number in busy)]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for name, seconds in runs.items():
        cells = [name, f"{seconds['0']:.0f}"]
        for number in busy:
            taken = seconds.get(str(number))
            ratio = taken / seconds["0"] * fair_share(name, number) if taken else None
            cells.append(f"{ratio:.2f}" if ratio else f"over {GIVEN_UP:.0f}, ended")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
