"""A folder of one's own image files, with a folder for each class."""

import math
import os
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from digitlab.data.datamodule import ImageDataModule, stratified_split
from digitlab.data.download import Arrays, Split
from digitlab.data.photographs import FORMATS, PreparedImage, open_image
from digitlab.errors import check_at_least
from digitlab.files import expand_path
from digitlab.terminal import printable

Resize = Literal["stretch", "pad", "crop", "refuse"]

_ANNOUNCED = 2**28  # bytes of images; reading more takes a minute or so


class ImageFolderDataModule(ImageDataModule):
    """Image files in a folder for each class: `folder/cat/1.png`, `folder/dog/a/2.jpg`.

    Classes are named after their folders, and both are in the order of their names. If `folder` has
    folders `train` and `test` with the classes' folders in them, these are the splits. Without
    `test`, a stratified part of all images is the test split.

    Images become grey: PNG, JPEG, TIFF, BMP, GIF, WebP and PGM, upright by their EXIF data, white
    where they are transparent. Other files, and those whose names start with a dot, are ignored.
    Custom images are prepared in the same way. All images are kept in memory, a byte for a pixel.

    Args:
        folder: The folder of the classes, or of `train` and `test`.
        size: Pixels of an image's side, at least 1. The documents' networks take 28 only.
        resize: What to do with an image of another size: `stretch` changes its sides' ratio; `pad`
            keeps it and adds a margin in the tone of the border; `crop` keeps it and cuts off what
            is too long; `refuse` ends with an error that names the file.
        test_share: Part of the images that is the test split if there is no folder `test`, between
            0 and 1. Each class needs images for both parts: at least 5 for 0.2.
        test_seed: Chooses these images, at least 0. It is separate from the run's seed, so that
            runs with several seeds have one test split.
        **kwargs: See `ImageDataModule`.

    Raises:
        ValueError: There is no such folder, it has fewer than two classes or a class without
            images, or a setting is out of range. `setup` raises it for a file that cannot be read.
    """

    def __init__(
        self,
        folder: str,
        size: int = 28,
        resize: Resize = "stretch",
        test_share: float = 0.2,
        test_seed: int = 0,
        **kwargs: Any,
    ) -> None:
        self.image_size = size  # before the base compares shifts with it
        super().__init__(**kwargs)
        check_at_least(1, size=size)
        check_at_least(0, test_seed=test_seed)
        if not 0 < test_share < 1:
            raise ValueError(f"test_share is {test_share}: it must be between 0 and 1")
        self.folder = folder
        self.resize: Resize = resize
        self.test_share = test_share
        self.test_seed = test_seed
        root = expand_path(folder)
        self._paths = _find_splits(root)
        self.class_names = tuple(self._paths["train"])
        self.name = re.sub(r"\W+", "_", root.resolve().name)[:100].strip("_").lower() or "folder"

    def prepare_image(self, image: Image.Image) -> PreparedImage:
        """Prepare an image, of mode `L`, as those of the folder are.

        Raises:
            ValueError: It has another size, and `resize` is `refuse`.
        """
        side = self.image_size
        if image.size == (side, side):
            return PreparedImage(np.asarray(image), ("left as it is",))
        if self.resize == "refuse":
            width, height = image.size
            raise ValueError(
                f"it has {width}x{height} pixels, not {side}x{side}: set resize to stretch, pad or "
                "crop, or leave it out"
            )
        done, scale = _RESIZE[self.resize]
        return PreparedImage(np.asarray(scale(image, side)), (f"{done} to {side}x{side}",))

    def read(self, split: Split) -> Arrays:
        """Read a split: the files in the order of their classes and paths.

        Raises:
            ValueError: A file cannot be read, a class has too few images for a test split, or the
                images need more than the machine's memory.
        """
        given = self._paths.get(split, self._paths["train"])
        paths = [path for name in self.class_names for path in given.get(name, ())]
        counts = [len(given.get(name, ())) for name in self.class_names]
        labels = np.repeat(np.arange(len(counts)), counts)
        if "test" not in self._paths:
            self._check_counts(counts)
            number = math.ceil(self.test_share * len(labels) - 1e-9)
            chosen = stratified_split(labels, number, self.test_seed)[split == "test"]
            paths, labels = [paths[i] for i in chosen], labels[chosen]
        return self._read_files(paths), labels

    def _check_counts(self, counts: list[int]) -> None:
        least = math.ceil(1 / min(self.test_share, 1 - self.test_share) - 1e-9)
        few = counts.index(min(counts))
        if counts[few] < least:
            raise ValueError(
                f"{self.folder}: class {self.class_names[few]} has {counts[few]} of the {least} "
                f"images that test_share {self.test_share} needs: add images, or make folders "
                "train and test"
            )

    def _read_files(self, paths: list[str]) -> NDArray[np.uint8]:
        side = self.image_size
        size, memory = len(paths) * side**2, _memory()
        need = f"{len(paths):,} images of {side}x{side} pixels take {size / 1e9:.1f} GB of memory"
        if size > memory:
            raise ValueError(
                f"{self.folder}: {need}, and this machine has {memory / 1e9:.1f}: give a smaller "
                "size, or fewer images"
            )
        if size > _ANNOUNCED:
            print(f"Reading {printable(self.folder)}: {need}", flush=True)
        images = np.empty((len(paths), side, side), np.uint8)
        for image, path in zip(images, paths, strict=True):
            try:
                image[:] = self.prepare_image(open_image(Path(path))[0]).pixels
            except (ValueError, OSError) as error:
                reason = getattr(error, "strerror", None) or error
                raise ValueError(f"{path}: {reason}") from error
        return images


def _find_splits(root: Path) -> dict[Split, dict[str, list[str]]]:
    """List the image files of each class of `train`, and of `test` if there is such a folder."""
    if not root.is_dir():
        raise ValueError(
            f"folder is {root}: there is no folder {root.absolute()}; set --data.folder to where "
            "the images are"
        )
    inner = [it.name for it in _visible(root) if it.is_dir()]
    if "train" not in inner or not any(it.is_dir() for it in _visible(root / "train")):
        return {"train": _find_classes(root)}
    if others := [name for name in inner if name not in ("train", "test")]:
        raise ValueError(
            f"{root / others[0]}: beside train there can be test only; move it elsewhere, or into "
            "train, and hold images out by validation_size"
        )
    splits: list[Split] = ["train", "test"] if "test" in inner else ["train"]
    found = {split: _find_classes(root / split) for split in splits}
    if unknown := [name for name in found.get("test", ()) if name not in found["train"]]:
        raise ValueError(f"{root / 'test' / unknown[0]}: there is no such class in train")
    return found


def _find_classes(root: Path) -> dict[str, list[str]]:
    # A name that is not UTF-8 could not be written to config.yaml.
    folders = [it for it in _visible(root) if it.is_dir()]
    names = [os.fsencode(it.name).decode("utf-8", "backslashreplace") for it in folders]
    classes = {name: _find_images(it.path) for name, it in zip(names, folders, strict=True)}
    if len(classes) < 2:
        found = f"one class, {next(iter(classes))}" if classes else "no folders of classes"
        raise ValueError(
            f"{root} has {found}: give at least two folders with images, such as {root}/cat/1.png "
            f"and {root}/dog/1.png"
        )
    if empty := [name for name, paths in classes.items() if not paths]:
        raise ValueError(
            f"{root / empty[0]} has no images: add {', '.join(FORMATS)} files, or remove the folder"
        )
    return classes


def _find_images(folder: str | Path) -> list[str]:
    paths: list[str] = []
    for it in _visible(folder):
        if it.is_dir():
            paths += _find_images(it.path)
        elif os.path.splitext(it.name)[1].lower() in _endings():
            paths.append(it.path)
    return paths


def _visible(folder: str | Path) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        return sorted((it for it in entries if it.name[0] != "."), key=lambda it: it.name)


@cache
def _endings() -> set[str]:
    return {ending for ending, kind in Image.registered_extensions().items() if kind in FORMATS}


def _memory() -> float:
    """Return the bytes of the machine's memory, infinity where that is not known."""
    try:
        return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (AttributeError, ValueError, OSError):  # Windows
        return float("inf")


def _pad(image: Image.Image, side: int) -> Image.Image:
    grey = np.asarray(image)
    border = np.concatenate([grey[0], grey[-1], grey[:, 0], grey[:, -1]])
    return ImageOps.pad(image, (side, side), _FILTER, color=int(np.median(border)))


_FILTER = Image.Resampling.BILINEAR  # computes with whole numbers, alike on every machine
_RESIZE: dict[str, tuple[str, Callable[[Image.Image, int], Image.Image]]] = {
    "stretch": ("stretched", lambda image, side: image.resize((side, side), _FILTER)),
    "pad": ("padded", _pad),
    "crop": ("cropped", lambda image, side: ImageOps.fit(image, (side, side), _FILTER)),
}
