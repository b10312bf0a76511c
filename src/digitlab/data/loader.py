"""The in-memory loader: images stay on the device as uint8 and are normalized batch by batch."""

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
from digitlab.data.augmentation import Augmentation


def run_seed() -> int:
    """The run's seed: `seed_everything`'s, or torch's own if that was not called."""
    # Lightning keeps the seed there, and the ranks of DDP inherit it.
    return int(os.environ.get("PL_GLOBAL_SEED", torch.initial_seed()))


@dataclass
class EpochSampler:
    """The images that a rank serves in an epoch, in order: a function of these fields alone.

    Rank r of W takes every W-th image of the epoch's order, starting at the r-th. The batches of
    all ranks at one step are therefore the batch of a single process with W times the batch size.

    Args:
        images: Number of images in the split, over all ranks.
        seed: Seed of the shuffled orders, at least 0.
        shuffle: Whether each epoch has its own random order, instead of the data set's.
        pad: Whether to repeat images from the start of the order until all ranks have equally many.
            Training needs it, because ranks step together. Evaluation must not count images twice.
        rank: This process, from 0 to `world_size` - 1.
        world_size: Number of processes that share the images.
        epoch: The epoch, from 0.

    Examples:
        >>> EpochSampler(5, pad=True, rank=1, world_size=2).indices().tolist()
        [1, 3, 0]
        >>> EpochSampler(5, rank=1, world_size=2).indices().tolist()
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
        return len(range(self.rank, self._total(), self.world_size))  # the length of a slice

    def indices(self) -> NDArray[np.int64]:
        """The images of this rank in this epoch, int64 `(len(self),)`, each below `images`."""
        if self.shuffle:
            order = np.random.default_rng([self.seed, self.epoch]).permutation(self.images)
        else:
            order = np.arange(self.images)
        # `np.resize` repeats the order from its start.
        return np.resize(order, self._total())[self.rank :: self.world_size]

    def _total(self) -> int:
        """Number of images that all ranks serve, with the repeated ones."""
        if not self.pad:
            return self.images
        return math.ceil(self.images / self.world_size) * self.world_size


class ImageLoader:
    """Serves a split in normalized batches and knows its position.

    The images stay on `device` as uint8; a batch is gathered and normalized there. The result is
    that of torchvision's `ToTensor` and `Normalize`, bit for bit. No partial batch is dropped.

    Each iteration serves the epoch that `sampler` is set to. Lightning sets it; in a loop of your
    own call `loader.sampler.set_epoch(epoch)` before each epoch, as with torch's
    `DistributedSampler`, or all epochs have the same order. The first iteration after
    `load_state_dict` resumes with the batch after the last one that was served.

    Args:
        images: uint8 `(N, S, S)`.
        labels: int64 `(N,)`.
        sampler: Chooses the images of this rank. Lightning expects this name.
        batch_size: Images per batch and rank, at least 1.
        mean_std: Mean and standard deviation for normalization, of pixels from 0 to 1.
            `None` leaves pixels from 0 to 1.
        device: Where the images are kept and the batches are made.
        steps_per_execution: Batches to serve together, at least 1. If more than 1, they come as a
            `Block`, gathered and normalized together.
        limit: Most batches to serve in an epoch; `None` for all.
        steps_left: Returns how many more batches are wanted; called before each one is served.
            `None` for all.
        augmentation: Changes the images of a batch at random, before they are normalized.

    Examples:
        >>> images, labels = np.zeros((5, 28, 28), np.uint8), np.arange(5)
        >>> loader = ImageLoader(images, labels, EpochSampler(5), batch_size=2)
        >>> [labels.tolist() for _, labels in loader]
        [[0, 1], [2, 3], [4]]
        >>> blocks = ImageLoader(images, labels, EpochSampler(5), 2, steps_per_execution=2)
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
        steps_left: Callable[[], float] | None = None,
        augmentation: Augmentation | None = None,
    ) -> None:
        self.sampler = sampler
        self.batch_size = batch_size
        self.steps_per_execution = steps_per_execution
        self._limit = limit
        self._steps_left = steps_left
        self._augmentation = augmentation
        # torch takes no reversed arrays, and warns about read-only ones.
        arrays = (np.require(array, requirements=["C", "W"]) for array in (images, labels))
        self._images, self._labels = (torch.as_tensor(array, device=device) for array in arrays)
        self._images = self._images.unsqueeze(1)
        # Divide by tensors on the device: CUDA multiplies by the reciprocal of a Python number,
        # which rounds differently from the division on the CPU.
        self._white = torch.tensor([255.0], device=device)
        self._mean_std = mean_std and [torch.tensor(value, device=device) for value in mean_std]
        self._served = (0, 0)  # an epoch and the number of its batches served so far
        self._resuming = False

    @property
    def batches(self) -> int:
        """Number of batches that this rank serves in an epoch."""
        whole = math.ceil(len(self.sampler) / self.batch_size)
        return whole if self._limit is None else min(whole, self._limit)

    @property
    def batches_left(self) -> int:
        """Number of batches that are not served yet in this epoch."""
        return self.batches - int(self.state_dict()["batches"])

    def __len__(self) -> int:
        """Number of batches, or of blocks, that an iteration over a whole epoch yields."""
        return math.ceil(self.batches / self.steps_per_execution)

    def __iter__(self) -> Iterator[Any]:
        """Yield each `Batch`, or each `Block` if `steps_per_execution` is more than 1."""
        # A generator, so this runs at the first `next`: Lightning calls `iter` several times before
        # it restores the position and sets the epoch.
        first = self.state_dict()["batches"] if self._resuming else 0
        self._resuming = False
        epoch = self.sampler.epoch
        device, augmentation = self._labels.device, self._augmentation
        indices = torch.from_numpy(self.sampler.indices()).to(device)
        drawn = None
        if augmentation:  # for all images, so that each has the same on any number of ranks
            size = self._images.shape[-1]
            drawn = augmentation.draw(len(self._labels), size, self.sampler.seed, epoch).to(device)
        batches, size = self.batches, self.steps_per_execution
        # After a block that `max_steps` cut short, the next one is the rest of it.
        left = self._steps_left or (lambda: math.inf)
        while (count := int(min(size - first % size, batches - first, left()))) > 0:
            end = first + count
            # Set before `yield`, so that a checkpoint written in this step includes its batch.
            self._served = (epoch, end)
            chosen = indices[first * self.batch_size : end * self.batch_size]
            images, labels = self._gather(chosen, drawn)
            yield (images, labels) if size == 1 else Block(images, labels, self.batch_size)
            first = end

    def _gather(self, indices: Tensor, drawn: Tensor | None) -> Batch:
        """Make float32 `(n, 1, S, S)` and int64 `(n,)` from int64 indices `(n,)`."""
        pixels = self._images.index_select(0, indices)
        if self._augmentation and drawn is not None:
            pixels = self._augmentation.apply(pixels, drawn.index_select(0, indices))
        images = pixels.to(torch.float32).div_(self._white)
        if self._mean_std:
            mean, std = self._mean_std
            images.sub_(mean).div_(std)
        return images, self._labels.index_select(0, indices)

    def state_dict(self) -> dict[str, Any]:
        """The position, `epoch` and its `batches` served so far, and the settings it depends on."""
        epoch, batches = self._served
        return {
            "epoch": self.sampler.epoch,
            "batches": batches if epoch == self.sampler.epoch else 0,
            **self._settings(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a position returned by `state_dict`; the next iteration starts there.

        Raises:
            ValueError: A setting differs, such as the batch size, so the order would be another.
        """
        for name, value in self._settings().items():
            # Checkpoints of older versions have no augmentation.
            if (saved := state.get(name, "None")) != value:
                raise ValueError(
                    f"{name} is {value}, but the checkpoint was written with {name} {saved}: "
                    "resume with that value, or start a new run from its weights"
                )
        self.sampler.set_epoch(state["epoch"])
        self._served = (state["epoch"], state["batches"])
        self._resuming = True

    def _settings(self) -> dict[str, Any]:
        return {
            "images": self.sampler.images,
            "seed": self.sampler.seed,
            "world_size": self.sampler.world_size,
            "batch_size": self.batch_size,
            "steps_per_execution": self.steps_per_execution,
            "augmentation": str(self._augmentation),
        }
