"""What a loader serves and a model takes: a batch, or a block of several."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

Batch = tuple[Tensor, Tensor]
"""Images, float32 `(N, 1, 28, 28)`, and labels, int64 `(N,)`."""


class Block(NamedTuple):
    """Several batches that are handed over at once, for several optimizer steps.

    Two tensors for all of them, since Lightning looks at each tensor that it is handed.

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
        """Give the batches, which are views."""
        split = (torch.split(tensor, self.batch_size) for tensor in (self.images, self.labels))
        return zip(*split, strict=True)
