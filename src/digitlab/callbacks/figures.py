"""Pictures of a run: some training images, and its curves."""

from pathlib import Path

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL.Image import Image

from digitlab.callbacks.history import History, Row
from digitlab.data import ImageDataModule
from digitlab.data.loader import run_seed
from digitlab.pictures import draw_images
from digitlab.runs import write_figure, write_picture
from digitlab.tensorboard import show_picture

SAMPLES = "train/samples"
"""Under which TensorBoard shows them."""


class Figures(Callback):
    """Draws `samples.png` when a fit starts and `curves.png` when it ends.

    TensorBoard shows the former too, as `train/samples`; it has curves of its own.

    Args:
        folder: Where to write the pictures.
        history: Has the curves' rows.
    """

    def __init__(self, folder: Path, history: History) -> None:
        self.folder = folder
        self.history = history

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw random training images."""
        data = trainer.datamodule  # type: ignore[attr-defined]  # set by `fit`
        if trainer.is_global_zero and isinstance(data, ImageDataModule):
            samples = draw_samples(data)
            write_picture(self.folder / "samples.png", samples)
            if trainer.global_step == 0:  # a run that goes on has shown them
                show_picture(trainer.loggers, SAMPLES, samples, 0)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the curves."""
        if trainer.is_global_zero and self.history.rows:
            write_figure(self.folder / "curves.png", draw_curves(self.history.rows))


def draw_samples(data: ImageDataModule) -> Image:
    """Draw eight random training images, with the names of their classes."""
    images, labels = data.arrays("train")
    chosen = np.random.default_rng(run_seed()).choice(len(labels), size=8)
    return draw_images(images[chosen], [data.class_names[label] for label in labels[chosen]])


def draw_curves(rows: list[Row]) -> Figure:
    """Draw accuracy and loss over epochs, for training and validation."""
    figure = Figure(figsize=(9, 3.5), dpi=100, layout="constrained")
    for axes, quantity in zip(figure.subplots(1, 2), ("accuracy", "loss"), strict=True):
        for phase in ("train", "val"):
            points = [(row["epoch"], row[f"{phase}_{quantity}"]) for row in rows]
            points = [point for point in points if point[1] is not None]
            if points:
                axes.plot(*zip(*points, strict=True), marker="o", markersize=3, label=phase)
        axes.set(xlabel="epoch", ylabel=quantity)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        axes.legend()
    return figure
