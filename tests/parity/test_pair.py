"""What `parity.check` reports and leaves alone; benchmarks/pairs has its verdicts."""

import random
import re
from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch
from benchmarks.pairs.common import as_trained, labelled, sequential
from benchmarks.pairs.subtle import copied, times
from benchmarks.pairs.users import Plain, frozen, plain
from torch import Tensor

from digitlab.parity.backend import import_keras, keras_dtype
from digitlab.parity.pair import check
from digitlab.parity.report import Check, Report
from tests.fitting import assert_bitwise_equal

BATCHES = labelled((1, 8, 8))  # of 5 and 3 images
IMAGES, LABELS = BATCHES[0]
ROWS = [
    "parameters",
    "round trip of the weights",
    "logits, float32",
    "logits, float64",
    "loss, float64",
    "gradients, float64",
]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_an_equal_pair_has_a_row_for_each_quantity_in_each_precision(dtype: Any) -> None:
    with keras_dtype(dtype):
        twin = sequential(*plain())
    report = check(Plain().to(getattr(torch, dtype)), twin, BATCHES)
    report.assert_passed()
    assert report.passed
    assert report.first_divergence is None
    rows = ROWS if dtype == "float32" else [name for name in ROWS if "float32" not in name]
    assert [row.name for row in report.checks] == rows
    compared = {row.name: row.compared for row in report.checks}
    assert compared["logits, float64"] == 8 * 4
    statistics = 2 * 3  # of the normalization, which have no gradient
    of_each_batch = compared["round trip of the weights"] - statistics
    assert compared["gradients, float64"] == 2 * of_each_batch
    assert all(row.difference < 1e-14 for row in report.checks if "float64" in row.name)


def test_nothing_of_the_callers_module_changes() -> None:
    model, twin = Plain(), sequential(*plain("elu"))
    as_trained(model)
    model.bn.eval()
    model.fc.requires_grad_(False)
    model.conv.weight.grad = torch.ones_like(model.conv.weight)
    before = deepcopy(model.state_dict())
    torch_state, python_state = torch.get_rng_state(), random.getstate()
    numpy_state = np.random.get_state()[1].copy()  # type: ignore[index] # noqa: NPY002
    assert not check(model, twin, BATCHES).passed
    assert_bitwise_equal(model.state_dict(), before)
    assert [part.training for part in model.modules()] == [True, True, False, True]
    assert model.conv.weight.grad.eq(1).all()
    assert model.conv.bias is not None
    assert model.conv.bias.grad is None
    assert not model.fc.weight.requires_grad
    assert model.conv.weight.requires_grad
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert random.getstate() == python_state
    assert (np.random.get_state()[1] == numpy_state).all()  # type: ignore[index] # noqa: NPY002


def test_what_keras_alone_freezes_is_named_and_compared_none_the_less() -> None:
    twin = sequential(*plain(frozen=["conv"]))
    (failed,) = [row for row in check(Plain(), twin, BATCHES).checks if not row.passed]
    assert failed.name == "settings of the training"
    assert re.fullmatch(
        r"conv\.\w+ is frozen in keras alone and 1 more: remove it, or give both sides the same",
        failed.note,
    )
    assert not twin.get_layer("conv").trainable
    report = check(frozen("conv"), twin, BATCHES)
    report.assert_passed()
    assert report.checks[-1].compared == 2 * (report.checks[1].compared - 6)


@pytest.mark.parametrize("place", [0, 1])
def test_a_nan_in_any_batch_fails(place: int) -> None:
    broken = (torch.full((2, 1, 8, 8), float("nan")), LABELS[:2])
    batches = [*BATCHES[:place], broken, *BATCHES[place:]]
    assert not check(Plain(), sequential(*plain()), batches).passed


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


def test_a_wrong_layer_is_named_in_the_report_and_its_table() -> None:
    report = check(Plain(), sequential(*plain("tanh")), BATCHES)
    assert not report.passed
    assert report.first_divergence == "act"
    assert [row.name for row in report.checks if not row.passed] == ROWS[2:]
    with pytest.raises(AssertionError) as error:
        report.assert_passed()
    for part in ("do not compute the same", "differs: act", "logits, float64", "FAILED"):
        assert part in str(error.value)


@pytest.mark.parametrize("batches", [[], [(IMAGES[:0], LABELS[:0])]])
def test_without_images_the_report_fails(batches: list[tuple[Tensor, Tensor]]) -> None:
    report = check(Plain(), sequential(*plain()), iter(batches))
    assert not report.passed
    assert report.first_divergence is None
    with pytest.raises(AssertionError, match="there are no examples"):
        report.assert_passed()


def test_a_pair_is_refused_before_a_weight_changes() -> None:
    twin = sequential(*plain())
    before = twin.get_weights()
    for module, images, message in (
        (Plain().bfloat16(), IMAGES, r"a side computes in bfloat16: .* `module\.float\(\)`"),
        (Plain(), IMAGES[:, :, :6], "reads .* and the images are"),
        (Plain().fc, IMAGES, "Linear cannot compute inputs of shape"),
    ):
        with pytest.raises(ValueError, match=message):
            check(module, twin, [(images, LABELS)])
    for array, kept in zip(twin.get_weights(), before, strict=True):
        np.testing.assert_array_equal(array, kept)


@pytest.mark.parametrize("config", ["raises", "incomplete"])
def test_a_layer_that_cannot_be_copied_is_compared_in_float32_alone(config: str) -> None:
    import_keras()
    report = check(*copied(times(config)), BATCHES)
    assert report.verdict == "passed_float32"
    assert not report.passed
    with pytest.raises(AssertionError, match="were compared in float32 alone"):
        report.assert_passed()
    report.assert_passed(allow_float32=True)
    names = [*ROWS[:3], "loss, float32", "gradients, float32"]
    assert [row.name for row in report.checks] == names
    assert re.search(
        r"times\w* .*give Times a get_config that has all its arguments", report.only_float32
    )
    assert {row.tolerance for row in report.checks[2:]} == {1e-5}
