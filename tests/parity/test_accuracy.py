"""Both frameworks, trained by the same recipe, end with the same accuracy."""

import pytest
from lightning import seed_everything

from digitlab.data import DigitsDataModule
from digitlab.models import MLP
from digitlab.parity.keras_module import KerasClassifier
from digitlab.reproduce.statistics import compare
from tests.fitting import trainer


def train(framework: str, seed: int) -> float:
    """Train NN 128 as configs/digits/nn128.yaml does, and return the test accuracy in per cent."""
    seed_everything(seed, verbose=False)
    model = MLP([128], initialization="keras", steps_per_execution=32)
    if framework == "keras":
        model = KerasClassifier(model)  # type: ignore[assignment]
    data = DigitsDataModule()
    trainer(max_epochs=8, limit_val_batches=0).fit(model, data)
    return 100 * model.evaluate(data.test_dataloader())["accuracy"]


# On MNIST and Fashion-MNIST, tests/benchmarks compares the published runs of all rows.
@pytest.mark.slow
def test_nn128_ends_with_the_same_accuracy_on_the_digits() -> None:
    # Other seeds on each side, so that runs are independent.
    ours = [train("torch", seed) for seed in range(3)]
    theirs = [train("keras", seed) for seed in range(3, 6)]
    assert min(ours + theirs) > 90
    # Of 360 test images one is .28 pp; runs differ by about .3 pp among themselves.
    assert compare(ours, theirs, margin=1.5).verdict == "equivalent"
