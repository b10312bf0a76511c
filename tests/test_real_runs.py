import json
from pathlib import Path

import pytest

from digitlab.cli import main


# The bands are two-sided, since too good is wrong too; they are wider than the seeds' spread.
@pytest.mark.slow
@pytest.mark.usefixtures("real_data")
@pytest.mark.parametrize(
    ("config", "low", "high"),
    [
        ("mnist/linear", 0.915, 0.928),
        ("mnist/nn128", 0.960, 0.976),
        ("mnist/nn128_as_published", 0.945, 0.963),
        ("mnist/nn128_keras_recipe", 0.973, 0.982),
        ("fashion_mnist/nn128", 0.850, 0.885),
    ],
)
def test_a_run_on_real_images_ends_in_its_band(
    config: str, low: float, high: float, tmp_path: Path
) -> None:
    place = ["--trainer.default_root_dir", str(tmp_path), "--trainer.accelerator", "cpu"]
    assert (
        main(["fit", "--config", f"configs/{config}.yaml", *place, "--seed_everything", "4"]) == 0
    )
    (metrics,) = tmp_path.glob("*/version_0/metrics.json")
    score = json.loads(metrics.read_text("utf-8"))["test"]
    assert score["n"] == 10_000
    assert low <= score["accuracy"] <= high


@pytest.mark.usefixtures("real_data")
def test_an_epoch_of_softmax_regression_on_mnist_ends_in_its_band(tmp_path: Path) -> None:
    place = ["--trainer.default_root_dir", str(tmp_path), "--trainer.accelerator", "cpu"]
    epoch = ["--trainer.max_epochs", "1"]
    assert main(["fit", "--config", "configs/mnist/linear.yaml", *place, *epoch]) == 0
    (metrics,) = tmp_path.glob("*/version_0/metrics.json")
    assert 0.90 <= json.loads(metrics.read_text("utf-8"))["test"]["accuracy"] <= 0.92
