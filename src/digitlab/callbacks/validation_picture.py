"""What pictures of each validation have in common."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

from lightning.pytorch import Callback, LightningModule, Trainer
from PIL.Image import Image
from torch import Tensor

from digitlab import tensorboard
from digitlab.processes import gather


class ValidationPicture(Callback, ABC):
    """Looks at each batch of a validation, and at its end shows a picture in TensorBoard.

    A subclass says what it keeps of a batch and what it draws of all that was kept, by all
    processes. Nothing is read back from a GPU before the end.
    """

    tag: ClassVar[str]
    """Under which the picture is shown."""

    def __init__(self) -> None:
        self._kept: list[tuple[Tensor, ...]] = []

    @abstractmethod
    def look_at(self, images: Tensor, labels: Tensor, logits: Tensor) -> tuple[Tensor, ...]:
        """Give what is worth keeping of a batch of N images in K classes.

        Args:
            images: float `(N, C, 28, 28)`, normalized in whatever way.
            labels: int64 `(N,)`.
            logits: float32 or wider, `(N, K)`.
        """

    @abstractmethod
    def draw(self, kept: Sequence[tuple[Tensor, ...]], names: Sequence[str]) -> Image | None:
        """Draw what was kept of at least one batch, on the CPU; None where there is nothing.

        Args:
            kept: What `look_at` gave of each batch.
            names: Of the classes; others are named by their numbers.
        """

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget what was validated before."""
        self._kept.clear()

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Look at a batch and its logits, which a `Classifier`'s validation step gives."""
        # Others' validation steps give nothing, or the loss.
        if isinstance(outputs, Tensor) and outputs.ndim == 2 and _looks(trainer):
            images, labels = batch
            self._kept.append(self.look_at(images, labels, outputs))

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw what was kept, in the first process."""
        if not _looks(trainer):
            return
        here = [tuple(tensor.cpu() for tensor in kept) for kept in self._kept]
        kept = [of_batch for process in gather(trainer, here) for of_batch in process]
        self._kept.clear()
        if not kept or not trainer.is_global_zero:
            return
        data = trainer.datamodule  # type: ignore[attr-defined]  # set by `fit`
        if picture := self.draw(kept, getattr(data, "class_names", ())):
            step = tensorboard.latest_step(trainer)
            tensorboard.show_picture(trainer.loggers, self.tag, picture, step)


def _looks(trainer: Trainer) -> bool:
    return bool(tensorboard.of_tensorboard(trainer.loggers)) and not trainer.sanity_checking
