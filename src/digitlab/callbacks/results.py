"""A run's settings, pictures of samples and curves, and final scores, written to its folder.

A module that trains another framework's network has attributes `framework`, `architecture` (the
model's name) and `run_details` (entries of metrics.json that replace the trainer's). Without them,
the framework is `torch` and the architecture is the module's class.
"""

import platform
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import StochasticWeightAveraging, WeightAveraging

from digitlab import __version__
from digitlab.callbacks.checkpointing import ExactResume
from digitlab.callbacks.logging import History, Throughput, named_weights
from digitlab.callbacks.pictures import LARGE, draw_curves, draw_images, validation_label
from digitlab.callbacks.tensorboard import of_tensorboard, show_picture, show_text
from digitlab.classifier import Classifier
from digitlab.data import ImageDataModule
from digitlab.data.loader import run_seed
from digitlab.files import write_figure, write_image, write_text
from digitlab.resume import processor
from digitlab.run_folder import Framework, short_name, write_metrics
from digitlab.scores import describe_score

PACKAGES = ("torch", "torchvision", "lightning", "numpy", "scikit-learn", "pillow")
"""The packages, beside digitlab and those of Keras, that the scores of a run may depend on."""


class SaveConfig(Callback):
    """Writes the settings of a run, and shows them in TensorBoard under Text.

    The settings of a resumed run replace the earlier ones once the checkpoint has been loaded with
    them; TensorBoard shows both, each at its first step.

    Args:
        path: The run's `config.yaml`.
        settings: The settings, as YAML.
    """

    def __init__(self, path: Path, settings: str) -> None:
        self.path = path
        self.settings = settings

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        is_known = self.path.is_file() and self.path.read_text("utf-8") == self.settings
        if not is_known:
            write_text(self.path, self.settings)
        if trainer.global_step == 0 or not is_known:
            show_text(trainer.loggers, "config", self.settings, trainer.global_step)


class SaveFigures(Callback):
    """Draws `samples.png` when a fit starts and `curves.png` when it ends.

    TensorBoard shows the samples too, as `train/samples`; it has curves of its own.

    Args:
        folder: Where to write the pictures.
        history: Has the rows of the curves.
    """

    def __init__(self, folder: Path, history: History) -> None:
        self.folder = folder
        self.history = history

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        data = trainer.datamodule  # type: ignore[attr-defined]  # set by `fit`
        if trainer.is_global_zero and isinstance(data, ImageDataModule):
            images, labels = data.arrays("train")
            chosen = np.random.default_rng(run_seed()).choice(len(labels), size=8)
            names = [data.class_names[label] for label in labels[chosen]]
            samples = draw_images(images[chosen], names, scale=LARGE)
            write_image(self.folder / "samples.png", samples)
            if trainer.global_step == 0:  # not again in a resumed run
                small = draw_images(images[chosen], names)  # beside the other pictures
                show_picture(trainer.loggers, "train/samples", small, 0)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not (trainer.is_global_zero and (rows := self.history.rows)):
            return
        columns = {name: [row[name] for row in rows] for name in rows[0]}
        data = trainer.datamodule  # type: ignore[attr-defined]  # set by `fit`
        validation = validation_label(getattr(data, "validation_is_test", False))
        figure = draw_curves(columns, short_name(self.folder), validation)
        write_figure(self.folder / "curves.png", figure)


class FinalEvaluation(Callback):
    """Evaluates the trained network on whole splits, and writes `metrics.json`.

    The splits are the training images and, without a hold-out, the test split. With a hold-out they
    are the training images and the hold-out, and the test split is not read.

    Args:
        folder: The run folder.
        throughput: Has timed the training.
        weights: `file` and `sha256` of the initial weights, if they were read from a file.
    """

    def __init__(
        self, folder: Path, throughput: Throughput, weights: dict[str, str] | None = None
    ) -> None:
        self.folder = folder
        self.throughput = throughput
        self.weights = weights

    def state_dict(self) -> dict[str, Any]:
        return {"weights": self.weights}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.weights = state_dict["weights"]

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, Classifier)
        data: ImageDataModule = trainer.datamodule  # type: ignore[attr-defined]  # set by `fit`
        used: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]  # set at run time
        averaging = (StochasticWeightAveraging, WeightAveraging)
        if trainer.checkpoint_callbacks and any(isinstance(it, averaging) for it in used):
            # It has just replaced the weights that were saved.
            trainer.save_checkpoint(self.folder / "checkpoints" / "last.ckpt")
        with self.throughput.time("evaluation"):
            train = pl_module.evaluate(data.train_eval_dataloader())
            other = pl_module.evaluate(data.val_dataloader())
        if not trainer.is_global_zero:
            return
        split = data.validation_split
        phase = "test" if split == "test" else "val"
        checkpoint = "last" if trainer.checkpoint_callbacks else None
        seconds, images = self.throughput.seconds, self.throughput.images * trainer.world_size
        inexact = [text for it in used if isinstance(it, ExactResume) for text in it.inexact]
        framework: Framework = getattr(pl_module, "framework", "torch")
        metrics = {
            "train": {**train, "checkpoint": checkpoint, "split": "train"},
            phase: {**other, "checkpoint": checkpoint, "split": split},
            "framework": framework,
            "model": getattr(pl_module, "architecture", type(pl_module).__name__),
            "dataset": data.name,
            "parameters": sum(weight.numel() for _, weight in named_weights(pl_module)),
            "wall_time": round(sum(seconds.values()), 3),
            "phases": {phase: round(value, 3) for phase, value in seconds.items()},
            "images_per_second": round(images / seconds["training"], 1),
            "seed": run_seed(),
            "versions": versions(framework),
            "epochs": trainer.current_epoch,
            "optimizer_steps": trainer.global_step,
            "precision": trainer.precision,
            "device": describe_device(trainer.strategy.root_device),
            "cpu": processor(),
            **({"weights": self.weights} if self.weights else {}),
            **({"inexact_resumes": inexact} if inexact else {}),
            **getattr(pl_module, "run_details", {}),
        }
        optimizer = trainer.optimizers[0]
        parameters = {
            **{name: metrics[name] for name in ("framework", "model", "dataset", "seed")},
            "optimizer": type(optimizer).__name__,
            "learning_rate": optimizer.defaults.get("lr"),  # a scheduler has changed the groups'
            **pl_module.hparams,
            **data.hparams,
        }
        # The ends of the curves: tags of their own would be plots of one point.
        scores = {"val/accuracy": other["accuracy"], "val/loss": other["loss"]}
        for shown in of_tensorboard(trainer.loggers):  # under HPARAMS
            # At the step after the last: the next steps of a longer run replace it.
            shown.log_hyperparams(parameters, scores, trainer.global_step)
        for logger in trainer.loggers:
            logger.save()
        # Scores that other commands have written belong to earlier weights.
        (self.folder / "predictions.csv").unlink(missing_ok=True)
        write_metrics(self.folder, metrics)  # last: this marks the run as finished
        times = ", ".join(f"{phase} {value:.1f} s" for phase, value in seconds.items())
        print(f"\nTrain accuracy {train['accuracy']:.2%}, {describe_score(split, other)}\n{times}")


def versions(framework: Framework) -> dict[str, str]:
    """Return the versions of Python, digitlab and the installed packages that scores depend on."""
    found = {"python": platform.python_version(), "digitlab": __version__}
    for name in PACKAGES + (("keras", "tensorflow") if framework == "keras" else ()):
        with suppress(PackageNotFoundError):  # digitlab may run from a source tree without them
            found[name] = version(name)
    return found


def describe_device(device: torch.device) -> str:
    """Name the hardware: a GPU's model, or how many threads torch has on the CPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{device.type} ({threads} thread{'' if threads == 1 else 's'})"
