"""What both frameworks are compared on: the eight architectures, images, optimizers' steps."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from digitlab import models
from digitlab.classifier import Classifier
from digitlab.data import MNISTDataModule
from digitlab.parity.optimizers import KerasAdam, KerasRMSprop

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
    # With the learning rate of its record, ten times as large, rounding grows to 3e-12 in 50 steps.
    "fast_cnn": (models.FastCNN, {}, torch.optim.Adam),
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
    batch: tuple[Tensor, Tensor] = next(
        iter(MNISTDataModule(eval_batch_size=count).test_dataloader())
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


Arrays = list[np.ndarray]
OptimizerClass = type[Any]  # of torch.optim.Optimizer, whose own arguments are others
OPTIMIZER_SETTINGS = [
    pytest.param(KerasAdam, {}, id="Adam"),
    pytest.param(KerasAdam, {"eps": 1e-3, "betas": (0.8, 0.95)}, id="Adam, other numbers"),
    pytest.param(KerasAdam, {"weight_decay": 0.1}, id="Adam, weight decay"),
    pytest.param(KerasAdam, {"amsgrad": True, "betas": (0.8, 0.9)}, id="Adam, AMSGrad"),
    pytest.param(KerasRMSprop, {}, id="RMSprop"),
    pytest.param(KerasRMSprop, {"eps": 1e-3, "alpha": 0.8}, id="RMSprop, other numbers"),
    pytest.param(KerasRMSprop, {"weight_decay": 0.1}, id="RMSprop, weight decay"),
    pytest.param(KerasRMSprop, {"momentum": 0.9}, id="RMSprop, momentum"),
    pytest.param(KerasRMSprop, {"centered": True}, id="RMSprop, centered"),
    pytest.param(
        KerasRMSprop,
        {"centered": True, "momentum": 0.9, "weight_decay": 0.1},
        id="RMSprop, all at once",
    ),
]


def problem(steps: int = 60, dtype: str = "float64") -> tuple[Arrays, list[Arrays]]:
    """Weights, and gradients of all sizes from 1e-9 to 1, so that epsilon counts; some are 0."""
    generator, shapes = np.random.default_rng(0), [(5, 3), (3,)]

    def gradient(shape: tuple[int, ...]) -> np.ndarray:
        sizes = 10 ** generator.uniform(-9, 0, size=shape)
        return (generator.normal(size=shape) * sizes).astype(dtype)

    start = [generator.normal(size=shape, scale=0.1).astype(dtype) for shape in shapes]
    gradients = [[gradient(shape) for shape in shapes] for _ in range(steps)]
    for of_step in gradients:
        of_step[0][0] = 0
    return start, gradients


def parameters(start: Arrays) -> list[torch.nn.Parameter]:
    return [torch.nn.Parameter(torch.tensor(array)) for array in start]


def step(optimizer: torch.optim.Optimizer, gradients: Sequence[np.ndarray | None]) -> None:
    members = [p for group in optimizer.param_groups for p in group["params"]]
    for parameter, gradient in zip(members, gradients, strict=True):
        parameter.grad = None if gradient is None else torch.tensor(gradient)
    optimizer.step()


def arrays(parameters: list[torch.nn.Parameter]) -> Arrays:
    return [parameter.detach().numpy().copy() for parameter in parameters]


def ours(
    cls: OptimizerClass, settings: dict[str, Any], start: Arrays, gradients: list[Arrays]
) -> Arrays:
    """The weights after all steps of a torch optimizer."""
    weights = parameters(start)
    optimizer = cls(weights, **settings)
    for of_step in gradients:
        step(optimizer, of_step)
    return arrays(weights)


def adam_in_numpy(
    weight: np.ndarray,
    gradients: Arrays,
    lr: float = 0.001,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-7,
    weight_decay: float = 0.0,
    amsgrad: bool = False,
) -> np.ndarray:
    """Reference: Kingma and Ba's formula in float64, its moments as sums over all gradients."""
    # What Keras rounds: the weight decay, and the betas in the bias correction alone.
    decay, *rounded = np.array([weight_decay, *betas], np.float32).astype(float)
    largest = np.zeros_like(weight)
    for t in range(1, len(gradients) + 1):
        ages = np.arange(t)[::-1]
        first, second = (
            np.tensordot((1 - beta) * beta**ages, np.stack(gradients[:t]) ** power, 1)
            for beta, power in zip(betas, (1, 2), strict=True)
        )
        largest = np.maximum(largest, second)
        size = lr * np.sqrt(1 - rounded[1] ** t) / (1 - rounded[0] ** t)
        root = np.sqrt(largest if amsgrad else second)
        weight = weight * (1 - lr * decay) - size * first / (root + eps)
    return weight


def rmsprop_in_numpy(
    weight: np.ndarray,
    gradients: Arrays,
    lr: float = 0.001,
    alpha: float = 0.9,
    eps: float = 1e-7,
    weight_decay: float = 0.0,
    momentum: float = 0.0,
    centered: bool = False,
    year: int = 2025,
) -> np.ndarray:
    """Reference: Hinton's formula in float64; in 2018, Keras had epsilon outside the root."""
    square, mean, increment = (np.zeros_like(weight) for _ in range(3))
    for gradient in gradients:
        square = square + (1 - alpha) * (gradient**2 - square)
        mean = mean + (1 - alpha) * (gradient - mean)
        variance = square - centered * mean**2
        root = np.sqrt(variance) + eps if year == 2018 else np.sqrt(variance + eps)
        increment = momentum * increment + lr * gradient / root
        weight = weight * (1 - lr * float(np.float32(weight_decay))) - increment
    return weight


IN_NUMPY: dict[OptimizerClass, Callable[..., np.ndarray]] = {
    KerasAdam: adam_in_numpy,
    KerasRMSprop: rmsprop_in_numpy,
}


def in_numpy(
    cls: OptimizerClass, settings: dict[str, Any], start: Arrays, gradients: list[Arrays]
) -> Arrays:
    histories = zip(*gradients, strict=True)
    return [
        IN_NUMPY[cls](weight, list(history), **settings)
        for weight, history in zip(start, histories, strict=True)
    ]


def difference(ours: Arrays, theirs: Arrays) -> float:
    """The largest difference, relative to the largest weight."""
    largest = max(np.abs(array).max() for array in theirs)
    return float(max(np.abs(x - y).max() for x, y in zip(ours, theirs, strict=True)) / largest)


def optimizer_of(make_optimizer: Callable[..., torch.optim.Optimizer]) -> torch.optim.Optimizer:
    return make_optimizer([torch.nn.Parameter(torch.zeros(1))])
