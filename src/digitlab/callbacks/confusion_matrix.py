"""The confusion matrix of each validation."""

from collections.abc import Sequence

from PIL.Image import Image
from torch import Tensor
from torchmetrics.functional.classification import multiclass_confusion_matrix

from digitlab.callbacks.validation_picture import ValidationPicture
from digitlab.pictures import draw_confusion_matrix
from digitlab.predictions import name_classes


class ConfusionMatrix(ValidationPicture):
    """Shows in TensorBoard which classes are taken for which, `val/confusion_matrix`."""

    tag = "val/confusion_matrix"

    def look_at(self, images: Tensor, labels: Tensor, logits: Tensor) -> tuple[Tensor]:
        """Count the batch's images of each class and what they are taken for, int64 `(K, K)`."""
        classes = logits.shape[1]
        # Looking at the labels' values would make a GPU wait.
        return (multiclass_confusion_matrix(logits, labels, classes, validate_args=False),)

    def draw(self, kept: Sequence[tuple[Tensor, ...]], names: Sequence[str]) -> Image:
        """Draw the sum of the counts."""
        first, *others = (counts for (counts,) in kept)
        counts = sum(others, start=first)
        return draw_confusion_matrix(counts.numpy(), name_classes(names, len(counts)))
