"""What the page shows of a run: its files, and its network's layers, predictions and mistakes."""

from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from digitlab import run_folder
from digitlab.callbacks.logging import LayerTable, layer_table
from digitlab.callbacks.pictures import count_confusion
from digitlab.callbacks.tensorboard import picture_kernels
from digitlab.cli.allowed import find_unimported
from digitlab.cli.evaluate import mistakes, needed_settings
from digitlab.errors import InputError
from digitlab.run import Run
from digitlab.scores import name_classes

LARGEST = 2**23
"""Pixels of a picture that is shown; a damaged one may claim billions."""
SHOWN_MISTAKES = 24
"""Four rows of the page."""
ABSENT = {
    "metrics.json": "the run has not ended, so no figures are final",
    "history.csv": "no epoch was finished in this folder",
}


class Predictions(NamedTuple):
    """Predictions of a split's images, in K classes."""

    split: str  # `validation` or `test`
    checkpoint: str  # `last`, `best` or a path
    names: list[str]  # of the classes
    confusion: NDArray[np.int64]  # (K, K): rows are true classes, columns predicted ones
    mistakes: pd.DataFrame  # rows of `Run.predictions` with their `image`, at most 24

    @property
    def correct(self) -> int:
        """The number of correctly classified images."""
        return int(self.confusion.trace())

    @property
    def most_mistaken(self) -> int:
        """The largest count beside the diagonal, at least 1."""
        return max(int((self.confusion - np.diag(self.confusion.diagonal())).max()), 1)


@dataclass
class Content:
    """A run's files, read once, and what its network says."""

    folder: Path
    name: str
    config: dict[str, Any]
    settings: str  # the text of config.yaml
    metrics: dict[str, Any]  # empty before there is a metrics.json
    history: pd.DataFrame  # a row for each epoch; empty before there is a history.csv
    framework: str
    missing: list[str]  # a sentence for each missing or damaged file
    layers: LayerTable = field(default_factory=list)
    kernels: tuple[str, Image.Image] | None = None  # the first convolution's name, and a picture
    predictions: Predictions | None = None
    why: str = ""  # there are no predictions

    def entries(self, name: str) -> dict[str, Any]:
        """Return a group of entries of metrics.json; empty if it is missing or damaged."""
        found = self.metrics.get(name)
        return found if isinstance(found, dict) else {}

    @property
    def phases(self) -> dict[str, float]:
        """The seconds of each phase of the run."""
        found = self.entries("phases").items()
        return {name: it for name, it in found if type(it) in (int, float)}

    @property
    def samples(self) -> Image.Image | None:
        """The picture of training images; None if there is none that can be read."""
        path = self.folder / "samples.png"
        with suppress(OSError, SyntaxError, ValueError), Image.open(path, formats=["PNG"]) as found:
            if found.width * found.height < LARGEST:
                return found.convert("RGB")
        return None


def read_runs(folders: list[Path]) -> list[Content]:
    """Read run folders, also of unfinished runs and with damaged files, but for config.yaml."""
    names = [run_folder.short_name(folder) for folder in folders]
    return [
        _read_run(folder, str(folder) if names.count(name) > 1 else name)
        for folder, name in zip(folders, names, strict=True)
    ]


def _read_run(folder: Path, name: str) -> Content:
    missing = [
        f"There is no {it}: {why}" for it, why in ABSENT.items() if not (folder / it).exists()
    ]

    def read(reader: Any, otherwise: Any) -> Any:
        try:
            return reader(folder)
        except (ValueError, OSError) as error:
            missing.append(str(error))
            return otherwise

    config = run_folder.read_config(folder, run_folder.NEEDED)
    settings = (folder / "config.yaml").read_text("utf-8")
    metrics = read(run_folder.read_metrics, {})
    history = read(run_folder.read_history, pd.DataFrame())
    framework = run_folder.FRAMEWORKS[run_folder.framework(folder)]
    return Content(folder, name, config, settings, metrics, history, framework, missing)


def classify(content: Content, import_modules: bool = False) -> None:
    """Add the network's layers, kernels and predictions, computed on the CPU in float32.

    The images and weights are those of the test score in metrics.json; without one, the last
    weights and the images of the run's validation, so that a report is never the first to use the
    test split.
    """
    settings = needed_settings(content.config)
    for key in ("from_configs", "class_names"):  # files that are not read, and no names of code
        settings.pop(key, None)
    if not import_modules and (name := find_unimported(settings)):
        remedy = "if you trust it, add --import_modules true"
        content.why = f"the run names {name}, and importing it runs its code; {remedy}"
        return
    tested = content.entries("test")
    try:
        run = Run(content.folder, str(tested.get("checkpoint") or "last"))
        content.layers, content.kernels = layer_table(run.model), picture_kernels(run.model)
        split = "test" if tested else run.data.validation_split
        rows = run.predictions(split)
        worst = mistakes(rows).head(SHOWN_MISTAKES)
        worst = worst.assign(image=[*run.data.arrays(split)[0][worst.index]])
        names = name_classes(run.data.class_names, len(rows["probabilities"][0]))
        confusion = count_confusion(rows["label"], rows["class"], len(names))
        content.predictions = Predictions(split, run.checkpoint, names, confusion, worst)
    except InputError as error:
        content.why = str(error)
