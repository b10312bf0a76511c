"""Check everything that needs an NVIDIA GPU, and measure it, in one go.

    DIGITLAB_DATA=data python -m benchmarks.gpu_check [--seeds 3] [--out gpu_check.json]

It runs the tests marked `gpu`; trains LeNet-5 on MNIST in each precision, which must all end in the
same accuracy band; and runs `benchmarks.step_time` on the GPU. The exit code is 1 if a test failed
or a band was missed, and 2 without a GPU.
"""

import json
import subprocess
import sys
import tempfile
from argparse import ArgumentParser
from pathlib import Path
from statistics import mean, stdev
from typing import Any
from xml.etree import ElementTree

import torch

from benchmarks.machine import describe_machine, versions

PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")
BAND = 0.5
"""How far the precisions' mean accuracies may be apart, in percentage points."""
VARIANTS = ("documents", "raw_fused", "raw_channels_last", "digitlab_1", "digitlab")


def main() -> int:
    """Run the command line; return the exit code."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3, help="Trainings in each precision.")
    parser.add_argument("--models", nargs="+", default=["nn128", "lenet5", "lenet1"])
    parser.add_argument("--out", type=Path, default=Path("gpu_check.json"), help="JSON file.")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        print("gpu_check: error: torch finds no CUDA device on this machine", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as folder:
        result: dict[str, Any] = {
            "machine": describe_machine(1, "cuda"),
            "versions": versions(),
            "tests": run_tests(Path(folder, "tests.xml")),
            "accuracy": {p: train(p, args.seeds, Path(folder, p)) for p in PRECISIONS},
            "step_time": measure_steps(args.models, Path(folder, "step_time.json")),
        }
    result["passed"] = judge(result)
    args.out.write_text(json.dumps(result, indent=2) + "\n", "utf-8")
    print(summary(result))
    return 0 if result["passed"] else 1


def run_tests(report: Path) -> dict[str, int]:
    """Run the tests marked `gpu`; count them by how they ended."""
    command = [sys.executable, "-m", "pytest", "-q", "-n0", "-m", "gpu", f"--junitxml={report}"]
    subprocess.run(command, check=False)
    suite = ElementTree.parse(report).getroot().find("testsuite")
    assert suite is not None
    return {name: int(suite.attrib[name]) for name in ("tests", "failures", "errors", "skipped")}


def train(precision: str, seeds: int, folder: Path) -> list[float]:
    """Train LeNet-5 with each seed; return the accuracies on the test split, in per cent."""
    config = ["--config", "configs/mnist/lenet5.yaml", "--config", "configs/gpu.yaml"]
    options = ["--trainer.precision", precision, "--trainer.default_root_dir", str(folder)]
    fit = [sys.executable, "-m", "digitlab", "fit", *config, *options]
    for seed in range(seeds):
        subprocess.run([*fit, "--seed_everything", str(seed)], check=True)
    runs = sorted(folder.glob("*/version_*/metrics.json"))
    return [100 * json.loads(run.read_text("utf-8"))["test"]["accuracy"] for run in runs]


def measure_steps(models: list[str], out: Path) -> Any:
    """Measure microseconds per step on the GPU, as `benchmarks.step_time` reports them."""
    command = [sys.executable, "-m", "benchmarks.step_time", "--device", "cuda", "--out", str(out)]
    subprocess.run([*command, "--models", *models, "--variants", *VARIANTS], check=True)
    return json.loads(out.read_text("utf-8"))


def judge(result: dict[str, Any]) -> bool:
    """Return whether tests ran, none failed, and the precisions' accuracies lie in one band."""
    tests = result["tests"]
    means = [mean(accuracies) for accuracies in result["accuracy"].values()]
    ran = tests["tests"] > tests["skipped"]
    return ran and not tests["failures"] + tests["errors"] and max(means) - min(means) <= BAND


def summary(result: dict[str, Any]) -> str:
    """Write the result as a few lines of text."""
    lines = [", ".join(f"{value} {name}" for name, value in result["tests"].items())]
    for precision, accuracies in result["accuracy"].items():
        spread = f" ± {stdev(accuracies):.2f}" if len(accuracies) > 1 else ""
        lines.append(f"{precision}: {mean(accuracies):.2f}%{spread} (n {len(accuracies)})")
    for model, variants in result["step_time"]["models"].items():
        times = ", ".join(f"{name} {times['median']:.0f}" for name, times in variants.items())
        lines.append(f"{model}, µs per step: {times}")
    return "\n".join([*lines, "passed" if result["passed"] else "FAILED"])


if __name__ == "__main__":
    sys.exit(main())
