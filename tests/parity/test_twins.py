"""The twins, against the PyTorch classes and the documents' own programs; and users' own twins."""

import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from digitlab import models, parity
from digitlab.classifier import Classifier
from digitlab.parity.backend import import_keras, keras_dtype
from digitlab.parity.twins import to_keras
from tests.parity import nets
from tests.parity.nets import RECIPES, random_batches

Array = np.ndarray

every_twin = pytest.mark.parametrize("name", RECIPES)


def make(name: str, **others: Any) -> Classifier:
    """A model in evaluation mode, in float64, with random weights and biases."""
    return nets.make(name, **others, initialization="torch").double().eval()


def draw(size: int = 8, in_channels: int = 1) -> Tensor:
    """Images of normalized noise, some of which is negative."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(size, in_channels, 28, 28, generator=generator, dtype=torch.float64)


def logits(model: Classifier, images: Tensor) -> Array:
    with torch.no_grad():
        return np.asarray(model(images))


def outputs(keras_model: Any, images: Tensor) -> Array:
    """The outputs of a Keras model for images in PyTorch's layout."""
    return np.asarray(keras_model(images.permute(0, 2, 3, 1).numpy()))


def inputs_and_sums(twin: Any) -> list[str]:
    """Layers of a residual network that PyTorch has as functions; its others have no one order."""
    kinds = ("InputLayer", "Add")
    return [layer.name for layer in twin.layers if type(layer).__name__ in kinds]


def assert_equal(ours: Array, theirs: Array) -> None:
    """Both are float64, of the same shape, and agree to 1e-12 of the largest value."""
    assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)
    assert ours.dtype == np.float64
    # The order of float64 sums is each framework's own; 2.2e-15 was measured.
    assert np.abs(ours - theirs).max() <= 1e-12 * np.abs(theirs).max()


def test_every_architecture_has_its_twin_here() -> None:
    assert {kind.__name__ for kind, _, _ in RECIPES.values()} == set(models.__all__)


@every_twin
def test_it_has_the_models_layers_logits_and_probabilities(name: str) -> None:
    model = make(name, in_channels=3, num_classes=7)
    twin = to_keras(model)
    trained = sum(math.prod(weight.shape) for weight in twin.trainable_weights)
    assert trained == sum(parameter.numel() for parameter in model.parameters())
    parts = dict(model.network.named_modules()).items()
    names = [name.replace(".", "_") for name, part in parts if not [*part.children()]]
    theirs = [it.name for it in twin.layers if it.name not in ("padding1", *inputs_and_sums(twin))]
    assert (sorted(theirs) == sorted(names)) if inputs_and_sums(twin) else (theirs == names)
    images = draw(in_channels=3)
    ours, given = logits(model, images), outputs(twin, images)
    assert given.shape == (8, 7)
    assert_equal(ours, given)
    exponentials = np.exp(ours)
    probabilities = exponentials / exponentials.sum(1, keepdims=True)
    assert_equal(probabilities, outputs(to_keras(model, softmax=True), images))


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("mlp512", ["Dropout", "Dropout"]),
        ("pytorch_example_net", ["SpatialDropout2D", "Dropout"]),
        ("tensorflow_tutorial_cnn", ["Dropout"]),
    ],
)
def test_it_has_the_models_dropout(name: str, kinds: list[str]) -> None:
    for settings in ({}, {"dropout": 0.35}):
        model = make(name, **settings)
        theirs = [layer for layer in to_keras(model).layers if hasattr(layer, "rate")]
        assert [type(layer).__name__ for layer in theirs] == kinds
        assert {layer.rate for layer in theirs} == {model.hparams["dropout"]}


def document_a_keras(layers: Any) -> list[Any]:
    first, second = (layers.Dense(512, activation="relu") for _ in range(2))
    hidden = [first, layers.Dropout(0.2), second, layers.Dropout(0.2)]
    return [import_keras().Input((784,)), *hidden, layers.Dense(10, activation="softmax")]


def document_b_neural_network(layers: Any) -> list[Any]:
    hidden = [layers.Flatten(), layers.Dense(128, activation="relu"), layers.Dropout(0.2)]
    return [import_keras().Input((28, 28)), *hidden, layers.Dense(10)]


def document_b_lenet(layers: Any) -> list[Any]:
    relu = {"activation": "relu"}
    return [
        import_keras().Input((28, 28, 1)),
        *(layers.Conv2D(6, (5, 5), padding="same", **relu), layers.MaxPooling2D((2, 2))),
        *(layers.Conv2D(16, (5, 5), **relu), layers.MaxPooling2D((2, 2)), layers.Flatten()),
        *(layers.Dense(120, **relu), layers.Dense(84, **relu), layers.Dense(10)),
    ]


def document_b_lenet1(layers: Any) -> list[Any]:
    relu = {"activation": "relu"}
    return [
        import_keras().Input((28, 28, 1)),
        *(layers.Conv2D(32, (3, 3), padding="same", **relu), layers.MaxPooling2D((2, 2))),
        *(layers.Conv2D(64, (3, 3), **relu), layers.MaxPooling2D((2, 2))),
        *(layers.Conv2D(64, (3, 3), **relu), layers.Flatten()),
        *(layers.Dense(64, **relu), layers.Dense(10)),
    ]


@pytest.mark.parametrize(
    ("program", "name"),
    [
        (document_a_keras, "mlp512"),
        (document_b_neural_network, "nn128"),
        (document_b_lenet, "lenet5"),
        (document_b_lenet1, "lenet1_same"),
    ],
)
def test_it_is_the_function_of_the_documents_keras_program(
    program: Callable[[Any], list[Any]], name: str
) -> None:
    keras = import_keras()
    with keras_dtype("float64"):
        document = keras.Sequential(program(keras.layers))
    twin = to_keras(make(name), softmax=program is document_a_keras)
    document.set_weights(twin.get_weights())  # in their order
    images = draw().permute(0, 2, 3, 1).numpy().reshape(-1, *document.input_shape[1:])
    assert_equal(outputs(twin, draw()), np.asarray(document(images)))


def test_a_class_without_a_twin_is_refused_and_its_subclass_has_one() -> None:
    class Unknown(Classifier):
        """A user's architecture."""

    class OwnLeNet5(models.LeNet5):
        """A user's training of a known one."""

    with pytest.raises(
        ValueError, match=r"^Unknown has no Keras twin: .* twins of LinearClassifier,"
    ):
        to_keras(Unknown(network=nn.Linear(4, 3)))
    model, state = OwnLeNet5(), torch.get_rng_state()
    assert to_keras(model).name == "lenet5"
    assert torch.equal(torch.get_rng_state(), state)


class Own(Classifier):
    """A user's network, with a setting that no architecture of ours has."""

    keras_twin = f"{__name__}.own_twin"

    def __init__(self, width: int = 5, **kwargs: Any) -> None:
        layers = [nn.Flatten(), nn.Linear(784, width), nn.Tanh(), nn.Linear(width, 10)]
        super().__init__(network=nn.Sequential(*layers), **kwargs)


class Widened(Own):
    """Another network than its parent's."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.network = nn.Sequential(self.network, nn.Tanh())


Trained: type[Own] = type("Trained", (Own,), {})  # the same network, to be trained otherwise
Inverted = type("Inverted", (Own,), {"forward": lambda self, x: Own.forward(self, 1 - x)})
WithSoftmax = type("WithSoftmax", (Own,), {"keras_twin": f"{__name__}.own_twin_or_probabilities"})


def own_twin(width: int = 5) -> Any:
    keras = parity.import_keras()
    dense = keras.layers.Dense
    layers = [keras.layers.Flatten(), dense(width, activation="tanh"), dense(10)]
    return keras.Sequential([keras.Input((28, 28, 1)), *layers], name="own")


def own_twin_or_probabilities(width: int = 5, softmax: bool = False) -> Any:
    keras, model = parity.import_keras(), own_twin(width)
    if softmax:
        model.add(keras.layers.Softmax(name="softmax"))
    return model


@pytest.mark.parametrize("kind", [Own, Trained])
def test_a_class_s_own_twin_is_built_with_the_model_s_settings(kind: type[Own]) -> None:
    model = kind(width=7, label_smoothing=0.1)
    parity.check(model, parity.to_keras(model), random_batches(1)).assert_passed()


@pytest.mark.parametrize("kind", [Widened, Inverted])
def test_a_subclass_with_another_network_has_no_twin_until_it_names_one(kind: type[Own]) -> None:
    message = rf'^{kind.__name__} has no Keras twin: .* keras_twin = "my_module'
    with pytest.raises(ValueError, match=message):
        parity.to_keras(kind())


def test_a_twin_gives_probabilities_if_it_has_the_argument_and_is_refused_otherwise() -> None:
    assert parity.to_keras(WithSoftmax(), softmax=True).layers[-1].name == "softmax"
    assert parity.to_keras(WithSoftmax()).layers[-1].name != "softmax"
    with pytest.raises(ValueError, match=r"^the Keras twin of Own can only give logits: leave so"):
        parity.to_keras(Own(), softmax=True)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("no_such_module.twin", "'no_such_module.twin', which cannot be imported (No module named"),
        (f"{__name__}.no_such_twin", "no_such_twin', which cannot be imported (module"),
        (own_twin, "which cannot be imported (expected string"),
        ("tests.parity", "'tests.parity': it must name a function"),
    ],
)
def test_a_path_that_names_no_function_is_refused(
    path: Any, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Own, "keras_twin", path)
    with pytest.raises(ValueError, match=rf"^Own\.keras_twin is .*{re.escape(message)}"):
        parity.to_keras(Own())
