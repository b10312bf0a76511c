"""Check that a change of the code leaves the results of training equal to the last bit.

    python -m benchmarks.digests [--out digests.json] [--compare older.json]

Trains two small configs in both frameworks on one CPU thread, each with one step per execution and
with the config's own number, and computes SHA-256 digests of the final weights, of history.csv
without its seconds, and of metrics.json without times and versions. The file also has the values
and each array's digest. `--compare` prints the results that differ, and then exits with code 1.
"""

import csv
import json
import subprocess
import sys
import tempfile
from argparse import ArgumentParser
from hashlib import sha256
from itertools import compress
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import describe_machine, environment, versions
from digitlab import cli

CONFIGS = ["lenet5", "nn128"]  # of configs/digits; the second has dropout
STEPS = {"one step": ["--model.steps_per_execution", "1"], "the config's steps": []}
CHANGING = {"wall_time", "phases", "images_per_second", "device", "versions"}
"""Entries of metrics.json that depend on the machine or on its load."""


def main() -> int:
    """Train all runs, print their digests, and write or compare them."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="JSON file to write.")
    parser.add_argument("--compare", type=Path, help="JSON file of an earlier call.")
    args = parser.parse_args()
    results: dict[str, Any] = {}
    for framework in ("torch", "keras"):
        for config in CONFIGS:
            for steps, options in STEPS.items():
                results[f"{framework} {config}, {steps}"] = train(framework, config, options)
    for name, result in results.items():
        print(name, *(f"{part} {result[part]['sha256'][:12]}" for part in result), sep="  ")
    if args.out:
        content = {"machine": describe_machine(1, "cpu"), "versions": versions(), "runs": results}
        args.out.write_text(json.dumps(content, indent=1) + "\n")
    if args.compare:
        return compare(json.loads(args.compare.read_text("utf-8"))["runs"], results)
    return 0


def train(framework: str, config: str, options: list[str]) -> dict[str, Any]:
    """Train one run by the command line, in a process of its own, and digest its results."""
    fit = ["fit", "--framework", framework]
    if "keras fit" in getattr(cli, "COMMANDS", {}):  # before `fit` had the option
        fit = ["keras", "fit"] if framework == "keras" else ["fit"]
    with tempfile.TemporaryDirectory() as root:
        settings = ["--config", f"configs/digits/{config}.yaml", "--seed_everything", "0"]
        settings += ["--trainer.max_epochs", "3", "--trainer.accelerator", "cpu", *options]
        settings += ["--trainer.default_root_dir", root, "--trainer.enable_progress_bar", "false"]
        command, quiet = [sys.executable, "-m", "digitlab", *fit, *settings], subprocess.DEVNULL
        subprocess.run(command, env=environment(1, "cpu"), stdout=quiet, check=True)
        (folder,) = Path(root).glob("*/version_*")
        rows = list(csv.reader((folder / "history.csv").read_text("utf-8").splitlines()))
        history = [list(compress(row, [name != "seconds" for name in rows[0]])) for row in rows]
        metrics = json.loads((folder / "metrics.json").read_text("utf-8"))
        kept = {name: value for name, value in metrics.items() if name not in CHANGING}
        arrays = read_keras(folder) if framework == "keras" else read_torch(folder)
    return {"weights": digest(arrays), "history": digest(history), "metrics": digest(kept)}


def digest(values: Any) -> dict[str, Any]:
    """Return plain values together with the digest of their JSON, whose keys are sorted."""
    text = json.dumps(values, sort_keys=True).encode()
    return {"sha256": sha256(text).hexdigest(), "values": values}


def describe_array(name: str, array: Any) -> list[str]:
    """Name an array, its type and shape, and the digest of its bytes."""
    return [name, str(array.dtype), str(array.shape), sha256(array.tobytes()).hexdigest()]


def read_torch(folder: Path) -> list[list[str]]:
    """Describe a PyTorch run's last weights, in their order."""
    weights = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    return [describe_array(name, value.contiguous().numpy()) for name, value in weights.items()]


def read_keras(folder: Path) -> list[list[str]]:
    """Describe a Keras run's last weights, in their order."""
    from digitlab.parity.backend import import_keras  # imports TensorFlow in order

    model = import_keras().models.load_model(folder / "model.keras", compile=False)
    return [describe_array(weight.path, weight.numpy()) for weight in model.weights]


def compare(before: dict[str, Any], after: dict[str, Any]) -> int:
    """Print the differing values of two calls, and return the exit code: 1 if there are any."""
    parts = [(name, part) for name, result in after.items() for part in result]
    differing = [(name, part) for name, part in parts if before[name][part] != after[name][part]]
    for name, part in differing:
        old, new = before[name][part]["values"], after[name][part]["values"]
        print(f"{name}, {part}:\n  before {old}\n  after  {new}")
    return int(bool(differing))


if __name__ == "__main__":
    sys.exit(main())
