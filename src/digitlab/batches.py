"""A batch, and a block of several batches: the output of loaders and input of training."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

Batch = tuple[Tensor, Tensor]
"""Images, float32 `(N, 1, 28, 28)`, and labels, int64 `(N,)`."""


class Block(NamedTuple):
    """Several batches in two tensors, served at once for several optimizer steps.

    Two tensors, because Lightning inspects each tensor that it receives.

    Attributes:
        images: float32 `(N, 1, 28, 28)` of all batches.
        labels: int64 `(N,)`.
        batch_size: Images in a batch; the last may have fewer.

    Examples:
        >>> block = Block(torch.zeros(5, 1, 28, 28), torch.arange(5), batch_size=2)
        >>> [labels.tolist() for _, labels in block.batches()]
        [[0, 1], [2, 3], [4]]
    """

    images: Tensor
    labels: Tensor
    batch_size: int

    def batches(self) -> Iterator[Batch]:
        """Split the block into its batches, which are views."""
        split = (torch.split(tensor, self.batch_size) for tensor in (self.images, self.labels))
        return zip(*split, strict=True)
