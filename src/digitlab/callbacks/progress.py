"""One progress bar, cheap enough to leave on."""

from time import monotonic
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar as LightningProgressBar
from tqdm import tqdm

from digitlab.classifier import Classifier

REFRESH_SECONDS = 0.25


class ProgressBar(LightningProgressBar):
    """Shows how far an epoch is, with its loss and accuracy so far, at most four times a second.

    Lightning's own bars are refreshed by the batch and cost up to half a step of a small network.
    Where standard error is no terminal, nothing is drawn.
    """

    def __init__(self) -> None:
        super().__init__()
        self._bar: tqdm[Any] = tqdm(disable=True)
        self._enabled = True
        self._drawn_at = 0.0

    def disable(self) -> None:
        """Draw nothing; Lightning calls this in all processes but the first."""
        self._enabled = False

    def enable(self) -> None:
        """Draw again."""
        self._enabled = True

    def _open(self, description: str, batches: int | float) -> None:
        self._bar = tqdm(
            desc=description,
            total=batches,
            unit="batch",
            leave=False,
            dynamic_ncols=True,
            disable=None if self._enabled else True,  # None: where there is no terminal
        )

    def _show(self, done: int, model: LightningModule | None = None) -> None:
        now = monotonic()
        if self._bar.disable or now - self._drawn_at < REFRESH_SECONDS:
            return
        self._drawn_at = now
        self._bar.n = done
        if isinstance(model, Classifier):
            score = model.running_score("train")
            text = f"loss {score['loss']:.4f}, accuracy {score['accuracy']:.2%}"
            self._bar.set_postfix_str(text, refresh=False)
        self._bar.refresh()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the epoch's bar."""
        self._open(f"Epoch {trainer.current_epoch + 1}", self.total_train_batches)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Show how far the epoch is."""
        self._show(batch_idx + 1, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Clear the epoch's bar, which makes room for a line about it."""
        self._bar.close()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say why the epoch's bar stands still, or open a bar for a validation on its own."""
        if trainer.state.fn == "fit":
            self._bar.set_postfix_str("validating")
        else:
            self._open("Validation", sum(trainer.num_val_batches))

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Show how far a validation on its own is."""
        if trainer.state.fn != "fit":
            self._show(batch_idx + 1)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Clear the bar of a validation on its own."""
        if trainer.state.fn != "fit":
            self._bar.close()

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open a bar."""
        self._open("Test", sum(trainer.num_test_batches))

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Show how far the test is."""
        self._show(batch_idx + 1)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Clear the bar."""
        self._bar.close()
