"""Settings of a trainer that training steps of one's own cannot honour, each with a remedy.

Private names of Lightning are used here, checked against version 2.6: `ModelCheckpoint`'s
`_every_n_train_steps` and `_train_time_interval`.
"""

import inspect
from collections.abc import Iterator

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import (
    DeviceStatsMonitor,
    GradientAccumulationScheduler,
    LearningRateMonitor,
    ModelCheckpoint,
    StochasticWeightAveraging,
    ThroughputMonitor,
    WeightAveraging,
)


def of_automatic_optimization(trainer: Trainer) -> Iterator[tuple[str, str]]:
    """Find settings and callbacks that only Lightning's automatic optimization honours."""
    if (norm := trainer.gradient_clip_val) is not None:
        yield f"gradient_clip_val {norm}", "use the model's gradient_clip_norm"
    if (batches := trainer.accumulate_grad_batches) != 1:
        yield f"accumulate_grad_batches {batches}", "use a larger batch_size"
    for callback in trainer.callbacks:  # type: ignore[attr-defined]  # set at run time
        if isinstance(callback, StochasticWeightAveraging | WeightAveraging):
            yield type(callback).__name__, "leave the callback out"
        if isinstance(callback, GradientAccumulationScheduler):
            yield type(callback).__name__, "use a larger batch_size"


def of_calls(trainer: Trainer) -> Iterator[tuple[str, str]]:
    """Find settings and callbacks that count calls of `training_step`."""
    limit, overfit = trainer.limit_train_batches, trainer.overfit_batches  # type: ignore[attr-defined]
    if isinstance(limit, float) and limit != 1:
        name = "overfit_batches" if overfit else "limit_train_batches"
        yield f"{name} {limit}", "give a number of optimizer steps"
    # The attribute is missing where the interval is a time.
    interval = getattr(trainer, "val_check_interval", "as a time")
    if not isinstance(interval, float) or interval != 1:
        yield f"val_check_interval {interval}", "validate after whole epochs"
    for optimizer in trainer.optimizers:
        closure = inspect.signature(optimizer.step).parameters.get("closure")
        if closure and closure.default is closure.empty:
            yield type(optimizer).__name__, "use an optimizer that takes one gradient per step"
    for callback in trainer.callbacks:  # type: ignore[attr-defined]  # set at run time
        if isinstance(callback, DeviceStatsMonitor | ThroughputMonitor):
            yield type(callback).__name__, "leave the callback out"
        if isinstance(callback, LearningRateMonitor) and callback.logging_interval != "epoch":
            yield type(callback).__name__, "set its logging_interval to epoch"
        if isinstance(callback, ModelCheckpoint) and _saves_inside_epochs(callback):
            remedy = "use digitlab.callbacks.LastCheckpoint(every_n_steps=...)"
            yield type(callback).__name__, remedy


def _saves_inside_epochs(checkpoint: ModelCheckpoint) -> bool:
    """Return whether it saves inside epochs by Lightning's rule, which may miss a step."""
    wants = checkpoint._every_n_train_steps > 0 or checkpoint._train_time_interval is not None
    return wants and type(checkpoint).on_train_batch_end is ModelCheckpoint.on_train_batch_end
