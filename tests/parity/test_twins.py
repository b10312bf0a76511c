"""The twins, against the PyTorch classes, and against the documents' own programs."""

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 # its usual name

from digitlab import models
from digitlab.classifier import Classifier
from digitlab.parity import twins
from digitlab.parity.backend import import_keras, import_tensorflow, keras_dtype
from digitlab.parity.weights import to_keras

pytestmark = pytest.mark.skipif(not find_spec("tensorflow"), reason="needs the extra `parity`")

Array = np.ndarray

CASES = [
    pytest.param(name, twin, options, count, id="-".join([name, *map(str, options.values())]))
    for name, twin, options, count in (
        ("LinearClassifier", "linear_classifier", {}, 7_850),
        ("MLP", "mlp", {}, 669_706),
        ("MLP", "mlp", {"hidden_features": [128]}, 101_770),
        ("MLP", "mlp", {"hidden_features": []}, 7_850),
        ("PyTorchExampleNet", "pytorch_example_net", {}, 21_840),
        ("TensorFlowTutorialCNN", "tensorflow_tutorial_cnn", {}, 3_274_634),
        ("LeNet5", "lenet5", {}, 61_706),
        ("FastCNN", "fast_cnn", {}, 212_682),
        ("LeNet1", "lenet1", {"padding": 2}, 121_994),
        ("LeNet1", "lenet1", {"padding": "same"}, 121_994),
    )
]
every_twin = pytest.mark.parametrize(("name", "twin", "options", "count"), CASES)
sizes = pytest.mark.parametrize(("in_channels", "num_classes"), [(1, 10), (3, 7)])


def make(name: str, **options: Any) -> Classifier:
    """A model in evaluation mode, in float64, with random weights and biases."""
    torch.manual_seed(0)
    model = getattr(models, name)(**options)
    assert isinstance(model, Classifier)
    return model.double().eval()


def draw(size: int = 8, in_channels: int = 1) -> Tensor:
    """Images of normalized noise, some of which is negative."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(size, in_channels, 28, 28, generator=generator, dtype=torch.float64)


def logits(model: Classifier, images: Tensor) -> Array:
    with torch.no_grad():
        return np.asarray(model(images))


def outputs(keras_model: Any, images: Tensor) -> Array:
    """What a Keras model gives for images in PyTorch's layout."""
    return np.asarray(keras_model(images.permute(0, 2, 3, 1).numpy()))


def assert_equal(ours: Array, theirs: Array) -> None:
    """Both are float64, of the same shape, and agree to 1e-12 of the largest value."""
    assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)
    assert ours.dtype == np.float64
    # The order of float64 sums is each framework's own; 2.2e-15 was measured.
    assert np.abs(ours - theirs).max() <= 1e-12 * np.abs(theirs).max()


def test_every_architecture_has_its_twin_here() -> None:
    assert {case.values[0] for case in CASES} == set(models.__all__)


@every_twin
def test_it_has_the_documented_number_of_parameters(
    name: str, twin: str, options: dict[str, Any], count: int
) -> None:
    assert getattr(twins, twin)(**options).count_params() == count
    assert to_keras(make(name, **options)).name == twin


@every_twin
@sizes
def test_its_layers_are_named_as_the_models(
    name: str, twin: str, options: dict[str, Any], count: int, in_channels: int, num_classes: int
) -> None:
    ours = make(name, **options, in_channels=in_channels, num_classes=num_classes).network
    theirs = getattr(twins, twin)(**options, in_channels=in_channels, num_classes=num_classes)
    names = [layer.name for layer in theirs.layers]
    padding = ["padding1"] if options.get("padding") == 2 else []
    assert names == padding + [child for child, _ in ours.named_children()]
    weighted = {name.rpartition(".")[0] for name, _ in ours.named_parameters()}
    assert {layer.name for layer in theirs.layers if layer.weights} == weighted


@every_twin
@sizes
def test_it_gives_the_models_logits(
    name: str, twin: str, options: dict[str, Any], count: int, in_channels: int, num_classes: int
) -> None:
    model = make(name, **options, in_channels=in_channels, num_classes=num_classes)
    images = draw(in_channels=in_channels)
    theirs = outputs(to_keras(model), images)
    assert theirs.shape == (8, num_classes)
    assert_equal(logits(model, images), theirs)


@every_twin
def test_with_a_softmax_it_gives_the_probabilities(
    name: str, twin: str, options: dict[str, Any], count: int
) -> None:
    model = make(name, **options)
    probabilities = outputs(to_keras(model, softmax=True), draw())
    np.testing.assert_allclose(probabilities.sum(1), 1)
    exponentials = np.exp(logits(model, draw()))
    assert_equal(exponentials / exponentials.sum(1, keepdims=True), probabilities)


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("MLP", ["Dropout", "Dropout"]),
        ("PyTorchExampleNet", ["SpatialDropout2D", "Dropout"]),
        ("TensorFlowTutorialCNN", ["Dropout"]),
    ],
)
def test_it_drops_what_the_model_drops_as_often(name: str, kinds: list[str]) -> None:
    for options in ({}, {"dropout": 0.35}):
        model = make(name, **options)
        theirs = [layer for layer in to_keras(model).layers if hasattr(layer, "rate")]
        assert [type(layer).__name__ for layer in theirs] == kinds
        assert {layer.rate for layer in theirs} == {model.hparams["dropout"]}


def test_the_two_paddings_of_lenet1_are_different_functions() -> None:
    ours, theirs = (to_keras(make("LeNet1", padding=padding)) for padding in (2, "same"))
    assert all(map(np.array_equal, ours.get_weights(), theirs.get_weights()))
    difference = np.abs(outputs(ours, draw()) - outputs(theirs, draw())).max(1)
    assert difference.min() > 0.1 * np.abs(outputs(ours, draw())).max(), "of every image"


def document_a_keras(layers: Any) -> list[Any]:
    return [
        import_keras().Input((784,)),
        layers.Dense(512, activation="relu"),
        layers.Dropout(0.2),
        layers.Dense(512, activation="relu"),
        layers.Dropout(0.2),
        layers.Dense(10, activation="softmax"),
    ]


def document_b_neural_network(layers: Any) -> list[Any]:
    return [
        import_keras().Input((28, 28)),
        layers.Flatten(),
        layers.Dense(128, activation="relu"),
        layers.Dropout(0.2),
        layers.Dense(10),
    ]


def document_b_lenet(layers: Any) -> list[Any]:
    return [
        import_keras().Input((28, 28, 1)),
        layers.Conv2D(6, (5, 5), activation="relu", padding="same"),
        layers.MaxPooling2D((2, 2)),
        layers.Conv2D(16, (5, 5), activation="relu"),
        layers.MaxPooling2D((2, 2)),
        layers.Flatten(),
        layers.Dense(120, activation="relu"),
        layers.Dense(84, activation="relu"),
        layers.Dense(10),
    ]


def document_b_lenet1(layers: Any) -> list[Any]:
    return [
        import_keras().Input((28, 28, 1)),
        layers.Conv2D(32, (3, 3), activation="relu", padding="same"),
        layers.MaxPooling2D((2, 2)),
        layers.Conv2D(64, (3, 3), activation="relu"),
        layers.MaxPooling2D((2, 2)),
        layers.Conv2D(64, (3, 3), activation="relu"),
        layers.Flatten(),
        layers.Dense(64, activation="relu"),
        layers.Dense(10),
    ]


@pytest.mark.parametrize(
    ("program", "name", "options"),
    [
        (document_a_keras, "MLP", {}),
        (document_b_neural_network, "MLP", {"hidden_features": [128]}),
        (document_b_lenet, "LeNet5", {}),
        (document_b_lenet1, "LeNet1", {"padding": "same"}),
    ],
)
def test_it_is_the_function_of_the_documents_keras_program(
    program: Callable[[Any], list[Any]], name: str, options: dict[str, Any]
) -> None:
    keras = import_keras()
    with keras_dtype("float64"):
        document = keras.Sequential(program(keras.layers))
    twin = to_keras(make(name, **options), softmax=program is document_a_keras)
    document.set_weights(twin.get_weights())  # in their order
    images = draw().permute(0, 2, 3, 1).numpy().reshape(-1, *document.input_shape[1:])
    assert_equal(outputs(twin, draw()), np.asarray(document(images)))


def test_it_is_the_function_of_document_as_tensorflow_program() -> None:
    """Reference: the program's calls, spelt in what is left of them in TensorFlow 2."""
    twin = to_keras(make("TensorFlowTutorialCNN"))
    nn = import_tensorflow().nn
    kernel1, bias1, kernel2, bias2, kernel3, bias3, kernel4, bias4 = twin.get_weights()
    x = draw().permute(0, 2, 3, 1).numpy()
    for kernel, bias in ((kernel1, bias1), (kernel2, bias2)):
        x = nn.relu(nn.conv2d(x, kernel, strides=1, padding="SAME") + bias)
        x = nn.max_pool2d(x, ksize=[2, 2], strides=2, padding="VALID")
    x = nn.relu(np.asarray(x).reshape(-1, 7 * 7 * 64) @ kernel3 + bias3)
    assert_equal(outputs(twin, draw()), np.asarray(x) @ kernel4 + bias4)


def test_it_is_the_function_of_document_as_pytorch_program() -> None:
    """Reference: the program's calls; its log-softmax is part of the loss here."""
    model = make("PyTorchExampleNet")
    w = dict(model.network.state_dict())
    x = F.relu(F.max_pool2d(F.conv2d(draw(), w["conv1.weight"], w["conv1.bias"]), 2))
    x = F.dropout2d(F.conv2d(x, w["conv2.weight"], w["conv2.bias"]), training=False)
    x = F.relu(F.max_pool2d(x, 2)).view(-1, 320)
    x = F.relu(F.linear(x, w["fc1.weight"], w["fc1.bias"]))
    expected = F.linear(x, w["fc2.weight"], w["fc2.bias"])
    assert_equal(outputs(to_keras(model), draw()), expected.numpy())
