"""Random changes of training images, the same ones wherever and however a run is resumed."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from digitlab.errors import check_at_least


@dataclass(frozen=True)
class Augmentation:
    """Random changes of each training image, new ones in each epoch.

    They depend on the run's seed, the epoch and the image alone: not on the batch size, the number
    of ranks, `steps_per_execution`, the framework, or where a run was resumed. No image is changed
    in an evaluation.

    Args:
        shift: Largest shift in pixels, up or down and left or right, at least 0 and less than the
            image's side. What is uncovered is black.
        flip: Mirror an image left to right, with probability 0.5.
        erase: Probability that a rectangle is made black, from 0 to 1. Each of its sides is from an
            eighth to a half of the image's.

    Raises:
        ValueError: A value is out of range.

    Reference:
        Zhong, Zheng, Kang, Li and Yang, "Random erasing data augmentation", arXiv 1708.04896, 2017;
        there the rectangle has 2% to 40% of the area, and random values.
    """

    shift: int = 0
    flip: bool = False
    erase: float = 0.0

    def __post_init__(self) -> None:
        check_at_least(0, **{"augmentation.shift": self.shift})
        if not 0 <= self.erase <= 1:
            raise ValueError(f"augmentation.erase is {self.erase}: it must be from 0 to 1")

    def draw(self, images: int, size: int, seed: int, epoch: int) -> Tensor:
        """Draw what happens to each image in an epoch.

        Returns:
            int64 `(images, 7)`: the first row and column of the image in its padded self, whether
            it is mirrored, and the erased rows and columns, each from and to without the end.
        """
        chance = np.random.default_rng([seed, epoch, 1]).random((images, 8)).T
        corner = np.floor(chance[:2] * (2 * self.shift + 1))
        mirrored = chance[2] < 0.5 * self.flip
        least, most = size // 8, size // 2
        sides = (least + np.floor(chance[3:5] * (most - least + 1))) * (chance[5] < self.erase)
        first = np.floor(chance[6:] * (size - sides + 1))
        values = np.vstack(
            [corner, mirrored, first[0], first[0] + sides[0], first[1], first[1] + sides[1]]
        )
        return torch.from_numpy(values.T.astype(np.int64))

    def apply(self, images: Tensor, drawn: Tensor) -> Tensor:
        """Change images, uint8 `(N, 1, S, S)`, as it was drawn for each, `(N, 7)`."""
        top, left, mirrored, *erased = drawn.T
        if self.shift:
            windows = pad(images[:, 0], [self.shift] * 4).unfold(1, size := images.shape[-1], 1)
            each = torch.arange(len(images), device=images.device)
            images = windows.unfold(2, size, 1)[each, top, left].unsqueeze(1)
        if self.flip:
            images = torch.where(mirrored.bool()[:, None, None, None], images.flip(-1), images)
        if self.erase:
            place = torch.arange(images.shape[-1], device=images.device)
            from_row, to_row, from_column, to_column = (it[:, None] for it in erased)
            rows = (place >= from_row) & (place < to_row)
            columns = (place >= from_column) & (place < to_column)
            images = images.masked_fill((rows[:, :, None] & columns[:, None, :])[:, None], 0)
        return images
