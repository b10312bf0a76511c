import re

import numpy as np
import pytest
import torch
from benchmarks.pairs.common import as_trained, labelled, sequential
from benchmarks.pairs.users import Plain, plain
from torch import Tensor

from digitlab import models
from digitlab.parity.backend import import_keras
from digitlab.parity.checks import gradients, logits, parameter_counts, round_trip
from digitlab.parity.layouts import in_torch_layout
from digitlab.parity.report import HEADING, Check, format_check
from digitlab.parity.sides import Sides, arrange
from digitlab.parity.twins import to_keras
from digitlab.scores import evaluating
from tests.fitting import assert_bitwise_equal
from tests.parity.nets import sides, with_weights

IMAGES, LABELS = labelled((1, 8, 8))[0]


def pair() -> tuple[Plain, Sides]:
    """A network with a normalization, and both sides."""
    torch.manual_seed(1)
    model = Plain()
    as_trained(model)
    return model, with_weights(model, sequential(*plain()))


def test_all_tensors_are_counted_and_a_total_that_disagrees_fails() -> None:
    _, both = pair()
    check = parameter_counts(both)
    assert check.passed
    assert (check.compared, check.note) == (8, "478 parameters")
    both.graph.model.count_params = lambda: 479
    check = parameter_counts(both)
    assert not check.passed
    assert check.note == "parameters: 478 torch, 479 keras"


def test_weights_survive_the_round_trip_bit_for_bit() -> None:
    model = Plain()
    as_trained(model)
    both = sides(model, sequential(*plain()))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    check = round_trip(both)
    assert check.passed, check
    assert check.compared == 478
    assert_bitwise_equal(model.state_dict(), before)
    assert logits(both, IMAGES).passed  # Keras has the weights now


def test_a_round_trip_through_less_precision_is_counted_and_named() -> None:
    model = Plain().double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.div_(3)  # float32 has no such values
    check = round_trip(sides(model, sequential(*plain())))
    assert not check.passed
    assert check.difference > 100
    assert check.note == "conv.weight comes back changed"


@pytest.mark.parametrize("lost", ["weights.Match.to_keras", "checks.load_matched"])
def test_a_round_trip_that_goes_nowhere_fails(lost: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _, both = pair()
    for match in both.pairs:  # which has weights of its own
        match.variable.assign(0 * match.variable.numpy() + 7)
    monkeypatch.setattr(f"digitlab.parity.{lost}", lambda pair: getattr(pair, "variable", None))
    assert not round_trip(both).passed


def test_outputs_of_another_shape_and_probabilities_are_named() -> None:
    model, layers = Plain(), import_keras().layers
    for last, note in (
        (layers.Softmax(), "only keras gives probabilities"),
        (layers.Reshape((4, 1)), "torch gives (5, 4), keras (5, 1, 4)"),
    ):
        check = logits(with_weights(model, sequential(*plain(), last)), IMAGES)
        assert not check.passed
        assert check.note == note


def test_a_nan_agrees_with_nothing() -> None:
    model, _ = pair()
    with torch.no_grad():
        model.fc.bias[3] = float("nan")
    both = with_weights(model, sequential(*plain()))
    assert round_trip(both).passed
    assert not logits(both, IMAGES).passed
    assert not any(check.passed for check in gradients(both, IMAGES, LABELS))


def test_the_coarser_side_sets_the_tolerance() -> None:
    check = logits(with_weights(Plain().double(), sequential(*plain())), IMAGES)
    assert check.passed
    assert (check.name, check.tolerance) == ("logits, float32", 1e-5)


def test_a_gradient_on_one_side_only_is_a_difference() -> None:
    model, both = pair()
    twin = both.graph.model
    twin.get_layer("conv").trainable = False
    _, check = gradients(both, IMAGES, LABELS)
    assert check.difference == float("inf")
    assert check.note == "most in conv.weight"
    model.conv.requires_grad_(False)
    assert gradients(both, IMAGES, LABELS)[1].passed
    model.requires_grad_(False)
    twin.trainable = False
    assert not gradients(both, IMAGES, LABELS)[1].passed  # compared nothing


def test_dropout_is_off_and_modes_and_random_state_are_restored() -> None:
    model = models.MLP([16], dropout=0.5, dropout_in_evaluation=True)
    model.train()
    model.network.get_submodule("relu1").eval()
    modes, state = [part.training for part in model.modules()], torch.get_rng_state()
    images = torch.rand(4, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    assert logits(sides(model, to_keras(model)), images).passed
    with pytest.raises(KeyError), evaluating(model):  # noqa: PT012
        torch.rand(1)
        raise KeyError
    assert [part.training for part in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)


def test_images_are_laid_out_as_the_keras_model_reads_them() -> None:
    keras = import_keras()
    images = torch.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5).float()

    def read(shape: tuple[int | None, ...], given: Tensor = images) -> np.ndarray:
        inputs = keras.Input(shape)
        return arrange(given, keras.Model(inputs, keras.layers.Identity()(inputs))).numpy()

    last = images.permute(0, 2, 3, 1).numpy()
    np.testing.assert_array_equal(read((4, 5, 3)), last)
    np.testing.assert_array_equal(read((None, None, 3)), last)
    np.testing.assert_array_equal(read((60,)), images.flatten(1).numpy())
    np.testing.assert_array_equal(read((3, 4, 5)), images.numpy())
    np.testing.assert_array_equal(read((4, 5), images[:, :1]), images[:, 0].numpy())
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
    lines = [HEADING, *map(format_check, rows)]
    assert [re.sub(r"  +", "  ", line) for line in lines] == [
        "check  compared  difference  tolerance  verdict",
        "good  1,200  0  0  passed  bit for bit",
        "bad  1  nan  1.0e-12  FAILED",
        "far  1  inf  1.0e-12  FAILED",
        "aside  1  5.0e-01  1.0e-05  info",
    ]
    words = ("verdict", "passed", "FAILED", "FAILED", "info")
    assert len({line.index(word) for line, word in zip(lines, words, strict=True)}) == 1
