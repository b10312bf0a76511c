"""The base of all data modules: reads and splits images, and serves them in batches."""

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from inspect import getattr_static
from numbers import Real
from typing import Any, Literal

import numpy as np
from lightning import LightningDataModule
from numpy.typing import NDArray
from PIL.Image import Image, Resampling, fromarray

from digitlab.data.augmentation import Augmentation
from digitlab.data.download import Arrays, Split, Verified, sha256
from digitlab.data.loader import EpochSampler, ImageLoader, run_seed
from digitlab.data.photographs import PreparedImage, prepare_digit
from digitlab.errors import check_at_least

Subset = Literal["train", "validation", "test"]
"""The images of a loader; `validation` is part of the training split, or the test split."""

_STAGES: dict[str | None, tuple[Subset, ...]] = {
    "fit": ("train", "validation"),
    "validate": ("validation",),
    "test": ("test",),
    "predict": ("test",),
}


class ImageDataModule(LightningDataModule, ABC):
    """A data set of square grey images, held in memory and normalized batch by batch.

    Batches are tuples of images, float32 `(N, 1, S, S)`, and labels, int64 `(N,)`. S is 28, or the
    class's `image_size`. A model whose `steps_per_execution` is more than 1 gets blocks of several
    batches in training. The order of the training images depends on `seed_everything`'s seed and
    the epoch alone. The last batch of an epoch is served even if it is smaller. Under DDP each
    image is evaluated exactly once.

    Without a trainer, loaders and `arrays` need no preparation: they read the files they need.

    Args:
        batch_size: Training images per step and process, at least 1. 32 is Keras's default.
        eval_batch_size: Images per step and process in evaluation, at least 1. It affects results
            by rounding only; 1000 divides the common test splits.
        normalization: `unit` scales pixels to 0..1, `symmetric` to -1..1, and `standard` to mean 0
            and standard deviation 1 over the training images. Most documents use `unit`.
        validation_size: Training images to hold out for validation, the same share of each class.
            0 validates on the test split, as published figures do. Use a hold-out to choose
            between models: training then never reads the test split.
        validation_seed: Chooses the images that are held out, at least 0. It is separate from the
            run's seed, so that a run started from another run's weights is never validated on
            images that those weights were trained on.
        train_images: Range of training images to use, first and end, without the end; the hold-out
            is taken from it. `[5000, 60000]` are the last 55,000 of MNIST. Unset: all.
        augmentation: Random changes of the training images, `shift`, `flip` and `erase`. Unset:
            none.
        digests: SHA-256 of the images and the labels of each split; others are refused. Leave it
            out: a run records them in config.yaml where the class does not know them, so that the
            run is resumed and evaluated with the same images.

    Raises:
        ValueError: A value is out of range.
    """

    class_names: tuple[str, ...] = tuple("0123456789")
    """A name for each class, in the order of the labels; as many as there are classes. A list of
    texts or numbers is taken too."""
    image_size: int = 28
    """Pixels of an image's side."""
    mean_std: tuple[float, float] | None = None
    """Mean and standard deviation of the training split's pixels, from 0 to 1, for `standard`.
    Without it they are computed from the training images."""

    def __init__(
        self,
        batch_size: int = 32,
        eval_batch_size: int = 1000,
        normalization: Literal["unit", "symmetric", "standard"] = "unit",
        validation_size: int = 0,
        validation_seed: int = 0,
        train_images: tuple[int, int] | None = None,
        augmentation: Augmentation | None = None,
        digests: dict[Split, tuple[str, str]] | None = None,
    ) -> None:
        super().__init__()
        check_at_least(1, batch_size=batch_size, eval_batch_size=eval_batch_size)
        check_at_least(0, validation_size=validation_size, validation_seed=validation_seed)
        first, end = train_images or (0, 1)
        if not 0 <= first < end:
            raise ValueError(
                f"train_images is {[first, end]}: the first must be at least 0 "
                "and the end greater than the first"
            )
        given: Any = augmentation  # in Python also a dict, as a config has it
        augmentation = Augmentation(**given) if isinstance(given, dict) else given
        if augmentation and augmentation.shift >= self.image_size:
            raise ValueError(
                f"augmentation.shift is {augmentation.shift}: it must be less than "
                f"{self.image_size}, the pixels of an image's side"
            )
        # Paths depend on the machine.
        self.save_hyperparameters(ignore=["root", "folder", "digests", "augmentation"])
        if augmentation:  # as text, since checkpoints hold plain values
            self.save_hyperparameters({"augmentation": str(augmentation)})
        for own in ("name", "class_names"):
            if not isinstance(getattr_static(self, own), property):
                setattr(self, own, getattr(self, own))  # checks it
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.normalization = normalization
        self.validation_size = validation_size
        self.validation_seed = validation_seed
        self.train_images = train_images
        self.augmentation = augmentation
        self.given_digests = digests or {}
        self.digests_read: dict[Split, tuple[str, str]] = {}
        self.verified: dict[Split, Verified] = {}
        self._subsets: dict[Subset, Arrays] = {}

    def __setattr__(self, name: str, value: Any) -> None:
        """Check names of the data set and of its classes."""
        check = {"name": _check_name, "class_names": _check_class_names}.get(name)
        super().__setattr__(name, check(type(self).__name__, value) if check else value)

    def __str__(self) -> str:
        """Name the data set; Lightning's own would read, or download, all images."""
        return f"{type(self).__name__}, {self.name}: normalization {self.normalization}"

    @property
    def validation_split(self) -> Literal["validation", "test"]:
        """Where validation images come from: the hold-out, or the test split if there is none."""
        return "validation" if self.validation_size else "test"

    @property
    def validation_is_test(self) -> bool:
        """Whether validation scores are of the test split; screen, curves and report say so."""
        return self.validation_split == "test"

    @property
    def verification(self) -> str:
        """How surely the images read so far are the published ones; empty before."""
        return max(self.verified.values(), default="")  # in the order of the alphabet

    @abstractmethod
    def read(self, split: Split) -> Arrays:
        """Read a whole split: images, uint8 `(N, S, S)`, and labels, int64 `(N,)`.

        Every call must return the same images in the same order: the hold-out, the training order
        and exact resume refer to images by position.
        """

    def prepare_image(self, image: Image) -> PreparedImage:
        """Prepare a custom image, of mode `L`, like the data set's; by default as MNIST's were.

        Raises:
            ValueError: It is blank.
        """
        prepared, side = prepare_digit(image), self.image_size
        if side == len(prepared.pixels):
            return prepared
        scaled = fromarray(prepared.pixels).resize((side, side), Resampling.BILINEAR)
        return PreparedImage(np.asarray(scaled), (*prepared.steps, f"resized to {side}x{side}"))

    def prepare_data(self) -> None:
        """Download and check the files that the coming stage needs, or all without a trainer."""
        fn = self.trainer.state.fn if self.trainer else None
        self.setup(fn.value if fn else None)

    def setup(self, stage: str | None = None) -> None:
        """Read and check the files that a stage needs, in every process.

        Raises:
            OSError: Files are missing and cannot be downloaded.
            ValueError: A file is damaged, or the training split is too small for `train_images` or
                `validation_size`.
        """
        for subset in _STAGES.get(stage, ("train", "validation", "test")):
            self._subset(subset)

    def arrays(self, split: Subset) -> Arrays:
        """Copy the images that a loader serves, before normalization, for other frameworks.

        Args:
            split: `train` is without the hold-out, and within `train_images`; `validation` is the
                hold-out, or the test split if there is none.

        Returns:
            Images, uint8 `(N, S, S)`, and labels, int64 `(N,)`, in the data set's order.
        """
        images, labels = self._subset(split)
        return images.copy(), labels.copy()

    def size(self, split: Subset) -> int:
        """Count the images that `arrays` returns, without copying them."""
        return len(self._subset(split)[1])

    def _subset(self, split: Subset) -> Arrays:
        if split == "validation":
            split = self.validation_split
        if split not in self._subsets:
            is_test = split == "test"
            self._subsets |= {"test": self._read("test")} if is_test else self._split_train()
        return self._subsets[split]

    def _split_train(self) -> dict[Subset, Arrays]:
        """Read the training split and take the hold-out from it, if one is wanted."""
        images, labels = self._read("train")
        first, end = self.train_images or (0, len(labels))
        if end > len(labels):
            raise ValueError(
                f"train_images is {[first, end]}: the end must be at most {len(labels)}, "
                "the number of training images"
            )
        images, labels = images[first:end], labels[first:end]
        if not self.validation_size:
            return {"train": (images, labels)}
        try:
            parts = stratified_split(labels, self.validation_size, self.validation_seed)
        except ValueError as error:
            raise ValueError(
                f"validation_size is {self.validation_size}: both parts of the {len(labels)} "
                f"training images must have some of each class ({error})"
            ) from error
        train, validation = ((images[part], labels[part]) for part in parts)
        return {"train": train, "validation": validation}

    def _read(self, split: Split) -> Arrays:
        """Read a split, and check the arrays that a subclass's `read` returned."""
        where = f"{type(self).__name__}.read({split!r})"
        try:
            arrays = self.read(split)
        except RuntimeError as error:  # torchvision's, if there are no files
            raise ValueError(f"{where}: {' '.join(str(error).split())}") from error
        if not isinstance(arrays, tuple | list) or len(arrays) != 2:
            raise ValueError(
                f"{where} returns {type(arrays).__name__}: it must return two NumPy arrays, the "
                "images and the labels"
            )
        images, labels = arrays
        fault, classes, side = None, len(self.class_names), self.image_size
        count = len(images) if isinstance(images, np.ndarray) and images.ndim else 0
        if not count or _describe(images) != f"uint8 ({count}, {side}, {side})":
            fault = (
                f"the images are {_describe(images)}: they must be a NumPy array of pixels from 0 "
                f"to 255, uint8 (N, {side}, {side}), and at least one"
            )
        elif _describe(labels) != f"int64 ({count},)":
            fault = (
                f"the labels are {_describe(labels)}: they must be a NumPy array with one for each "
                f"image, int64 ({count},)"
            )
        elif labels.min() < 0 or labels.max() >= classes:
            fault = (
                f"the labels are from {labels.min()} to {labels.max()}: they must be from 0 to "
                f"{classes - 1}, the positions in class_names"
            )
        if fault:
            raise ValueError(f"{where}: {fault}")
        self._compare_digests(split, images, labels)
        return images, labels

    def _compare_digests(
        self, split: Split, images: NDArray[np.uint8], labels: NDArray[np.int64]
    ) -> None:
        how, given = self.verified.setdefault(split, "not verified"), self.given_digests.get(split)
        if how == "SHA-256 verified" and not given:
            return
        self.digests_read[split] = sha256(images), sha256(labels)
        if given and self.digests_read[split] != tuple(given):
            raise ValueError(
                f"{self.name}: the {split} images or labels are not those of data.digests, which "
                "a run records when it starts: restore the files, or start a new run without "
                "data.digests"
            )

    def train_dataloader(self) -> ImageLoader:
        """Serve the training images, in a new order each epoch."""
        trainer = self.trainer
        options: dict[str, Any] = {"augmentation": self.augmentation}
        steps = getattr(trainer and trainer.lightning_module, "steps_per_execution", 1)
        if trainer and steps > 1:  # otherwise Lightning itself stops after the right batch
            limit = trainer.limit_train_batches
            options |= {
                "steps_per_execution": steps,
                "limit": limit if isinstance(limit, int) else None,
                "steps_left": self._steps_left,
            }
        # `overfit_batches` asks for the same few batches in every epoch.
        shuffle = not getattr(trainer, "overfit_batches", 0)
        return self._loader("train", self.batch_size, shuffle=shuffle, pad=True, **options)

    def _steps_left(self) -> float:
        """Return how many more optimizer steps the trainer wants."""
        if (trainer := self.trainer) and trainer.max_steps >= 0:
            return trainer.max_steps - trainer.global_step
        return math.inf

    def __getstate__(self) -> dict[str, Any]:
        """Leave the trainer behind when pickled or copied, as a `LightningModule` does."""
        return {**vars(self), "trainer": None}

    def train_eval_dataloader(self) -> ImageLoader:
        """Serve the training images, each once and in the data set's order, for an evaluation."""
        return self._loader("train", self.eval_batch_size)

    def val_dataloader(self) -> ImageLoader:
        """Serve the hold-out, or the test split if `validation_size` is 0."""
        return self._loader("validation", self.eval_batch_size)

    def test_dataloader(self) -> ImageLoader:
        """Serve the test split."""
        return self._loader("test", self.eval_batch_size)

    predict_dataloader = test_dataloader

    def image_loader(self, images: NDArray[np.uint8]) -> ImageLoader:
        """Serve custom images, uint8 `(N, S, S)`, normalized as the test split; labels are 0."""
        labels, order = np.zeros(len(images), np.int64), EpochSampler(len(images))
        return ImageLoader(images, labels, order, self.eval_batch_size, self.mean_and_std())

    def _loader(
        self,
        split: Subset,
        batch_size: int,
        shuffle: bool = False,
        pad: bool = False,
        **options: Any,
    ) -> ImageLoader:
        images, labels = self._subset(split)
        trainer = self.trainer
        rank, world_size = (trainer.global_rank, trainer.world_size) if trainer else (0, 1)
        sampler = EpochSampler(len(labels), run_seed(), shuffle, pad, rank, world_size)
        device = trainer.strategy.root_device if trainer else "cpu"
        return ImageLoader(
            images, labels, sampler, batch_size, self.mean_and_std(), device, **options
        )

    def mean_and_std(self) -> tuple[float, float] | None:
        """Return what pixels from 0 to 1 are normalized with; None if they stay as they are."""
        if self.normalization == "standard":
            return self.mean_std or self._measured
        return {"unit": None, "symmetric": (0.5, 0.5)}[self.normalization]

    @cached_property
    def _measured(self) -> tuple[float, float]:
        """Mean and standard deviation of the training pixels, from 0 to 1."""
        images = self._subset("train")[0]
        parts = np.array_split(images, len(images) // 10_000 + 1)  # their squares take memory
        squares = sum(int(np.square(part, dtype=np.uint16).sum(dtype=np.int64)) for part in parts)
        mean = int(images.sum(dtype=np.int64)) / images.size
        return mean / 255, math.sqrt(squares / images.size - mean**2) / 255 or 1.0


def stratified_split(
    labels: NDArray[np.int64], size: int, seed: int = 0
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Choose `size` positions, from each class its share, at random.

    Returns:
        The positions of the rest and the chosen ones, int64, each ascending.
    """
    from sklearn.model_selection import train_test_split  # takes a second to import

    positions = np.arange(len(labels))
    rest, chosen = train_test_split(positions, test_size=size, stratify=labels, random_state=seed)
    return np.sort(rest), np.sort(chosen)


def _check_name(owner: str, name: Any) -> str:
    name = name or (owner.removesuffix("DataModule") or owner).lower()
    if isinstance(name, str) and len(name) <= 100 and re.fullmatch(r"\w[\w.+-]*", name):
        return name
    raise ValueError(
        f"{owner}.name is {name!r}: it names folders, so give at most 100 letters, digits and "
        "_ . + -, a letter or a digit first"
    )


def _check_class_names(owner: str, names: Any) -> tuple[str, ...]:
    given = names.tolist() if isinstance(names, np.ndarray) else names
    known = isinstance(given, Sequence) and all(isinstance(name, str | Real) for name in given)
    if not known or not given:
        raise ValueError(
            f"{owner}.class_names is {names!r}: give a list of texts or numbers, one for each class"
        )
    return tuple(map(str, given))


def _describe(array: Any) -> str:
    return f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else type(array).__name__
