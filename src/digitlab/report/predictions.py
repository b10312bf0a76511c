"""What a run's network says of the images that it was not trained on."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import confusion_matrix, precision_score, recall_score

from digitlab.classifier import Classifier
from digitlab.cli.evaluate import Evaluation, read_evaluation
from digitlab.data.datamodule import Subset
from digitlab.errors import InputError, reading_input
from digitlab.report.content import Run
from digitlab.scores import name_classes

SHOWN_MISTAKES = 24
"""Four rows of the page."""


@dataclass(frozen=True)
class Layer:
    """A layer of the network, and the shapes of its parameter tensors by their names."""

    name: str
    kind: str
    tensors: dict[str, tuple[int, ...]]
    count: int


@dataclass(frozen=True)
class Mistake:
    """An image that was classified wrong.

    Args:
        index: Its place in the split.
        image: uint8 `(28, 28)`.
        label: The name of its class.
        predicted: The name of the class that it was taken for.
        probability: Of that class, from 0 to 1.
    """

    index: int
    image: NDArray[np.uint8]
    label: str
    predicted: str
    probability: float


@dataclass(frozen=True)
class Predictions:
    """What the network says of a split of N images in K classes.

    Args:
        split: `validation` or `test`.
        checkpoint: Which weights: `last`, `best` or a path.
        names: Of the classes, K.
        labels: int64 `(N,)`.
        classes: What they are taken for, int64 `(N,)`.
        mistakes: The worst: those with the most probable of the wrong classes, at most 24.
    """

    split: str
    checkpoint: str
    names: tuple[str, ...]
    labels: NDArray[np.int64]
    classes: NDArray[np.int64]
    mistakes: tuple[Mistake, ...]

    @property
    def correct(self) -> int:
        """The number of images that are classified right."""
        return int((self.labels == self.classes).sum())

    @property
    def confusion(self) -> NDArray[np.int64]:
        """Counts `(K, K)`: images of the row's class that were taken for the column's."""
        classes = range(len(self.names))
        counts = confusion_matrix(self.labels, self.classes, labels=classes)
        return cast("NDArray[np.int64]", counts)

    @property
    def precision(self) -> list[float]:
        """Of the images taken for a class, the part that is of it; NaN where there is none."""
        return self._by_class(precision_score)

    @property
    def recall(self) -> list[float]:
        """Of the images of a class, the part that is taken for it; NaN where there is none."""
        return self._by_class(recall_score)

    def _by_class(self, score: Callable[..., NDArray[np.float64]]) -> list[float]:
        classes = range(len(self.names))
        values = score(
            self.labels, self.classes, labels=classes, average=None, zero_division=np.nan
        )
        return [float(value) for value in values]


@dataclass(frozen=True)
class Outcome:
    """What could be learned from a run's network.

    Args:
        layers: Of the network; empty where it cannot be built.
        predictions: None where they cannot be made.
        why: Then the reason.
    """

    layers: tuple[Layer, ...] = ()
    predictions: Predictions | None = None
    why: str = ""


def predict(command: str, run: Run) -> Outcome:
    """Classify images with a run's weights, on the CPU in float32, so that any machine can.

    The images and weights are those of the test score in metrics.json; where there is none, the
    last weights and the images that the run was validated on, so that a report is never the first
    to look at the test split.

    Args:
        command: The subcommand, for messages.
        run: The run.
    """
    tested = run.metrics.get("test")
    entry = tested if isinstance(tested, dict) else {}
    # Not `auto`: a run of a GPU machine is to be read elsewhere too.
    device = ["--trainer.accelerator", "cpu", "--trainer.precision", "32-true"]
    quiet = ["--trainer.enable_progress_bar", "false"]
    weights = ["--checkpoint", str(entry.get("checkpoint") or "last")]
    layers: tuple[Layer, ...] = ()
    try:
        options = ["--run", str(run.folder), *weights, *device, *quiet]
        with reading_input():
            evaluation = read_evaluation(command, options)
            layers = describe(evaluation.cli.model)
            split: Subset = "test" if entry else evaluation.cli.datamodule.validation_split
            evaluation.load()
            return Outcome(layers, _predict(evaluation, split))
    except InputError as error:
        return Outcome(layers, why=" ".join(str(error).split()))


def describe(model: Classifier) -> tuple[Layer, ...]:
    """List a network's layers."""
    return tuple(
        Layer(
            name,
            type(layer).__name__,
            {key: tuple(tensor.shape) for key, tensor in layer.named_parameters()},
            sum(tensor.numel() for tensor in layer.parameters()),
        )
        for name, layer in model.network.named_children()
    )


def _predict(evaluation: Evaluation, split: Subset) -> Predictions:
    cli = evaluation.cli
    model, data = cli.model, cli.datamodule
    images, labels = data.arrays(split)
    loader = data.test_dataloader() if split == "test" else data.val_dataloader()
    trainer = cli.instantiate_trainer(logger=False, enable_checkpointing=False)
    batches: list[Any] = trainer.predict(model, loader) or []
    probabilities = torch.cat([batch["probabilities"] for batch in batches])
    names = tuple(name_classes(data.class_names, probabilities.shape[1]))
    highest, classes = (found.numpy() for found in probabilities.max(1))
    wrong = np.flatnonzero(classes != labels)
    worst = wrong[np.argsort(-highest[wrong], kind="stable")][:SHOWN_MISTAKES]
    mistakes = tuple(
        Mistake(int(i), images[i], names[labels[i]], names[classes[i]], float(highest[i]))
        for i in worst
    )
    return Predictions(split, cli.config.checkpoint, names, labels, classes, mistakes)
