"""One progress bar, cheap enough to leave on."""

from collections.abc import Callable
from functools import partial
from time import monotonic
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar as LightningProgressBar
from tqdm import tqdm

from digitlab.classifier import Classifier
from digitlab.data import ImageLoader
from digitlab.scores import Score

REFRESH_SECONDS = 0.25


class Bar:
    """A bar that is drawn at most four times a second, and on a terminal only.

    Args:
        description: What is under way.
        total: Number of batches to come.
        enabled: Whether to draw at all.
    """

    def __init__(self, description: str, total: int | float, enabled: bool = True) -> None:
        self._drawn_at = 0.0
        self._tqdm: tqdm[Any] = tqdm(
            desc=description,
            total=total,
            unit="batch",
            leave=False,
            dynamic_ncols=True,
            disable=None if enabled else True,  # None: where there is no terminal
        )

    def show(self, done: int, score: Callable[[], Score] | None = None) -> None:
        """Show how many batches are done, and the score so far, if it is time to."""
        now = monotonic()
        if self._tqdm.disable or now - self._drawn_at < REFRESH_SECONDS:
            return
        self._drawn_at = now
        self._tqdm.n = done
        if score:
            so_far = score()
            text = f"loss {so_far['loss']:.4f}, accuracy {so_far['accuracy']:.2%}"
            self._tqdm.set_postfix_str(text, refresh=False)
        self._tqdm.refresh()

    def say(self, text: str) -> None:
        """Show at once why the bar stands still."""
        self._tqdm.set_postfix_str(text)

    def close(self) -> None:
        """Clear the bar, which makes room for a line."""
        self._tqdm.close()


class ProgressBar(LightningProgressBar):
    """Shows how far an epoch is, with its loss and accuracy so far, at most four times a second.

    Lightning's own bars are refreshed by the batch and cost up to half a step of a small network.
    Where standard error is no terminal, nothing is drawn.
    """

    def __init__(self) -> None:
        super().__init__()
        self._enabled = True
        self._bar = Bar("", 0, enabled=False)

    def disable(self) -> None:
        """Draw nothing; Lightning calls this in all processes but the first."""
        self._enabled = False

    def enable(self) -> None:
        """Draw again."""
        self._enabled = True

    def _open(self, description: str, batches: int | float) -> None:
        self._bar = Bar(description, batches, self._enabled)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open a bar for the rest of an epoch, whose start does not come again."""
        if trainer.fit_loop.restarted_mid_epoch:
            self.on_train_epoch_start(trainer, pl_module)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the epoch's bar."""
        total = self.total_train_batches
        if blocks := self._blocks():
            total = blocks.batches
        self._open(f"Epoch {trainer.current_epoch + 1}", total)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Show how far the epoch is."""
        assert isinstance(pl_module, Classifier)
        blocks = self._blocks()
        done = blocks.state_dict()["batches"] if blocks else batch_idx + 1
        self._bar.show(done, partial(pl_module.running_score, "train"))

    def _blocks(self) -> ImageLoader | None:
        """Give the training loader if Lightning's own numbers count blocks of several batches."""
        loader = self.trainer.train_dataloader
        return (
            loader if isinstance(loader, ImageLoader) and loader.steps_per_execution > 1 else None
        )

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Clear the epoch's bar, which makes room for a line about it."""
        self._bar.close()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Clear the bar, or what is said of the end would stand behind it."""
        self._bar.close()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say why the epoch's bar stands still, or open a bar for a validation on its own."""
        if trainer.state.fn == "fit":
            self._bar.say("validating")
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
            self._bar.show(batch_idx + 1)

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
        self._bar.show(batch_idx + 1)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Clear the bar."""
        self._bar.close()
