"""Several optimizer steps per `training_step`, so that Lightning's price is paid once a block.

With `steps_per_execution` K above 1 a loader hands over blocks of up to K batches. They are trained
on by Lightning's manual optimization: steps are counted truly, processes synchronized and gradients
scaled as a precision needs it. K = 1 is Lightning's ordinary automatic optimization. The weights
are the same, bit for bit.
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import (
    DeviceStatsMonitor,
    GradientAccumulationScheduler,
    LearningRateMonitor,
    ModelCheckpoint,
    StochasticWeightAveraging,
    ThroughputMonitor,
    WeightAveraging,
)
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
from digitlab.optimizers import Step, fused_adam_step
from digitlab.scores import RunningScore

if TYPE_CHECKING:
    from digitlab.classifier import Classifier

# Hooks of a model that Lightning calls under automatic optimization only.
_HOOKS = (
    *("configure_gradient_clipping", "optimizer_step", "optimizer_zero_grad"),
    "lr_scheduler_step",
)


def check_supported(model: "Classifier", trainer: Trainer) -> None:
    """Refuse what a trainer or a model is asked for and cannot be done.

    Raises:
        ValueError: With `steps_per_execution` above 1, a setting counts batches or changes what a
            step is; or a gradient scaler and a fused optimizer leave nothing to clip.
    """
    if model.steps_per_execution > 1:
        for what, remedy in (
            *_trainer_refusals(trainer),
            *_callback_refusals(trainer),
            *_model_refusals(model),
        ):
            raise ValueError(
                f"{what} cannot be honoured with steps_per_execution "
                f"{model.steps_per_execution}: {remedy}, or set steps_per_execution to 1"
            )
    if model.gradient_clip_norm is None or trainer.precision != "16-mixed":
        return
    # Under a gradient scaler, a fused optimizer unscales the gradients inside its own step.
    if any(getattr(o, "_step_supports_amp_scaling", False) for o in trainer.optimizers):
        raise ValueError(
            f"gradient_clip_norm is {model.gradient_clip_norm}: a fused optimizer under "
            "16-mixed cannot be clipped; use bf16-mixed, or an optimizer with fused: false"
        )


def _trainer_refusals(trainer: Trainer) -> Iterator[tuple[str, str]]:
    """Find settings that count blocks, or that manual optimization leaves undone."""
    if (norm := trainer.gradient_clip_val) is not None:
        yield f"gradient_clip_val {norm}", "use the model's gradient_clip_norm"
    if (batches := trainer.accumulate_grad_batches) != 1:
        yield f"accumulate_grad_batches {batches}", "use a larger batch_size"
    limit, overfit = trainer.limit_train_batches, trainer.overfit_batches  # type: ignore[attr-defined]
    if isinstance(limit, float) and limit != 1:
        name = "overfit_batches" if overfit else "limit_train_batches"
        yield f"{name} {limit}", "give a number of optimizer steps"
    # A time is kept elsewhere, and then there is no such attribute.
    interval = getattr(trainer, "val_check_interval", "as a time")
    if not isinstance(interval, float) or interval != 1:
        yield f"val_check_interval {interval}", "validate after whole epochs"
    for optimizer in trainer.optimizers:
        closure = inspect.signature(optimizer.step).parameters.get("closure")
        if closure and closure.default is closure.empty:
            yield type(optimizer).__name__, "use an optimizer that takes one gradient a step"


def _callback_refusals(trainer: Trainer) -> Iterator[tuple[str, str]]:
    for callback in trainer.callbacks:  # type: ignore[attr-defined]  # set at run time
        name = type(callback).__name__
        if isinstance(callback, StochasticWeightAveraging | WeightAveraging):
            yield name, "leave the callback out"
        if isinstance(callback, GradientAccumulationScheduler):
            yield name, "use a larger batch_size"
        if isinstance(callback, DeviceStatsMonitor | ThroughputMonitor):
            yield name, "leave the callback out"
        if isinstance(callback, LearningRateMonitor) and callback.logging_interval != "epoch":
            yield f"{name} by the step", "set its logging_interval to epoch"
        if isinstance(callback, ModelCheckpoint) and _saves_inside_epochs(callback):
            yield f"{name} inside an epoch", "use digitlab.callbacks.StepCheckpoint"


def _model_refusals(model: "Classifier") -> Iterator[tuple[str, str]]:
    for hook in _HOOKS:
        if overrides(model, LightningModule, hook):
            yield f"{type(model).__name__}.{hook}", "do it in on_before_optimizer_step"


def overrides(thing: Any, base: type, hook: str) -> bool:
    """Say whether an object has a hook of its own, by its class or as an attribute."""
    return getattr(getattr(thing, hook), "__func__", None) is not getattr(base, hook)


def _saves_inside_epochs(checkpoint: ModelCheckpoint) -> bool:
    """Say whether it would, and does it as Lightning's own, which may jump over its steps."""
    wants = checkpoint._every_n_train_steps > 0 or checkpoint._train_time_interval is not None
    return wants and type(checkpoint).on_train_batch_end is ModelCheckpoint.on_train_batch_end


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
    if _can_skip_hooks(model):
        make_step = partial(_fast_step, step=fused_adam_step(optimizer.optimizer))
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


def _fast_step(
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


def _can_skip_hooks(model: "Classifier") -> bool:
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


def log_step(model: "Classifier", sums: RunningScore, optimizer: Optimizer) -> None:
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
