import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from digitlab import models
from digitlab.parity.backend import import_keras, import_tensorflow, keras_dtype
from digitlab.parity.checks import gradients, logits, parameter_counts, round_trip
from digitlab.parity.differences import in_torch_layout
from digitlab.parity.report import HEADING, Check, format_check
from digitlab.parity.sides import arrange, evaluation_mode
from digitlab.parity.twins import to_keras
from tests.fitting import assert_bitwise_equal
from tests.parity.nets import (
    IMAGES,
    LABELS,
    DocumentStyle,
    Residual,
    keras_residual,
    keras_style,
    layer_of,
    sides,
    with_weights,
)


def test_all_tensors_are_counted_and_a_total_that_disagrees_fails() -> None:
    model, twin = DocumentStyle(), keras_style()
    check = parameter_counts(sides(model, twin))
    assert check.passed
    assert (check.compared, check.note) == (8, "630 parameters")
    twin.count_params = lambda: 631
    check = parameter_counts(sides(model, twin))
    assert not check.passed
    assert check.note == "parameters: 630 torch, 631 keras"


def test_weights_survive_the_round_trip_bit_for_bit() -> None:
    model, twin = Residual(), keras_residual()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    check = round_trip(sides(model, twin))
    assert check.passed, check
    values = [t.numel() for name, t in before.items() if name != "norm.num_batches_tracked"]
    assert check.compared == sum(values)
    assert_bitwise_equal(model.state_dict(), before)
    assert logits(sides(model, twin), IMAGES).passed  # Keras has the weights now


def test_a_round_trip_through_less_precision_is_counted_and_named() -> None:
    model = DocumentStyle().double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.div_(3)  # float32 has no such values
    check = round_trip(sides(model, keras_style()))
    assert not check.passed
    assert check.difference > 100
    assert check.note == "c1.weight comes back changed"


@pytest.mark.parametrize("lost", ["weights.Match.to_keras", "checks.load_matched"])
def test_a_round_trip_that_goes_nowhere_fails(lost: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"digitlab.parity.{lost}", lambda pair: getattr(pair, "variable", None))
    assert not round_trip(sides(DocumentStyle(), keras_style())).passed


@pytest.mark.parametrize(
    ("role", "make", "note"),
    [
        ("conv1", lambda k: [k.ZeroPadding2D(((2, 0), (2, 0))), k.Conv2D(4, 3)], ""),
        ("fc2", lambda k: k.Dense(10, activation="softmax"), "only keras gives probabilities"),
        (
            "fc2",
            lambda k: [k.Dense(10), k.Reshape((10, 1))],
            "torch gives (6, 10), keras (6, 1, 10)",
        ),
    ],
)
def test_a_wrong_layer_fails_the_logits(role: str, make: Callable[[Any], Any], note: str) -> None:
    twin = keras_style(**{role: make(import_keras().layers)})
    check = logits(with_weights(DocumentStyle(), twin), IMAGES)
    assert not check.passed
    assert check.difference > 1e-3
    assert check.note == note


def test_a_nan_agrees_with_nothing() -> None:
    model, twin = DocumentStyle(), keras_style()
    with torch.no_grad():
        model.f2.bias[3] = float("nan")
    pair = with_weights(model, twin)
    assert round_trip(pair).passed
    assert not logits(pair, IMAGES).passed
    assert not any(check.passed for check in gradients(pair, IMAGES, LABELS))


def test_the_coarser_side_sets_the_tolerance() -> None:
    check = logits(with_weights(DocumentStyle().double(), keras_style()), IMAGES)
    assert check.passed
    assert (check.name, check.tolerance) == ("logits, float32", 1e-5)


def test_another_gradient_of_the_same_function_is_found() -> None:
    keras, tensorflow = import_keras(), import_tensorflow()

    def identity(x: Any) -> Any:
        return x, lambda upstream: 1.001 * upstream

    scaled = layer_of(tensorflow.custom_gradient(identity))
    pair = with_weights(DocumentStyle(), keras_style(flatten=[scaled, keras.layers.Flatten()]))
    loss, check = gradients(pair, IMAGES, LABELS)
    assert loss.passed
    assert not check.passed
    assert 0.9e-3 < check.difference < 1.1e-3
    assert "c1." in check.note or "c2." in check.note


def test_a_softmax_before_the_loss_is_not_looked_through() -> None:
    softmax = {"fc2": import_keras().layers.Dense(10, activation="softmax")}
    pair = with_weights(DocumentStyle(), keras_style(**softmax))
    assert not any(check.passed for check in gradients(pair, IMAGES, LABELS))
    both = sides(nn.Sequential(pair.module, nn.Softmax(1)), pair.model)
    assert all(check.passed for check in gradients(both, IMAGES, LABELS))


def test_a_gradient_on_one_side_only_is_a_difference() -> None:
    model, twin = DocumentStyle(), keras_style()
    pair = with_weights(model, twin)
    twin.layers[0].trainable = False
    _, check = gradients(pair, IMAGES, LABELS)
    assert check.difference == float("inf")
    assert check.note == "most in c1.weight"
    model.c1.requires_grad_(False)
    assert gradients(pair, IMAGES, LABELS)[1].passed
    model.requires_grad_(False)
    twin.trainable = False
    assert not gradients(pair, IMAGES, LABELS)[1].passed  # compared nothing


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
    _, check = gradients(with_weights(model, twin), IMAGES, LABELS)
    torch.nn.functional.cross_entropy(model(IMAGES.double()), LABELS).backward()
    assert model.shift.weight.grad is not None
    assert 0 < model.shift.weight.grad.abs().max() < 1e-16  # rounding, with nothing to round
    assert check.passed, check


def test_dropout_is_off_and_modes_and_random_state_are_restored() -> None:
    model = models.MLP([16], dropout=0.5, dropout_in_evaluation=True)
    model.train()
    model.network.get_submodule("relu1").eval()
    modes, state = [part.training for part in model.modules()], torch.get_rng_state()
    images = torch.rand(4, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    assert logits(sides(model, to_keras(model)), images).passed
    with pytest.raises(KeyError), evaluation_mode(model):  # noqa: PT012
        torch.rand(1)
        raise KeyError
    assert [part.training for part in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)


def test_images_are_laid_out_as_the_keras_model_reads_them() -> None:
    keras = import_keras()
    images = torch.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5).float()

    def read(shape: tuple[int | None, ...], given: Tensor = images) -> Any:
        inputs = keras.Input(shape)
        return arrange(given, keras.Model(inputs, keras.layers.Identity()(inputs))).numpy()

    last = images.permute(0, 2, 3, 1).numpy()
    np.testing.assert_array_equal(read((4, 5, 3)), last)
    np.testing.assert_array_equal(read((None, None, 3)), last)
    np.testing.assert_array_equal(read((60,)), images.flatten(1).numpy())
    np.testing.assert_array_equal(read((3, 4, 5)), images.numpy())
    np.testing.assert_array_equal(read((4, 5), images[:, :1]), images[:, 0].numpy())
    with pytest.raises(ValueError, match=r"reads \(4, 5\), and the images are .* = \(3, 4, 5\)"):
        read((4, 5))
    with pytest.raises(ValueError, match=r"images are \(2, 60\): they must be \(N, C, H, W\)"):
        read((60,), images.flatten(1))
    with pytest.raises(ValueError, match="has 0 inputs of known shape: give it one keras"):
        arrange(images, keras.Sequential([keras.layers.Dense(1)]))


def test_an_output_with_equal_axes_is_read_in_the_layout_that_fits_better() -> None:
    ours = np.random.default_rng(0).random((2, 4, 4, 4))
    for theirs in (ours, np.moveaxis(ours, 1, -1)):
        np.testing.assert_array_equal(in_torch_layout(ours, theirs), ours)


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
    rows_of_text = map(format_check, rows)
    verdicts = ("passed", "FAILED", "FAILED", "info")
    assert len({row.index(v) for row, v in zip(rows_of_text, verdicts, strict=True)}) == 1
