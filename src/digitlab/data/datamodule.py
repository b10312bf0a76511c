"""What every data module does: choose images, divide them, and serve them in batches."""

import math
from abc import ABC, abstractmethod
from typing import Any, ClassVar, Literal

import numpy as np
from lightning import LightningDataModule
from numpy.typing import NDArray
from PIL.Image import Image

from digitlab.data.download import Arrays, Split, check_arrays
from digitlab.data.loader import EpochSampler, ImageLoader, run_seed
from digitlab.data.photographs import Prepared

Subset = Literal["train", "validation", "test"]
"""What a loader serves; `validation` is part of the training split, or the test split."""


def divide(
    split: Arrays, train_images: tuple[int, int] | None, validation_size: int, validation_seed: int
) -> dict[Subset, Arrays]:
    """Divide the training split into what is trained on and, if wanted, the hold-out.

    Args:
        split: Images and labels of the whole split.
        train_images: As for `ImageDataModule`, like the others.
        validation_size: 0 for no hold-out.
        validation_seed: Chooses the images of the hold-out.

    Raises:
        ValueError: There are not images enough.
    """
    images, labels = split
    first, end = train_images or (0, len(labels))
    if end > len(labels):
        raise ValueError(
            f"train_images is {[first, end]}: the end must be at most {len(labels)}, "
            "the number of training images"
        )
    images, labels = images[first:end], labels[first:end]
    if not validation_size:
        return {"train": (images, labels)}
    try:
        train, validation = stratify(labels, validation_size, validation_seed)
    except ValueError as error:
        raise ValueError(
            f"validation_size is {validation_size}: both parts of the {len(labels)} "
            f"training images must have some of each class ({error})"
        ) from error
    return {
        "train": (images[train], labels[train]),
        "validation": (images[validation], labels[validation]),
    }


def stratify(
    labels: NDArray[np.int64], size: int, seed: int = 0
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Choose `size` positions, in each class its share; give the others and them, ascending."""
    from sklearn.model_selection import train_test_split

    positions = np.arange(len(labels))
    parts = train_test_split(positions, test_size=size, stratify=labels, random_state=seed)
    return np.sort(parts[0]), np.sort(parts[1])


_DIGIT_NAMES = ("0", "1", "2", "3", "4", "5", "6", "7", "8", "9")


class ImageDataModule(LightningDataModule, ABC):
    """A data set of 28x28 grey images, held in memory and normalized by the batch.

    Batches are tuples of images, float32 `(N, 1, 28, 28)`, and labels, int64 `(N,)`; a model with
    `steps_per_execution` above 1 is handed over blocks of several while it trains. The order of
    training images follows from `seed_everything`'s seed and the epoch alone. The last batch of an
    epoch is served even if it is smaller. Under DDP each image is evaluated exactly once.

    Without a trainer, loaders and `arrays` need no preparation: they read what they need.

    Args:
        batch_size: Training images per step and process, at least 1. 32 is Keras's default.
        eval_batch_size: Images per step and process in evaluation, at least 1. It has no influence
            on results but for rounding; 1000 divides the common test splits.
        normalization: `unit` scales pixels to 0..1, `symmetric` to -1..1, and `standard` to mean 0
            and standard deviation 1 over the training split. `unit` is what most documents use.
        validation_size: Training images to hold out for validation, equally many of each class as
            far as possible. 0 validates on the test split, as published figures do; choose models
            by a hold-out instead, and training never reads that split.
        validation_seed: Chooses the images that are held out, at least 0. It is apart from the
            run's seed, so that no run is validated on what another, whose weights it may go on
            from, was trained on.
        train_images: Range of training images to use, first and end, without the end; the hold-out
            is taken from it. `[5000, 60000]` are the last 55,000 of MNIST. Unset: all.

    Raises:
        ValueError: A value is out of its range.
    """

    class_names: ClassVar[tuple[str, ...]] = _DIGIT_NAMES
    """A name for each class, in the order of the labels; as many as there are classes."""
    mean_std: ClassVar[tuple[float, float] | None] = None
    """Mean and standard deviation of the training split's pixels, from 0 to 1, for `standard`."""

    def __init__(
        self,
        batch_size: int = 32,
        eval_batch_size: int = 1000,
        normalization: Literal["unit", "symmetric", "standard"] = "unit",
        validation_size: int = 0,
        validation_seed: int = 0,
        train_images: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        _check_at_least(1, batch_size=batch_size, eval_batch_size=eval_batch_size)
        _check_at_least(0, validation_size=validation_size, validation_seed=validation_seed)
        if normalization not in ("unit", "symmetric", "standard"):
            raise ValueError(
                f"normalization is {normalization!r}: it must be unit, symmetric or standard"
            )
        if normalization == "standard" and self.mean_std is None:
            raise ValueError(
                f"normalization is standard, but {type(self).__name__} has no mean_std: "
                "use unit or symmetric"
            )
        first, end = train_images or (0, 1)
        if not 0 <= first < end:
            raise ValueError(
                f"train_images is {[first, end]}: the first must be at least 0 "
                "and the end greater than the first"
            )
        # A path belongs to a machine, not to a result.
        self.save_hyperparameters(ignore="root")
        # The data set's name in run folders and tables; our classes have one.
        self.name = self.name or type(self).__name__.removesuffix("DataModule").lower()
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.normalization = normalization
        self.validation_size = validation_size
        self.validation_seed = validation_seed
        self.train_images = train_images
        self._subsets: dict[Subset, Arrays] = {}

    @property
    def validation_split(self) -> Literal["validation", "test"]:
        """What the run is validated on: the hold-out, or the test split where there is none."""
        return "validation" if self.validation_size else "test"

    @abstractmethod
    def read(self, split: Split) -> Arrays:
        """Read a whole split: images, uint8 `(N, 28, 28)`, and labels, int64 `(N,)`.

        It must give the same images in the same order whenever it is called: hold-out, order and
        the resumption of a run go by their places.
        """

    def prepare_image(self, image: Image) -> Prepared:
        """Make of an image of one's own, of mode `L`, one like the data set's; MNIST's way.

        Raises:
            ValueError: It is blank.
        """
        from digitlab.data.photographs import (
            prepare_digit,  # by SciPy, which others need not wait for
        )

        return prepare_digit(image)

    def prepare_data(self) -> None:
        """Download, unpack and check what the coming stage needs, or all without a trainer."""
        fn = self.trainer.state.fn if self.trainer else None
        self._read_for(fn.value if fn else None)

    def setup(self, stage: str | None = None) -> None:
        """Read and check what a stage needs, in every process.

        Raises:
            OSError: Files are missing and cannot be downloaded.
            ValueError: A file is damaged, or the training split is too small for `train_images` or
                `validation_size`.
        """
        self._read_for(stage)

    def _read_for(self, stage: str | None) -> None:
        needs: dict[str | None, tuple[Subset, ...]] = {
            "fit": ("train", "validation"),
            "validate": ("validation",),
            "test": ("test",),
            "predict": ("test",),
        }
        for split in needs.get(stage, ("train", "validation", "test")):
            self._subset(split)

    def arrays(self, split: Subset) -> Arrays:
        """Copy the images that a loader serves, before normalization, for other frameworks.

        Args:
            split: `train` is without the hold-out, and within `train_images`; `validation` is the
                hold-out, or the test split where there is none.

        Returns:
            Images, uint8 `(N, 28, 28)`, and labels, int64 `(N,)`, in the data set's order.
        """
        images, labels = self._subset(split)
        return images.copy(), labels.copy()

    def size(self, split: Subset) -> int:
        """Count the images that `arrays` gives, without copying them."""
        return len(self._subset(split)[1])

    def _subset(self, split: Subset) -> Arrays:
        if split == "validation":
            split = self.validation_split
        if split == "test" and split not in self._subsets:
            self._subsets["test"] = self._read("test")
        if split not in self._subsets:
            parts = (self.train_images, self.validation_size, self.validation_seed)
            self._subsets |= divide(self._read("train"), *parts)
        return self._subsets[split]

    def _read(self, split: Split) -> Arrays:
        arrays = self.read(split)
        try:
            check_arrays(arrays, len(self.class_names))
        except ValueError as error:
            raise ValueError(f"{type(self).__name__}.read({split!r}): {error}") from error
        return arrays

    def train_dataloader(self) -> ImageLoader:
        """Serve the training images, in a new order each epoch."""
        # `overfit_batches` means the same few batches in every epoch.
        shuffle = not getattr(self.trainer, "overfit_batches", 0)
        return self._loader("train", self.batch_size, shuffle=shuffle, pad=True, **self._blocks())

    def train_eval_dataloader(self) -> ImageLoader:
        """Serve the training images, each once and in the data set's order, for an evaluation."""
        return self._loader("train", self.eval_batch_size)

    def val_dataloader(self) -> ImageLoader:
        """Serve the hold-out, or the test split where `validation_size` is 0."""
        return self._loader("validation", self.eval_batch_size)

    def test_dataloader(self) -> ImageLoader:
        """Serve the test split."""
        return self._loader("test", self.eval_batch_size)

    def predict_dataloader(self) -> ImageLoader:
        """Serve the test split."""
        return self._loader("test", self.eval_batch_size)

    def image_loader(self, images: NDArray[np.uint8]) -> ImageLoader:
        """Serve images of one's own, uint8 `(N, 28, 28)`, as the test split's; all labels are 0."""
        labels = np.zeros(len(images), np.int64)
        order = EpochSampler(len(images))
        return ImageLoader(images, labels, order, self.eval_batch_size, self._scale())

    def _loader(
        self,
        split: Subset,
        batch_size: int,
        shuffle: bool = False,
        pad: bool = False,
        **blocks: Any,
    ) -> ImageLoader:
        images, labels = self._subset(split)
        trainer = self.trainer
        order = EpochSampler(
            images=len(labels),
            seed=run_seed(),
            shuffle=shuffle,
            pad=pad,
            rank=trainer.global_rank if trainer else 0,
            world_size=trainer.world_size if trainer else 1,
        )
        device = trainer.strategy.root_device if trainer else "cpu"
        return ImageLoader(images, labels, order, batch_size, self._scale(), device, **blocks)

    def _scale(self) -> tuple[float, float] | None:
        scale = {"unit": None, "symmetric": (0.5, 0.5), "standard": self.mean_std}
        return scale[self.normalization]

    def _blocks(self) -> dict[str, Any]:
        """Say how many batches a model that makes several steps at once is to be handed over."""
        trainer = self.trainer
        steps = getattr(trainer and trainer.lightning_module, "steps_per_execution", 1)
        if steps == 1 or trainer is None:
            return {}  # Lightning stops by itself after any batch
        limit, most = trainer.limit_train_batches, trainer.max_steps
        return {
            "steps_per_execution": steps,
            "limit": limit if isinstance(limit, int) else None,
            "steps_left": lambda: math.inf if most < 0 else most - trainer.global_step,
        }


def _check_at_least(least: int, **values: int) -> None:
    for name, value in values.items():
        if value < least:
            raise ValueError(f"{name} is {value}: it must be at least {least}")
