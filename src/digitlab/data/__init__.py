"""Data sets of 28x28 greyscale images in ten classes, whole in memory, verified before use."""

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
