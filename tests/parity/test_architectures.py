from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from digitlab import models
from digitlab.classifier import Classifier
from digitlab.data import MNISTDataModule
from digitlab.parity import documents
from digitlab.parity.checks import gradients, logits, parameter_counts, round_trip
from digitlab.parity.weights import to_keras

pytestmark = pytest.mark.skipif(not find_spec("tensorflow"), reason="needs the extra `parity`")

ARCHITECTURES = {
    "LinearClassifier": (models.LinearClassifier, {}, 7_850),
    "MLP 512-512": (models.MLP, {}, 669_706),
    "MLP 128": (models.MLP, {"hidden_features": [128]}, 101_770),
    "LeNet5": (models.LeNet5, {}, 61_706),
    "LeNet1": (models.LeNet1, {}, 121_994),
    "LeNet1 same": (models.LeNet1, {"padding": "same"}, 121_994),
    "FastCNN": (models.FastCNN, {}, 212_682),
    "PyTorchExampleNet": (models.PyTorchExampleNet, {}, 21_840),
    "TensorFlowTutorialCNN": (models.TensorFlowTutorialCNN, {}, 3_274_634),
}
each = pytest.mark.parametrize(
    ("architecture", "options", "total"), ARCHITECTURES.values(), ids=ARCHITECTURES
)


@pytest.fixture
def real_batch(real_data: Path) -> tuple[Tensor, Tensor]:
    """Twenty test images as a network reads them, with their labels."""
    data = MNISTDataModule()
    images, labels = next(iter(data.test_dataloader()))
    batch: tuple[Tensor, Tensor] = data.on_after_batch_transfer((images[:20], labels[:20]), 0)
    return batch


@each
def test_both_sides_have_the_documented_parameters(
    architecture: type[Classifier], options: dict[str, Any], total: int
) -> None:
    model = architecture(**options)
    shapes = documents.documented(model)
    assert shapes is not None
    assert sum(int(np.prod(shape)) for shape in shapes.values()) == total
    check = parameter_counts(model, to_keras(model), shapes)
    assert check.passed, check
    assert (check.compared, check.note) == (len(shapes), f"{total:,} parameters")


@each
def test_twins_give_the_same_logits_and_gradients_of_real_images(
    architecture: type[Classifier],
    options: dict[str, Any],
    total: int,
    real_batch: tuple[Tensor, Tensor],
) -> None:
    torch.manual_seed(0)
    images, labels = real_batch
    model = architecture(**options)
    single = logits(model, to_keras(model), images)
    assert single.passed, single
    assert (single.name, single.tolerance) == ("logits, float32", 1e-5)
    twin = to_keras(model.double())
    of_logits = logits(model, twin, images)
    of_loss, of_gradients = gradients(model, twin, images, labels)
    for check in (of_logits, of_loss, of_gradients):
        assert check.passed, check
        assert check.tolerance == 1e-12
    assert of_logits.compared == 20 * 10
    assert of_gradients.compared == total


def test_settings_that_no_document_has_have_no_documented_parameters() -> None:
    assert documents.documented(models.MLP([64])) is None
    assert documents.documented(models.LeNet5(in_channels=3)) is None
    assert documents.documented(models.LeNet5(num_classes=7)) is None


def test_lenet1_with_padding_2_is_not_the_same_twin(real_batch: tuple[Tensor, Tensor]) -> None:
    torch.manual_seed(0)
    model, twin = models.LeNet1(padding=2), to_keras(models.LeNet1(padding="same"))
    assert parameter_counts(model, twin, documents.LENET1).passed
    assert round_trip(model, twin).passed
    check = logits(model, twin, real_batch[0])
    assert not check.passed
    assert check.difference > 0.01  # rounding gives a millionth
