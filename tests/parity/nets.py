"""Networks to compare: the architectures, and small ones as a user of either framework writes."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 # its usual name

from digitlab import models
from digitlab.classifier import Classifier
from digitlab.data import DigitsDataModule
from digitlab.parity.backend import import_keras
from digitlab.parity.sides import Sides
from digitlab.parity.weights import copy_weights, match

IMAGES = torch.rand(6, 1, 12, 12, generator=torch.Generator().manual_seed(0)) - 0.3
LABELS = torch.tensor([3, 1, 4, 1, 5, 9])
BATCHES = [(IMAGES[:4], LABELS[:4]), (IMAGES[4:], LABELS[4:])]


class DocumentStyle(nn.Module):
    """As document B writes its networks: functions in `forward`, its own names."""

    def __init__(self, channels: int = 1) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.c1 = nn.Conv2d(channels, 4, 3, padding=1)
        self.c2 = nn.Conv2d(4, 4, 3)
        self.f1 = nn.Linear(16, 16)
        self.f2 = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.c1(x)), 2)
        x = F.max_pool2d(F.relu(self.c2(x)), 2)
        x = x.view(x.size()[0], -1)
        x = F.dropout(F.relu(self.f1(x)), 0.5, self.training)
        logits: Tensor = self.f2(x)
        return logits


def keras_style(**changes: Any) -> Any:
    """The same in Keras, with fused activations and Keras's names, but for what is replaced.

    Args:
        changes: A layer, or a list of layers, in place of the one of the given role; `channels`.
    """
    keras = import_keras()
    layers = keras.layers
    roles = {
        "conv1": layers.Conv2D(4, 3, padding="same", activation="relu"),
        "pool1": layers.MaxPooling2D(2),
        "conv2": layers.Conv2D(4, 3, activation="relu"),
        "pool2": layers.MaxPooling2D(2),
        "flatten": layers.Flatten(),
        "fc1": layers.Dense(16, activation="relu"),
        "dropout": layers.Dropout(0.5),
        "fc2": layers.Dense(10),
    }
    shape = (12, 12, changes.pop("channels", 1))
    parts = [changes.pop(role, layer) for role, layer in roles.items()]
    assert not changes, changes
    flat = [layer for part in parts for layer in (part if isinstance(part, list) else [part])]
    return keras.Sequential([keras.Input(shape), *flat])


class Residual(nn.Module):
    """Two branches that are added, twice."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.stem = nn.Conv2d(1, 4, 3, padding=1)
        self.left = nn.Conv2d(4, 4, 3, padding=1)
        self.right = nn.Conv2d(4, 4, 1)
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 10)
        with torch.no_grad():  # as after some training, and with no unit dead
            for tensor in (*self.norm.parameters(), *self.norm.buffers()):
                tensor.copy_(0.5 + torch.rand(4) if tensor.shape else tensor)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = x + F.relu(self.left(x)) + self.right(x)
        logits: Tensor = self.head(F.relu(self.norm(x)).mean((2, 3)))
        return logits


def keras_residual(left_activation: str = "relu", epsilon: float = 1e-5) -> Any:
    """The same in Keras's functional style, with PyTorch's names."""
    keras = import_keras()
    layers = keras.layers
    images = keras.Input((12, 12, 1))
    x = layers.Conv2D(4, 3, padding="same", activation="relu", name="stem")(images)
    left = layers.Conv2D(4, 3, padding="same", activation=left_activation, name="left")(x)
    x = layers.Add(name="add")([x, left, layers.Conv2D(4, 1, name="right")(x)])
    x = keras.ops.relu(layers.BatchNormalization(epsilon=epsilon, name="norm")(x))
    x = layers.GlobalAveragePooling2D(name="mean")(x)
    return keras.Model(images, layers.Dense(10, name="head")(x))


def sequential(shape: tuple[int, ...], *layers: Any) -> Any:
    """A sequential model of known input shape."""
    keras = import_keras()
    return keras.Sequential([keras.Input(shape), *layers])


def layer_of(function: Callable[[Any], Any], name: str = "custom") -> Any:
    """A user's own Keras layer without weights."""
    members = {"call": lambda self, x: function(x)}
    return type("Custom", (import_keras().layers.Layer,), members)(name=name)


def sides(module: nn.Module, keras_model: Any) -> Sides:
    """Both sides, before Keras's has the weights."""
    return Sides(module, keras_model, match(module, keras_model))


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
    "resnet": (models.ResNet, {"width": 4}, torch.optim.AdamW),
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
