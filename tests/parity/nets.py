"""The architectures to compare, and batches for them."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from digitlab import models
from digitlab.classifier import Classifier
from digitlab.data import DigitsDataModule
from digitlab.parity.backend import import_keras
from digitlab.parity.graph import Graph
from digitlab.parity.sides import Sides
from digitlab.parity.weights import copy_weights, match


def sequential(shape: tuple[int, ...], *layers: Any) -> Any:
    """A sequential model of known input shape."""
    keras = import_keras()
    return keras.Sequential([keras.Input(shape), *layers])


def sides(module: nn.Module, keras_model: Any) -> Sides:
    """Both sides, before Keras's has the weights."""
    graph = Graph(keras_model)
    return Sides(module, graph, match(module, graph))


def with_weights(module: nn.Module, keras_model: Any) -> Sides:
    """Both sides with the module's weights."""
    copy_weights(module, keras_model)
    return sides(module, keras_model)


RECIPES: dict[
    str, tuple[type[Classifier], dict[str, Any], Callable[..., torch.optim.Optimizer]]
] = {
    "linear": (models.LinearClassifier, {}, torch.optim.Adam),
    "mlp512": (
        models.MLP,
        {"hidden_features": [512, 512]},
        partial(torch.optim.RMSprop, lr=0.001, alpha=0.9, eps=1e-7),
    ),
    "nn128": (models.MLP, {"hidden_features": [128]}, torch.optim.Adam),
    "lenet5": (models.LeNet5, {}, torch.optim.Adam),
    "lenet1": (models.LeNet1, {"padding": 2}, torch.optim.Adam),
    "lenet1_same": (models.LeNet1, {"padding": "same"}, torch.optim.Adam),
    # With its config's learning rate, ten times as large, rounding grows to 3e-12 in 50 steps.
    "fast_cnn": (models.FastCNN, {}, torch.optim.Adam),
    "resnet": (models.ResNet, {"width": 4, "growth": [1, 2], "blocks": [1, 1]}, torch.optim.AdamW),
    "pytorch_example_net": (
        models.PyTorchExampleNet,
        {},
        partial(torch.optim.SGD, lr=0.01, momentum=0.5),
    ),
    "tensorflow_tutorial_cnn": (
        models.TensorFlowTutorialCNN,
        {"initialization": "keras"},
        partial(torch.optim.SGD, lr=0.001),
    ),
}


def make(name: str, **others: Any) -> Classifier:
    """The architecture, always with the same initial weights."""
    kind, settings, optimizer = RECIPES[name]
    torch.manual_seed(0)
    return kind(**{"optimizer": optimizer, **settings, **others})


def digit_batches(count: int, batch_size: int = 16) -> list[tuple[Tensor, Tensor]]:
    """The first batches of a run on the digits with seed 0, over as many epochs as needed."""
    loader = DigitsDataModule(batch_size=batch_size).train_dataloader()
    loader.sampler.seed = 0
    batches: list[tuple[Tensor, Tensor]] = []
    while len(batches) < count:
        loader.sampler.set_epoch(len(batches) // len(loader))
        batches += loader
    return batches[:count]


def digit_images(count: int = 32) -> tuple[Tensor, Tensor]:
    """The first test images of the digits, and their labels."""
    batch: tuple[Tensor, Tensor] = next(
        iter(DigitsDataModule(eval_batch_size=count).test_dataloader())
    )
    return batch


def random_batches(count: int, batch_size: int = 16) -> list[tuple[Tensor, Tensor]]:
    """Noise with random labels."""
    generator = torch.Generator().manual_seed(0)
    return [
        (
            torch.rand(batch_size, 1, 28, 28, generator=generator),
            torch.randint(10, (batch_size,), generator=generator),
        )
        for _ in range(count)
    ]
