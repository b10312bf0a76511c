from importlib.util import find_spec
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from digitlab.parity.backend import import_keras, import_tensorflow, keras_dtype
from digitlab.parity.checks import gradients
from tests.parity.nets import IMAGES, LABELS, DocumentStyle, keras_pair, keras_style, layer_of

pytestmark = pytest.mark.skipif(not find_spec("tensorflow"), reason="needs the extra `parity`")


def test_comparing_gradients_leaves_the_parameters_own_alone() -> None:
    model, twin = keras_pair(DocumentStyle(), keras_style())
    model.f1.weight.grad = torch.ones(16, 16)
    with torch.no_grad():
        assert all(check.passed for check in gradients(model, twin, IMAGES, LABELS))
    assert model.f1.weight.grad.eq(1).all()
    assert model.c1.weight.grad is None


def test_another_gradient_of_the_same_function_is_found() -> None:
    keras, tensorflow = import_keras(), import_tensorflow()

    def identity(x: Any) -> Any:
        return x, lambda upstream: 1.001 * upstream

    scaled = layer_of(tensorflow.custom_gradient(identity))
    pair = keras_pair(DocumentStyle(), keras_style(flatten=[scaled, keras.layers.Flatten()]))
    loss, check = gradients(*pair, IMAGES, LABELS)
    assert loss.passed
    assert not check.passed
    assert 0.9e-3 < check.difference < 1.1e-3
    assert "c1." in check.note or "c2." in check.note


def test_a_softmax_before_the_loss_is_not_looked_through() -> None:
    softmax = {"fc2": import_keras().layers.Dense(10, activation="softmax")}
    pair = keras_pair(DocumentStyle(), keras_style(**softmax))
    assert not any(check.passed for check in gradients(*pair, IMAGES, LABELS))
    both = nn.Sequential(pair[0], nn.Softmax(1))
    assert all(check.passed for check in gradients(both, pair[1], IMAGES, LABELS))


def test_a_gradient_on_one_side_only_is_a_difference() -> None:
    model, twin = keras_pair(DocumentStyle(), keras_style())
    twin.layers[0].trainable = False
    _, check = gradients(model, twin, IMAGES, LABELS)
    assert check.difference == float("inf")
    assert check.note == "most in c1.weight"
    model.c1.requires_grad_(False)
    assert gradients(model, twin, IMAGES, LABELS)[1].passed
    model.requires_grad_(False)
    twin.trainable = False
    assert not gradients(model, twin, IMAGES, LABELS)[1].passed  # compared nothing


class Shifted(nn.Module):
    """Adds the same number to all ten logits: the loss does not depend on `shift` at all."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.shift, self.fc = nn.Linear(144, 1), nn.Linear(144, 10)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(x.flatten(1)) + self.shift(x.flatten(1))
        return logits


def test_a_gradient_that_is_zero_but_for_rounding_is_no_difference() -> None:
    keras, model = import_keras(), Shifted().double()
    with keras_dtype("float64"):
        images = keras.Input((144,))
        shift, logit = keras.layers.Dense(1, name="shift"), keras.layers.Dense(10, name="fc")
        twin = keras.Model(images, keras.layers.Add()([logit(images), shift(images)]))
    _, check = gradients(*keras_pair(model, twin), IMAGES, LABELS)
    torch.nn.functional.cross_entropy(model(IMAGES.double()), LABELS).backward()
    assert model.shift.weight.grad is not None
    assert 0 < model.shift.weight.grad.abs().max() < 1e-16  # rounding, with nothing to round
    assert check.passed, check
