"""A run as an object, and `fit`, which trains one: in Python what the command line does."""

import signal
import sys
from collections.abc import Mapping, Sequence
from functools import cached_property
from html import escape
from io import BytesIO
from pathlib import Path
from typing import Any, get_args

import pandas as pd
import torch
from matplotlib.figure import Figure
from PIL import Image

from digitlab import run_folder
from digitlab.callbacks.pictures import (
    LARGE,
    count_confusion,
    draw_confusion_matrix,
    draw_curves,
    draw_mistakes,
    validation_label,
)
from digitlab.callbacks.tensorboard import picture_kernels
from digitlab.classifier import Classifier
from digitlab.cli import in_callers_process
from digitlab.cli.evaluate import Evaluation, mistakes, read_on_cpu
from digitlab.cli.fit import train
from digitlab.cli.parser import flags_of
from digitlab.data import ImageDataModule
from digitlab.data.datamodule import Subset
from digitlab.errors import InputError, Interrupted, reading_input
from digitlab.scores import name_classes
from digitlab.terminal import printable

Config = str | Path | Mapping[str, Any] | Sequence[str | Path]
"""A config's name or path, several of them, or settings."""

_DAMAGED = (LookupError, TypeError, ValueError)
"""Errors of reading a run whose files are damaged."""


class Run:
    """A run: the settings and results in its folder, its network, its data and its predictions.

    Files are read each time they are asked for, so that a run can be watched while it trains. The
    network and the data are made once, when they are first asked for; like `digitlab test`, this
    imports the classes that the run's settings name. They compute on the CPU, in float32 unless a
    Keras model has another precision. Pictures need no TensorBoard. A run stands for its folder
    wherever a path is expected, as in `fit(run=run)`.

    Args:
        run: A run folder, or `latest`, the run under `root` that was started last.
        checkpoint: The weights: `last`, `best`, or a checkpoint's path.
        root: Where `latest` looks.

    Attributes:
        folder: The run folder.
        checkpoint: The weights, as given.

    Raises:
        InputError: There is no such run; and at each attribute that reads a file, if that is
            missing, damaged or written by a newer version.

    Examples:
        >>> run = Run("latest", checkpoint="best")  # doctest: +SKIP
        >>> run.metrics["test"]["accuracy"], run.history["val_accuracy"].idxmax()  # doctest: +SKIP
        (0.975, 18)
    """

    def __init__(
        self, run: str | Path = "latest", checkpoint: str | Path = "last", root: str | Path = "runs"
    ) -> None:
        with reading_input():
            # Absolute, so that it stays the run's when the current folder is another one.
            self.folder = run_folder.find_run(str(run), Path(root)).absolute()
        self.checkpoint = str(checkpoint)
        self._predicted: dict[str, pd.DataFrame] = {}

    def __fspath__(self) -> str:
        return str(self.folder)

    @property
    def name(self) -> str:
        """The last two parts of the folder's path, such as `mnist-lenet5/version_0`."""
        return run_folder.short_name(self.folder)

    @property
    def config(self) -> dict[str, Any]:
        """All settings, as config.yaml has them."""
        with reading_input():
            return run_folder.read_config(self.folder, run_folder.NEEDED)

    @property
    def metrics(self) -> dict[str, Any]:
        """The final figures, as metrics.json has them; empty before the run is finished."""
        with reading_input():
            return run_folder.read_metrics(self.folder)

    @property
    def history(self) -> pd.DataFrame:
        """The columns of history.csv, float64, by epoch from 1; empty before the first has ended.

        A value that is not finite is NaN.
        """
        with reading_input():
            history = run_folder.read_history(self.folder)
        return history.astype({"epoch": int}).set_index("epoch") if len(history) else history

    @property
    def model(self) -> Classifier:
        """The trained network in evaluation mode: the run's class, or a Keras model in its place.

        The Keras model itself is `model.network.keras_model`.
        """
        return self._loaded.cli.model

    @property
    def data(self) -> ImageDataModule:
        """The data module, with the run's normalization and hold-out."""
        return self._evaluation.cli.datamodule

    @cached_property
    def _evaluation(self) -> Evaluation:
        with in_callers_process(), reading_input():
            return read_on_cpu(self.folder, self.checkpoint)

    @cached_property
    def _loaded(self) -> Evaluation:
        with in_callers_process(), reading_input():
            self._evaluation.load()
        self._evaluation.cli.model.eval()
        return self._evaluation

    def predictions(self, split: Subset | None = None) -> pd.DataFrame:
        """Classify the images of a split.

        Args:
            split: `train` (without the hold-out), `validation` or `test`. Default: the images that
                the run was validated on, the hold-out or, without one, the test split.

        Returns:
            A row for each image, by its `index` in the split: `label` and `class`, int64;
            `class_name`, the predicted one; `probability`, float32, of that class; and
            `probabilities`, an array of all.
        """
        evaluation, split = self._loaded, split or self.data.validation_split
        if split not in get_args(Subset):
            raise InputError(f"split is {split}: it must be {', '.join(get_args(Subset))}")
        if split not in self._predicted:
            with in_callers_process(), reading_input():
                torch.manual_seed(evaluation.cli.config.seed_everything)  # dropout may be on
                self._predicted[split] = evaluation.predictions(split)
        return self._predicted[split].copy()

    def plot_curves(self) -> Figure:
        """Draw accuracy and loss over the epochs."""
        history = self.history.reset_index()
        if history.empty:
            raise InputError(f"{self.folder} has no finished epoch: there is nothing to draw yet")
        is_test = not self.config["data"]["init_args"].get("validation_size")
        return _shown(draw_curves(history, self.name, validation_label(is_test)))

    def plot_confusion(self, split: Subset | None = None) -> Figure:
        """Draw how many images of each class were predicted as each.

        Args:
            split: As in `predictions`.
        """
        rows, names, title = self._classified(split)
        counts = count_confusion(rows["label"], rows["class"], len(names))
        return _picture(draw_confusion_matrix(counts, names, LARGE), title, _ROW)

    def plot_mistakes(self, split: Subset | None = None, count: int = 16) -> Figure:
        """Draw the most confident mistakes, each with its class and the predicted class.

        Args:
            split: As in `predictions`.
            count: Images, at most; at least 1.
        """
        if count < 1:
            raise InputError(f"count is {count}: draw at least 1 image")
        rows, names, title = self._classified(split)
        worst = mistakes(rows).head(count)
        if worst.empty:
            return _picture(Image.new("RGB", (400, 20), "white"), title)
        images, _ = self.data.arrays(split or self.data.validation_split)
        return _picture(draw_mistakes(images[worst.index], worst, names, LARGE), title, _ROW)

    def plot_kernels(self) -> Figure:
        """Draw the kernels of the first convolution: red is above 0, blue below."""
        if not (found := picture_kernels(self.model)):
            network = self._facts()["Network"]
            raise InputError(f"{network} has no convolution: plot_kernels draws those of the first")
        name, picture = found
        return _picture(picture, f"{self.name}: kernels of {name}")

    def _classified(self, split: Subset | None) -> tuple[pd.DataFrame, list[str], str]:
        """Return the predictions of a split, the classes' names, and a title."""
        rows = self.predictions(split)
        wrong = f"{(rows['class'] != rows['label']).sum()} of {len(rows)}"
        title = f"{self.name}: {wrong} {split or self.data.validation_split} images misclassified"
        return rows, name_classes(self.data.class_names, len(rows["probabilities"][0])), title

    def _facts(self) -> dict[str, str]:
        """List what a reader wants to know first."""
        config, metrics, epochs = self.config, self.metrics, len(self.history)
        network, data = (
            str(config[key]["class_path"]).rpartition(".")[2] for key in ("model", "data")
        )
        facts = {
            "Network": str(metrics.get("model", network)),
            "Framework": run_folder.FRAMEWORKS[run_folder.framework(self.folder)],
            "Data": str(metrics.get("dataset", data)),
            "Seed": str(config["seed_everything"]),
            "Epochs": f"{epochs}" if metrics else f"{epochs}, not finished",
        }
        if "wall_time" in metrics:
            facts["Time"] = f"{metrics['wall_time']:.1f} s on {metrics['device']}"
        for phase, title in (("train", "Training"), ("val", "Validation"), ("test", "Test")):
            if score := metrics.get(phase):
                counts = f"({score['correct']} of {score['n']})"
                facts[f"{title} accuracy"] = f"{score['accuracy']:.2%} {counts}"
        return facts

    def _place(self) -> str:
        """Write the folder, from the current one if it is below."""
        here = Path.cwd()
        below = self.folder.is_relative_to(here)
        return str(self.folder.relative_to(here) if below else self.folder)

    def __repr__(self) -> str:
        try:
            facts = self._facts()
            words = [f"{facts['Network']} on {facts['Data']}"]
            shown = ("Seed", "Epochs", "Validation accuracy", "Test accuracy")
            words += [f"{name.lower()} {facts[name]}" for name in shown if name in facts]
        except _DAMAGED as error:
            words = [f"it cannot be read: {error}"]
        return printable(f"<Run {self._place()}: {', '.join(words)}>")

    def _repr_html_(self) -> str:
        """Write a table for a notebook."""
        try:
            facts = self._facts()
        except _DAMAGED:
            return f"<p>{escape(repr(self))}</p>"
        rows = (f"<tr><th>{escape(it)}</th><td>{escape(facts[it])}</td></tr>" for it in facts)
        return f"<p><strong>{escape(self._place())}</strong></p><table>{''.join(rows)}</table>"


def fit(
    config: Config = (),
    overrides: Mapping[str, Any] | None = None,
    *,
    quiet: bool = False,
    **options: Any,
) -> Run | None:
    """Train a network as `digitlab fit` does, and return the run.

    The caller's process is left as it was: random numbers, threads, warnings and log levels.

    Args:
        config: A config's name or path, several of them, the last of which wins, or settings.
        overrides: Settings that win over the config's. Keys are the flags' names, such as
            `trainer.max_epochs`, or groups: `{"trainer": {"max_epochs": 2}}`. A class is given by
            itself, its name, or `class_path` and `init_args`.
        quiet: Print nothing, not even warnings.
        **options: More overrides, such as `name`, `framework`, `weights` and `run`, the run to
            resume; `seed` stands for `seed_everything`.

    Returns:
        The finished run; None after `trainer.fast_dev_run`, and in all ranks but the first.

    Raises:
        InputError: Bad input, with the message of the command line; nothing was trained.
        RunError: Training failed; the message names the last checkpoint.
        KeyboardInterrupt: Ctrl-C stopped it; the message says how to resume.

    Examples:
        >>> run = fit("digits/linear", {"trainer.max_epochs": 2}, seed=1)  # doctest: +SKIP
        >>> again = fit(run=run, trainer={"max_epochs": 4})  # doctest: +SKIP
    """
    changes: Any = overrides or {}  # a notebook has no type checker
    if not isinstance(changes, Mapping):
        rule = 'give a dict, such as {"trainer.max_epochs": 3}'
        raise InputError(f"overrides is {overrides!r}: {rule}")
    if isinstance(config, str | Path):
        config = [config]
    words = flags_of(config) if isinstance(config, Mapping) else (f"--config={it}" for it in config)
    try:
        with in_callers_process(quiet):
            folder = train([*words, *flags_of(changes), *flags_of(options)])
    except Interrupted as interrupt:
        if interrupt.number == signal.SIGINT:
            raise KeyboardInterrupt(str(interrupt)) from None
        print(f"digitlab: {printable(interrupt)}", file=sys.stderr)
        raise SystemExit(interrupt.exit_code) from None
    return Run(folder) if folder else None


_ROW = 1000
"""Pixels of four images beside each other, so that fewer are not drawn larger."""


def _picture(picture: Image.Image, title: str, width: int = 0) -> Figure:
    """Make a figure of a picture, with room for at least `width` pixels."""
    width = max(width, picture.width)
    height = 7 * picture.height / width + 0.4  # of the title
    figure = Figure(figsize=(7, height), dpi=120, layout="constrained")
    axes = figure.subplots()
    axes.imshow(picture)
    axes.set_xlim(-0.5, width - 0.5)
    axes.set_axis_off()
    axes.set_title(title, loc="left", fontsize=12, parse_math=False)
    return _shown(figure)


def _shown(figure: Figure) -> Figure:
    """Let a notebook show a figure, which it otherwise does for pyplot's alone."""

    def write() -> bytes:
        content = BytesIO()
        figure.savefig(content, format="png")
        return content.getvalue()

    figure._repr_png_ = write  # type: ignore[attr-defined]  # IPython asks for it
    return figure
