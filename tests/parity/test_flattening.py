from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from torch import nn

from digitlab.parity.backend import import_keras
from digitlab.parity.checks import logits
from digitlab.parity.weights import copy_weights

pytestmark = pytest.mark.skipif(not find_spec("tensorflow"), reason="needs the extra `parity`")

IMAGES = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))
COLOURED = torch.rand(5, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def dense_only(channels: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64 * channels, 10))


def convolved(*after: nn.Module, kernel: int = 5) -> nn.Module:
    """A convolution to three channels, a flattening, and what follows it but for the last layer."""
    size = 3 * (9 - kernel) ** 2
    return nn.Sequential(nn.Conv2d(1, 3, kernel), nn.Flatten(), *after, nn.Linear(size, 10))


def sequential(shape: tuple[int, ...], *stack: Any) -> Any:
    keras = import_keras()
    return keras.Sequential([keras.Input(shape), *stack])


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


def gap(layers: Any) -> Any:
    return sequential(
        (8, 8, 1), layers.Conv2D(3, 5), layers.GlobalAveragePooling2D(), layers.Dense(10)
    )


PAIRS: dict[str, tuple[Callable[[], nn.Module], Callable[[Any], Any], torch.Tensor]] = {
    "an image without channels": (
        lambda: dense_only(1),
        lambda k: sequential((8, 8), k.Rescaling(1.0), k.Flatten(), k.Dense(10)),
        IMAGES,
    ),
    "a flat image": (lambda: dense_only(3), lambda k: sequential((192,), k.Dense(10)), COLOURED),
    "an image in colour": (
        lambda: dense_only(3),
        lambda k: sequential((8, 8, 3), k.Flatten(), k.Dense(10)),
        COLOURED,
    ),
    "an image with channels first": (
        lambda: dense_only(3),
        lambda k: sequential((3, 8, 8), k.Flatten(), k.Dense(10)),
        COLOURED,
    ),
    "channels first made last": (
        convolved,
        lambda k: sequential(
            (1, 8, 8), k.Permute((2, 3, 1)), k.Conv2D(3, 5), k.Flatten(), k.Dense(10)
        ),
        IMAGES,
    ),
    "a reshape before the convolution": (
        convolved,
        lambda k: sequential(
            (64,), k.Reshape((8, 8, 1)), k.Conv2D(3, 5), k.Reshape((-1,)), k.Dense(10)
        ),
        IMAGES,
    ),
    "two flattenings": (
        convolved,
        lambda k: sequential((8, 8, 1), k.Conv2D(3, 5), k.Flatten(), k.Flatten(), k.Dense(10)),
        IMAGES,
    ),
    "a permutation": (
        convolved,
        lambda k: sequential(
            (8, 8, 1),
            k.Conv2D(3, 5),
            k.Permute((3, 1, 2)),
            k.Activation("linear"),
            k.Flatten(),
            k.Dense(10),
        ),
        IMAGES,
    ),
    "a permutation of a cube": (
        lambda: nn.Sequential(nn.Conv2d(1, 4, 5), nn.Flatten(), nn.Linear(64, 10)),
        lambda k: sequential(
            (8, 8, 1), k.Conv2D(4, 5), k.Permute((3, 1, 2)), k.Flatten(), k.Dense(10)
        ),
        IMAGES,
    ),
    "normalization and activation after the flattening": (
        lambda: convolved(nn.ReLU(), nn.BatchNorm1d(48)),
        lambda k: sequential(
            (8, 8, 1),
            k.Conv2D(3, 5),
            k.Flatten(),
            k.ReLU(),
            k.BatchNormalization(epsilon=1e-5),
            k.Dense(10),
        ),
        IMAGES,
    ),
    "a square dense layer, which mixes the features": (
        lambda: convolved(nn.Linear(48, 48)),
        lambda k: sequential((8, 8, 1), k.Conv2D(3, 5), k.Flatten(), k.Dense(48), k.Dense(10)),
        IMAGES,
    ),
    "models within a functional model": (convolved, nested_functional, IMAGES),
    "models within a sequential model": (convolved, nested_sequential, IMAGES),
    "operations without layers": (lambda: convolved(nn.ReLU()), by_ops, IMAGES),
    "global pooling, which flattens nothing": (
        lambda: nn.Sequential(
            nn.Conv2d(1, 3, 5), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 10)
        ),
        gap,
        IMAGES,
    ),
}


@pytest.mark.parametrize(("module", "keras_model", "images"), PAIRS.values(), ids=PAIRS)
def test_features_are_permuted_where_a_flattening_changed_their_order(
    module: Callable[[], nn.Module],
    keras_model: Callable[[Any], Any],
    images: torch.Tensor,
) -> None:
    torch.manual_seed(0)
    ours, theirs = module(), keras_model(import_keras().layers)
    with torch.no_grad():
        for tensor in ours.parameters():
            tensor.uniform_(-0.5, 0.5)  # BatchNorm's ones would hide their order
    copy_weights(ours, theirs)
    check = logits(ours, theirs, images)
    assert check.passed, check
