"""Try what docs/reliability.md promises, for as long as it takes, and write what came of it.

    python -m benchmarks.endurance [PART …] [--kills 200] [--fits 1000] [--seed 0]

Without the name of a part all are done: `price`, what a checkpoint costs; `kills`, random kills of
runs of all architectures in both frameworks; `fits`, a thousand in a row in one process; `faults`,
every test of a fault. It takes some 40 minutes on two cores. A part's results take the place of its
earlier ones in docs/results/reliability.json.
"""

import json
import os
import tempfile
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

import torch

from benchmarks.endurance.faults import inject_all
from benchmarks.endurance.fits import fit_in_a_row
from benchmarks.endurance.kills import kill_at_random
from benchmarks.endurance.price import save_often
from benchmarks.endurance.report import RESULTS
from benchmarks.machine import describe_machine, versions
from digitlab import files

PARTS = ("price", "kills", "fits", "faults")


def main() -> None:
    """Try, print and write."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], default=[])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--fits", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0, help="of the random moments")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    # One thread, as in the tests: sums in one thread have one order.
    os.environ |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    torch.set_num_threads(1)
    for part in args.parts or PARTS:
        result = _try(part, args.kills, args.fits, args.seed)
        known = json.loads(args.out.read_text("utf-8")) if args.out.exists() else {}
        about = {"machine": describe_machine(1, "cpu"), "versions": versions()}
        known[part] = {"result": result, **about}
        files.write_text(args.out, json.dumps(known, indent=1) + "\n")


def _try(part: str, kills: int, fits: int, seed: int) -> dict[str, Any]:
    if part == "price":
        return save_often()
    if part == "fits":
        return fit_in_a_row(fits)
    if part == "faults":
        return inject_all(processes=2)
    with tempfile.TemporaryDirectory() as folder:
        return kill_at_random(kills, seed, Path(folder))


if __name__ == "__main__":
    main()
