"""Training with Lightning's trainer, and an independent loop to compare it with."""

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from lightning import Callback, Trainer, seed_everything
from lightning.pytorch.loggers import Logger
from torch import Tensor
from torch.nn.functional import cross_entropy
from torchmetrics.classification import MulticlassAccuracy

from digitlab.classifier import Classifier
from digitlab.models import MLP
from tests import tiny
from tests.tiny import TinyDataModule

BATCHES = 7  # of 32 in the tiny data's 200 training images, the last of 8


def trainer(**options: Any) -> Trainer:
    """A Lightning trainer on the CPU that writes and prints nothing by itself."""
    silent: dict[str, Any] = {
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "max_epochs": 1,
    }
    return Trainer(**{**silent, **options})


def fit(
    model: Classifier | None = None, *callbacks: Callback, seed: int = 3, **options: Any
) -> Trainer:
    """Trains a model, by default a small one, on the tiny data."""
    model = small_mlp() if model is None else model
    seed_everything(seed, verbose=False)
    fitted = trainer(callbacks=list(callbacks), **options)
    fitted.fit(model, TinyDataModule())
    return fitted


def small_mlp(**options: Any) -> MLP:
    """A network that trains in no time, and the same weights each time."""
    torch.manual_seed(1)
    return MLP([16], **options)


def plain_loop(
    model: Classifier,
    optimizer: torch.optim.Optimizer,
    epochs: int,
    after_step: Callable[[], None] = lambda: None,
    after_epoch: Callable[[], None] = lambda: None,
    before_step: Callable[[], None] = lambda: None,
    seed: int = 3,
) -> list[list[Tensor]]:
    """Reference: what a PyTorch user writes; returns each epoch's batch losses."""
    seed_everything(seed, verbose=False)
    loader = TinyDataModule().train_dataloader()
    network = model.network.train()
    losses: list[list[Tensor]] = []
    for epoch in range(epochs):
        loader.sampler.set_epoch(epoch)
        losses.append([])
        for images, labels in loader:
            optimizer.zero_grad()
            loss = cross_entropy(network(images), labels)
            loss.backward()
            before_step()
            optimizer.step()
            after_step()
            losses[-1].append(loss.detach())
        after_epoch()
    return losses


def whole(split: Literal["train", "test"]) -> tuple[Tensor, Tensor]:
    """Reference: a split of the tiny data as one batch, scaled to 0..1 by NumPy."""
    images, labels = tiny.TRAIN if split == "train" else tiny.TEST
    scaled = (images[:, None] / np.float32(255)).astype(np.float32)
    return torch.from_numpy(scaled), torch.from_numpy(labels.astype(np.int64))


def reference(model: Classifier, images: Tensor, labels: Tensor) -> tuple[float, float]:
    """Reference: loss in float64, and accuracy by torchmetrics, of all images at once."""
    with torch.no_grad():
        logits = model.eval()(images)
    accuracy = MulticlassAccuracy(num_classes=10, average="micro")(logits, labels)
    return cross_entropy(logits.double(), labels).item(), float(accuracy)


def batches(size: int, images: Tensor, labels: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Images, or their logits, and labels in batches; the last may be smaller."""
    return zip(torch.split(images, size), torch.split(labels, size), strict=True)


def weights(model: Classifier) -> dict[str, Tensor]:
    """A copy of all weights."""
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def assert_bitwise_equal(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    """Fails unless both have the same tensors, bit for bit."""
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


class At(Callback):
    """Calls a function with the trainer before the first batch that follows a step, once."""

    def __init__(self, step: int, do: Callable[[Trainer], Any]) -> None:
        self.step: float = step
        self.do = do

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step >= self.step:
            self.step = math.inf
            self.do(trainer)


class KilledError(Exception):
    """Ends a fit as nothing foreseen would."""


def kill(_: Trainer) -> None:
    """For `At`."""
    raise KilledError


class Recording(Logger):
    """Keeps what it is given to log, as (step, values)."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[tuple[int, dict[str, float]]] = []

    name = "recording"
    version = 0

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        assert step is not None
        self.records.append((step, dict(metrics)))

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Ignores them."""

    def series(self, name: str) -> list[tuple[int, float]]:
        """The points of one curve."""
        return [(step, values[name]) for step, values in self.records if name in values]


def checkpoint_of(model: Classifier, path: Path) -> Path:
    """Writes a Lightning checkpoint of a model that has not been trained."""
    saver = trainer()
    saver.strategy.connect(model)
    saver.save_checkpoint(path, weights_only=True)
    return path
