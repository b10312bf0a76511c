"""`digitlab keras …` in this process, on the tiny data."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from digitlab.cli import main
from digitlab.models import LeNet5
from digitlab.parity.keras_files import load_keras_model, save_keras_model
from tests import tiny
from tests.commands import SHORT

KERAS_INITIAL_VALUES = ["--model.initialization", "keras"]
TINY = ("--data", "tests.tiny.TinyDataModule")


def keras_fit(root: Path, *options: str, model: str = "LinearClassifier") -> Path:
    """Train for an epoch, and return the run folder, the only one of Keras below `root`."""
    place = ["--trainer.default_root_dir", str(root)]
    assert main(["keras", "fit", "--model", model, *SHORT, *place, *options]) == 0
    (folder,) = root.glob("*-keras/version_*")
    return folder


def weights_of(folder: Path, name: str = "model.keras") -> list[NDArray[Any]]:
    """Read the weights of a saved Keras model."""
    weights: list[NDArray[Any]] = load_keras_model(folder / name).get_weights()
    return weights


def whole(split: str) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Reference: a split of the tiny data with channels last, scaled to 0..1 by NumPy."""
    images, labels = tiny.TRAIN if split == "train" else tiny.TEST
    return (images[..., None] / np.float32(255)).astype(np.float32), labels.astype(np.int64)


def metrics_of(folder: Path) -> dict[str, Any]:
    metrics: dict[str, Any] = json.loads((folder / "metrics.json").read_text("utf-8"))
    return metrics


def history_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "history.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def save(keras_model: Any, path: Path) -> Path:
    """Write a Keras model, and give the path back."""
    save_keras_model(keras_model, path)
    return path


def names_in(folder: Path) -> list[str]:
    """List what lies in a folder."""
    return sorted(path.name for path in folder.iterdir())


class OwnLeNet5(LeNet5):
    """A user's subclass with the network of its parent."""


class InvertedLeNet5(LeNet5):
    """A user's subclass with layers of its parent, but another function."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(1 - images)


class TanhLeNet5(LeNet5):
    """A user's subclass with another layer."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.network.relu1 = nn.Tanh()
