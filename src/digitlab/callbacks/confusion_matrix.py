"""The confusion matrix of each validation."""

from collections.abc import Sequence

import torch
from PIL.Image import Image
from torch import Tensor
from torchmetrics.functional.classification import multiclass_confusion_matrix

from digitlab.callbacks.validation_picture import ValidationPicture
from digitlab.pictures import draw_confusion_matrix
from digitlab.predictions import name_classes


class ConfusionMatrix(ValidationPicture):
    """Shows in TensorBoard which classes are taken for which, `val/confusion_matrix`."""

    tag = "val/confusion_matrix"

    def look_at(self, images: Tensor, labels: Tensor, logits: Tensor) -> tuple[Tensor, ...]:
        """Keep the labels and the predicted classes, both int64 `(N,)`."""
        return labels, logits.argmax(1)

    def draw(self, kept: Sequence[tuple[Tensor, ...]], names: Sequence[str]) -> Image:
        """Count the images of each class by what they are taken for, and draw the counts."""
        labels, predicted = (torch.cat(part) for part in zip(*kept, strict=True))
        classes = max(len(names), int(max(labels.max(), predicted.max())) + 1)
        counts = multiclass_confusion_matrix(predicted, labels, classes)
        return draw_confusion_matrix(counts.numpy(), name_classes(names, classes))
