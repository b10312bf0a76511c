"""The training recipe of a YAML config, read without digitlab and without Lightning."""

import inspect
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn
from torchvision import datasets

from benchmarks.networks import NETWORKS

_SCALES = {"unit": None, "symmetric": (0.5, 0.5), "standard": (0.1307, 0.3081)}  # MNIST's last
_STRUCTURE = ("hidden_features", "dropout", "padding")


@dataclass(frozen=True)
class Recipe:
    """How a network is trained; initialization is left out, as it does not change a step's time.

    Args:
        dataset: `MNIST` or `FashionMNIST`.
        train_images: The training images to use.
        mean_std: Normalizes pixels, which are from 0 to 1; `None` leaves them as they are.
        batch_size: Images in a batch.
        network: Makes the network.
        optimizer_class: The class of torch's optimizer.
        optimizer_settings: Its settings, without `fused`.
    """

    dataset: str
    train_images: slice
    mean_std: tuple[float, float] | None
    batch_size: int
    network: Callable[[], nn.Module]
    optimizer_class: type[torch.optim.Optimizer]
    optimizer_settings: dict[str, Any]

    def optimizer(
        self, parameters: Iterable[nn.Parameter], fused: bool = False
    ) -> torch.optim.Optimizer:
        """Make the optimizer, fused if asked for and possible."""
        make: Callable[..., torch.optim.Optimizer] = self.optimizer_class
        choice = {"fused": True} if fused and self.can_fuse else {}
        return make(parameters, **self.optimizer_settings, **choice)

    @property
    def can_fuse(self) -> bool:
        """Whether torch has a fused implementation of the optimizer."""
        return "fused" in inspect.signature(self.optimizer_class).parameters

    def training_split(self, transform: Callable[[Any], Any] | None = None) -> Any:
        """Make torchvision's data set of the whole training split."""
        root = os.environ.get("DIGITLAB_DATA") or "data"
        return getattr(datasets, self.dataset)(root, transform=transform, download=True)


def read_recipe(config: Path) -> Recipe:
    """Read a config; missing settings have digitlab's defaults: unit scale, batch 32, Adam."""
    settings = yaml.safe_load(config.read_text("utf-8"))
    model, model_settings = _split(settings["model"])
    data, data_settings = _split(settings["data"])
    optimizer, optimizer_settings = _split(
        model_settings.get("optimizer", {"class_path": "Adam", "init_args": {"lr": 0.001}})
    )
    structure = {name: model_settings[name] for name in _STRUCTURE if name in model_settings}
    return Recipe(
        dataset=data.removesuffix("DataModule"),
        train_images=slice(*data_settings.get("train_images", (0, None))),
        mean_std=_SCALES[data_settings.get("normalization", "unit")],
        batch_size=data_settings.get("batch_size", 32),
        network=lambda: NETWORKS[model](**structure),
        optimizer_class=getattr(torch.optim, optimizer.removeprefix("Fused")),  # torch's own
        optimizer_settings={k: v for k, v in optimizer_settings.items() if k != "fused"},
    )


def _split(entry: str | dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return the bare name of a config's class, and its arguments."""
    if isinstance(entry, str):
        return entry, {}
    return entry["class_path"].rsplit(".")[-1], entry.get("init_args") or {}
