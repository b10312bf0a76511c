"""The progress bar: Lightning's, of one line, on standard error.

It overrides `_should_update` of Lightning's bar, a private name: checked against Lightning 2.6.
"""

import os
import sys
from time import monotonic
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm, convert_inf

from digitlab.batches import Block
from digitlab.classifier import Classifier
from digitlab.data import ImageLoader

REFRESH_SECONDS = 0.25


class _Bar(Tqdm):
    def set_description(self, desc: str | None = None, refresh: bool = True) -> None:
        """Describe the bar, without tqdm's colon and without Lightning's number of the loader."""
        self.set_description_str((desc or "").removesuffix(" DataLoader 0"), refresh)


class ProgressBar(TQDMProgressBar):
    """Shows the progress of an epoch, with its loss and accuracy so far, four times a second.

    Lightning's own bar is redrawn after every batch, which costs up to half a step of a small
    network. Nothing is drawn if standard error is closed, not a terminal, or one that cannot
    return to the start of a line.
    """

    def __init__(self) -> None:
        super().__init__()
        self._refreshed_at = 0.0

    @property
    def is_enabled(self) -> bool:
        is_terminal = sys.stderr is not None and sys.stderr.isatty()
        return super().is_enabled and is_terminal and os.environ.get("TERM") != "dumb"

    def _should_update(self, current: int, total: float) -> bool:
        now = monotonic()
        if now - self._refreshed_at < REFRESH_SECONDS:
            return False
        self._refreshed_at = now
        return self.is_enabled

    def _tqdm(self, description: str, total: float | None = None, on: bool = True) -> _Bar:
        is_utf = str(getattr(sys.stderr, "encoding", "")).lower().startswith("utf")
        return _Bar(
            desc=description,
            total=total,
            disable=self.is_disabled or not on,
            leave=False,
            dynamic_ncols=True,
            file=sys.stderr,
            ascii="─╾━" if is_utf else True,
            unit=" batches",
            bar_format="{desc} {bar} {percentage:.0f}% {remaining}{postfix}, {rate_noinv_fmt}",
        )

    def init_sanity_tqdm(self) -> _Bar:
        return self._tqdm(self.sanity_check_description)

    def init_test_tqdm(self) -> _Bar:
        return self._tqdm(self.test_description)

    def init_predict_tqdm(self) -> _Bar:
        return self._tqdm(self.predict_description)

    def init_train_tqdm(self) -> _Bar:
        """Make the bar of all epochs; a run resumed inside an epoch shows that epoch at once."""
        return self._tqdm(self.train_description, convert_inf(self.total_train_batches))

    def init_validation_tqdm(self) -> _Bar:
        """Make the bar of a validation on its own; inside a fit, the epoch's bar is shown."""
        return self._tqdm(self.validation_description, on=self.trainer.state.fn != "fit")

    @property
    def train_description(self) -> str:
        """The epoch, from 1, and the number of epochs if it is limited."""
        epoch, last = self.trainer.current_epoch + 1, self.trainer.max_epochs
        return f"Epoch {epoch}/{last}" if last and last > 0 else f"Epoch {epoch}"

    @property
    def validation_description(self) -> str:
        data = getattr(self.trainer, "datamodule", None)
        return f"Validation{' (test split)' * getattr(data, 'validation_is_test', False)}"

    @property
    def total_train_batches(self) -> float:
        """The batches of an epoch, where Lightning counts blocks of several batches."""
        loader = self.trainer.train_dataloader
        if isinstance(loader, ImageLoader) and loader.steps_per_execution > 1:
            return loader.batches
        return super().total_train_batches

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """Read loss and accuracy so far, and values that a module logs with `prog_bar=True`."""
        if self.is_disabled:
            return {}
        shown: dict[str, Any] = {}
        if isinstance(pl_module, Classifier) and "train" in pl_module.sums:
            score = pl_module.running_score("train")
            shown = {"loss": f"{score['loss']:.3f}", "acc": f"{score['accuracy']:.1%}"}
        own = trainer.progress_bar_metrics.items()
        return shown | {name: f"{value:.3g}" for name, value in own}

    def on_train_epoch_start(self, trainer: Trainer, *_: Any) -> None:
        bar = self.train_progress_bar
        bar.set_description(self.train_description, refresh=False)
        bar.set_postfix_str("", refresh=False)
        bar.reset(convert_inf(self.total_train_batches))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Show how many batches are done; of blocks, the loader counts them."""
        if isinstance(batch, Block) and isinstance(loader := trainer.train_dataloader, ImageLoader):
            batch_idx = loader.state_dict()["batches"] - 1
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Clear the bar, which makes room for the epoch's line."""
        self.train_progress_bar.clear()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show on the epoch's bar that a validation is running."""
        super().on_validation_start(trainer, pl_module)
        if trainer.state.fn == "fit":
            self.train_progress_bar.set_postfix_str("validating")

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Clear the bar, so that the error message starts on an empty line."""
        for bar in vars(self).values():
            if isinstance(bar, Tqdm):
                bar.close()
