"""Several optimizer steps per `training_step`, so that Lightning's price is paid once a block.

With `steps_per_execution` K above 1 a loader hands over blocks of up to K batches. They are trained
on by Lightning's manual optimization: steps are counted truly, processes synchronized and gradients
scaled as a precision needs it. K = 1 is Lightning's ordinary automatic optimization. The weights
are the same, bit for bit.
"""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import (
    GradientAccumulationScheduler,
    ModelCheckpoint,
    StochasticWeightAveraging,
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
from torch import Tensor
from torch.optim.lr_scheduler import ReduceLROnPlateau

from digitlab.batches import Batch
from digitlab.scores import Sums

if TYPE_CHECKING:
    from digitlab.classifier import Classifier

# Where Lightning has nothing to do at a step but to call hooks.
_PLAIN_PRECISIONS = (Precision, DoublePrecision, HalfPrecision, MixedPrecision)
_STEP_HOOKS = ("on_before_backward", "on_after_backward", "on_before_optimizer_step")
_MODEL_HOOKS = ("on_before_backward", "on_after_backward", "backward")


def train_on_batches(
    model: "Classifier", batches: Iterator[Batch], loss_of: Callable[[Batch], Tensor]
) -> None:
    """Make an optimizer step for each batch, and what follows a step."""
    optimizer = model.optimizers()
    assert isinstance(optimizer, LightningOptimizer)
    make_step = _bare_step if _is_bare(model) else _step
    before = model.global_step
    for batch in batches:
        make_step(model, optimizer, loss_of(batch))
        _step_schedulers(model, "step")
    # Lightning's loggers take their x from here; it adds 1 itself.
    steps = model.global_step - before
    model.trainer.fit_loop.epoch_loop._batches_that_stepped += steps - 1
    if model.trainer.is_last_batch:
        _step_schedulers(model, "epoch")


def _step(model: "Classifier", optimizer: LightningOptimizer, loss: Tensor) -> None:
    optimizer.zero_grad()
    model.manual_backward(loss)
    optimizer.step()


def _bare_step(model: "Classifier", optimizer: LightningOptimizer, loss: Tensor) -> None:
    """Do what `_step` does where no layer of Lightning's has anything to add.

    Walking through them costs a tenth of a small network's step.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = None
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer._on_before_step()  # counts the step
    model.on_before_optimizer_step(optimizer.optimizer)
    optimizer.optimizer.step()
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
        and not any(_overrides(callback, Callback, _STEP_HOOKS) for callback in callbacks)
        and not _overrides(model, LightningModule, _MODEL_HOOKS)
    )


def _overrides(thing: object, base: type, hooks: tuple[str, ...]) -> bool:
    return any(getattr(type(thing), hook) is not getattr(base, hook) for hook in hooks)


def log_step(model: "Classifier", sums: Sums) -> None:
    """Log the mean loss and accuracy since the last record, if it is time, before a step is made.

    Not by `model.log`: one call of it costs as much as a small network's step, and it knows no
    steps inside a `training_step`. The step's number is from 0, as Lightning's are on this axis.
    """
    step = model.global_step
    interval: int = model.trainer.log_every_n_steps  # type: ignore[attr-defined]  # set at run time
    if interval and (step + 1) % interval == 0:
        loss, accuracy = (mean.item() for mean in sums.window())
        values = {"train/loss_step": loss, "train/accuracy_step": accuracy}
        for logger in model.trainer.loggers:
            logger.log_metrics({**values, "epoch": model.current_epoch}, step=step)


class Unprofiled(PassThroughProfiler):
    """Measures nothing, in the shortest time; Lightning asks it some 60 times a step.

    Its own profiler that does nothing takes 2.3 µs each time, a tenth of a small network's step.
    """

    _nothing = nullcontext()

    def profile(self, action_name: str) -> Any:
        """Give a context that does nothing."""
        return self._nothing


def step_plateau_schedulers(model: "Classifier") -> None:
    """Step the schedulers that wait for a plateau, once an epoch's scores are logged."""
    for config in model.trainer.lr_scheduler_configs:
        if isinstance(scheduler := config.scheduler, ReduceLROnPlateau):
            scheduler.step(model.trainer.callback_metrics[monitored(scheduler)])


def _step_schedulers(model: "Classifier", interval: str) -> None:
    for config in model.trainer.lr_scheduler_configs:
        if config.interval == interval and not isinstance(config.scheduler, ReduceLROnPlateau):
            config.scheduler.step()


def monitored(scheduler: ReduceLROnPlateau) -> str:
    """Name what a scheduler watches: Lightning's own class says it, torch's does not."""
    return getattr(scheduler, "monitor", "val/loss")


def check(model: "Classifier", trainer: Trainer) -> None:
    """Refuse what a trainer is asked for and cannot be done.

    Raises:
        ValueError: With `steps_per_execution` above 1, a setting counts batches or changes what a
            step is; or a gradient scaler and a fused optimizer leave nothing to clip.
    """
    if model.steps_per_execution > 1:
        for setting, remedy in _not_honoured(trainer):
            raise ValueError(
                f"{setting} cannot be honoured with steps_per_execution "
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


def _not_honoured(trainer: Trainer) -> Iterator[tuple[str, str]]:
    """Find settings that Lightning counts in blocks, or does not do under manual optimization."""
    if (norm := trainer.gradient_clip_val) is not None:
        yield f"gradient_clip_val {norm}", "use the model's gradient_clip_norm"
    if (batches := trainer.accumulate_grad_batches) != 1:
        yield f"accumulate_grad_batches {batches}", "use a larger batch_size"
    limit = trainer.limit_train_batches
    if isinstance(limit, float) and limit != 1:
        yield f"limit_train_batches {limit}", "give a number of optimizer steps"
    interval = trainer.val_check_interval
    if isinstance(interval, int) or (isinstance(interval, float) and interval != 1):
        yield f"val_check_interval {interval}", "validate after whole epochs"
    for callback in trainer.callbacks:  # type: ignore[attr-defined]  # set at run time
        name = type(callback).__name__
        if isinstance(callback, StochasticWeightAveraging | WeightAveraging):
            yield name, "leave the callback out"
        if isinstance(callback, GradientAccumulationScheduler):
            yield name, "use a larger batch_size"
        if type(callback) is ModelCheckpoint and _saves_inside_epochs(callback):
            yield f"{name} inside an epoch", "use digitlab.callbacks.StepCheckpoint"


def _saves_inside_epochs(checkpoint: ModelCheckpoint) -> bool:
    return checkpoint._every_n_train_steps > 0 or checkpoint._train_time_interval is not None
