"""The Keras twins of `digitlab.models`, and which model has which twin.

The twins are written by hand from the documents; layers have the names of the PyTorch layers. They
end in logits, or with `softmax` in probabilities.
"""

import pkgutil
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from inspect import signature
from typing import Any, Literal

import torch

from digitlab import models
from digitlab.classifier import Classifier
from digitlab.parity.backend import import_keras, keras_dtype, unchanged_random_state
from digitlab.parity.weights import copy_weights


def linear_classifier(in_channels: int = 1, num_classes: int = 10, softmax: bool = False) -> Any:
    """Build softmax regression, 7,850 parameters (document A, prose)."""
    layers = import_keras().layers
    stack = [layers.Flatten(name="flatten"), layers.Dense(num_classes, name="fc1")]
    return _build("linear_classifier", stack, in_channels, softmax)


def mlp(
    hidden_features: Sequence[int] = (512, 512),
    dropout: float = 0.2,
    in_channels: int = 1,
    num_classes: int = 10,
    softmax: bool = False,
) -> Any:
    """Build a multilayer perceptron.

    669,706 parameters with the default widths (document A, Keras) and 101,770 with `[128]`
    (document B, Keras, `neural_network`).
    """
    layers = import_keras().layers
    stack = [layers.Flatten(name="flatten")]
    for i, width in enumerate(hidden_features, start=1):
        stack += [
            layers.Dense(width, name=f"fc{i}"),
            layers.ReLU(name=f"relu{i}"),
            layers.Dropout(dropout, name=f"dropout{i}"),
        ]
    stack.append(layers.Dense(num_classes, name=f"fc{len(hidden_features) + 1}"))
    return _build("mlp", stack, in_channels, softmax)


def lenet5(in_channels: int = 1, num_classes: int = 10, softmax: bool = False) -> Any:
    """Build LeNet-5 with rectifiers and max pooling, 61,706 parameters (document B, `lenet`)."""
    layers = import_keras().layers
    stack = [
        layers.Conv2D(6, 5, padding="same", name="conv1"),
        layers.ReLU(name="relu1"),
        layers.MaxPooling2D(2, name="pool1"),
        layers.Conv2D(16, 5, name="conv2"),
        layers.ReLU(name="relu2"),
        layers.MaxPooling2D(2, name="pool2"),
        layers.Flatten(name="flatten"),
        layers.Dense(120, name="fc1"),
        layers.ReLU(name="relu3"),
        layers.Dense(84, name="fc2"),
        layers.ReLU(name="relu4"),
        layers.Dense(num_classes, name="fc3"),
    ]
    return _build("lenet5", stack, in_channels, softmax)


def lenet1(
    padding: Literal[2, "same"] = 2,
    in_channels: int = 1,
    num_classes: int = 10,
    softmax: bool = False,
) -> Any:
    """Build document B's "improved LeNet", 121,994 parameters.

    The padding `same` is B's Keras network, 2 its PyTorch one, which takes a layer of zeros around
    the image here.
    """
    layers = import_keras().layers
    around = [] if padding == "same" else [layers.ZeroPadding2D(padding, name="padding1")]
    stack = [
        *around,
        layers.Conv2D(32, 3, padding="valid" if around else "same", name="conv1"),
        layers.ReLU(name="relu1"),
        layers.MaxPooling2D(2, name="pool1"),
        layers.Conv2D(64, 3, name="conv2"),
        layers.ReLU(name="relu2"),
        layers.MaxPooling2D(2, name="pool2"),
        layers.Conv2D(64, 3, name="conv3"),
        layers.ReLU(name="relu3"),
        layers.Flatten(name="flatten"),
        layers.Dense(64, name="fc1"),
        layers.ReLU(name="relu4"),
        layers.Dense(num_classes, name="fc2"),
    ]
    return _build("lenet1", stack, in_channels, softmax)


def pytorch_example_net(
    dropout: float = 0.5, in_channels: int = 1, num_classes: int = 10, softmax: bool = False
) -> Any:
    """Build the network of PyTorch's MNIST example, 21,840 parameters (document A, PyTorch)."""
    layers = import_keras().layers
    stack = [
        layers.Conv2D(10, 5, name="conv1"),
        layers.MaxPooling2D(2, name="pool1"),
        layers.ReLU(name="relu1"),
        layers.Conv2D(20, 5, name="conv2"),
        layers.SpatialDropout2D(dropout, name="dropout1"),
        layers.MaxPooling2D(2, name="pool2"),
        layers.ReLU(name="relu2"),
        layers.Flatten(name="flatten"),
        layers.Dense(50, name="fc1"),
        layers.ReLU(name="relu3"),
        layers.Dropout(dropout, name="dropout2"),
        layers.Dense(num_classes, name="fc2"),
    ]
    return _build("pytorch_example_net", stack, in_channels, softmax)


def tensorflow_tutorial_cnn(
    dropout: float = 0.4, in_channels: int = 1, num_classes: int = 10, softmax: bool = False
) -> Any:
    """Build the network of TensorFlow 1.4's tutorial, 3,274,634 parameters (document A)."""
    layers = import_keras().layers
    stack = [
        layers.Conv2D(32, 5, padding="same", name="conv1"),
        layers.ReLU(name="relu1"),
        layers.MaxPooling2D(2, name="pool1"),
        layers.Conv2D(64, 5, padding="same", name="conv2"),
        layers.ReLU(name="relu2"),
        layers.MaxPooling2D(2, name="pool2"),
        layers.Flatten(name="flatten"),
        layers.Dense(1024, name="fc1"),
        layers.ReLU(name="relu3"),
        layers.Dropout(dropout, name="dropout"),
        layers.Dense(num_classes, name="fc2"),
    ]
    return _build("tensorflow_tutorial_cnn", stack, in_channels, softmax)


def fast_cnn(in_channels: int = 1, num_classes: int = 10, softmax: bool = False) -> Any:
    """Build the network of `configs/mnist/fast99.yaml`, 212,682 parameters (not in A or B)."""
    layers = import_keras().layers
    stack = [
        layers.Conv2D(16, 5, strides=2, name="conv1"),
        layers.ReLU(name="relu1"),
        layers.Conv2D(32, 3, name="conv2"),
        layers.MaxPooling2D(2, name="pool2"),
        layers.ReLU(name="relu2"),
        layers.Flatten(name="flatten"),
        layers.Dense(256, name="fc1"),
        layers.ReLU(name="relu3"),
        layers.Dense(num_classes, name="fc2"),
    ]
    return _build("fast_cnn", stack, in_channels, softmax)


def resnet(
    width: int = 16,
    growth: Sequence[int] = (1, 2, 3),
    blocks: Sequence[int] = (2, 2, 2),
    in_channels: int = 1,
    num_classes: int = 10,
    softmax: bool = False,
) -> Any:
    """Build the residual network, 120,986 parameters with the default width (not in A or B)."""
    keras = import_keras()
    layers = keras.layers

    def conv(channels: int, size: int, name: str) -> Any:
        return layers.Conv2D(channels, size, padding="same", use_bias=False, name=name)

    def norm(name: str) -> Any:  # with PyTorch's defaults; its momentum 0.1 is 0.9 here
        return layers.BatchNormalization(momentum=0.9, epsilon=1e-5, name=name)

    def block(x: Any, channels: int, name: str) -> Any:
        y = layers.ReLU(name=f"{name}_relu1")(
            norm(f"{name}_norm1")(conv(channels, 3, f"{name}_conv1")(x))
        )
        y = norm(f"{name}_norm2")(conv(channels, 3, f"{name}_conv2")(y))
        is_wide = x.shape[-1] == channels
        shortcut = f"{name}_shortcut"
        x = (layers.Identity(name=shortcut) if is_wide else conv(channels, 1, shortcut))(x)
        return layers.ReLU(name=f"{name}_relu2")(layers.Add(name=f"{name}_add")([y, x]))

    images = keras.Input((28, 28, in_channels))
    x = layers.ReLU(name="relu")(norm("norm")(conv(width, 3, "stem")(images)))
    for stage, (factor, count) in enumerate(zip(growth, blocks, strict=True), start=1):
        if stage > 1:
            x = layers.MaxPooling2D(2, name=f"pool{stage}")(x)
        for i in range(1, count + 1):
            x = block(x, factor * width, f"block{stage}_{i}")
    x = layers.Flatten(name="flatten")(layers.GlobalAveragePooling2D(name="average")(x))
    x = layers.Dense(num_classes, name="fc")(x)
    return keras.Model(images, layers.Softmax(name="softmax")(x) if softmax else x, name="resnet")


def _build(name: str, stack: list[Any], in_channels: int, softmax: bool) -> Any:
    keras = import_keras()
    ending = [keras.layers.Softmax(name="softmax")] if softmax else []
    return keras.Sequential([keras.Input((28, 28, in_channels)), *stack, *ending], name=name)


_TWINS: dict[type[Classifier], Callable[..., Any]] = {
    models.LinearClassifier: linear_classifier,
    models.MLP: mlp,
    models.LeNet5: lenet5,
    models.LeNet1: lenet1,
    models.PyTorchExampleNet: pytorch_example_net,
    models.TensorFlowTutorialCNN: tensorflow_tutorial_cnn,
    models.FastCNN: fast_cnn,
    models.ResNet: resnet,
}


def to_keras(model: Classifier, softmax: bool = False) -> Any:
    """Build the Keras twin of a model, with the model's weights.

    Args:
        model: One of `digitlab.models`, a class that names its twin's function by `keras_twin`, or
            a subclass with the same network.
        softmax: Whether the twin ends in a softmax, as document A writes its Keras network;
            otherwise it returns logits, as the model does.

    Returns:
        A `keras.Model` that takes `(N, 28, 28, in_channels)`. It is float64 if the model is, and
        has Keras's current dtype policy otherwise.

    Raises:
        ValueError: The class has no twin, or none with a softmax.
        ImportError: The extra `parity` is not installed.
    """
    with unchanged_random_state():
        twin = build_twin(model, softmax)
    copy_weights(model, twin)
    return twin


def build_twin(model: Classifier, softmax: bool = False) -> Any:
    """Build the Keras twin of a model as `to_keras` does, but with Keras's own initial weights."""
    twin = find_twin(model, softmax)
    is_double = next(model.parameters()).dtype == torch.float64
    with keras_dtype("float64") if is_double else nullcontext():
        return twin()


def find_twin(model: Classifier, softmax: bool) -> Callable[[], Any]:
    """Find the function that builds a model's twin, and bind the model's hyper-parameters to it."""
    kinds = (kind for kind in type(model).__mro__ if kind in _TWINS or "keras_twin" in vars(kind))
    kind: Any = next(kinds, None)
    if kind is None or not _has_network_of(model, kind):
        raise ValueError(
            f"{type(model).__name__} has no Keras twin: write one, and name it in the class, "
            'keras_twin = "my_module.my_function"; there are twins of '
            f"{', '.join(known.__name__ for known in _TWINS)}"
        )
    twin = _TWINS.get(kind) or _import(kind)
    settings = _settings(model, twin)
    if "softmax" in signature(twin).parameters:
        settings["softmax"] = softmax
    elif softmax:
        raise ValueError(
            f"the Keras twin of {kind.__name__} can only give logits: leave softmax out, or give "
            "the function an argument softmax, for a last layer"
        )
    return partial(twin, **settings)


def _import(kind: type[Any]) -> Callable[..., Any]:
    path = vars(kind)["keras_twin"]
    try:
        twin = pkgutil.resolve_name(path)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise ValueError(
            f"{kind.__name__}.keras_twin is {path!r}, which cannot be imported ({error}): give "
            "the path of a function that builds a Keras model, my_module.my_function"
        ) from error
    if not callable(twin):
        raise ValueError(f"{kind.__name__}.keras_twin is {path!r}: it must name a function")
    found: Callable[..., Any] = twin
    return found


def _has_network_of(model: Classifier, kind: type[Any]) -> bool:
    """Return whether a subclass has its parent's network, without which the twin would not fit.

    Layers print their settings, so networks that print alike have equal layers in equal order.
    """
    if type(model) is kind:
        return True
    with torch.random.fork_rng(devices=[]):  # the initial weights are not used
        parent = kind(**_settings(model, kind))
    return type(model).forward is kind.forward and repr(model.network) == repr(parent.network)


def _settings(model: Classifier, function: Callable[..., Any]) -> dict[str, Any]:
    wanted = signature(function).parameters
    return {name: model.hparams[name] for name in wanted if name in model.hparams}
