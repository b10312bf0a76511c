"""`Classifier`, the base of every architecture: loss, scores, optimizer."""

from collections.abc import Iterable
from inspect import signature
from typing import Any, Literal, Self

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.plugins import Precision

# Private (as of 2.6.6), but it refuses a call on an instance, which would not load into it.
from lightning.pytorch.utilities.model_helpers import _restricted_classmethod
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer

from digitlab.batches import Batch
from digitlab.execution import MultiStepModule, epoch_end_step, log_metrics, overrides
from digitlab.scores import RunningScore, Score, describe_predictions

Phase = Literal["train", "val", "test"]

DROPOUTS = (
    nn.Dropout,
    nn.Dropout1d,
    nn.Dropout2d,
    nn.Dropout3d,
    nn.AlphaDropout,
    nn.FeatureAlphaDropout,
)


class Classifier(MultiStepModule):
    """An image classifier: a network that computes logits, with its loss, scores and optimizer.

    An architecture is a subclass whose `__init__` builds the network and passes it on with
    `super().__init__(network=..., **kwargs)`; `digitlab.models` has the documents'.

    The loss is the cross-entropy of the logits, computed in float32 or wider. Loss and accuracy of
    an epoch are sums over images, divided once, so that a smaller last batch has its true weight.

    Shape:
        - Input: a batch `(images, labels)` from any loader, float32 `(N, in_channels, 28, 28)` and
          int64 `(N,)`.
        - Output: logits `(N, num_classes)`.

    Args:
        network: Maps images to logits.
        optimizer: Makes the optimizer of the parameters. The default is Adam with a learning rate
            of 0.001, as in most of the documents' runs, in its fused implementation, which equals
            the other except for rounding. A model is pickled with it: to pickle yours, give a
            `functools.partial` or a module's function, not a lambda.
        lr_scheduler: Makes the optimizer's learning rate scheduler. By default the learning rate is
            constant, as in the documents.
        lr_scheduler_interval: Step the scheduler after every epoch or every optimizer step.
        initialization: `torch` keeps PyTorch's initial values, U(±1/√fan_in) for weights and
            biases; `keras` draws Keras's, Glorot-uniform weights and zero biases.
        dropout_in_evaluation: Leave dropout on in evaluation, to reproduce document B, whose
            PyTorch program never calls `eval()`.
        gradient_clip_norm: Largest L2 norm of all gradients together (above 0); larger ones are
            scaled down. By default none are.
        label_smoothing: Part of the label that is spread over all classes in training, in [0, 1].
            `train/loss` includes it; validation and test losses do not.
        steps_per_execution: Optimizer steps per `training_step`, at least 1, as in Keras. It
            changes speed and nothing else. Our data modules serve so many batches at once; the
            batches of other loaders are trained on one by one.
        average_decay: Evaluate, save and leave behind an average of the weights instead of the last
            ones; at least 0 and below 1. After each step the average becomes `average_decay` of
            itself and the rest of the weights; running statistics of batch normalizations are the
            last ones. By default there is no average.
        decay_kernels_only: Apply the optimizer's weight decay to no parameter of one dimension,
            which biases and normalizations have.
        channels_last: Store the weights of convolutions with channels last, which is faster on many
            CPUs and GPUs. It changes results by rounding.

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
        average_decay: float | None = None,
        decay_kernels_only: bool = False,
        channels_last: bool = False,
    ) -> None:
        super().__init__(steps_per_execution, average_decay)
        if gradient_clip_norm is not None and not gradient_clip_norm > 0:
            raise ValueError(
                f"gradient_clip_norm is {gradient_clip_norm}: give a norm above 0, or null for none"
            )
        if not 0 <= label_smoothing <= 1:
            raise ValueError(f"label_smoothing is {label_smoothing}: it must be from 0 to 1")
        # These three are not plain values; without them a checkpoint loads with `weights_only`.
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
        self.decay_kernels_only = decay_kernels_only
        self.sums: dict[Phase, RunningScore] = {}  # of epochs under way
        self._scores: dict[Phase, Score] = {}  # of finished epochs
        if {"torch": False, "keras": True}[initialization]:  # a KeyError for any other name
            self.apply(initialize_as_keras)

    @_restricted_classmethod
    def load_from_checkpoint(cls, *args: Any, **kwargs: Any) -> Self:  # noqa: N805
        """Load a model as Lightning does, but call nothing that a checkpoint names."""
        return super().load_from_checkpoint(*args, **{"_instantiator": None, **kwargs})

    def forward(self, images: Tensor) -> Tensor:
        """Compute the logits `(N, num_classes)` of normalized images `(N, in_channels, 28, 28)`."""
        logits: Tensor = self.network(images)
        return logits

    def train(self, mode: bool = True) -> Self:
        """Switch to training or evaluation mode, but keep dropout on if it is to stay on."""
        super().train(mode)
        if self.dropout_in_evaluation:
            for module in self.modules():
                if isinstance(module, DROPOUTS):
                    module.train()
        return self

    def configure_optimizers(self) -> Any:
        optimizer = self.optimizer(
            decay_groups(self.parameters()) if self.decay_kernels_only else self.parameters()
        )
        if self.lr_scheduler is None:
            return optimizer
        scheduler = self.lr_scheduler(optimizer)
        config = self.scheduler_config(scheduler, self.lr_scheduler_interval)
        return {"optimizer": optimizer, "lr_scheduler": config}

    def check_supported(self, trainer: Trainer) -> None:
        """Refuse settings of the trainer that this model does not support.

        Raises:
            ValueError: As for `MultiStepModule`; or a gradient scaler and a fused optimizer, which
                unscales the gradients inside its own step, leave nothing to clip.
        """
        super().check_supported(trainer)
        if self.gradient_clip_norm is None or trainer.precision != "16-mixed":
            return
        if any(group.get("fused") for it in trainer.optimizers for group in it.param_groups):
            raise ValueError(
                f"gradient_clip_norm is {self.gradient_clip_norm}: a fused optimizer under "
                "16-mixed cannot be clipped; use bf16-mixed, or an optimizer with fused: false"
            )

    def on_train_epoch_start(self) -> None:
        self.sums["train"] = RunningScore(self.device)

    def batch_loss(self, batch: Batch) -> Tensor:
        """Compute the mean loss of a training batch, and add it to the score."""
        self.start_training_score()
        return self._measure("train", batch)[0]

    def start_training_score(self) -> None:
        """Start a training score if there is none, as in a run resumed inside an epoch."""
        if "train" not in self.sums:
            self.sums["train"] = RunningScore(self.device)

    def step_scores(self) -> dict[str, float]:
        """Read the training score since the last call."""
        loss, accuracy = torch.stack(self.sums["train"].window()).tolist()  # one reading
        return {"train/loss_step": loss, "train/accuracy_step": accuracy}

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Clip the gradients, which a mixed precision has unscaled by now; log, if it is time."""
        if self.gradient_clip_norm is not None:
            nn.utils.clip_grad_norm_(self.parameters(), self.gradient_clip_norm)
        super().on_before_optimizer_step(optimizer)

    def only_logs_before_steps(self) -> bool:
        """Return whether `on_before_optimizer_step` is this class's, and clips nothing."""
        is_own = not overrides(self, Classifier, "on_before_optimizer_step")
        return is_own and self.gradient_clip_norm is None

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """After an epoch's last batch, log its training score.

        Now, so that `on_train_epoch_end` of callbacks finds it in `trainer.callback_metrics`.
        """
        if self.trainer.is_last_batch or self.training_ends_inside_epoch():
            self._log_score("train")

    def on_train_epoch_end(self) -> None:
        """Pass the epoch's training score to the loggers, then step plateau schedulers.

        Lightning would do both only after the checkpoint of the epoch's end: a run that is killed
        and resumed there would never have logged the score.
        """
        if "train" in self.sums:  # a callback has stopped training in a validation
            self._log_score("train")
        score = self.epoch_score("train")
        values = {"train/loss": score["loss"], "train/accuracy": score["accuracy"]}
        step = epoch_end_step(self.trainer)
        log_metrics(self, {**values, "epoch": self.current_epoch}, step)
        self.step_plateau_schedulers()

    def on_validation_epoch_start(self) -> None:
        self.sums["val"] = RunningScore(self.device)

    def validation_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Add a batch to the validation score, and return its logits for callbacks."""
        return self._measure("val", batch)[1]

    def on_validation_epoch_end(self) -> None:
        self._log_score("val")

    def on_test_epoch_start(self) -> None:
        self.sums["test"] = RunningScore(self.device)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self._measure("test", batch)

    def on_test_epoch_end(self) -> None:
        self._log_score("test")

    def predict_step(self, batch: Batch | Tensor, batch_idx: int = 0) -> dict[str, Any]:
        """Classify a batch of N images, with or without labels.

        Returns:
            `class` int64 `(N,)`, `class_name` (N strings), `probability` of that class `(N,)`, and
            `probabilities` `(N, num_classes)`; with labels, also `label` int64 `(N,)`.
        """
        images, *labels = (batch,) if isinstance(batch, Tensor) else batch
        names = getattr(getattr(self.attached_trainer, "datamodule", None), "class_names", None)
        logits = _at_least_float32(self(images))
        return describe_predictions(logits, labels[0] if labels else None, names)

    @torch.no_grad()
    def evaluate(self, batches: Iterable[Batch]) -> Score:
        """Measure loss and accuracy over `batches` in evaluation mode, without logging.

        Inside a run it computes in the run's precision and sums over all processes.
        """
        sums = RunningScore(self.device)
        trainer = self.attached_trainer
        precision = trainer.precision_plugin if trainer else Precision()
        was_training = self.training
        with self.averaged():
            self.eval()
            try:
                for batch in batches:
                    on_device = self.transfer_batch_to_device(batch, self.device, 0)
                    images, labels = precision.convert_input(on_device)
                    with precision.forward_context():
                        sums.add(*self._loss_and_logits(images, labels), labels)
            finally:
                self.train(was_training)
        return self._score(sums)

    def running_score(self, phase: Phase) -> Score:
        """Read this process's score of the epoch so far."""
        return self.sums[phase].score()

    def epoch_score(self, phase: Phase) -> Score:
        """Return the score of the last finished epoch, over all processes.

        Call it on all ranks or none, at or after the epoch's last batch.
        """
        if phase in self.sums:
            self._scores[phase] = self._score(self.sums.pop(phase))
        return self._scores[phase]

    def _loss_and_logits(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        logits = _at_least_float32(self(images))
        smoothing = self.label_smoothing if self.training else 0.0
        return cross_entropy(logits, labels, label_smoothing=smoothing), logits

    def _log_score(self, phase: Phase) -> None:
        """Log the score of an epoch whose last batch is done."""
        score = self.epoch_score(phase)
        values = {f"{phase}/loss": score["loss"], f"{phase}/accuracy": score["accuracy"]}
        self.log_dict(
            values,
            on_step=False,
            on_epoch=True,
            batch_size=1,  # it is the mean already
            sync_dist=True,  # equal on all ranks; Lightning warns without
            logger=False if phase == "train" else None,
        )

    def _measure(self, phase: Phase, batch: Batch) -> tuple[Tensor, Tensor]:
        images, labels = batch
        loss, logits = self._loss_and_logits(images, labels)
        self.sums[phase].add(loss, logits, labels)
        return loss, logits

    def _score(self, sums: RunningScore) -> Score:
        trainer = self.attached_trainer
        return (sums.reduce(trainer.strategy) if trainer else sums).score()


def decay_groups(parameters: Iterable[nn.Parameter]) -> list[dict[str, Any]]:
    """Group parameters for an optimizer that decays no parameter of one dimension."""
    every = list(parameters)
    kernels = [parameter for parameter in every if parameter.ndim > 1]
    others = [parameter for parameter in every if parameter.ndim <= 1]
    return [{"params": kernels}, {"params": others, "weight_decay": 0.0}]


def _at_least_float32(logits: Tensor) -> Tensor:
    return logits if logits.dtype.itemsize >= 4 else logits.float()


# jsonargparse reads the default's class and settings from a lambda; pickle finds it by this name.
default_optimizer = signature(Classifier.__init__).parameters["optimizer"].default
default_optimizer.__qualname__ = "default_optimizer"


def initialize_as_keras(module: nn.Module) -> None:
    """Draw a layer's initial values as Keras does: Glorot-uniform weights and zero biases."""
    if isinstance(module, nn.Linear | nn.Conv2d):
        nn.init.xavier_uniform_(module.weight)  # Glorot and Bengio 2010, equation 16
        if module.bias is not None:
            nn.init.zeros_(module.bias)
