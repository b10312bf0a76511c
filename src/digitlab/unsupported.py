"""What several optimizer steps per `training_step` cannot honour, refused by name."""

import inspect
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import (
    DeviceStatsMonitor,
    GradientAccumulationScheduler,
    LearningRateMonitor,
    ModelCheckpoint,
    StochasticWeightAveraging,
    ThroughputMonitor,
    WeightAveraging,
)

if TYPE_CHECKING:
    from digitlab.classifier import Classifier

# Hooks of a model that Lightning calls under automatic optimization only.
_HOOKS = (
    *("configure_gradient_clipping", "optimizer_step", "optimizer_zero_grad"),
    "lr_scheduler_step",
)


def check(model: "Classifier", trainer: Trainer) -> None:
    """Refuse what a trainer or a model is asked for and cannot be done.

    Raises:
        ValueError: With `steps_per_execution` above 1, a setting counts batches or changes what a
            step is; or a gradient scaler and a fused optimizer leave nothing to clip.
    """
    if model.steps_per_execution > 1:
        for what, remedy in (*_of_trainer(trainer), *_of_callbacks(trainer), *_of_model(model)):
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


def _of_trainer(trainer: Trainer) -> Iterator[tuple[str, str]]:
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


def _of_callbacks(trainer: Trainer) -> Iterator[tuple[str, str]]:
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


def _of_model(model: "Classifier") -> Iterator[tuple[str, str]]:
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
