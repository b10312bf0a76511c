"""Data sets of square grey images, whole in memory, and what of them is verified."""

import warnings
from typing import Any

from digitlab.data.augmentation import Augmentation
from digitlab.data.datamodule import ImageDataModule
from digitlab.data.datasets import (
    DigitsDataModule,
    EMNISTDataModule,
    FashionMNISTDataModule,
    KMNISTDataModule,
    MNISTDataModule,
    QMNISTDataModule,
    TorchvisionDataModule,
)
from digitlab.data.image_folder import ImageFolderDataModule
from digitlab.data.loader import EpochSampler, ImageLoader

__all__ = [
    "Augmentation",
    "DigitsDataModule",
    "EMNISTDataModule",
    "EpochSampler",
    "FashionMNISTDataModule",
    "ImageDataModule",
    "ImageFolderDataModule",
    "ImageLoader",
    "KMNISTDataModule",
    "MNISTDataModule",
    "QMNISTDataModule",
    "TorchvisionDataModule",
]


def __getattr__(name: str) -> Any:
    if name == "ImageOrder":  # until the next release
        warnings.warn("ImageOrder is named EpochSampler now", DeprecationWarning, stacklevel=2)
        return EpochSampler
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
