"""Class probabilities while training, as document A's TensorFlow program logs them."""

from collections.abc import Iterable
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from digitlab.batches import Block
from digitlab.classifier import Classifier
from digitlab.predictions import evaluating, name_classes


class ClassProbabilities(Callback):
    """Logs the probability that the network gives to each class, as a mean over the batch.

    A network that has learned nothing gives each class its share; one that has collapsed gives all
    to one class. The scalars are `probabilities/<class name>`. They are computed anew in evaluation
    mode, so that neither the weights nor the random numbers of the run are touched.

    Args:
        every_n_steps: Optimizer steps between two records (at least 1); 50 in document A. With
            several steps per execution, the record is of the last that is made with the one due.

    Raises:
        ValueError: `every_n_steps` is below 1.
    """

    def __init__(self, every_n_steps: int = 50) -> None:
        if every_n_steps < 1:
            raise ValueError(f"every_n_steps is {every_n_steps}: it must be at least 1")
        self.every_n_steps = every_n_steps
        self._seen_step = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start to count, from the step that a run goes on from."""
        self._seen_step = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log the probabilities, if it is time."""
        # Several batches may belong to a step, or several steps to what is called a batch here.
        seen, step = self._seen_step, trainer.global_step
        self._seen_step = step
        if step // self.every_n_steps == seen // self.every_n_steps:
            return
        assert isinstance(pl_module, Classifier)
        if isinstance(batch, Block):
            *_, batch = batch.batches()
        forward_context = trainer.precision_plugin.forward_context()
        with evaluating(pl_module.network), torch.no_grad(), forward_context:
            probabilities = pl_module.predict_step(batch, batch_idx)["probabilities"].mean(0)
        data = trainer.datamodule  # type: ignore[attr-defined]  # set by `fit`
        names = name_classes(getattr(data, "class_names", ()), len(probabilities))
        for logger in trainer.loggers:
            # A step's number on this axis is from 0, as Lightning's are.
            logger.log_metrics(probability_scalars(names, probabilities), step=step - 1)


def probability_scalars(names: Iterable[str], probabilities: Tensor) -> dict[str, float]:
    """Name the probabilities `(num_classes,)` as they are logged."""
    return {
        # A slash would open a group of its own in TensorBoard.
        f"probabilities/{name.replace('/', ' or ')}": probability
        for name, probability in zip(names, probabilities.tolist(), strict=True)
    }
