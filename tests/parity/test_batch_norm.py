"""Batch normalization in training: PyTorch and Keras update the running variance differently."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from digitlab.classifier import Classifier
from digitlab.parity import import_keras
from digitlab.parity.proof import run_checks
from digitlab.parity.trajectory import use_biased_variances
from tests.parity.nets import digit_batches, digit_images


class Normalized(Classifier):
    """A residual network with batch normalization."""

    keras_twin = "tests.parity.test_batch_norm.normalized"

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(network=Block(), **kwargs)


def normalized(in_channels: int = 1, num_classes: int = 10) -> Any:
    """Build the twin of `Normalized`."""
    keras = import_keras()
    layers = keras.layers
    options: dict[str, Any] = {"momentum": 0.9, "epsilon": 1e-5}
    inputs = keras.Input((28, 28, in_channels))
    stem = layers.Conv2D(4, 3, strides=2, use_bias=False, name="stem")(inputs)
    stem = layers.ReLU()(layers.BatchNormalization(name="norm", **options)(stem))
    inner = layers.Conv2D(4, 3, padding="same", use_bias=False, name="inner")(stem)
    inner = layers.BatchNormalization(name="inner_norm", **options)(inner)
    pooled = layers.GlobalAveragePooling2D()(layers.ReLU()(layers.Add()([stem, inner])))
    return keras.Model(inputs, layers.Dense(num_classes, name="head")(pooled))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, 4, 3, stride=2, bias=False), nn.BatchNorm2d(4)
        self.inner = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.inner_norm = nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 10)

    def forward(self, x: Tensor) -> Tensor:
        stem = torch.relu(self.norm(self.stem(x)))
        inner = self.inner_norm(self.inner(stem))
        logits: Tensor = self.head(torch.relu(stem + inner).mean((2, 3)))
        return logits


def test_a_network_with_batch_normalization_passes_the_whole_proof() -> None:
    torch.manual_seed(0)
    checks = list(run_checks(Normalized(), digit_batches(6), *digit_images(), steps=6))
    assert all(check.passed for check in checks if not check.informational), checks
    steps = next(check for check in checks if check.name == "6 training steps, float64")
    assert "Keras's running variance in BatchNorm2d" in steps.note
    (stock,) = (check for check in checks if check.informational)
    assert stock.name == "6 training steps, float64, stock Adam and BatchNorm2d"
    assert stock.difference > 1e-6


@pytest.mark.parametrize("shape", [(6, 3), (6, 3, 5), (4, 3, 5, 5)])
def test_only_the_running_variance_differs_by_n_over_n_minus_1(shape: tuple[int, ...]) -> None:
    kind = (nn.BatchNorm1d, nn.BatchNorm1d, nn.BatchNorm2d)[len(shape) - 2]
    stock, exact = (kind(3, momentum=0.25).double() for _ in range(2))
    use_biased_variances(exact)
    x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(exact(x), stock(x))
    torch.testing.assert_close(exact.running_mean, stock.running_mean)
    assert stock.running_var is not None
    n = math.prod(shape) / 3
    expected = 0.75 + (stock.running_var - 0.75) * (n - 1) / n
    torch.testing.assert_close(exact.running_var, expected, rtol=1e-15, atol=0)
    exact.eval()(x)
    torch.testing.assert_close(exact.running_var, expected, rtol=1e-15, atol=0)


def test_an_average_over_all_batches_is_refused() -> None:
    with pytest.raises(ValueError, match="momentum=None, which Keras has not: give a number"):
        use_biased_variances(nn.BatchNorm1d(3, momentum=None))
