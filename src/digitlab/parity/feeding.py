"""The data of our loaders, as Keras's `fit` takes them."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from digitlab.data import EpochSampler, ImageLoader
from digitlab.parity.backend import import_tensorflow

Arrays = tuple[NDArray[np.float32], NDArray[np.int64]]
"""Images `(N, 28, 28, C)` and labels `(N,)`."""


def whole(loader: ImageLoader) -> Arrays:
    """Give all that a loader serves: images `(N, 28, 28, C)` float32, and labels `(N,)`."""
    images, labels = zip(*loader, strict=True)
    return torch.cat(images).permute(0, 2, 3, 1).contiguous().numpy(), torch.cat(labels).numpy()


def batches(images: NDArray[Any], labels: NDArray[Any], order: EpochSampler, size: int) -> Any:
    """Make a `tf.data.Dataset` that serves, each time, the epoch that `order` is set to.

    Keras's own shuffling does not do: once a seed is set, as it must be for a run that repeats, it
    serves the same order in every epoch.
    """
    tensorflow = import_tensorflow()
    data = tensorflow.data

    def epoch() -> Iterator[NDArray[np.int64]]:
        yield order.indices()

    signature = tensorflow.TensorSpec((len(order),), "int64")
    indices = data.Dataset.from_generator(epoch, output_signature=signature).unbatch().batch(size)
    served = [tensorflow.constant(array) for array in (images, labels)]
    gathered = indices.map(
        lambda chosen: tuple(tensorflow.gather(array, chosen) for array in served)
    )
    count = data.experimental.assert_cardinality(-(-len(order) // size))
    return gathered.apply(count).prefetch(data.AUTOTUNE)
