"""Data sets of 28x28 greyscale images in ten classes, whole in memory, verified before use."""

import warnings
from typing import Any

from digitlab.data.datamodule import ImageDataModule
from digitlab.data.datasets import DigitsDataModule, FashionMNISTDataModule, MNISTDataModule
from digitlab.data.loader import EpochSampler, ImageLoader

__all__ = [
    "DigitsDataModule",
    "EpochSampler",
    "FashionMNISTDataModule",
    "ImageDataModule",
    "ImageLoader",
    "MNISTDataModule",
]


def __getattr__(name: str) -> Any:
    if name == "ImageOrder":  # until the next release
        warnings.warn("ImageOrder is named EpochSampler now", DeprecationWarning, stacklevel=2)
        return EpochSampler
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
