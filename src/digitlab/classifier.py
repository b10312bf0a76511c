"""The training code that every architecture shares: loss, metrics, optimizer and steps."""

import sys
from collections.abc import Iterable
from typing import Any, Literal, Self, cast

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.plugins import Precision
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import ReduceLROnPlateau

from digitlab import distributed, execution
from digitlab.batches import Batch, Block
from digitlab.scores import RunningScore, Score, describe_predictions


def initialize_as_keras(module: nn.Module) -> None:
    """Draw a layer's initial values as Keras does: Glorot-uniform weights and zero biases."""
    if isinstance(module, nn.Linear | nn.Conv2d):
        nn.init.xavier_uniform_(module.weight)  # Glorot and Bengio 2010, equation 16
        if module.bias is not None:
            nn.init.zeros_(module.bias)


Phase = Literal["train", "val", "test"]


class Classifier(LightningModule):
    """An image classifier: a network that gives logits, and all that trains and measures it.

    An architecture is a subclass whose `__init__` builds the network and passes it on with
    `super().__init__(network=..., **kwargs)`; `digitlab.models` has the documents'.

    The loss is the cross-entropy of the logits, computed in float32 or wider whatever the
    network's precision. Loss and accuracy of an epoch are sums over images, divided once, so that
    a last batch of another size weighs what it should.

    Shape:
        - Input: a batch `(images, labels)` from any loader, float32 `(N, in_channels, 28, 28)` and
          int64 `(N,)`.
        - Output: logits `(N, num_classes)`.

    Args:
        network: Maps images to logits.
        optimizer: Makes the optimizer of the parameters. The default, Adam with a learning rate of
            0.001, is that of most of the documents' runs. It is fused: one call for all
            parameters, equal to the other kind but for rounding.
        lr_scheduler: Makes a learning rate scheduler of the optimizer. The default, none, keeps
            the learning rate constant as the documents do.
        lr_scheduler_interval: Step the scheduler after every epoch or every optimizer step.
        initialization: `torch` keeps PyTorch's initial values, U(±1/√fan_in) for weights and
            biases; `keras` draws Keras's, Glorot-uniform weights and zero biases.
        dropout_in_evaluation: Leave dropout on while evaluating, to reproduce document B, whose
            PyTorch program never calls `eval()`. False is what everybody else wants.
        gradient_clip_norm: Shrink each step's gradients to this L2 norm where theirs is larger
            (above 0). The default, none, does not clip.
        label_smoothing: Part of the label that is shared among all classes while training, in
            [0, 1]. `train/loss` is the loss with it, which is minimized; other losses are without.
        steps_per_execution: Optimizer steps per `training_step`, at least 1, as in Keras. It
            changes speed and nothing else. Our data modules hand over so many batches at once;
            other loaders' single batches are trained on one by one.
        channels_last: Keep the weights of convolutions with channels last in memory, which on many
            CPUs and GPUs makes convolutions faster. It changes results by rounding.

    Raises:
        ValueError: A number is out of its range.
    """

    def __init__(
        self,
        network: nn.Module,
        optimizer: OptimizerCallable = lambda params: torch.optim.Adam(
            params, lr=0.001, fused=True
        ),
        lr_scheduler: LRSchedulerCallable | None = None,
        lr_scheduler_interval: Literal["epoch", "step"] = "epoch",
        initialization: Literal["torch", "keras"] = "torch",
        dropout_in_evaluation: bool = False,
        gradient_clip_norm: float | None = None,
        label_smoothing: float = 0.0,
        steps_per_execution: int = 1,
        channels_last: bool = False,
    ) -> None:
        super().__init__()
        if gradient_clip_norm is not None and not gradient_clip_norm > 0:
            raise ValueError(
                f"gradient_clip_norm is {gradient_clip_norm}: give a norm above 0, or null for none"
            )
        if not 0 <= label_smoothing <= 1:
            raise ValueError(f"label_smoothing is {label_smoothing}: it must be from 0 to 1")
        if steps_per_execution < 1:
            raise ValueError(f"steps_per_execution is {steps_per_execution}: it must be at least 1")
        # A callable does not pickle and a module is no plain value: without these three, a
        # checkpoint loads with `weights_only=True`.
        self.save_hyperparameters(ignore=["network", "optimizer", "lr_scheduler"])
        self.network = network.to(
            memory_format=torch.channels_last if channels_last else torch.preserve_format
        )
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
        self.lr_scheduler_interval = lr_scheduler_interval
        self.dropout_in_evaluation = dropout_in_evaluation
        self.gradient_clip_norm = gradient_clip_norm
        self.label_smoothing = label_smoothing
        self.steps_per_execution = steps_per_execution
        self.automatic_optimization = steps_per_execution == 1
        self.sums: dict[Phase, RunningScore] = {}  # of epochs under way
        self._scores: dict[Phase, Score] = {}  # of epochs that are over
        if initialization == "keras":
            self.apply(initialize_as_keras)

    def __setattr__(self, name: str, value: Any) -> None:
        # Lightning notes here which hook it calls, some 40 times a step; a module's own way of
        # setting an attribute takes 4 µs.
        if name == "_current_fx_name":
            self.__dict__[name] = value
        else:
            super().__setattr__(name, value)

    def forward(self, images: Tensor) -> Tensor:
        """Compute the logits `(N, num_classes)` of normalized images `(N, in_channels, 28, 28)`."""
        logits: Tensor = self.network(images)
        return logits

    def train(self, mode: bool = True) -> Self:
        """Switch to training or evaluation mode; in both, dropout stays on if asked for."""
        super().train(mode)
        if self.dropout_in_evaluation:
            for module in self.modules():
                if isinstance(module, nn.modules.dropout._DropoutNd):
                    module.train()
        return self

    def configure_optimizers(self) -> Any:
        """Make the optimizer and, where there is one, the learning rate scheduler."""
        optimizer = self.optimizer(self.parameters())
        if self.lr_scheduler is None:
            return optimizer
        scheduler = self.lr_scheduler(optimizer)
        settings: dict[str, Any] = {"scheduler": scheduler, "interval": self.lr_scheduler_interval}
        if isinstance(scheduler, ReduceLROnPlateau) and self.automatic_optimization:
            # Stepped at the epoch's end, here: Lightning would do it after the checkpoint.
            settings |= {"monitor": execution.monitored(scheduler), "frequency": sys.maxsize}
        return {"optimizer": optimizer, "lr_scheduler": settings}

    def on_train_epoch_start(self) -> None:
        """Start a training score; a run that goes on inside an epoch keeps that of its start."""
        self.sums["train"] = RunningScore(self.device)

    def training_step(self, batch: Batch | Block, batch_idx: int) -> Tensor | None:
        """Compute the mean loss of a batch, to be minimized; or minimize it for each of several."""
        if "train" not in self.sums:  # Lightning may go on inside an epoch
            self.sums["train"] = RunningScore(self.device)
        if self.automatic_optimization:
            return self._measure("train", cast("Batch", batch))[0]
        execution.train_on(self, batch, lambda one: self._measure("train", one)[0])
        return None

    def on_fit_start(self) -> None:
        """Refuse what the trainer is asked for and cannot be done; draw other masks than others."""
        execution.check_supported(self, self.trainer)
        distributed.seed_per_rank(self.trainer)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Clip the gradients, which a mixed precision has unscaled by now; log, if it is time."""
        if self.gradient_clip_norm is not None:
            nn.utils.clip_grad_norm_(self.parameters(), self.gradient_clip_norm)
        execution.log_step(self, self.sums["train"], optimizer)

    def on_train_epoch_end(self) -> None:
        """Log the epoch's training score."""
        execution.log_score(self, "train")
        execution.step_plateau_schedulers(self)

    def on_validation_epoch_start(self) -> None:
        """Start a validation score."""
        self.sums["val"] = RunningScore(self.device)

    def validation_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Add a batch to the validation score; its logits are for callbacks to look at."""
        return self._measure("val", batch)[1]

    def on_validation_epoch_end(self) -> None:
        """Log the validation score."""
        execution.log_score(self, "val")

    def on_test_epoch_start(self) -> None:
        """Start a test score."""
        self.sums["test"] = RunningScore(self.device)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Add a batch to the test score."""
        self._measure("test", batch)

    def on_test_epoch_end(self) -> None:
        """Log the test score."""
        execution.log_score(self, "test")

    def predict_step(self, batch: Batch | Tensor, batch_idx: int = 0) -> dict[str, Any]:
        """Classify a batch of images, as `describe_predictions`; labels may stand beside them."""
        images, *labels = (batch,) if isinstance(batch, Tensor) else batch
        names = getattr(getattr(self._trainer, "datamodule", None), "class_names", None)
        logits = _at_least_float32(self(images))
        return describe_predictions(logits, labels[0] if labels else None, names)

    @torch.no_grad()
    def evaluate(self, batches: Iterable[Batch]) -> Score:
        """Measure loss and accuracy over `batches` in evaluation mode, logging nothing.

        Inside a run it computes in the run's precision and adds up the batches of all processes.
        """
        precision = self._trainer.precision_plugin if self._trainer else Precision()
        was_training = self.training
        self.eval()
        sums = RunningScore(self.device)
        for batch in batches:
            on_device = self.transfer_batch_to_device(batch, self.device, 0)
            images, labels = precision.convert_input(on_device)
            with precision.forward_context():
                sums.add(*self._loss_and_logits(images, labels), labels)
        self.train(was_training)
        return self._score(sums)

    def running_score(self, phase: Phase) -> Score:
        """Read this process's score of the epoch under way."""
        return self.sums[phase].score()

    def epoch_score(self, phase: Phase) -> Score:
        """Give the score of the epoch that has just ended, over all processes.

        To be called by all processes or none, from a hook at or after the epoch's end.
        """
        if phase in self.sums:
            self._scores[phase] = self._score(self.sums.pop(phase))
        return self._scores[phase]

    def _loss_and_logits(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        logits = _at_least_float32(self(images))
        smoothing = self.label_smoothing if self.training else 0.0
        return cross_entropy(logits, labels, label_smoothing=smoothing), logits

    def _measure(self, phase: Phase, batch: Batch) -> tuple[Tensor, Tensor]:
        images, labels = batch
        loss, logits = self._loss_and_logits(images, labels)
        self.sums[phase].add(loss, logits, labels)
        return loss, logits

    def _score(self, sums: RunningScore) -> Score:
        return (sums.reduce(self._trainer.strategy) if self._trainer else sums).score()


def _at_least_float32(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
