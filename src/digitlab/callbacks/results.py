"""The figures that a run ends with: full passes in evaluation mode, and what they belong to."""

import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import StochasticWeightAveraging, WeightAveraging
from lightning.pytorch.loggers import TensorBoardLogger

from digitlab.callbacks.stopwatch import Stopwatch
from digitlab.classifier import Classifier
from digitlab.data import ImageDataModule
from digitlab.data.loader import run_seed
from digitlab.runs import update_metrics
from digitlab.scores import Score, describe

AVERAGING = (StochasticWeightAveraging, WeightAveraging)
PACKAGES = ("digitlab", "torch", "torchvision", "lightning", "numpy", "scikit-learn", "pillow")


class Results(Callback):
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
        split = data.validation_split
        checkpoint = "last" if trainer.checkpoint_callbacks else None
        phase = "test" if split == "test" else "val"
        metrics = {
            "train": {**train, "checkpoint": checkpoint, "split": "train"},
            phase: {**other, "checkpoint": checkpoint, "split": split},
        }
        update_metrics(self.folder, metrics | self._circumstances(trainer, pl_module, data))
        _log_hyperparameters(trainer, pl_module, data, other)
        print(f"\nTrain accuracy {train['accuracy']:.2%}, {describe(split, other)}")
        print(", ".join(f"{phase} {s:.1f} s" for phase, s in self.stopwatch.seconds.items()))

    def _circumstances(
        self, trainer: Trainer, model: Classifier, data: ImageDataModule
    ) -> dict[str, Any]:
        seconds = self.stopwatch.seconds
        images = self.stopwatch.images * trainer.world_size
        return {
            "framework": "torch",
            "model": type(model).__name__,
            "dataset": data.name,
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "epochs": trainer.current_epoch,
            "optimizer_steps": trainer.global_step,
            "wall_time": round(sum(seconds.values()), 3),
            "phases": {phase: round(value, 3) for phase, value in seconds.items()},
            "images_per_second": round(images / seconds["training"], 1),
            "seed": run_seed(),
            "precision": trainer.precision,
            "device": describe_device(trainer.strategy.root_device),
            "versions": {
                "python": platform.python_version(),
                **{name: version(name) for name in PACKAGES},
            },
            **({"weights": self.weights} if self.weights else {}),
        }


def describe_device(device: torch.device) -> str:
    """Name the hardware: a GPU's model, or how many threads torch has on the CPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{device.type} ({threads} thread{'' if threads == 1 else 's'})"


def _log_hyperparameters(
    trainer: Trainer, model: Classifier, data: ImageDataModule, held_out: Score
) -> None:
    optimizer = trainer.optimizers[0]
    parameters = {
        "model": type(model).__name__,
        "dataset": data.name,
        "optimizer": type(optimizer).__name__,
        "learning_rate": optimizer.defaults.get("lr"),  # a scheduler has changed the groups' by now
        "seed": run_seed(),
        **model.hparams,
        **data.hparams,
    }
    metrics = {"hparams/val_accuracy": held_out["accuracy"], "hparams/val_loss": held_out["loss"]}
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.log_hyperparams(parameters, metrics)
