"""A network's layers, its predictions of images that it was not trained on, and its mistakes."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from sklearn.metrics import confusion_matrix

from digitlab.callbacks.logging import LayerTable, layer_table
from digitlab.callbacks.tensorboard import picture_kernels
from digitlab.cli.allowed import find_unimported
from digitlab.cli.evaluate import Evaluation, mistakes, needed_settings, read_on_cpu
from digitlab.data.datamodule import Subset
from digitlab.errors import InputError, reading_input
from digitlab.report.content import RunContent
from digitlab.scores import name_classes

SHOWN_MISTAKES = 24
"""Four rows of the page."""


@dataclass(frozen=True)
class Mistake:
    """A misclassified image."""

    index: int  # its position in the split
    image: NDArray[np.uint8]  # (28, 28)
    label: str  # the name of its class
    predicted: str  # the name of the predicted class
    probability: float  # of the predicted class, in [0, 1]


class Predictions(NamedTuple):
    """Predictions of a split of N images in K classes."""

    split: str  # `validation` or `test`
    checkpoint: str  # `last`, `best` or a path
    names: tuple[str, ...]  # of the classes
    labels: NDArray[np.int64]  # (N,)
    classes: NDArray[np.int64]  # the predicted ones, (N,)
    mistakes: tuple[Mistake, ...]  # with the most probable wrong classes, at most 24

    @property
    def correct(self) -> int:
        """The number of correctly classified images."""
        return int((self.labels == self.classes).sum())

    @property
    def confusion(self) -> NDArray[np.int64]:
        """Counts `(K, K)` of images: a row for each true class, a column for each predicted one."""
        counts: NDArray[np.int64] = confusion_matrix(
            self.labels, self.classes, labels=range(len(self.names))
        )
        return counts


class Outcome(NamedTuple):
    """A network's layers and predictions; `why` says why there are no predictions."""

    layers: LayerTable = []  # noqa: RUF012  # never changed
    predictions: Predictions | None = None
    why: str = ""  # the reason if there are no predictions
    kernels: tuple[str, Image.Image] | None = None  # the first convolution's name, and a picture


def predict(run: RunContent, import_modules: bool = False) -> Outcome:
    """Classify images with a run's weights, on the CPU in float32, so that any machine can.

    The images and weights are those of the test score in metrics.json; without one, the last
    weights and the images of the run's validation, so that a report is never the first to use the
    test split.

    Args:
        run: The run.
        import_modules: Import the modules of the run's own classes, too.
    """
    settings = needed_settings(run.config)
    for key in ("from_configs", "class_names"):  # files that are not read, and no names of code
        settings.pop(key, None)
    if not import_modules and (name := find_unimported(settings)):
        remedy = "if you trust it, add --import_modules true"
        return Outcome(why=f"the run names {name}, and importing it runs its code; {remedy}")
    tested = run.metrics.get("test")
    entry = tested if isinstance(tested, dict) else {}
    layers: LayerTable = []
    try:
        with reading_input():
            evaluation = read_on_cpu(run.folder, str(entry.get("checkpoint") or "last"))
            layers = layer_table(evaluation.cli.model)
            split: Subset = "test" if entry else evaluation.cli.datamodule.validation_split
            evaluation.load()
            kernels = picture_kernels(evaluation.cli.model)
            return Outcome(layers, _predict(evaluation, split), kernels=kernels)
    except InputError as error:
        return Outcome(layers, why=" ".join(str(error).split()))


def _predict(evaluation: Evaluation, split: Subset) -> Predictions:
    data = evaluation.cli.datamodule
    images, _ = data.arrays(split)
    rows = evaluation.predictions(split)
    names = tuple(name_classes(data.class_names, len(rows["probabilities"][0])))
    worst = mistakes(rows).head(SHOWN_MISTAKES)
    shown = tuple(
        Mistake(i, images[i], names[row["label"]], names[row["class"]], row["probability"])
        for i, row in worst.iterrows()
    )
    labels, classes = (rows[name].to_numpy() for name in ("label", "class"))
    return Predictions(split, evaluation.cli.config.checkpoint, names, labels, classes, shown)
