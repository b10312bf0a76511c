"""What the parser cannot check of a run: settings that are no good, or not together."""

import re
from pathlib import Path

import torch

from digitlab.arguments import RunCLI
from digitlab.classifier import Classifier
from digitlab.data import ImageDataModule


def check_settings(cli: RunCLI) -> None:
    """Check what the parser cannot, and give the run a name."""
    for name in ("max_epochs", "max_steps", "limit_train_batches"):
        if cli.config.trainer[name] == 0:
            raise ValueError(f"trainer.{name} is 0: leave at least one step to train")
    default = Path(cli.config_files[0]).stem if cli.config_files else type(cli.model).__name__
    cli.config.name = cli.config.name or default.lower()
    if cli.config.run:
        raise ValueError(
            f"run is {cli.config.run}: a run goes on by --run on the command line of digitlab fit, "
            "and by nothing else"
        )
    if (steps := cli.config.checkpoint_every_n_steps) is not None and steps < 1:
        raise ValueError(f"checkpoint_every_n_steps is {steps}: it must be at least 1, or null")
    if (minutes := cli.config.checkpoint_every_n_minutes) is not None and not minutes >= 0:
        raise ValueError(f"checkpoint_every_n_minutes is {minutes}: it must be at least 0, or null")
    if not re.fullmatch(r"[\w.+-]*\w[\w.+-]*", cli.config.name):
        raise ValueError(
            f"name is {cli.config.name}: give a part of a folder's name, without a slash or a space"
        )


def check_together(model: Classifier, data: ImageDataModule) -> None:
    """Check what neither the model nor the data module can check alone, before anything is made."""
    try:
        model.configure_optimizers()  # whose settings nothing has checked yet
    except TypeError as error:
        raise ValueError(f"optimizer or lr_scheduler cannot be made: {error}") from error
    classes = len(data.class_names)
    model.network.eval()  # no dropout: the run's random numbers stay as they are
    try:
        with torch.no_grad():
            logits = model(torch.zeros(1, 1, 28, 28))
    except RuntimeError as error:
        raise ValueError(
            f"{type(model).__name__} cannot take {data.name}'s images, (N, 1, 28, 28): {error}"
        ) from error
    model.network.train()
    if logits.shape != (1, classes):
        raise ValueError(
            f"{type(model).__name__} gives logits {tuple(logits.shape)} for an image: {data.name} "
            f"has {classes} classes, so give (1, {classes}), by --model.num_classes {classes}"
        )
