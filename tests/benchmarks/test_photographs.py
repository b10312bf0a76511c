from pathlib import Path

import pytest
from benchmarks import photographs

from digitlab.cli import main


@pytest.mark.slow
@pytest.mark.usefixtures("real_data")
def test_photographs_of_mnist_are_classified_nearly_as_well_as_mnist(tmp_path: Path) -> None:
    place = ["--trainer.default_root_dir", str(tmp_path), "--trainer.accelerator", "cpu"]
    epoch = ["--trainer.max_epochs", "1"]
    assert main(["fit", "--config", "configs/mnist/lenet5.yaml", *place, *epoch]) == 0
    (run,) = tmp_path.glob("*/version_0")
    result = photographs.measure(run, 500, seed=1)
    assert result["n"] == 500
    # After one epoch 97.7% of the test images are right, and 96.6 and 96.8% of two such samples.
    assert 94.5 <= result["accuracy"] <= 98.8
    assert result["refused"] == 0
