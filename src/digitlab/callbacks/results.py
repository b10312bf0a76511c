"""The figures that a run ends with: full passes in evaluation mode, and what they belong to."""

import platform
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import StochasticWeightAveraging, WeightAveraging
from lightning.pytorch.loggers import Logger
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

from digitlab import run_folder
from digitlab.callbacks.logging import History, HistoryRow, Stopwatch
from digitlab.callbacks.pictures import draw_images
from digitlab.callbacks.tensorboard import of_tensorboard, show_picture
from digitlab.classifier import Classifier
from digitlab.data import ImageDataModule
from digitlab.data.loader import run_seed
from digitlab.files import write_figure, write_image
from digitlab.run_folder import write_metrics
from digitlab.scores import Score, describe_score

AVERAGING = (StochasticWeightAveraging, WeightAveraging)
PACKAGES: dict[run_folder.Framework, tuple[str, ...]] = {
    "torch": ("digitlab", "torch", "torchvision", "lightning", "numpy", "scikit-learn", "pillow"),
    # torch may have drawn the initial weights.
    "keras": ("digitlab", "keras", "tensorflow", "torch", "numpy", "scikit-learn", "pillow"),
}
"""The packages that a run's figures may depend on."""


class FinalEvaluation(Callback):
    """Evaluates the trained network on whole splits, and writes `metrics.json`.

    The splits are the training images and, without a hold-out, the test split; with a hold-out it
    is the hold-out, and the test split stays unread.

    Args:
        folder: The run folder.
        stopwatch: Has measured the training.
        weights: What the initial weights were read from, if anything: `file` and `sha256`.
    """

    def __init__(
        self, folder: Path, stopwatch: Stopwatch, weights: dict[str, str] | None = None
    ) -> None:
        self.folder = folder
        self.stopwatch = stopwatch
        self.weights = weights

    def state_dict(self) -> dict[str, Any]:
        """Give what a run that goes on would not know, for a checkpoint."""
        return {"weights": self.weights}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take it from a checkpoint."""
        self.weights = state_dict["weights"]

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Evaluate, print and write."""
        assert isinstance(pl_module, Classifier)
        data: ImageDataModule = trainer.datamodule  # type: ignore[attr-defined]  # set by `fit`
        averaging = any(isinstance(callback, AVERAGING) for callback in trainer.callbacks)  # type: ignore[attr-defined]
        if averaging and trainer.checkpoint_callbacks:
            # It has just put other weights in place of those that were saved.
            trainer.save_checkpoint(self.folder / "checkpoints" / "last.ckpt")
        with self.stopwatch.time("evaluation"):
            train = pl_module.evaluate(data.train_eval_dataloader())
            other = pl_module.evaluate(data.val_dataloader())
        if not trainer.is_global_zero:
            return
        checkpoint = "last" if trainer.checkpoint_callbacks else None
        metrics = {
            **entries(train, other, data, checkpoint),
            **circumstances("torch", pl_module, data, self.stopwatch, trainer.world_size),
            "epochs": trainer.current_epoch,
            "optimizer_steps": trainer.global_step,
            "precision": trainer.precision,
            "device": describe_device(trainer.strategy.root_device),
            **({"weights": self.weights} if self.weights else {}),
        }
        # At the step after the last, as a longer run's next steps take the place of this.
        optimizer, step = trainer.optimizers[0], trainer.global_step
        log_hyperparameters(trainer.loggers, metrics, pl_module, data, optimizer, step)
        for logger in trainer.loggers:
            logger.save()
        # Other commands' figures, if any, are of earlier weights.
        (self.folder / "predictions.csv").unlink(missing_ok=True)
        write_metrics(self.folder, metrics)  # last: with this a run is finished
        print(describe_end(train, data.validation_split, other, self.stopwatch))


def entries(
    train: Score, other: Score, data: ImageDataModule, checkpoint: str | None
) -> dict[str, Any]:
    """Give the scores of the training images, and of those validated on, for metrics.json."""
    split = data.validation_split
    return {
        "train": {**train, "checkpoint": checkpoint, "split": "train"},
        "test" if split == "test" else "val": {**other, "checkpoint": checkpoint, "split": split},
    }


def circumstances(
    framework: run_folder.Framework,
    model: Classifier,
    data: ImageDataModule,
    stopwatch: Stopwatch,
    world_size: int = 1,
) -> dict[str, Any]:
    """Give what a run's figures belong to, for metrics.json."""
    seconds, images = stopwatch.seconds, stopwatch.images * world_size
    return {
        "framework": framework,
        "model": type(model).__name__,
        "dataset": data.name,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "wall_time": round(sum(seconds.values()), 3),
        "phases": {phase: round(value, 3) for phase, value in seconds.items()},
        "images_per_second": round(images / seconds["training"], 1),
        "seed": run_seed(),
        "versions": versions(framework),
    }


def versions(framework: run_folder.Framework) -> dict[str, str]:
    """Give the versions of Python and of all packages that a run's figures may depend on."""
    packages = {name: version(name) for name in PACKAGES[framework]}
    return {"python": platform.python_version(), **packages}


def describe_end(train: Score, split: str, other: Score, stopwatch: Stopwatch) -> str:
    """Say in words what a run ended with."""
    times = ", ".join(f"{phase} {seconds:.1f} s" for phase, seconds in stopwatch.seconds.items())
    return f"\nTrain accuracy {train['accuracy']:.2%}, {describe_score(split, other)}\n{times}"


def describe_device(device: torch.device) -> str:
    """Name the hardware: a GPU's model, or how many threads torch has on the CPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{device.type} ({threads} thread{'' if threads == 1 else 's'})"


def log_hyperparameters(
    loggers: Iterable[Logger],
    metrics: dict[str, Any],
    model: Classifier,
    data: ImageDataModule,
    optimizer: torch.optim.Optimizer,
    step: int,
) -> None:
    """Log what a run was made with beside what it gave, for TensorBoard's HPARAMS."""
    parameters = {
        **{name: metrics[name] for name in ("framework", "model", "dataset", "seed")},
        "optimizer": type(optimizer).__name__,
        "learning_rate": optimizer.defaults.get("lr"),  # a scheduler has changed the groups' by now
        **model.hparams,
        **data.hparams,
    }
    held_out = metrics["test" if data.validation_split == "test" else "val"]
    figures = {f"hparams/val_{name}": held_out[name] for name in ("accuracy", "loss")}
    for logger in of_tensorboard(loggers):
        logger.log_hyperparams(parameters, figures, step)


SAMPLES = "train/samples"
"""Under which TensorBoard shows them."""


class SaveFigures(Callback):
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
            write_image(self.folder / "samples.png", samples)
            if trainer.global_step == 0:  # a run that goes on has shown them
                show_picture(trainer.loggers, SAMPLES, samples, 0)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the curves."""
        if trainer.is_global_zero and self.history.rows:
            write_figure(self.folder / "curves.png", draw_curves(self.history.rows))


def draw_samples(data: ImageDataModule) -> Image.Image:
    """Draw eight random training images, with the names of their classes."""
    images, labels = data.arrays("train")
    chosen = np.random.default_rng(run_seed()).choice(len(labels), size=8)
    return draw_images(images[chosen], [data.class_names[label] for label in labels[chosen]])


def draw_curves(rows: list[HistoryRow]) -> Figure:
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
