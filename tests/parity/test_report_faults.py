from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from digitlab.parity.backend import import_keras, keras_dtype
from digitlab.parity.pair import check
from tests.parity.nets import (
    BATCHES,
    IMAGES,
    LABELS,
    REPORT_ROWS,
    DocumentStyle,
    Residual,
    keras_residual,
    keras_style,
)

pytestmark = pytest.mark.skipif(not find_spec("tensorflow"), reason="needs the extra `parity`")


def test_kerass_own_epsilon_of_batch_normalization_is_found() -> None:
    report = check(Residual(), keras_residual(epsilon=1e-3), BATCHES)
    assert not report.passed
    assert report.first_divergence == "norm"


def test_a_planted_wrong_layer_is_named() -> None:
    layers = import_keras().layers
    planted = layers.AveragePooling2D(2, name="planted")
    report = check(DocumentStyle(), keras_style(pool2=planted), BATCHES)
    assert not report.passed
    assert report.first_divergence == "planted"
    failed = [row.name for row in report.checks if not row.passed]
    assert failed == REPORT_ROWS[2:]
    with pytest.raises(AssertionError) as error:
        report.assert_passed()
    for part in ("do not compute the same", "planted", "logits, float64", "FAILED"):
        assert part in str(error.value)


def test_a_difference_that_only_one_image_shows_is_found() -> None:
    """One of 60 images is bright, and the planted layer clips what is bright."""
    layers = import_keras().layers
    images = torch.rand(60, 1, 12, 12)
    images[59] *= 40
    planted = layers.ReLU(max_value=5.0, name="planted")
    twin = keras_style(pool1=[layers.MaxPooling2D(2), planted])
    batches = list(zip(images.split([10, 50]), torch.zeros(60).long().split([10, 50]), strict=True))
    report = check(DocumentStyle(), twin, batches)
    assert not report.passed
    assert report.first_divergence == "planted"
    assert check(DocumentStyle(), twin, batches[:1]).passed


def test_the_last_batch_does_not_hide_the_worst() -> None:
    layers = import_keras().layers
    bright = (40 * torch.rand(4, 1, 12, 12), LABELS[:4])
    dark = (torch.rand(4, 1, 12, 12), LABELS[:4])
    twin = keras_style(pool1=[layers.MaxPooling2D(2), layers.ReLU(max_value=5.0, name="planted")])
    for batches in ([bright, dark], [dark, bright]):
        report = check(DocumentStyle(), twin, batches)
        assert not report.passed
        assert report.first_divergence == "planted"
    broken = (torch.full((2, 1, 12, 12), float("nan")), LABELS[:2])
    for batches in ([broken, dark], [dark, broken], [bright, broken, bright]):
        assert not check(DocumentStyle(), keras_style(), batches).passed


@pytest.mark.parametrize("batches", [[], [(IMAGES[:0], LABELS[:0])]])
def test_without_images_the_report_fails(batches: list[tuple[Tensor, Tensor]]) -> None:
    report = check(DocumentStyle(), keras_style(), iter(batches))
    assert not report.passed
    assert report.first_divergence is None
    with pytest.raises(AssertionError, match="there are no images"):
        report.assert_passed()


def test_a_pair_without_weights_compared_nothing() -> None:
    keras = import_keras()
    twin = keras.Sequential([keras.Input((12, 12, 1)), keras.layers.Flatten()])
    report = check(nn.Flatten(), twin, [(IMAGES, LABELS)])
    assert not report.passed
    assert [row.passed for row in report.checks][:2] == [False, False]


def refused() -> dict[str, tuple[nn.Module, Any, str]]:
    layers = import_keras().layers
    extra = keras_style(dropout=layers.Dense(16))
    unknown = keras_style(pool1=[layers.MaxPooling2D(2), layers.DepthwiseConv2D(1, name="odd")])
    model = DocumentStyle()
    more = nn.Sequential(model.c1, model.c2, nn.Conv2d(4, 4, 1), model.f1, model.f2)
    return {
        "an extra layer": (model, extra, "4 PyTorch layers have weights .* and 5 Keras layers"),
        "weights of another shape": (
            model,
            keras_style(fc2=layers.Dense(11, name="last")),
            r"f2\.weight is \(10, 16\) and last/kernel is \(16, 11\)",
        ),
        "an unknown layer": (more, unknown, "odd is a DepthwiseConv2D, whose layout"),
        "no bias": (model, keras_style(fc2=layers.Dense(10, use_bias=False)), r"f2\.bias has no"),
        "other images": (model, keras_style(), r"reads \(12, 12, 1\), and the images are"),
    }


@pytest.mark.parametrize(
    "mistake",
    ["an extra layer", "weights of another shape", "an unknown layer", "no bias", "other images"],
)
def test_a_users_mistake_is_refused_by_name(mistake: str) -> None:
    model, twin, message = refused()[mistake]
    images = torch.rand(2, 1, 14, 14) if mistake == "other images" else IMAGES[:2]
    with pytest.raises(ValueError, match=message):
        check(model, twin, [(images, LABELS[:2])])


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


LABELS_MUST = r": they must be int64 \(6,\), from 0 to 9, as `labels\.long\(\)`"


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (IMAGES, "a batch is Tensor: it must be two tensors, images and labels"),
        ((IMAGES,), "a batch is Tensor: it must be two tensors"),
        ((IMAGES, None), "a batch is Tensor, NoneType: it must be two tensors"),
        (
            (IMAGES.bfloat16(), LABELS),
            r"bfloat16 \(6, 1, 12, 12\): they must be float32 .*float\(\)",
        ),
        ((IMAGES.flatten(1), LABELS), r"float32 \(6, 144\): they must be float32 \(N, C, H, W\)"),
        ((IMAGES, LABELS + 1), r"int64 \(6,\), from 2 to 10" + LABELS_MUST),
        ((IMAGES, LABELS - 2), r"int64 \(6,\), from -1 to 7" + LABELS_MUST),
        ((IMAGES, LABELS.float()), r"float32 \(6,\)" + LABELS_MUST),
        ((IMAGES, LABELS[:4]), r"int64 \(4,\)" + LABELS_MUST),
        ((IMAGES, torch.eye(10)[LABELS]), r"float32 \(6, 10\).*`labels\.argmax\(1\)`"),
    ],
)
def test_a_batch_that_is_none_is_refused(batch: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        check(DocumentStyle(), keras_style(), [batch])
    assert "\n" not in str(error.value)


def test_a_keras_model_that_is_none_is_refused() -> None:
    keras, model = import_keras(), DocumentStyle()
    unbuilt = keras.Sequential([keras.layers.Dense(10)])
    planes = keras.Sequential([keras.Input((12, 12, 1)), keras.layers.Conv2D(4, 3)])
    mistakes: list[tuple[Any, Any, str]] = [
        (model, None, "the pair is a DocumentStyle and a NoneType: give a torch.nn.Module and a k"),
        (keras_style(), model, "the pair is a Sequential and a DocumentStyle: give a torch"),
        (model, unbuilt, "has 0 inputs of known shape: give it one keras.Input"),
        (model, planes, r"gives \(None, 10, 10, 4\): it must give logits, \(N, classes\)"),
    ]
    for ours, theirs, message in mistakes:
        with pytest.raises(ValueError, match=message):
            check(ours, theirs, BATCHES)
