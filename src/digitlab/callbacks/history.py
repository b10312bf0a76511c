"""The curve of a run, one row an epoch."""

from pathlib import Path
from time import perf_counter
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from digitlab.classifier import Classifier
from digitlab.execution import learning_rate
from digitlab.runs import write_csv
from digitlab.scores import Score

Row = dict[str, int | float | None]


class History(Callback):
    """Keeps an epoch's scores as a row, and all rows in `history.csv`.

    `rows` has, per epoch: `epoch` (from 1), `step` (optimizer steps since the start), `train_loss`,
    `train_accuracy`, `val_loss`, `val_accuracy` (None where the epoch had no validation),
    `learning_rate` (of the first parameter group, at the start) and `seconds` of wall time.

    Args:
        path: The CSV file to write after each epoch.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[Row] = []
        self._validation: Score | None = None
        self._started = 0.0
        self._learning_rate: float | None = None

    def state_dict(self) -> dict[str, Any]:
        """Give the rows, and what is known of the one under way, for a checkpoint."""
        return {
            "rows": self.rows,
            "validation": self._validation,
            "learning_rate": self._learning_rate,
            "seconds": perf_counter() - self._started,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint: after an epoch, or inside one, whose start was before."""
        self.rows = state_dict["rows"]
        self._validation = state_dict["validation"]
        self._learning_rate = state_dict["learning_rate"]
        self._started = perf_counter() - state_dict["seconds"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take back the rows of what is trained again."""
        if self._learning_rate is None:  # no checkpoint has told of the epoch's start
            self.on_train_epoch_start(trainer, pl_module)
        if self.path.exists() and self.rows and trainer.is_global_zero:
            write_csv(self.path, self.rows)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start an epoch's row."""
        self._validation = None
        self._started = perf_counter()
        # A scheduler has set the next epoch's by this one's end.
        self._learning_rate = learning_rate(trainer.optimizers[0])

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the latest validation of the epoch."""
        assert isinstance(pl_module, Classifier)
        self._validation = pl_module.epoch_score("val")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Finish the epoch's row and write all rows."""
        assert isinstance(pl_module, Classifier)
        train = pl_module.epoch_score("train")
        row: Row = {
            "epoch": trainer.current_epoch + 1,
            "step": trainer.global_step,
            "train_loss": train["loss"],
            "train_accuracy": train["accuracy"],
            "val_loss": self._validation and self._validation["loss"],
            "val_accuracy": self._validation and self._validation["accuracy"],
            "learning_rate": self._learning_rate,
            "seconds": round(perf_counter() - self._started, 3),
        }
        self.rows.append(row)
        if trainer.is_global_zero:
            write_csv(self.path, self.rows)
