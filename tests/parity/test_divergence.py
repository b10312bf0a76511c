from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 # its usual name

from digitlab import models
from digitlab.parity.backend import import_keras
from digitlab.parity.divergence import first_divergence
from digitlab.parity.twins import to_keras
from digitlab.parity.weights import copy_weights
from tests.parity.nets import IMAGES, DocumentStyle, keras_style, sequential


def divergence(module: nn.Module, keras_model: Any, images: Tensor = IMAGES) -> str | None:
    copy_weights(module, keras_model)
    return first_divergence(module, keras_model, images)


@pytest.fixture
def layers() -> Any:
    return import_keras().layers


def test_pooling_before_rectifying_is_excused_and_what_follows_is_not(layers: Any) -> None:
    def swapped(**changes: Any) -> Any:
        conv = layers.Conv2D(4, 3, padding="same")
        return keras_style(conv1=conv, pool1=[layers.MaxPooling2D(2), layers.ReLU()], **changes)

    assert divergence(DocumentStyle(), swapped()) is None
    wrong = layers.AveragePooling2D(2, name="planted")
    assert divergence(DocumentStyle(), swapped(pool2=wrong)) == "planted"


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


class Stack(nn.Module):
    """Recurrent layers in one module."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(6)
        self.rnn = nn.RNN(3, 4, num_layers=2, nonlinearity="relu", batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        steps: Tensor = self.rnn(x)[0]
        return steps


def test_a_stack_of_recurrent_layers_is_compared_layer_by_layer(layers: Any) -> None:
    first = layers.SimpleRNN(4, activation="relu", return_sequences=True)
    wrong = layers.SimpleRNN(4, return_sequences=True, name="planted")  # with tanh
    assert divergence(Stack(), sequential((5, 3), first, wrong), torch.randn(6, 5, 3)) == "planted"


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


def test_a_model_that_returns_its_input_is_refused() -> None:
    keras = import_keras()
    images = keras.Input((10,))
    with pytest.raises(ValueError, match="returns its input: it must have a layer"):
        first_divergence(nn.Identity(), keras.Model(images, images), torch.rand(2, 10, 1, 1))
