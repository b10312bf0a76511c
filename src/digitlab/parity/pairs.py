"""Which Keras twin is whose: those of `digitlab.models`, and what a user's class names."""

import pkgutil
from collections.abc import Callable
from functools import partial
from inspect import signature
from typing import Any

import torch

from digitlab import models
from digitlab.classifier import Classifier
from digitlab.parity import twins

_TWINS: dict[type[Classifier], Callable[..., Any]] = {
    models.LinearClassifier: twins.linear_classifier,
    models.MLP: twins.mlp,
    models.LeNet5: twins.lenet5,
    models.LeNet1: twins.lenet1,
    models.PyTorchExampleNet: twins.pytorch_example_net,
    models.TensorFlowTutorialCNN: twins.tensorflow_tutorial_cnn,
    models.FastCNN: twins.fast_cnn,
}


def find_twin(model: Classifier, softmax: bool) -> Callable[[], Any]:
    """Find the function that builds a model's twin, with the model's settings as arguments.

    Of the model's hyper-parameters it gets those that it has arguments for.

    Raises:
        ValueError: There is no twin for this class, or what the class names is none.
    """
    kind = next((kind for kind in type(model).__mro__ if _has_twin(kind)), None)
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


def _has_twin(kind: type[Any]) -> bool:
    return kind in _TWINS or "keras_twin" in vars(kind)


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
    """Tell whether a subclass has its parent's layers, which alone the parent's twin is a twin of.

    Layers print their settings, so two networks with equal prints have equal layers in equal order.
    """
    if type(model) is kind:
        return True
    with torch.random.fork_rng(devices=[]):  # the initial weights are drawn in vain
        parent = kind(**_settings(model, kind))
    return type(model).forward is kind.forward and repr(model.network) == repr(parent.network)


def _settings(model: Classifier, function: Callable[..., Any]) -> dict[str, Any]:
    """Give those hyper-parameters of a model that a function, or a class, has arguments for."""
    wanted = signature(function).parameters
    return {name: model.hparams[name] for name in wanted if name in model.hparams}
