import random
import re
from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from digitlab.parity.backend import import_keras, keras_dtype
from digitlab.parity.pair import check
from digitlab.parity.report import Check, Report
from tests.fitting import assert_bitwise_equal
from tests.parity.nets import (
    BATCHES,
    IMAGES,
    LABELS,
    DocumentStyle,
    Residual,
    keras_residual,
    keras_style,
)

ROWS = [
    "parameters",
    "round trip of the weights",
    "logits, float32",
    "logits, float64",
    "loss, float64",
    "gradients, float64",
]


def test_document_bs_style_equals_its_keras_style() -> None:
    report = check(DocumentStyle(), keras_style(), BATCHES)
    report.assert_passed()
    assert report.passed
    assert report.first_divergence is None
    assert [row.name for row in report.checks] == ROWS
    compared = {row.name: row.compared for row in report.checks}
    assert compared["logits, float64"] == 60
    assert compared["gradients, float64"] == 2 * compared["round trip of the weights"]
    assert all(row.difference < 1e-14 for row in report.checks if "float64" in row.name)


def test_a_float64_pair_is_compared_as_it_is() -> None:
    with keras_dtype("float64"):
        twin = keras_style()
    report = check(DocumentStyle().double(), twin, BATCHES)
    report.assert_passed()
    assert [row.name for row in report.checks] == [name for name in ROWS if "float32" not in name]
    compared = {row.name: row.compared for row in report.checks}
    assert compared["logits, float64"] == 60
    assert compared["gradients, float64"] == 2 * compared["round trip of the weights"]


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


def test_a_layer_that_keras_alone_freezes_is_found_and_compared_none_the_less() -> None:
    model, twin = DocumentStyle(), keras_style()
    twin.layers[2].trainable = False
    (failed,) = [row for row in check(model, twin, BATCHES).checks if not row.passed]
    assert failed.name == "settings of the training"
    assert re.fullmatch(
        r"c2\.\w+ is frozen in keras alone and 1 more: remove it, or give both sides the same",
        failed.note,
    )
    assert not twin.layers[2].trainable
    model.c2.requires_grad_(False)
    report = check(model, twin, BATCHES)
    report.assert_passed()
    assert report.checks[-1].compared == 2 * report.checks[1].compared


def test_an_attention_that_pytorch_alone_freezes_is_found() -> None:
    """Its three projections are views of one tensor."""

    class Attending(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(7)
            self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
            self.mean: Tensor
            self.register_buffer("mean", torch.rand(1, 5, 4)[:, :1])  # a constant that is a view

        def forward(self, x: Tensor) -> Tensor:
            x = x - self.mean
            result: Tensor = self.attention(x, x, x, need_weights=False)[0]
            return result

    keras, model = import_keras(), Attending()
    steps = keras.Input((5, 4))
    centred = steps - model.mean.numpy()
    twin = keras.Model(steps, keras.layers.MultiHeadAttention(2, 2)(centred, centred))
    batches = [torch.rand(3, 5, 4)]
    check(model, twin, batches, loss=None).assert_passed()
    report = check(model.requires_grad_(False), twin, batches, loss=None)
    (failed,) = [row for row in report.checks if not (row.passed or row.informational)]
    assert failed.note.startswith("attention.in_proj_weight[0/3] is frozen in torch alone")


@pytest.mark.parametrize("place", [0, 1])
def test_a_nan_in_any_batch_fails(place: int) -> None:
    broken = (torch.full((2, 1, 12, 12), float("nan")), LABELS[:2])
    batches = [*BATCHES[:place], broken, *BATCHES[place:]]
    assert not check(DocumentStyle(), keras_style(), batches).passed


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


def test_a_planted_wrong_layer_is_named() -> None:
    layers = import_keras().layers
    planted = layers.AveragePooling2D(2, name="planted")
    report = check(DocumentStyle(), keras_style(pool2=planted), BATCHES)
    assert not report.passed
    assert report.first_divergence == "planted"
    failed = [row.name for row in report.checks if not row.passed]
    assert failed == ROWS[2:]
    with pytest.raises(AssertionError) as error:
        report.assert_passed()
    for part in ("do not compute the same", "planted", "logits, float64", "FAILED"):
        assert part in str(error.value)


@pytest.mark.parametrize("batches", [[], [(IMAGES[:0], LABELS[:0])]])
def test_without_images_the_report_fails(batches: list[tuple[Tensor, Tensor]]) -> None:
    report = check(DocumentStyle(), keras_style(), iter(batches))
    assert not report.passed
    assert report.first_divergence is None
    with pytest.raises(AssertionError, match="there are no examples"):
        report.assert_passed()


def test_of_a_pair_without_weights_outputs_are_compared() -> None:
    keras = import_keras()
    twin = keras.Sequential([keras.Input((12, 12, 1)), keras.layers.GlobalMaxPooling2D()])
    for module, passed in ((nn.AdaptiveMaxPool2d(1), True), (nn.AdaptiveAvgPool2d(1), False)):
        report = check(nn.Sequential(module, nn.Flatten()), twin, [IMAGES], loss=None)
        assert report.passed == passed


@pytest.mark.parametrize("side", ["torch", "keras"])
def test_another_precision_is_refused_before_a_weight_changes(side: str) -> None:
    model = DocumentStyle()
    if side == "torch":
        model, twin = model.bfloat16(), keras_style()
    else:
        with keras_dtype("mixed_bfloat16"):
            twin = keras_style()
    before = twin.get_weights()
    with pytest.raises(ValueError, match=r"a side computes in bfloat16: .* `module\.float\(\)`"):
        check(model, twin, BATCHES)
    for array, kept in zip(twin.get_weights(), before, strict=True):
        np.testing.assert_array_equal(array, kept)


class Doubling(DocumentStyle):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(2 * x)


def uncopyable(name: str) -> Any:
    """A layer that doubles what it reads, and of which no copy can be made, or no faithful one."""
    base = import_keras().layers.Layer

    def refuse(self: Any) -> Any:
        raise NotImplementedError

    def double(self: Any, x: Any) -> Any:
        return getattr(self, "factor", 3) * x

    members: dict[str, dict[str, Any]] = {
        "refuses": {"get_config": refuse, "call": double},
        "forgets": {"call": double},
    }
    layer: Any = type("Doubled", (base,), members[name])()
    layer.factor = 2  # nothing that a config knows
    return layer


@pytest.mark.parametrize("name", ["refuses", "forgets"])
def test_a_layer_that_cannot_be_copied_is_compared_as_it_is(name: str) -> None:
    layers = import_keras().layers
    conv = layers.Conv2D(4, 3, padding="same", activation="relu")
    report = check(Doubling(), keras_style(conv1=[uncopyable(name), conv]), BATCHES)
    assert report.verdict == "passed_float32"
    assert not report.passed
    with pytest.raises(AssertionError, match="were compared in float32 alone"):
        report.assert_passed()
    report.assert_passed(allow_float32=True)
    names = [*ROWS[:3], "loss, float32", "gradients, float32"]
    assert [row.name for row in report.checks] == names
    assert "doubled" in report.only_float32
    assert "give Doubled a get_config that has all its arguments" in report.only_float32
    assert {row.tolerance for row in report.checks[2:]} == {1e-5}
    assert not check(DocumentStyle(), keras_style(conv1=[uncopyable(name), conv]), BATCHES).passed


def test_a_layer_that_fixes_the_dtype_of_one_inside_is_compared_in_float32() -> None:
    """Its copy would round in float64, and differ from PyTorch's layer by that."""
    layers = import_keras().layers

    class Fixed(layers.Layer):  # type: ignore[misc,name-defined]
        def build(self, shape: Any) -> None:
            self.inner = layers.Dense(10, dtype="float32")
            self.inner.build(shape)

        def call(self, x: Any) -> Any:
            return self.inner(x)

    report = check(DocumentStyle(), keras_style(fc2=Fixed(name="fixed")), BATCHES)
    assert report.verdict == "passed_float32"
    remedy = "fixed computes in float32 whatever its dtype is: let Fixed pass its dtype on"
    assert report.only_float32 == remedy


def test_where_nothing_is_copied_layers_are_matched_in_the_order_of_calls() -> None:
    class Reversed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.second, self.first = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.second(2 * self.first(x))
            return result

    keras = import_keras()
    dense = [keras.layers.Dense(4) for _ in range(2)]
    twin = keras.Sequential([keras.Input((4,)), dense[0], uncopyable("refuses"), dense[1]])
    assert check(Reversed(), twin, [torch.rand(5, 4)], loss=None).verdict == "passed_float32"
