"""Data sets of square grey images, whole in memory, and what of them is verified."""

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
