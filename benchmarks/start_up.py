"""Measure how long digitlab takes to start, and how much memory a run takes.

    export DIGITLAB_DATA=data
    python -m benchmarks.start_up [--rounds 7] [--out start_up.json]
    python -m benchmarks.start_up --table start_up.json

Start-up is the wall time of whole processes, which take turns: `digitlab --help`, the import of
Lightning's command line, and `digitlab fit` up to the end of its first `training_step`. Memory is
the largest resident set of `digitlab fit` over one epoch of LeNet-5 with its evaluations, beyond
that of the same import.
"""

import json
import os
import subprocess
import sys
import tempfile
from argparse import ArgumentParser
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

from benchmarks.machine import describe_machine, environment, versions

CONFIG = "configs/mnist/lenet5.yaml"
SIZES = [15_000, 30_000, 60_000]
"""Training images of the runs whose memory is measured."""
LIGHTNING = [sys.executable, "-c", "from lightning.pytorch.cli import LightningCLI"]
FIT = [sys.executable, "-m", "digitlab", "fit", "--config", CONFIG]
COMMANDS = {
    "digitlab --help": [sys.executable, "-m", "digitlab", "--help"],
    "import of LightningCLI": LIGHTNING,
    "first training step": [*FIT, "--trainer.callbacks+=benchmarks.callbacks.ExitAfterFirstStep"],
}
"""What is timed, by the name in the table."""


def main() -> None:
    """Run the command line."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7, help="Starts of each that count.")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of each process.")
    parser.add_argument("--out", type=Path, help="JSON file to write.")
    parser.add_argument("--table", type=Path, help="Measure nothing: read this JSON file.")
    args = parser.parse_args()
    if args.table:
        result = json.loads(args.table.read_text("utf-8"))
    else:
        result = measure(args.rounds, args.threads)
    if args.out:
        args.out.write_text(json.dumps(result, indent=2) + "\n", "utf-8")
    print(tables(result))


@dataclass(frozen=True)
class Usage:
    """The time and the memory of a process.

    Args:
        seconds: Its wall time.
        megabytes: Its largest resident set, in MB of 10⁶ bytes.
    """

    seconds: float
    megabytes: float


def run(command: list[str], environment: dict[str, str]) -> Usage:
    """Run a command in the current folder, and measure it.

    Raises:
        RuntimeError: It failed.
    """
    started = perf_counter()
    with tempfile.TemporaryFile() as shown:
        process = subprocess.Popen(command, env=environment, stdout=shown, stderr=shown)
        # The usage of this child alone; `getrusage` returns the largest of all children.
        _, status, usage = os.wait4(process.pid, 0)
        seconds = perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            shown.seek(0)
            raise RuntimeError(f"{command} failed:\n{shown.read().decode(errors='replace')}")
    return Usage(seconds, usage.ru_maxrss * 1024 / 1e6)


def measure(rounds: int, threads: int) -> dict[str, Any]:
    """Measure start-up times, then memory."""
    variables = environment(threads, "cpu")
    with tempfile.TemporaryDirectory() as folder:
        place = [f"--trainer.default_root_dir={folder}", f"--threads={threads}"]
        commands = {
            name: [*command, *place] if command[: len(FIT)] == FIT else command
            for name, command in COMMANDS.items()
        }
        times = [
            {name: run(command, variables).seconds for name, command in commands.items()}
            for _ in range(1 + rounds)
        ][1:]  # the first round, which reads files from the disk, is dropped
        epoch = [*FIT, *place, "--trainer.max_epochs=1"]
        runs = {n: run([*epoch, f"--data.train_images=[0, {n}]"], variables) for n in SIZES}
    return {
        "machine": describe_machine(threads, "cpu"),
        "versions": versions(),
        "seconds": {name: [turn[name] for turn in times] for name in COMMANDS},
        "megabytes": {
            "import": run(LIGHTNING, variables).megabytes,
            "run": {str(n): usage.megabytes for n, usage in runs.items()},
        },
        "run_seconds": {str(n): usage.seconds for n, usage in runs.items()},
    }


def tables(result: dict[str, Any]) -> str:
    """Make all tables of a measurement, as Markdown."""
    times, memory = result["seconds"], result["megabytes"]
    lines = ["| start-up | seconds |", "|---|---|"]
    for name, seconds in times.items():
        lines.append(f"| {name} | {median(seconds):.2f} ({min(seconds):.2f}-{max(seconds):.2f}) |")
    bound = 1.25 * median(times["import of LightningCLI"]) + 1.5
    lines.append(
        f"| target of the first training step: 1.25 × the import + 1.5 s | ≤ {bound:.2f} |"
    )
    lines += ["", "| training images | seconds of the run | peak MB | MB beyond the import |"]
    lines.append("|---|---|---|---|")
    for images, peak in memory["run"].items():
        beyond = peak - memory["import"]
        seconds = result["run_seconds"][images]
        lines.append(f"| {int(images):,} | {seconds:.1f} | {peak:.0f} | {beyond:.0f} |")
    lines.append(f"| none: the import | | {memory['import']:.0f} | ≤ 350 is the target |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
