import re
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from digitlab import models
from digitlab.parity.backend import import_keras, keras_dtype
from digitlab.parity.checks import logits
from digitlab.parity.weights import LAYOUTS, copy_weights, load_keras_weights, to_keras
from tests.fitting import assert_bitwise_equal
from tests.parity.nets import sequential

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


def float64_model(shape: tuple[int, ...], *layers: Any) -> Any:
    keras = import_keras()
    with keras_dtype("float64"):
        return keras.Sequential([keras.Input(shape), *[layer(keras.layers) for layer in layers]])


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


def test_a_convolution_gives_at_a_pixel_what_the_kernel_says() -> None:
    theirs = float64_model((5, 6, 2), lambda layers: layers.Conv2D(3, (2, 3)))
    kernel, bias = random_weights(theirs)  # 2 rows, 3 columns, 2 channels in, 3 out
    ours = nn.Conv2d(2, 3, (2, 3), dtype=torch.float64)
    load_keras_weights(ours, theirs)
    image = np.random.default_rng(1).random((2, 5, 6))
    expected = bias.copy()
    for row, column, channel in np.ndindex(2, 3, 2):
        expected += kernel[row, column, channel] * image[channel, 3 + row, 2 + column]
    given = ours(torch.from_numpy(image)[None])[0, :, 3, 2]
    np.testing.assert_allclose(given.detach().numpy(), expected)


@pytest.mark.parametrize("permuted", [False, True], ids=["channels last", "Permute before"])
def test_a_dense_layer_behind_a_flattening_reads_the_same_feature(permuted: bool) -> None:
    theirs = float64_model(
        (6, 4, 5),
        lambda layers: layers.MaxPooling2D(2),
        lambda layers: layers.Permute((3, 1, 2)) if permuted else layers.ReLU(),
        lambda layers: layers.Flatten(),
        lambda layers: layers.Dense(7),
    )
    kernel, bias = random_weights(theirs)
    ours = nn.Sequential(nn.MaxPool2d(2), nn.Flatten(), nn.Linear(30, 7, dtype=torch.float64))
    load_keras_weights(ours, theirs)
    image = np.random.default_rng(1).random((5, 6, 4))  # channels, rows, columns
    expected = bias.copy()
    for channel, row, column in np.ndindex(5, 3, 2):
        first, last = (channel * 3 + row) * 2 + column, (row * 2 + column) * 5 + channel
        pooled = image[channel, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2].max()
        expected += kernel[first if permuted else last] * pooled
    given = ours(torch.from_numpy(image)[None])[0].detach().numpy()
    np.testing.assert_allclose(given, expected)
    np.testing.assert_allclose(np.asarray(theirs(image.transpose(1, 2, 0)[None]))[0], expected)


def test_batch_normalization_keeps_its_statistics() -> None:
    theirs = float64_model((3, 2, 4), lambda layers: layers.BatchNormalization(epsilon=1e-5))
    gamma, beta, mean, variance = random_weights(theirs)
    ours = nn.BatchNorm2d(4, dtype=torch.float64).eval()
    load_keras_weights(ours, theirs)
    image = np.random.default_rng(1).random((4, 3, 2))
    channels = (slice(None), None, None)
    scale = gamma / np.sqrt(variance + 1e-5)
    expected = (image - mean[channels]) * scale[channels] + beta[channels]
    given = ours(torch.from_numpy(image)[None])[0].detach().numpy()
    np.testing.assert_allclose(given, expected)


@pytest.mark.parametrize("kind", ["Conv1D", "Conv2D", "Conv3D"])
def test_a_kernel_of_any_dimension_is_that_of_an_einsum(kind: str) -> None:
    layout, space = LAYOUTS[kind]["kernel"], "xyz"[: int(kind[4])]
    weight = np.random.default_rng(0).random((2, 3, 4, 5, 6)[: 2 + len(space)])
    kernel = layout.to_keras(weight)
    np.testing.assert_array_equal(kernel, np.einsum(f"oi{space}->{space}io", weight))
    np.testing.assert_array_equal(layout.to_torch(kernel), weight)


def test_copying_is_all_or_nothing() -> None:
    ours, theirs = pair(fc1=3, fc2=2), dense(fc1=3, fc2=5)
    tensors = {name: tensor.clone() for name, tensor in ours.state_dict().items()}
    arrays = theirs.get_weights()
    for copy in (copy_weights, load_keras_weights):
        with pytest.raises(ValueError, match=r"^fc2.weight is \(2, 3\)"):
            copy(ours, theirs)
        assert_bitwise_equal(tensors, dict(ours.state_dict()))
        assert all(map(np.array_equal, arrays, theirs.get_weights()))


def bias_free(layers: Any) -> Any:
    return layers.Dense(3, use_bias=False, name="fc1")


def with_lora(layers: Any) -> Any:
    layer = layers.Dense(3, name="fc1")
    layer.build((None, 4))
    layer.enable_lora(2)
    return layer


@pytest.mark.parametrize(
    ("module", "keras_model", "message"),
    [
        (pair(fc1=3), lambda: dense(fc1=5), "fc1.weight is (3, 4) and fc1/kernel is (4, 5)"),
        (pair(fc1=3, fc2=2), lambda: dense(fc1=3), "no weights for fc2 of Sequential"),
        (pair(fc1=3), lambda: dense(fc1=3, fc2=2), "(fc1) and 2 Keras layers (fc1, fc2)"),
        (pair(fc1=3), lambda: float64_model((4,), bias_free), "fc1.bias has no counterpart in the"),
        (nn.Linear(4, 3), lambda: float64_model((4,), bias_free), "bias has no counterpart in the"),
        (nn.Linear(4, 3, bias=False), lambda: dense(fc1=3), "fc1/bias has no counterpart bias"),
        (
            nn.PReLU(4),
            lambda: float64_model((4,), lambda layers: layers.PReLU(name="slopes")),
            "slopes is a PReLU, whose layout of weights is not known: use layers of Dense, Conv1D",
        ),
        (pair(fc1=3), lambda: float64_model((4,), with_lora), "lora_kernel_a is a variable whose"),
    ],
    ids=["shape", "missing", "extra", "no bias", "bare", "no bias in torch", "kind", "variable"],
)
def test_what_does_not_fit_is_named(
    module: nn.Module, keras_model: Callable[[], Any], message: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        copy_weights(module, keras_model())
    assert not str(caught.value).startswith(".")


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("first", "second"), ("first", "second")),
        (("second", "first"), ("second", "first")),  # by name, whatever the order
        (("one", "two"), ("first", "second")),
        (("second", "other"), ("first", "second")),  # one name alone says nothing
    ],
)
def test_layers_are_matched_by_name_if_all_have_one_and_in_order_otherwise(
    names: tuple[str, str], expected: tuple[str, str]
) -> None:
    ours, theirs = pair(first=4, second=4), dense(**dict.fromkeys(names, 4))
    copy_weights(ours, theirs)
    for name, source in zip(names, expected, strict=True):
        kernel = theirs.get_layer(name).kernel.numpy()
        np.testing.assert_array_equal(kernel, ours.state_dict()[f"{source}.weight"].numpy().T)


@pytest.mark.parametrize("names", [("net.fc2", "net.fc1"), ("net_fc2", "net_fc1"), ("fc2", "fc1")])
def test_a_nested_layer_is_known_by_its_last_name_too(names: tuple[str, str]) -> None:
    ours, theirs = nn.ModuleDict({"net": pair(fc1=4, fc2=4)}), dense(**dict.fromkeys(names, 4))
    load_keras_weights(ours, theirs)
    for name, key in zip(names, ("net.fc2.weight", "net.fc1.weight"), strict=True):
        kernel = theirs.get_layer(name).kernel
        np.testing.assert_array_equal(kernel, ours.state_dict()[key].numpy().T)


COLOURED = torch.rand(5, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def dense_only(channels: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64 * channels, 10))


def convolved(*after: nn.Module, kernel: int = 5) -> nn.Module:
    """A convolution to three channels, a flattening, and what follows it but for the last layer."""
    size = 3 * (9 - kernel) ** 2
    return nn.Sequential(nn.Conv2d(1, 3, kernel), nn.Flatten(), *after, nn.Linear(size, 10))


def nested_functional(layers: Any) -> Any:
    keras = import_keras()
    images, inner = keras.Input((8, 8, 1)), keras.Input((8, 8, 1))
    body = keras.Model(inner, layers.Conv2D(3, 5)(inner))
    return keras.Model(images, layers.Dense(10)(layers.Flatten()(body(images))))


def nested_sequential(layers: Any) -> Any:
    inner = import_keras().Sequential
    body = inner([inner([layers.Conv2D(3, 5)]), inner([layers.Flatten()])])
    return sequential((8, 8, 1), body, inner([inner([layers.Dense(10)])]))


def by_ops(layers: Any) -> Any:
    keras = import_keras()
    images = keras.Input((8, 8, 1))
    flat = keras.ops.reshape(layers.Conv2D(3, 5)(images), (-1, 48))
    return keras.Model(images, layers.Dense(10)(keras.ops.relu(flat)))


PAIRS: dict[str, tuple[Any, Any]] = {  # by what is flattened how: the PyTorch and the Keras side
    "an image without channels": (
        lambda: dense_only(1),
        lambda k: [(8, 8), k.Rescaling(1.0), k.Flatten(), k.Dense(10)],
    ),
    "a flat image": (lambda: dense_only(3), lambda k: [(192,), k.Dense(10)]),
    "an image in colour": (lambda: dense_only(3), lambda k: [(8, 8, 3), k.Flatten(), k.Dense(10)]),
    "an image with channels first": (
        lambda: dense_only(3),
        lambda k: [(3, 8, 8), k.Flatten(), k.Dense(10)],
    ),
    "channels first made last": (
        convolved,
        lambda k: [(1, 8, 8), k.Permute((2, 3, 1)), k.Conv2D(3, 5), k.Flatten(), k.Dense(10)],
    ),
    "reshaped before and behind the convolution": (
        convolved,
        lambda k: [(64,), k.Reshape((8, 8, 1)), k.Conv2D(3, 5), k.Reshape((-1,)), k.Dense(10)],
    ),
    "two flattenings": (
        convolved,
        lambda k: [(8, 8, 1), k.Conv2D(3, 5), k.Flatten(), k.Flatten(), k.Dense(10)],
    ),
    "a permutation": (
        convolved,
        lambda k: [
            *((8, 8, 1), k.Conv2D(3, 5), k.Permute((3, 1, 2)), k.Activation("linear")),
            *(k.Flatten(), k.Dense(10)),
        ],
    ),
    "a permutation of a cube": (
        lambda: nn.Sequential(nn.Conv2d(1, 4, 5), nn.Flatten(), nn.Linear(64, 10)),
        lambda k: [(8, 8, 1), k.Conv2D(4, 5), k.Permute((3, 1, 2)), k.Flatten(), k.Dense(10)],
    ),
    "normalization and activation after the flattening": (
        lambda: convolved(nn.ReLU(), nn.BatchNorm1d(48)),
        lambda k: [
            *((8, 8, 1), k.Conv2D(3, 5), k.Flatten(), k.ReLU()),
            *(k.BatchNormalization(epsilon=1e-5), k.Dense(10)),
        ],
    ),
    "a square dense layer, which mixes the features": (
        lambda: convolved(nn.Linear(48, 48)),
        lambda k: [(8, 8, 1), k.Conv2D(3, 5), k.Flatten(), k.Dense(48), k.Dense(10)],
    ),
    "models within a functional model": (convolved, nested_functional),
    "models within a sequential model": (convolved, nested_sequential),
    "operations without layers": (lambda: convolved(nn.ReLU()), by_ops),
    "global pooling, which flattens nothing": (
        lambda: nn.Sequential(
            nn.Conv2d(1, 3, 5), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 10)
        ),
        lambda k: [(8, 8, 1), k.Conv2D(3, 5), k.GlobalAveragePooling2D(), k.Dense(10)],
    ),
}


@pytest.mark.parametrize(("make", "make_keras"), PAIRS.values(), ids=PAIRS)
def test_features_are_permuted_where_a_flattening_changed_their_order(
    make: Callable[[], nn.Module], make_keras: Callable[[Any], Any]
) -> None:
    torch.manual_seed(0)
    ours, theirs = make(), make_keras(import_keras().layers)
    theirs = sequential(*theirs) if isinstance(theirs, list) else theirs
    with torch.no_grad():
        for tensor in ours.parameters():
            tensor.uniform_(-0.5, 0.5)  # BatchNorm's ones would hide their order
    copy_weights(ours, theirs)
    is_grey = isinstance(ours[0], nn.Conv2d) or ours[1].in_features == 64  # type: ignore[index]
    check = logits(ours, theirs, COLOURED[:, :1] if is_grey else COLOURED)
    assert check.passed, check
