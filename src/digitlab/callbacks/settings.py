"""The settings of a run, where people look for them."""

from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer

from digitlab.runs import write_text
from digitlab.tensorboard import show_text


class Settings(Callback):
    """Writes the settings that a run is trained with, and shows them in TensorBoard under Text.

    A run that goes on may have others than at its start. They take the old ones' place once they
    have proved to fit the checkpoint, and TensorBoard shows both, each at its first step.

    Args:
        path: The run's `config.yaml`.
        settings: What it is trained with, as YAML.
    """

    def __init__(self, path: Path, settings: str) -> None:
        self.path = path
        self.settings = settings

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write and show them, if they are new."""
        if not trainer.is_global_zero:
            return
        is_known = self.path.is_file() and self.path.read_text("utf-8") == self.settings
        if not is_known:
            write_text(self.path, self.settings)
        if trainer.global_step == 0 or not is_known:
            show_text(trainer.loggers, "config", self.settings, trainer.global_step)
