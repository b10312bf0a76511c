"""The seven architectures with their documents' optimizers, on real images."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from digitlab import models
from digitlab.classifier import Classifier
from digitlab.data import MNISTDataModule

RECIPES: dict[
    str, tuple[type[Classifier], dict[str, Any], Callable[..., torch.optim.Optimizer]]
] = {
    "linear": (models.LinearClassifier, {}, torch.optim.Adam),
    "mlp512": (
        models.MLP,
        {"hidden_features": [512, 512]},
        lambda p: torch.optim.RMSprop(p, lr=0.001, alpha=0.9, eps=1e-7),
    ),
    "nn128": (models.MLP, {"hidden_features": [128]}, torch.optim.Adam),
    "lenet5": (models.LeNet5, {}, torch.optim.Adam),
    "lenet1": (models.LeNet1, {"padding": 2}, torch.optim.Adam),
    "lenet1_same": (models.LeNet1, {"padding": "same"}, torch.optim.Adam),
    "pytorch_example_net": (
        models.PyTorchExampleNet,
        {},
        lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.5),
    ),
    "tensorflow_tutorial_cnn": (
        models.TensorFlowTutorialCNN,
        {"initialization": "keras"},
        lambda p: torch.optim.SGD(p, lr=0.001),
    ),
}


def make(name: str, **others: Any) -> Classifier:
    """The architecture, always with the same initial weights."""
    kind, settings, optimizer = RECIPES[name]
    torch.manual_seed(0)
    return kind(**{"optimizer": optimizer, **settings, **others})


def real_batches(count: int, batch_size: int = 32) -> list[tuple[Tensor, Tensor]]:
    """The first batches of a run on MNIST with seed 0; needs the fixture `real_data`."""
    loader = MNISTDataModule(batch_size=batch_size).train_dataloader()
    loader.sampler.seed = 0
    return [batch for batch, _ in zip(loader, range(count), strict=False)]


def real_images(count: int) -> tuple[Tensor, Tensor]:
    """The first test images and their labels; needs the fixture `real_data`."""
    return next(iter(MNISTDataModule(eval_batch_size=count).test_dataloader()))


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
