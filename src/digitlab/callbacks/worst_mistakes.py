"""The most confidently wrong images of each validation."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL.Image import Image
from torch import Tensor

from digitlab.callbacks.validation_picture import ValidationPicture
from digitlab.pictures import draw_images
from digitlab.predictions import name_classes

SHOWN = 16
"""Four rows."""


class WorstMistakes(ValidationPicture):
    """Shows in TensorBoard the images that are most confidently taken for another class.

    The picture `val/mistakes` has up to 16 of them, the most confident first, each with the name of
    its class, what it was taken for, and how probable that is to the network.
    """

    tag = "val/mistakes"

    def look_at(self, images: Tensor, labels: Tensor, logits: Tensor) -> tuple[Tensor, ...]:
        """Keep the worst: probability, true and predicted class `(n,)`, and image `(n, 28, 28)`."""
        probability, predicted = logits.softmax(1).max(1)
        # Of those that are right -1, and not left out: their number is known to a GPU alone.
        wrong = probability.where(predicted != labels, -1.0)
        worst = wrong.topk(min(SHOWN, len(wrong)))
        chosen = worst.indices
        return worst.values, labels[chosen], predicted[chosen], images[chosen, 0]

    def draw(self, kept: Sequence[tuple[Tensor, ...]], names: Sequence[str]) -> Image | None:
        """Draw the worst of all that was kept; nothing if no image is wrong."""
        parts = (torch.cat(part) for part in zip(*kept, strict=True))
        probability, labels, predicted, images = parts
        order = probability.argsort(descending=True, stable=True)[:SHOWN]
        order = order[probability[order] >= 0]
        if not len(order):
            return None
        named = name_classes(names, int(max(labels.max(), predicted.max())) + 1)
        said = zip(predicted[order].tolist(), probability[order].tolist(), strict=True)
        return draw_images(
            np.stack([_pixels(image) for image in images[order]]),
            [named[label] for label in labels[order].tolist()],
            [f"{named[number]} ({certainty:.0%})" for number, certainty in said],
        )


def _pixels(image: Tensor) -> NDArray[np.uint8]:
    """Make of a normalized image one from black to white, of the same shape."""
    image = image.float() - image.min()
    shades: NDArray[np.float32] = (255 * image / image.max().clamp(min=1e-12)).numpy()
    return shades.round().astype(np.uint8)
