"""The training split divided into what is trained on and the hold-out."""

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from digitlab.data.reading import Arrays

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
