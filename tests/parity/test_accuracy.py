"""Both frameworks, trained by the same recipe, end with the same accuracy."""

import json
from pathlib import Path

import pytest
from lightning import seed_everything

from digitlab.cli import main
from digitlab.data import DigitsDataModule
from digitlab.models import MLP
from digitlab.parity.keras_module import KerasClassifier
from digitlab.reproduce.statistics import compare
from tests.fitting import trainer


def train_on_digits(framework: str, seed: int) -> float:
    """Train NN 128 as configs/digits/nn128.yaml does, and return the test accuracy in per cent."""
    seed_everything(seed, verbose=False)
    ours = MLP([128], initialization="keras", steps_per_execution=32)
    model = KerasClassifier(ours) if framework == "keras" else ours
    parameters = sum(parameter.numel() for parameter in ours.parameters())
    if isinstance(model, KerasClassifier):
        parameters = model.keras_model.count_params()
    assert parameters == 101_770
    data = DigitsDataModule()
    trainer(max_epochs=8, limit_val_batches=0).fit(model, data)
    return 100 * model.evaluate(data.test_dataloader())["accuracy"]


def train_on_mnist(framework: str, seed: int, root: Path, config: str, parameters: int) -> float:
    """Train for two epochs as the config does, and return the test accuracy in per cent."""
    root = root / f"{framework}{seed}"
    options = ["--trainer.default_root_dir", str(root), "--trainer.logger", "false"]
    options += ["--trainer.accelerator", "cpu", "--trainer.max_epochs", "2"]
    options += ["--framework", framework, "--seed_everything", str(seed)]
    assert main(["fit", "--config", config, *options]) == 0
    (file,) = root.glob("*/version_0/metrics.json")
    metrics = json.loads(file.read_text("utf-8"))
    assert metrics["parameters"] == parameters
    return 100 * float(metrics["test"]["accuracy"])


def test_nn128_ends_with_the_same_accuracy_on_the_digits() -> None:
    # Other seeds on each side, so that runs are independent.
    ours = [train_on_digits("torch", seed) for seed in range(3)]
    theirs = [train_on_digits("keras", seed) for seed in range(3, 6)]
    assert min(ours + theirs) > 90
    # Of 360 test images one is .28 pp; runs differ by about .3 pp among themselves.
    assert compare(ours, theirs, margin=1.5).verdict == "equivalent"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "parameters"), [("nn128_keras_recipe", 101_770), ("lenet5_keras_recipe", 61_706)]
)
def test_a_network_ends_with_the_same_accuracy_on_mnist(
    config: str, parameters: int, tmp_path: Path, real_data: Path
) -> None:
    ours, theirs = (
        [
            train_on_mnist(framework, seed, tmp_path, f"configs/mnist/{config}.yaml", parameters)
            for seed in seeds
        ]
        for framework, seeds in (("torch", range(8)), ("keras", range(8, 16)))
    )
    assert compare(ours, theirs, margin=0.5).verdict == "equivalent"
