from importlib.util import find_spec

import pytest
import torch
from torch import nn

from digitlab import models
from digitlab.parity import documents
from digitlab.parity.backend import import_keras
from digitlab.parity.checks import logits, parameter_counts, round_trip
from digitlab.parity.weights import to_keras
from tests.fitting import assert_bitwise_equal
from tests.parity.nets import IMAGES, DocumentStyle, Residual, dense, keras_residual, keras_style

pytestmark = pytest.mark.skipif(not find_spec("tensorflow"), reason="needs the extra `parity`")


def test_a_wrong_shape_on_either_side_is_counted_and_named() -> None:
    shapes = documents.LENET5
    right, wrong = models.LeNet5(), models.LeNet5()
    wrong.network.fc2 = nn.Linear(120, 85)
    check = parameter_counts(wrong, to_keras(right), shapes)
    assert not check.passed
    assert check.difference == 2
    assert check.note == "fc2.weight: documented (84, 120), torch (85, 120), keras (84, 120)"
    twin = to_keras(models.LeNet5(in_channels=3))
    check = parameter_counts(right, twin, shapes)
    assert check.difference == 1
    assert "keras (6, 3, 5, 5)" in check.note


def test_a_missing_and_an_extra_tensor_are_counted() -> None:
    model = models.LinearClassifier()
    check = parameter_counts(model, to_keras(model), {**documents.LINEAR_CLASSIFIER, "x": (1,)})
    assert check.difference == 1
    assert check.note == "x: documented (1,), torch None, keras None"
    check = parameter_counts(model, to_keras(model), {"fc1.weight": (10, 784)})
    assert check.difference == 1


def test_a_total_count_that_disagrees_fails() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(144, 10))
    twin = dense((144,))
    assert parameter_counts(model, twin).passed
    twin.count_params = lambda: 1451
    check = parameter_counts(model, twin)
    assert not check.passed
    assert check.note.startswith("parameters: 1,450 torch, 1,451 keras")


def test_without_documented_shapes_the_sides_are_compared_with_each_other() -> None:
    check = parameter_counts(DocumentStyle(), keras_style())
    assert check.passed
    assert check.compared == 8
    assert "no documented shapes are known" in check.note
    with pytest.raises(ValueError, match=r"f1\.weight is \(16, 16\) and .* is \(16, 17\)"):
        parameter_counts(DocumentStyle(), keras_style(fc1=import_keras().layers.Dense(17)))


def test_weights_survive_the_round_trip_bit_for_bit() -> None:
    model, twin = Residual(), keras_residual()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    check = round_trip(model, twin)
    assert check.passed, check
    values = [t.numel() for name, t in before.items() if name != "norm.num_batches_tracked"]
    assert check.compared == sum(values)
    assert_bitwise_equal(model.state_dict(), before)
    assert logits(model, twin, IMAGES).passed  # Keras has the weights now


def test_a_round_trip_through_less_precision_is_counted_and_named() -> None:
    model = DocumentStyle().double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.div_(3)  # float32 has no such values
    check = round_trip(model, keras_style())
    assert not check.passed
    assert check.difference > 100
    assert check.note == "c1.weight comes back changed"


@pytest.mark.parametrize("lost", ["copy_weights", "load_keras_weights"])
def test_a_round_trip_that_goes_nowhere_fails(lost: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"digitlab.parity.checks.{lost}", lambda *_: None)
    assert not round_trip(DocumentStyle(), keras_style()).passed
