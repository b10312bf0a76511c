"""Several optimizer steps per `training_step`, so that Lightning's price is paid once a block.

With `steps_per_execution` K above 1 a loader hands over blocks of up to K batches. They are trained
on by Lightning's manual optimization: steps are counted truly, processes synchronized and gradients
scaled as a precision needs it. K = 1 is Lightning's ordinary automatic optimization. The weights
are the same, bit for bit.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.plugins import (
    DoublePrecision,
    HalfPrecision,
    MixedPrecision,
    Precision,
)
from lightning.pytorch.profilers import PassThroughProfiler
from lightning.pytorch.strategies import SingleDeviceStrategy
from lightning.pytorch.trainer import call
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from digitlab.batches import Batch, Block
from digitlab.lean import Step, lean_step
from digitlab.scores import Sums
from digitlab.unsupported import overrides

if TYPE_CHECKING:
    from digitlab.classifier import Classifier

# Where Lightning has nothing to do at a step but to call hooks.
_PLAIN_PRECISIONS = (Precision, DoublePrecision, HalfPrecision, MixedPrecision)
_SHARED_HOOKS = ("on_before_zero_grad", "on_before_backward", "on_after_backward")
_CALLBACK_HOOKS = (*_SHARED_HOOKS, "on_before_optimizer_step")
_MODEL_HOOKS = (*_SHARED_HOOKS, "backward")


def train_on(
    model: "Classifier", served: Batch | Block, loss_of: Callable[[Batch], Tensor]
) -> None:
    """Make an optimizer step for a batch, or for each batch of a block, and what follows a step.

    Raises:
        TypeError: A block was served, but a hook made a batch of it.
    """
    optimizer = model.optimizers()
    assert isinstance(optimizer, LightningOptimizer)
    make_step = _step
    if _is_bare(model):
        make_step = partial(_bare_step, step=lean_step(optimizer.optimizer))
    before = model.global_step
    for batch in _batches(model.trainer, served):
        loss = loss_of(batch)
        # Automatic optimization, too, leaves the forward pass's precision before this.
        with _outside_autocast(model.trainer):
            make_step(model, optimizer, loss)
        _step_schedulers(model, "step")
    # Lightning's loggers take their x from here; it adds 1 itself.
    steps = model.global_step - before
    model.trainer.fit_loop.epoch_loop._batches_that_stepped += steps - 1
    if model.trainer.is_last_batch:
        _step_schedulers(model, "epoch")


def _batches(trainer: Trainer, served: Batch | Block) -> Iterator[Batch]:
    if isinstance(served, Block):
        return served.batches()
    if getattr(trainer.train_dataloader, "steps_per_execution", 1) > 1:
        raise TypeError(
            f"a hook returned {type(served).__name__} for a Block of several batches: return "
            "batch._replace(images=...), or set steps_per_execution to 1"
        )
    return iter([served])


def _outside_autocast(trainer: Trainer) -> AbstractContextManager[Any]:
    if isinstance(trainer.precision_plugin, MixedPrecision):
        return torch.autocast(trainer.precision_plugin.device, enabled=False)
    return nullcontext()


def _step(model: "Classifier", optimizer: LightningOptimizer, loss: Tensor) -> None:
    call._call_callback_hooks(model.trainer, "on_before_zero_grad", optimizer.optimizer)
    model.on_before_zero_grad(optimizer.optimizer)
    optimizer.zero_grad()
    model.manual_backward(loss)
    optimizer.step()


def _bare_step(
    model: "Classifier", optimizer: LightningOptimizer, loss: Tensor, step: Step
) -> None:
    """Do what `_step` does where no layer of Lightning's has anything to add.

    Walking through them costs a tenth of a small network's step.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = None
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer._on_before_step()  # counts the step
    model.on_before_optimizer_step(optimizer.optimizer)
    step()
    optimizer._on_after_step()


def _is_bare(model: "Classifier") -> bool:
    """Say whether there is no process to synchronize, no gradient to scale, no hook to call."""
    trainer = model.trainer
    precision = trainer.precision_plugin
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]  # set at run time
    return (
        type(trainer.strategy) is SingleDeviceStrategy
        and type(precision) in _PLAIN_PRECISIONS
        and getattr(precision, "scaler", None) is None
        and not any(overrides(c, Callback, hook) for c in callbacks for hook in _CALLBACK_HOOKS)
        and not any(overrides(model, LightningModule, hook) for hook in _MODEL_HOOKS)
    )


def log_step(model: "Classifier", sums: Sums, optimizer: Optimizer) -> None:
    """Log mean loss and accuracy since the last record, if it is time, and the learning rate.

    It is called before a step is made.

    Not by `model.log`: one call of it costs as much as a small network's step, and it knows no
    steps inside a `training_step`. The step's number is from 0, as Lightning's are on this axis.
    """
    step = model.global_step
    interval: int = model.trainer.log_every_n_steps  # type: ignore[attr-defined]  # set at run time
    if interval and (step + 1) % interval == 0:
        loss, accuracy = (mean.item() for mean in sums.window())
        values = {"train/loss_step": loss, "train/accuracy_step": accuracy}
        values["epoch"] = model.current_epoch
        if (rate := learning_rate(optimizer)) is not None:
            values["train/learning_rate_step"] = rate
        log_metrics(model, values, step)


def learning_rate(optimizer: Optimizer) -> float | None:
    """Give the learning rate of the first parameter group, if it has any."""
    rate = optimizer.param_groups[0].get("lr")
    return None if rate is None else float(rate)


def log_score(model: "Classifier", phase: Literal["train", "val", "test"]) -> None:
    """Log the score of an epoch that has just ended."""
    score = model.epoch_score(phase)
    metrics = {f"{phase}/loss": score["loss"], f"{phase}/accuracy": score["accuracy"]}
    # Equal in all processes; Lightning warns without `sync_dist`.
    model.log_dict(metrics, sync_dist=True, logger=False if phase == "train" else None)
    if phase == "train":
        # Lightning would log it only after the checkpoint of the epoch's end was written: a run
        # that is killed then, and goes on from there, would never have logged it.
        step = epoch_end_step(model.trainer)
        log_metrics(model, {**metrics, "epoch": model.current_epoch}, step)


def epoch_end_step(trainer: Trainer) -> int:
    """Give the step at which an epoch's values stand, counted from 0.

    Part of an epoch, which `max_steps` ended, stands where a longer run replaces it.
    """
    return trainer.global_step - trainer.is_last_batch


def log_metrics(model: LightningModule, values: dict[str, float], step: int) -> None:
    """Give values to all loggers, at an optimizer step, which are counted from 0."""
    for logger in model.trainer.loggers:
        logger.log_metrics(values, step=step)


class Unprofiled(PassThroughProfiler):
    """Measures nothing, in the shortest time; Lightning asks it some 60 times a step.

    Its own profiler that does nothing takes 2.3 µs each time, a tenth of a small network's step.
    """

    _nothing = nullcontext()

    def profile(self, action_name: str) -> Any:
        """Give a context that does nothing."""
        return self._nothing


def step_plateau_schedulers(model: "Classifier") -> None:
    """Step the schedulers that wait for a plateau, once an epoch's scores are logged.

    Raises:
        ValueError: What a scheduler watches was not logged.
    """
    metrics = model.trainer.callback_metrics
    for config in model.trainer.lr_scheduler_configs:
        if isinstance(scheduler := config.scheduler, ReduceLROnPlateau):
            if (name := monitored(scheduler)) not in metrics:
                raise ValueError(
                    f"lr_scheduler watches {name}, which this epoch did not log: validate each "
                    f"epoch, or watch one of {', '.join(metrics)}"
                )
            scheduler.step(metrics[name])


def _step_schedulers(model: "Classifier", interval: str) -> None:
    for config in model.trainer.lr_scheduler_configs:
        if config.interval == interval and not isinstance(config.scheduler, ReduceLROnPlateau):
            config.scheduler.step()


def monitored(scheduler: ReduceLROnPlateau) -> str:
    """Name what a scheduler watches: Lightning's own class says it, torch's does not."""
    return getattr(scheduler, "monitor", "val/loss")
