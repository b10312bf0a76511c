import random
import re
from copy import deepcopy
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from torch import nn

from digitlab.parity.backend import import_keras, keras_dtype
from digitlab.parity.checks import HEADING, Check, format_check
from digitlab.parity.pair import Report, check
from tests.fitting import assert_bitwise_equal
from tests.parity.nets import (
    BATCHES,
    LABELS,
    REPORT_ROWS,
    DocumentStyle,
    Residual,
    dense,
    keras_residual,
    keras_style,
)

pytestmark = pytest.mark.skipif(not find_spec("tensorflow"), reason="needs the extra `parity`")


def test_document_bs_style_equals_its_keras_style() -> None:
    report = check(DocumentStyle(), keras_style(), BATCHES)
    report.assert_passed()
    assert report.passed
    assert report.first_divergence is None
    assert [row.name for row in report.checks] == REPORT_ROWS
    compared = {row.name: row.compared for row in report.checks}
    assert compared["logits, float64"] == 60
    assert compared["gradients, float64"] == 2 * compared["round trip of the weights"]
    assert all(row.difference < 1e-14 for row in report.checks if "float64" in row.name)


def test_a_residual_network_with_batch_normalization_passes() -> None:
    check(Residual(), keras_residual(), BATCHES).assert_passed()


def test_coloured_images_pass() -> None:
    images = torch.rand(4, 3, 12, 12)
    check(DocumentStyle(3), keras_style(channels=3), [(images, LABELS[:4])]).assert_passed()


@pytest.mark.parametrize("shape", [(12, 12), (144,), (12, 12, 1), (1, 12, 12)])
def test_every_shape_of_input_passes(shape: tuple[int, ...]) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(144, 10))
    check(model, dense(shape), BATCHES).assert_passed()


def test_models_within_models_and_a_permutation_pass() -> None:
    keras = import_keras()
    layers = keras.layers
    stem = keras.Sequential([layers.Conv2D(4, 3, padding="same", activation="relu")])
    twin = keras_style(conv1=stem, flatten=[layers.Permute((3, 1, 2)), layers.Flatten()])
    report = check(DocumentStyle(), twin, BATCHES)
    report.assert_passed()
    assert [row.name for row in report.checks] == REPORT_ROWS


def test_a_float64_pair_is_compared_as_it_is() -> None:
    with keras_dtype("float64"):
        twin = keras_style()
    twin.layers[-1].trainable = False
    report = check(DocumentStyle().double(), twin, BATCHES)
    report.assert_passed()
    assert [row.name for row in report.checks] == [
        name for name in REPORT_ROWS if "float32" not in name
    ]
    compared = {row.name: row.compared for row in report.checks}
    assert compared["logits, float64"] == 60
    assert compared["gradients, float64"] == 2 * compared["round trip of the weights"]
    assert not any("copy" in row.note for row in report.checks)
    assert not twin.layers[-1].trainable


def test_nothing_of_the_callers_module_changes() -> None:
    model, twin = Residual(), keras_residual(left_activation="elu")
    model.train()
    model.norm.eval()
    model.head.requires_grad_(False)
    model.left.weight.grad = torch.ones_like(model.left.weight)
    before = deepcopy(model.state_dict())
    torch_state, python_state = torch.get_rng_state(), random.getstate()
    numpy_state = np.random.get_state()[1].copy()  # type: ignore[index] # noqa: NPY002
    assert not check(model, twin, BATCHES).passed
    assert_bitwise_equal(model.state_dict(), before)
    assert [part.training for part in model.modules()] == [True, True, True, True, False, True]
    assert model.left.weight.grad.eq(1).all()
    assert model.stem.weight.grad is None
    assert not model.head.weight.requires_grad
    assert model.stem.weight.requires_grad
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert random.getstate() == python_state
    assert (np.random.get_state()[1] == numpy_state).all()  # type: ignore[index] # noqa: NPY002


def test_the_keras_model_has_the_weights_afterwards() -> None:
    model, twin = DocumentStyle(), keras_style()
    check(model, twin, BATCHES)
    np.testing.assert_array_equal(twin.layers[-1].get_weights()[1], model.f2.bias.detach().numpy())


def test_frozen_parameters_are_compared_too() -> None:
    model, twin = DocumentStyle().requires_grad_(False), keras_style()
    twin.trainable = False
    report = check(model, twin, BATCHES)
    report.assert_passed()
    assert report.checks[-1].compared > 0
    assert not twin.trainable


def test_one_frozen_keras_layer_is_compared_too() -> None:
    keras = import_keras()
    stem = keras.Sequential([keras.layers.Conv2D(4, 3, padding="same", activation="relu")])
    for frozen, twin in enumerate([keras_style(), keras_style(conv1=stem)]):
        twin.layers[2 * (1 - frozen)].trainable = False  # conv2, or the model that holds conv1
        report = check(DocumentStyle(), twin, BATCHES)
        report.assert_passed()
        assert report.checks[-1].compared == 2 * report.checks[1].compared
        assert not all(layer.trainable for layer in twin.layers)


def test_arrays_and_lists_are_compared_as_tensors_are() -> None:
    batches = [[images.numpy(), labels.numpy()] for images, labels in BATCHES]
    model, twin = DocumentStyle(), keras_style()
    report = check(model, twin, batches)  # type: ignore[arg-type] # what a user may have
    report.assert_passed()
    assert report == check(model, twin, BATCHES)


def test_a_report_needs_a_check_that_counts_and_all_of_those_to_pass() -> None:
    good, bad = Check("good", 1, 0.0, 0.0), Check("bad", 1, 2.0, 1.0)
    aside = Check("aside", 1, 2.0, 1.0, informational=True)
    assert Report((good, aside)).passed
    assert not Report((good, bad)).passed
    assert not Report((aside,)).passed
    assert not Report(()).passed
    Report((good, aside)).assert_passed()
    with pytest.raises(AssertionError):
        Report(()).assert_passed()


def test_the_table_tells_verdicts_and_notes() -> None:
    rows = [
        Check("good", 1200, 0.0, 0.0, "bit for bit"),
        Check("bad", 1, float("nan"), 1e-12),
        Check("far", 1, float("inf"), 1e-12),
        Check("aside", 1, 0.5, 1e-5, informational=True),
    ]
    table = [re.sub(r"  +", "  ", line) for line in (HEADING, *map(format_check, rows))]
    assert table == [
        "check  compared  difference  tolerance  verdict",
        "good  1,200  0  0  passed  bit for bit",
        "bad  1  nan  1.0e-12  FAILED",
        "far  1  inf  1.0e-12  FAILED",
        "aside  1  5.0e-01  1.0e-05  info",
    ]
    assert (
        len(
            {
                row.index(verdict)
                for row, verdict in zip(
                    map(format_check, rows), ("passed", "FAILED", "FAILED", "info"), strict=True
                )
            }
        )
        == 1
    )
