"""Measure the seconds and the accuracy of trainings of `configs/mnist/fast99.yaml`, over seeds.

    DIGITLAB_DATA=data python -m benchmarks.fast99 [--seeds 30] [--threads 2] [--out FILE.json]

All runs are made in one process, by digitlab's own model, data module and trainer; the first one is
discarded. The seconds reach from the start of the first to the end of the last optimizer step: they
include gathering the batches, but not reading the images. Each run reads the test split once, after
its last step. Further options are those of `digitlab fit`, such as `--trainer.accelerator cpu`.
"""

import json
import logging
import math
import os
from argparse import ArgumentParser
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import report
from benchmarks.callbacks import StepClock
from benchmarks.machine import describe_machine, versions
from digitlab.cli.fit import FitCLI
from digitlab.reproduce.statistics import summarize

CONFIG = Path("configs", "mnist", "fast99.yaml")
# Nothing is written, shown or validated.
QUIET = [
    *("--trainer.logger", "false"),
    *("--trainer.enable_checkpointing", "false"),
    *("--trainer.enable_progress_bar", "false"),
    *("--trainer.limit_val_batches", "0"),
]


def main() -> None:
    """Measure, print the results, and write a file if asked to."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=30, help="number of runs, of seeds 0, 1, …")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--out", type=Path, help="JSON file to write")
    args, options = parser.parse_known_args()
    options += ["--threads", str(args.threads)]
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    measure(args.seeds, options)  # discarded: the first run loads libraries and allocates
    runs = []
    for seed in range(args.seeds):
        runs.append(measure(seed, options))
        print("seed {seed}: {accuracy:.2f}% in {seconds:.2f} s".format(**runs[-1]), flush=True)
    result = describe(runs, args.threads)
    print(f"{table(result)}\n{report.describe(result)}")
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) + "\n", "utf-8")


def measure(seed: int, options: list[str]) -> dict[str, Any]:
    """Train and test once; return seed, accuracy on the test split in per cent, and seconds."""
    seeded = ["--config", str(CONFIG), *QUIET, *options, "--seed_everything", str(seed)]
    cli = FitCLI("fit", seeded)
    cli.datamodule.setup("fit")
    stopwatch = StepClock()
    trainer = cli.instantiate_trainer(stopwatch)
    trainer.fit(cli.model, cli.datamodule)
    steps, device = trainer.global_step, trainer.strategy.root_device.type
    (scores,) = trainer.test(cli.model, cli.datamodule, verbose=False)
    return {
        "seed": seed,
        "accuracy": round(100 * scores["test/accuracy"], 4),  # a float32
        "seconds": stopwatch.seconds,
        "steps": steps,
        "precision": trainer.precision,
        "device": device,
    }


def describe(runs: list[dict[str, Any]], threads: int) -> dict[str, Any]:
    """Summarize the runs, with the machine and the versions."""
    accuracies = [run["accuracy"] for run in runs]
    seconds = [run["seconds"] for run in runs]
    summary = summarize(accuracies)
    several = summary.n > 1  # a single run has null in JSON
    return {
        "config": str(CONFIG),
        "settings": CONFIG.read_text("utf-8"),
        "n": summary.n,
        "accuracy": {
            "mean": summary.mean,
            "deviation": summary.deviation if several else None,
            "interval": summary.mean_interval if several else None,
            "min": min(accuracies),
            "max": max(accuracies),
        },
        "seconds": {"median": median(seconds), "min": min(seconds), "max": max(seconds)},
        "machine": describe_machine(threads, runs[0]["device"]),
        "versions": versions(),
        "runs": runs,
    }


def table(result: dict[str, Any]) -> str:
    """Make a Markdown table of a summary."""
    accuracy, seconds, first = result["accuracy"], result["seconds"], result["runs"][0]
    deviation = "" if result["n"] == 1 else " ± {deviation:.3f}".format(**accuracy)
    low, high = accuracy["interval"] or (math.nan, math.nan)
    times = f"{seconds['median']:.2f} ({seconds['min']:.2f}-{seconds['max']:.2f})"
    cells = {
        "runs": f"{result['n']}",
        "steps": f"{first['steps']}",
        "precision": first["precision"],
        "threads": f"{result['machine']['threads']}",
        "test accuracy": f"{accuracy['mean']:.3f}%{deviation}",
        "95% interval of the mean": f"{low:.3f} to {high:.3f}",
        "lowest, highest": f"{accuracy['min']:.2f}, {accuracy['max']:.2f}",
        "seconds": times,
    }
    lines = [cells.keys(), ["---"] * len(cells), cells.values()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    main()
