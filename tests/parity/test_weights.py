import re
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from digitlab import models
from digitlab.parity.backend import import_keras
from digitlab.parity.checks import logits
from digitlab.parity.graph import Graph
from digitlab.parity.twins import to_keras
from digitlab.parity.weights import Match, copy_weights, load_keras_weights, match
from tests.fitting import assert_bitwise_equal
from tests.parity.nets import sequential, sides

Array = np.ndarray


def pair(seed: int = 0, **sizes: int) -> nn.Sequential:
    """Fully connected layers of the given names and widths, on four features."""
    torch.manual_seed(seed)
    widths = [4, *sizes.values()]
    layers = map(nn.Linear, widths, widths[1:])
    return nn.Sequential(OrderedDict(zip(sizes, layers, strict=True)))


def dense(**sizes: int) -> Any:
    """The same in Keras."""
    keras = import_keras()
    layers = [keras.layers.Dense(width, name=name) for name, width in sizes.items()]
    return keras.Sequential([keras.Input((4,)), *layers])


def random_weights(keras_model: Any, seed: int = 0) -> list[Array]:
    """Give a Keras model positive random weights, biases too, and return them."""
    generator = np.random.default_rng(seed)
    weights = [generator.random(w.shape).astype(w.dtype) for w in keras_model.get_weights()]
    keras_model.set_weights(weights)
    return weights


@pytest.mark.parametrize("name", models.__all__)
def test_a_round_trip_gives_the_same_bits(name: str) -> None:
    torch.manual_seed(0)
    ours, fresh = (getattr(models, name)() for _ in range(2))
    twin = to_keras(ours)
    load_keras_weights(fresh, twin)
    assert_bitwise_equal(fresh.state_dict(), dict(ours.state_dict()))
    expected = random_weights(twin)
    load_keras_weights(fresh, twin)
    copy_weights(fresh, second := to_keras(getattr(models, name)()))
    assert all(map(np.array_equal, second.get_weights(), expected))


def one_match(module: nn.Module, layer: Any, shape: tuple[int, ...], name: str) -> Match:
    """The match of a variable of a Keras layer that reads an input of a shape."""
    pairs = match(module, Graph(sequential(shape, layer)))
    return next(pair for pair in pairs if pair.variable.name == name)


def test_a_kernel_is_that_of_an_einsum() -> None:
    module = nn.Conv2d(3, 2, (4, 5))
    pair = one_match(module, import_keras().layers.Conv2D(2, (4, 5)), (4, 5, 3), "kernel")
    weight = module.weight.detach().numpy()
    np.testing.assert_array_equal(pair.to_keras(), np.einsum("oixy->xyio", weight))
    np.testing.assert_array_equal(pair.to_torch(pair.to_keras())[0], weight)


def test_of_two_biases_the_first_gets_the_sum_and_each_the_gradient_of_it() -> None:
    pair = one_match(nn.LSTM(3, 2), import_keras().layers.LSTM(2), (5, 3), "bias")
    values = np.arange(8.0)
    np.testing.assert_array_equal(pair.to_torch(values), [values, 0 * values])
    np.testing.assert_array_equal(pair.to_torch(values, is_gradient=True), [values, values])


def test_copying_is_all_or_nothing() -> None:
    ours, theirs = pair(fc1=3, fc2=2), dense(fc1=3, fc2=5)
    tensors = {name: tensor.clone() for name, tensor in ours.state_dict().items()}
    arrays = theirs.get_weights()
    for copy in (copy_weights, load_keras_weights):
        with pytest.raises(ValueError, match=r"^fc2.weight is \(2, 3\)"):
            copy(ours, theirs)
        assert_bitwise_equal(tensors, dict(ours.state_dict()))
        assert all(map(np.array_equal, arrays, theirs.get_weights()))


MISFITS: dict[str, tuple[nn.Module, Callable[[Any], Any], str]] = {
    "shape": (pair(fc1=3), lambda _: dense(fc1=5), "fc1.weight is (3, 4) and fc1/kernel is (4, 5)"),
    "missing": (pair(fc1=3, fc2=2), lambda _: dense(fc1=3), "no weights for fc2 of Sequential"),
    "extra": (pair(fc1=3), lambda _: dense(fc1=3, fc2=2), "(fc1) and 2 Keras layers (fc1, fc2)"),
    "kind": (
        nn.Linear(4, 3),
        lambda k: sequential((4,), k.EinsumDense("ab,bc->ac", 3, bias_axes="c", name="einsum")),
        "einsum is a EinsumDense, whose layout of weights is not known: use layers of Dense",
    ),
}


@pytest.mark.parametrize("case", MISFITS)
def test_what_does_not_fit_is_named(case: str) -> None:
    module, make_keras, message = MISFITS[case]
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        copy_weights(module, make_keras(import_keras().layers))
    assert not str(caught.value).startswith(".")


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("fc2", "fc1"), ("fc2", "fc1")),  # by name, whatever the order
        (("net.fc2", "net.fc1"), ("fc2", "fc1")),
        (("net_fc2", "net_fc1"), ("fc2", "fc1")),
        (("one", "two"), ("fc1", "fc2")),
        (("fc2", "other"), ("fc1", "fc2")),  # one name alone says nothing
    ],
)
def test_layers_are_matched_by_name_if_all_have_one_and_in_order_otherwise(
    names: tuple[str, str], expected: tuple[str, str]
) -> None:
    ours, theirs = nn.ModuleDict({"net": pair(fc1=4, fc2=4)}), dense(**dict.fromkeys(names, 4))
    copy_weights(ours, theirs)
    for name, source in zip(names, expected, strict=True):
        kernel = theirs.get_layer(name).kernel.numpy()
        np.testing.assert_array_equal(kernel, ours.state_dict()[f"net.{source}.weight"].numpy().T)


@pytest.mark.parametrize("shape", [(3, 8, 8), (8, 8, 3)])
def test_without_images_the_layout_of_the_input_is_told_from_its_shape(
    shape: tuple[int, ...],
) -> None:
    layers = import_keras().layers
    torch.manual_seed(0)
    ours, images = nn.Sequential(nn.Flatten(), nn.Linear(192, 10)), torch.rand(5, 3, 8, 8)
    theirs = sequential(shape, layers.Flatten(), layers.Dense(10))
    copy_weights(ours, theirs)
    assert logits(sides(ours, theirs), images).passed
