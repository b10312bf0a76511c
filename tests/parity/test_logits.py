from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
import torch

from digitlab.parity.backend import import_keras, keras_dtype
from digitlab.parity.checks import gradients, logits, round_trip
from tests.parity.nets import IMAGES, LABELS, DocumentStyle, keras_pair, keras_style

pytestmark = pytest.mark.skipif(not find_spec("tensorflow"), reason="needs the extra `parity`")


def wrong_variants() -> dict[str, Any]:
    layers = import_keras().layers
    return {
        "average pooling": {"pool2": layers.AveragePooling2D(2)},
        "tanh": {"fc1": layers.Dense(16, activation="tanh")},
        "no activation": {"fc1": layers.Dense(16)},
        "other padding": {"conv1": [layers.ZeroPadding2D(((2, 0), (2, 0))), layers.Conv2D(4, 3)]},
        "softmax": {"fc2": layers.Dense(10, activation="softmax")},
    }


@pytest.mark.parametrize(
    "name", ["average pooling", "tanh", "no activation", "other padding", "softmax"]
)
def test_a_wrong_layer_fails_the_logits(name: str) -> None:
    pair = keras_pair(DocumentStyle(), keras_style(**wrong_variants()[name]))
    check = logits(*pair, IMAGES)
    assert not check.passed
    assert check.difference > 1e-3
    assert ("only keras gives probabilities" in check.note) == (name == "softmax")


def spoilt(twin: Any, variable: str) -> Any:
    """A Keras model that was given one variable by a wrong rule, without this package."""
    layer, value = twin.layers[-3 if "fc1" in variable else -1], None
    kernel, bias = layer.get_weights()
    if variable == "fc1 without permutation":
        # PyTorch's order of features, as `kernel.assign(weight.T)` leaves it.
        order = np.arange(16).reshape(2, 2, 4).transpose(2, 0, 1).ravel()
        value = [kernel[order], bias]
    elif variable == "fc1 transposed":
        value = [kernel.T, bias]
    else:
        value = [kernel, bias + 1e-3 * np.eye(10)[7]]
    layer.set_weights(value)
    return twin


@pytest.mark.parametrize("variable", ["fc1 without permutation", "fc1 transposed", "fc2 bias"])
def test_weights_copied_by_a_wrong_rule_fail_the_logits(variable: str) -> None:
    model, twin = keras_pair(DocumentStyle(), keras_style())
    assert logits(model, twin, IMAGES).passed
    assert not logits(model, spoilt(twin, variable), IMAGES).passed


def test_other_shapes_of_logits_are_a_difference() -> None:
    layers = import_keras().layers
    twin = keras_style(fc2=[layers.Dense(10), layers.Reshape((10, 1))])
    check = logits(*keras_pair(DocumentStyle(), twin), IMAGES)
    assert not check.passed
    assert check.note == "torch gives (6, 10), keras (6, 1, 10)"


def test_a_nan_agrees_with_nothing() -> None:
    model, twin = DocumentStyle(), keras_style()
    with torch.no_grad():
        model.f2.bias[3] = float("nan")
    pair = keras_pair(model, twin)
    assert round_trip(*pair).passed
    assert not logits(*pair, IMAGES).passed
    assert not any(check.passed for check in gradients(*pair, IMAGES, LABELS))


def test_the_coarser_side_sets_the_tolerance() -> None:
    check = logits(*keras_pair(DocumentStyle().double(), keras_style()), IMAGES)
    assert check.passed
    assert (check.name, check.tolerance) == ("logits, float32", 1e-5)


def test_half_precision_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="a side computes in bfloat16: compare in float32"):
        logits(DocumentStyle().bfloat16(), keras_style(), IMAGES)
    with keras_dtype("mixed_float16"):
        twin = keras_style()
    with pytest.raises(ValueError, match="a side computes in float16: compare in float32"):
        logits(DocumentStyle(), twin, IMAGES)
