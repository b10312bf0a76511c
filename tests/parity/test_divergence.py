from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 # its usual name

from digitlab import models
from digitlab.parity.backend import import_keras
from digitlab.parity.divergence import first_divergence
from digitlab.parity.weights import copy_weights, to_keras
from tests.parity.nets import IMAGES, DocumentStyle, Residual, keras_residual, keras_style


def divergence(module: nn.Module, keras_model: Any, images: Tensor = IMAGES) -> str | None:
    copy_weights(module, keras_model)
    return first_divergence(module, keras_model, images)


@pytest.fixture
def layers() -> Any:
    return import_keras().layers


def test_two_styles_of_the_same_network_do_not_diverge() -> None:
    assert divergence(DocumentStyle(), keras_style()) is None
    assert divergence(Residual(), keras_residual()) is None


def test_each_planted_layer_is_named(layers: Any) -> None:
    wrong = {
        "conv1": layers.Conv2D(4, 3, padding="same", activation="elu", name="planted"),
        "pool1": layers.AveragePooling2D(2, name="planted"),
        "conv2": layers.Conv2D(4, 3, name="planted"),  # without its activation
        "pool2": layers.MaxPooling2D(3, strides=2, padding="same", name="planted"),
        "flatten": [layers.Permute((2, 1, 3), name="planted"), layers.Flatten()],
        "fc1": layers.Dense(16, activation="tanh", name="planted"),
        "dropout": layers.Rescaling(1.001, name="planted"),
        "fc2": layers.Dense(10, activation="softmax", name="planted"),
    }
    found = {
        role: divergence(DocumentStyle(), keras_style(**{role: wrong[role]})) for role in wrong
    }
    # Without an activation, the layer computes what PyTorch's convolution does: the next differs.
    assert found.pop("conv2").startswith("max_pooling2d")  # type: ignore[union-attr]
    assert found == dict.fromkeys(found, "planted")


def test_the_padding_that_tells_the_two_lenet1_apart_is_found() -> None:
    torch.manual_seed(0)
    images = torch.rand(4, 1, 28, 28)
    twin = to_keras(models.LeNet1(padding="same"))
    assert divergence(models.LeNet1(padding=2), twin, images) == "conv1"
    # Its zeros around the image are nothing that PyTorch computes, but the end agrees.
    assert divergence(models.LeNet1(), to_keras(models.LeNet1()), images) is None
    twin = to_keras(models.LeNet1(padding=2))
    assert divergence(models.LeNet1(padding="same"), twin, images) == "padding1"


def test_pooling_before_rectifying_is_excused_and_what_follows_is_not(layers: Any) -> None:
    def swapped(**changes: Any) -> Any:
        conv = layers.Conv2D(4, 3, padding="same")
        return keras_style(conv1=conv, pool1=[layers.MaxPooling2D(2), layers.ReLU()], **changes)

    assert divergence(DocumentStyle(), swapped()) is None
    wrong = layers.AveragePooling2D(2, name="planted")
    assert divergence(DocumentStyle(), swapped(pool2=wrong)) == "planted"


@pytest.mark.parametrize("index", [0, 2, 5, 7])
def test_a_bias_that_is_a_thousandth_off_is_found(index: int) -> None:
    model, twin = DocumentStyle(), keras_style()
    copy_weights(model, twin)
    kernel, bias = twin.layers[index].get_weights()
    twin.layers[index].set_weights([kernel, bias + np.float32(1e-3)])
    assert first_divergence(model, twin, IMAGES) == twin.layers[index].name


def test_a_wrong_branch_is_named_and_not_the_sum() -> None:
    assert divergence(Residual(), keras_residual(left_activation="elu")) == "left"
    assert divergence(Residual(), keras_residual(epsilon=1e-3)) == "norm"


def test_a_model_within_a_model_is_entered(layers: Any) -> None:
    sequential = import_keras().Sequential

    def nested(pool: Any) -> Any:
        stem = sequential([layers.Conv2D(4, 3, padding="same", activation="relu")])
        return keras_style(
            conv1=sequential([stem, layers.MaxPooling2D(2)]),
            pool1=[],
            conv2=sequential([layers.Conv2D(4, 3, activation="relu"), pool]),
            pool2=[],
        )

    assert divergence(DocumentStyle(), nested(layers.MaxPooling2D(2))) is None
    wrong = layers.AveragePooling2D(2, name="planted")
    assert divergence(DocumentStyle(), nested(wrong)) == "planted"


def test_a_layer_that_does_nothing_is_held_against_the_one_of_its_name(layers: Any) -> None:
    torch.manual_seed(0)
    images = torch.rand(4, 1, 28, 28)
    model, twin = models.MLP([16, 16]), to_keras(models.MLP([16, 16]))
    keras = import_keras()
    stack = [
        layers.Activation("linear", name="relu1") if layer.name == "relu1" else layer
        for layer in twin.layers
    ]
    assert (
        divergence(model, keras.Sequential([keras.Input((28, 28, 1)), *stack]), images) == "relu1"
    )


class Dead(nn.Module):
    """A rectifier that gives nothing but zeros, and a way around it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.fc1, self.fc2 = nn.Linear(144, 8), nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.fc1(x.flatten(1)))
        logits: Tensor = self.fc2(h + F.relu(h - 2))
        return logits


def test_zeros_that_agree_downstream_excuse_nothing(layers: Any) -> None:
    def build(activation: str) -> Any:
        keras = import_keras()
        images = keras.Input((144,))
        h = layers.Dense(8, activation=activation, name="fc1")(images)
        dead = layers.ReLU(name="dead")(layers.Lambda(lambda x: x - 2, name="minus")(h))
        return keras.Model(images, layers.Dense(10, name="fc2")(layers.Add(name="add")([h, dead])))

    assert divergence(Dead(), build("tanh")) is None
    assert divergence(Dead(), build("sigmoid")) == "fc1"


def test_log_probabilities_are_no_logits() -> None:
    class WithLogSoftmax(DocumentStyle):
        def forward(self, x: Tensor) -> Tensor:
            return F.log_softmax(super().forward(x), 1)

    layers = import_keras().layers
    assert divergence(WithLogSoftmax(), keras_style(fc2=layers.Dense(10, name="last"))) == "last"


def test_tensors_that_are_overwritten_in_place_are_seen_before(layers: Any) -> None:
    class InPlace(DocumentStyle):
        def forward(self, x: Tensor) -> Tensor:
            x = F.max_pool2d(self.c1(x).relu_(), 2)
            x = F.max_pool2d(F.relu(self.c2(x), inplace=True), 2)
            logits: Tensor = self.f2(F.relu_(self.f1(x.flatten(1))))
            return logits

    def unfused(activation: Any) -> Any:
        conv1 = [layers.Conv2D(4, 3, padding="same"), activation]
        return keras_style(conv1=conv1, conv2=[layers.Conv2D(4, 3), layers.ReLU()])

    assert divergence(InPlace(), unfused(layers.ReLU())) is None
    assert divergence(InPlace(), unfused(layers.ELU(name="planted"))) == "planted"


def test_a_layer_of_several_calls_is_followed_through_each(layers: Any) -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(6)
            self.fc1, self.shared, self.fc2 = nn.Linear(144, 8), nn.Linear(8, 8), nn.Linear(8, 10)

        def forward(self, x: Tensor) -> Tensor:
            h = self.shared(F.relu(self.shared(F.relu(self.fc1(x.flatten(1))))))
            logits: Tensor = self.fc2(h)
            return logits

    def build(between: Any) -> Any:
        keras, shared = import_keras(), layers.Dense(8, name="shared")
        images = keras.Input((144,))
        h = shared(layers.Dense(8, activation="relu", name="fc1")(images))
        return keras.Model(images, layers.Dense(10, name="fc2")(shared(between(h))))

    assert divergence(Twice(), build(layers.ReLU(name="between"))) is None
    assert divergence(Twice(), build(layers.ELU(name="between"))) == "between"


def test_a_model_that_returns_its_input_is_refused() -> None:
    keras = import_keras()
    images = keras.Input((10,))
    with pytest.raises(ValueError, match="returns its input: it must have a layer"):
        first_divergence(nn.Identity(), keras.Model(images, images), torch.rand(2, 10, 1, 1))
