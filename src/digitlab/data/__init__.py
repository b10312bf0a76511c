"""Data sets of 28x28 greyscale images in ten classes, whole in memory, verified before use."""

from digitlab.data.base import ImageDataModule
from digitlab.data.datamodules import DigitsDataModule, FashionMNISTDataModule, MNISTDataModule
from digitlab.data.loader import ImageLoader, ImageOrder

__all__ = [
    "DigitsDataModule",
    "FashionMNISTDataModule",
    "ImageDataModule",
    "ImageLoader",
    "ImageOrder",
    "MNISTDataModule",
]
