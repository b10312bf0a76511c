"""The in-memory loader: a split lives on the device as uint8, and is normalized by the batch."""

import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from digitlab.batches import Batch, Block


def run_seed() -> int:
    """The run's seed: `seed_everything`'s, or torch's own where that was not called."""
    # Lightning keeps the seed there, and the processes of DDP inherit it.
    return int(os.environ.get("PL_GLOBAL_SEED", torch.initial_seed()))


@dataclass
class EpochSampler:
    """Which images a process serves in an epoch, and in which order: a function of these fields.

    Rank r of W takes every W-th image of the epoch's order, from the r-th on. So the batches that
    all ranks serve at a step are, together, the batch of one process with W times the batch size.

    Args:
        images: Number of images in the split, on all ranks together.
        seed: Seed of the shuffled orders, at least 0.
        shuffle: Whether each epoch has a random order; otherwise it is the data set's.
        pad: Whether ranks get equally many images, by starting the order over at its end. Training
            needs it, for ranks step together. Evaluation must not, or images would count twice.
        rank: This process, from 0 to `world_size` - 1.
        world_size: Number of processes that share the images.
        epoch: The epoch, from 0.

    Examples:
        >>> ImageOrder(5, pad=True, rank=1, world_size=2).indices().tolist()
        [1, 3, 0]
        >>> ImageOrder(5, rank=1, world_size=2).indices().tolist()
        [1, 3]
    """

    images: int
    seed: int = 0
    shuffle: bool = False
    pad: bool = False
    rank: int = 0
    world_size: int = 1
    epoch: int = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch; Lightning calls this before each."""
        self.epoch = epoch

    def __len__(self) -> int:
        total = self._padded() if self.pad else self.images
        return len(range(self.rank, total, self.world_size))  # a slice's length

    def indices(self) -> NDArray[np.int64]:
        """The images of this rank in this epoch, int64 `(len(self),)`, values below `images`."""
        if self.shuffle:
            order = np.random.default_rng([self.seed, self.epoch]).permutation(self.images)
        else:
            order = np.arange(self.images)
        if self.pad:
            order = np.resize(order, self._padded())  # repeats the order from its start
        return order[self.rank :: self.world_size]

    def _padded(self) -> int:
        return -(-self.images // self.world_size) * self.world_size


class ImageLoader:
    """Serves a split in normalized batches, and knows where it is.

    The images stay on `device` as uint8; a batch is gathered and normalized there. The arithmetic
    is that of torchvision's `ToTensor` and `Normalize`, bit for bit. No partial batch is dropped.

    Each iteration serves the whole epoch that `sampler` is set to. Lightning sets it; in a loop of
    your own call `loader.sampler.set_epoch(epoch)` before each epoch, as with torch's
    `DistributedSampler`, or all epochs have the same order. The first iteration after
    `load_state_dict` goes on with the batch after the last one that was served.

    Args:
        images: uint8 `(N, 28, 28)`.
        labels: int64 `(N,)`, from 0 to 9.
        sampler: Chooses the images of this process; the name is the one that Lightning looks for.
        batch_size: Images in a batch of this process, at least 1.
        mean_std: Mean and standard deviation to normalize with, of pixels from 0 to 1.
            `None` leaves them from 0 to 1.
        device: Where the images live and the batches are made.
        steps_per_execution: Batches to hand over at once, at least 1. Above 1, a `Block` of them
            is served, gathered and normalized together.
        limit: Batches to serve in an epoch at most; `None` for all.
        steps_left: Tells how many batches are still wanted, whenever some are handed over.

    Examples:
        >>> images, labels = np.zeros((5, 28, 28), np.uint8), np.arange(5)
        >>> loader = ImageLoader(images, labels, ImageOrder(5), batch_size=2)
        >>> [labels.tolist() for _, labels in loader]
        [[0, 1], [2, 3], [4]]
        >>> blocks = ImageLoader(images, labels, ImageOrder(5), 2, steps_per_execution=2)
        >>> [[labels.tolist() for _, labels in block.batches()] for block in blocks]
        [[[0, 1], [2, 3]], [[4]]]
    """

    batch_sampler = None  # Lightning reads it from every evaluation loader that has a `sampler`

    def __init__(
        self,
        images: NDArray[np.uint8],
        labels: NDArray[np.int64],
        sampler: EpochSampler,
        batch_size: int,
        mean_std: tuple[float, float] | None = None,
        device: torch.device | str = "cpu",
        steps_per_execution: int = 1,
        limit: int | None = None,
        steps_left: Callable[[], float] = lambda: math.inf,
    ) -> None:
        self.sampler = sampler
        self.batch_size = batch_size
        self.steps_per_execution = steps_per_execution
        self._limit = limit
        self._steps_left = steps_left
        self._images = torch.as_tensor(images, device=device).unsqueeze(1)
        self._labels = torch.as_tensor(labels, device=device)
        # Tensors on the device, for CUDA multiplies by the reciprocal of a Python number, which
        # rounds differently from the division on the CPU.
        self._white = torch.tensor([255.0], device=device)
        self._mean_std = mean_std and tuple(
            torch.tensor(value, device=device) for value in mean_std
        )
        self._served = (0, 0)  # the epoch and its number of batches handed out so far
        self._resuming = False

    @property
    def batches(self) -> int:
        """Number of batches that this process serves in an epoch."""
        whole = -(-len(self.sampler) // self.batch_size)
        return whole if self._limit is None else min(whole, self._limit)

    def __len__(self) -> int:
        """Number of times that this process serves something in an epoch."""
        return -(-self.batches // self.steps_per_execution)

    def __iter__(self) -> Iterator[Any]:
        """Yield batches, or blocks of several: an `Iterator[Batch]` or `Iterator[Block]`."""
        # Being a generator, this starts at the first `next`: Lightning calls `iter` several times
        # before it restores the position and sets the epoch.
        first = self.state_dict()["batches"] if self._resuming else 0
        self._resuming = False
        epoch = self.sampler.epoch
        indices = torch.from_numpy(self.sampler.indices()).to(self._labels.device)
        batches = self.batches
        steps_left = self._steps_left
        size = self.steps_per_execution
        # A block that `max_steps` cut short is followed by its rest.
        while (count := int(min(size - first % size, batches - first, steps_left()))) > 0:
            end = first + count
            # Counted before `yield`, so that a checkpoint written in this step includes its batch.
            self._served = (epoch, end)
            images, labels = self._gather(indices[first * self.batch_size : end * self.batch_size])
            block = self.steps_per_execution > 1
            yield Block(images, labels, self.batch_size) if block else (images, labels)
            first = end

    def _gather(self, indices: Tensor) -> Batch:
        images = self._images.index_select(0, indices).to(torch.float32).div_(self._white)
        if self._mean_std:
            mean, std = self._mean_std
            images.sub_(mean).div_(std)
        return images, self._labels.index_select(0, indices)

    def state_dict(self) -> dict[str, int]:
        """The position, `epoch` and `batches` handed out in it, and what gives it its meaning."""
        epoch, batches = self._served
        return {
            "epoch": self.sampler.epoch,
            "batches": batches if epoch == self.sampler.epoch else 0,
            **self._meaning(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to the position that `state_dict` returned; the next iteration starts there.

        Raises:
            ValueError: The position is that of another order: other images, seed, batch size or
                number of processes.
        """
        for name, ours in self._meaning().items():
            if state[name] != ours:
                raise ValueError(
                    f"{name} is {ours}, but the checkpoint was written with {name} {state[name]}: "
                    "resume with that value, or start a new run from its weights"
                )
        self.sampler.set_epoch(state["epoch"])
        self._served = (state["epoch"], state["batches"])
        self._resuming = True

    def _meaning(self) -> dict[str, int]:
        order = self.sampler
        return {
            "images": order.images,
            "seed": order.seed,
            "world_size": order.world_size,
            "batch_size": self.batch_size,
            "steps_per_execution": self.steps_per_execution,
        }
