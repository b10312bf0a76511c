"""Measure microseconds per optimizer step of digitlab, raw loops and other training programs.

    export DIGITLAB_DATA=data
    python -m benchmarks.step_time [--models nn128 lenet5] [--variants raw digitlab] [--rounds 9]
    python -m benchmarks.step_time --out docs/results/performance/step_time

Each variant is a process of its own. They train by turns, a chunk of steps at a time, and only one
runs at any moment; the first two turns of each are discarded. No variant validates. The work at the
end of an epoch, such as digitlab's checkpoint and files, counts for the chunk in which it happens.
"""

import json
import re
import tempfile
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from pathlib import Path
from typing import Any

from benchmarks.contest import Entry, compete
from benchmarks.machine import describe_machine, environment, versions
from benchmarks.report import ratio_table, summarize, tables
from benchmarks.variants import DEFAULT, HELP, MODELS, Model, command, exists, is_variant


def main() -> None:
    """Run the command line."""
    args = _parse()
    result = measure(args)
    print(tables(result))
    if args.ratios:
        print(f"\nRatios of CPU time:\n\n{ratio_table(result, args.ratios)}")


def _parse() -> Namespace:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument("--variants", nargs="+", type=_variant, default=DEFAULT, help=HELP)
    parser.add_argument(
        "--steps_per_execution",
        nargs="+",
        type=int,
        default=[],
        help="Also measure digitlab with these: the variant digitlab_K for each K.",
    )
    parser.add_argument("--rounds", type=int, default=15, help="Turns of each variant that count.")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of each process.")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument(
        "--out",
        type=Path,
        help="Folder with a JSON file for each CPU, whose other models are kept.",
    )
    parser.add_argument(
        "--before", type=Path, help="Another checkout of digitlab: the variants before, before_K."
    )
    parser.add_argument(
        "--ratios",
        nargs="+",
        default=[],
        metavar="A:B",
        help="Show the CPU time of variant A over that of B, with the median's 95%% interval.",
    )
    return parser.parse_args()


def _variant(name: str) -> str:
    if not is_variant(name):
        raise ArgumentTypeError(f"there is no variant {name!r}: choose from {HELP}")
    return name


def measure(args: Namespace) -> dict[str, Any]:
    """Measure all models, one after another."""
    searched = [f"digitlab_{steps}" for steps in args.steps_per_execution]
    variants = list(dict.fromkeys([*args.variants, *searched]))
    result: dict[str, Any] = {
        "machine": describe_machine(args.threads, args.device),
        "versions": versions(),
        "rounds": args.rounds,
        "models": {},
    }
    path = args.out and args.out / f"{_file_name(result['machine'])}.json"
    if path and path.exists():
        before = json.loads(path.read_text("utf-8"))
        if before["versions"] == result["versions"]:
            result["models"] = before["models"]
    for name in args.models:
        result["models"][name] = _measure_model(MODELS[name], variants, args)
        if path:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(result, indent=2) + "\n", "utf-8")
    return result


def _file_name(machine: dict[str, Any]) -> str:
    """Name a CPU's file: by its name, its instructions, and threads or GPU if they differ."""
    words = [machine["cpu"], machine["instructions"], machine.get("gpu", "")]
    words += [f"{machine['threads']} threads"] if machine["threads"] > 1 else []
    return re.sub(r"[^a-z0-9]+", "-", re.sub(r"\(\w+\)", "", " ".join(words)).lower()).strip("-")


def _measure_model(model: Model, variants: list[str], args: Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        entries = [
            Entry(variant, command(variant, model, Path(folder, variant), args))
            for variant in variants
            if exists(variant, model)
        ]
        times = compete(entries, args.rounds, environment(args.threads, args.device))
    return {variant: summarize(rounds) for variant, rounds in times.items()}


if __name__ == "__main__":
    main()
