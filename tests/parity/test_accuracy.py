"""Both frameworks, trained by the same config, end with the same accuracy."""

import json
from pathlib import Path

import pytest

from digitlab.cli import main
from digitlab.reproduce.statistics import compare


def train(root: Path, framework: str, config: str, seed: int, *options: str) -> dict[str, float]:
    """Train with a seed, and return the accuracy in per cent and the number of parameters."""
    place = ["--trainer.default_root_dir", str(root), "--trainer.logger", "false"]
    options = ("--trainer.accelerator", "cpu", "--seed_everything", str(seed), *options)
    assert main(["fit", "--framework", framework, "--config", config, *place, *options]) == 0
    (file,) = root.glob("*/version_0/metrics.json")
    metrics = json.loads(file.read_text("utf-8"))
    return {"accuracy": 100 * metrics["test"]["accuracy"], "parameters": metrics["parameters"]}


def train_both(root: Path, config: str, seeds: int, *options: str) -> list[list[dict[str, float]]]:
    """Train with both frameworks and other seeds on each side, so that runs are independent."""
    return [
        [
            train(root / f"{framework}{seed}", framework, config, seed, *options)
            for seed in range(i * seeds, (i + 1) * seeds)
        ]
        for i, framework in enumerate(("torch", "keras"))
    ]


def accuracies(runs: list[dict[str, float]]) -> list[float]:
    return [run["accuracy"] for run in runs]


def test_nn128_ends_with_the_same_accuracy_on_the_digits(tmp_path: Path) -> None:
    options = ["--model.initialization", "keras", "--trainer.max_epochs", "15"]
    ours, theirs = train_both(tmp_path, "configs/digits/nn128.yaml", 5, *options)
    assert {run["parameters"] for run in ours + theirs} == {101_770}
    # Of 360 test images one is .28 pp; runs differ by about .3 pp among themselves.
    assert compare(accuracies(ours), accuracies(theirs), margin=1.5).verdict == "equivalent"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "parameters"), [("nn128_keras_recipe", 101_770), ("lenet5_keras_recipe", 61_706)]
)
def test_a_network_ends_with_the_same_accuracy_on_mnist(
    config: str, parameters: int, tmp_path: Path, real_data: Path
) -> None:
    short = ["--trainer.max_epochs", "2"]
    ours, theirs = train_both(tmp_path, f"configs/mnist/{config}.yaml", 8, *short)
    assert {run["parameters"] for run in ours + theirs} == {parameters}
    assert compare(accuracies(ours), accuracies(theirs), margin=0.5).verdict == "equivalent"
