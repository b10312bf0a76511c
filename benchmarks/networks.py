"""The documents' networks as plain PyTorch modules, for loops that never import Lightning.

They are those of `digitlab.models`, which `tests/benchmarks` proves.

Shape, of every network:
    - Input: float32 `(N, 1, 28, 28)`, normalized images.
    - Output: logits `(N, 10)`.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Literal

from torch import nn


def mlp(hidden_features: Sequence[int] = (512, 512), dropout: float = 0.2) -> nn.Module:
    """Make a multilayer perceptron: NN 128 with `[128]`, MLP 512-512 by default."""
    layers: list[nn.Module] = [nn.Flatten()]
    for fan_in, fan_out in pairwise([28 * 28, *hidden_features]):
        layers += [nn.Linear(fan_in, fan_out), nn.ReLU(), nn.Dropout(dropout)]
    return nn.Sequential(*layers, nn.Linear(hidden_features[-1], 10))


def lenet5() -> nn.Module:
    """Make LeNet-5 with rectifiers and max pooling."""
    return nn.Sequential(
        *(nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
        *(nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10)),
    )


def lenet1(padding: Literal[2, "same"] = 2) -> nn.Module:
    """Make document B's "LeNet1"."""
    return nn.Sequential(
        *(nn.Conv2d(1, 32, 3, padding=padding), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(64, 64, 3), nn.ReLU(), nn.Flatten()),
        *(nn.Linear(1024, 64), nn.ReLU(), nn.Linear(64, 10)),
    )


def pytorch_example_net(dropout: float = 0.5) -> nn.Module:
    """Make the network of PyTorch's example, which pools before it rectifies."""
    return nn.Sequential(
        *(nn.Conv2d(1, 10, 5), nn.MaxPool2d(2), nn.ReLU()),
        *(nn.Conv2d(10, 20, 5), nn.Dropout2d(dropout), nn.MaxPool2d(2), nn.ReLU(), nn.Flatten()),
        *(nn.Linear(320, 50), nn.ReLU(), nn.Dropout(dropout), nn.Linear(50, 10)),
    )


def tensorflow_tutorial_cnn(dropout: float = 0.4) -> nn.Module:
    """Make the network of TensorFlow's tutorial."""
    return nn.Sequential(
        *(nn.Conv2d(1, 32, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(32, 64, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
        *(nn.Linear(3136, 1024), nn.ReLU(), nn.Dropout(dropout), nn.Linear(1024, 10)),
    )


NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "MLP": mlp,
    "LeNet5": lenet5,
    "LeNet1": lenet1,
    "PyTorchExampleNet": pytorch_example_net,
    "TensorFlowTutorialCNN": tensorflow_tutorial_cnn,
}
"""Each network by the name of its class in `digitlab.models`."""
