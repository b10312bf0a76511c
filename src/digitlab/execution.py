"""Several optimizer steps per `training_step`, so that Lightning's overhead is paid once per block.

With `steps_per_execution` K above 1, the loader serves blocks of up to K batches. They are trained
on under Lightning's manual optimization, which counts the steps, synchronizes the processes and
scales the gradients. K = 1 is Lightning's automatic optimization. The weights are the same, bit for
bit.

Private names of Lightning are used here, checked against version 2.6: a module's `_trainer` and
`_current_fx_name`, `call._call_callback_hooks`, an optimizer's `_on_before_step` and
`_on_after_step`, and the loops' `_can_stop_early` and `_batches_that_stepped`.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from itertools import chain, count, repeat
from typing import Any, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.plugins import DoublePrecision, HalfPrecision, MixedPrecision, Precision
from lightning.pytorch.profilers import PassThroughProfiler
from lightning.pytorch.strategies import SingleDeviceStrategy
from lightning.pytorch.trainer import call
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from digitlab.batches import Batch, Block
from digitlab.distributed import seed_per_rank
from digitlab.errors import check_at_least
from digitlab.optimizers import fused_adam_step
from digitlab.unsupported import of_automatic_optimization, of_calls


class MultiStepModule(LightningModule):
    """Makes one optimizer step per batch or several per `training_step`; may average the weights.

    A subclass sets `network`, computes the loss of a batch in `batch_loss` and, for the log, the
    scores since the last entry in `step_scores`. `Classifier` documents the arguments.
    """

    network: nn.Module

    def __init__(self, steps_per_execution: int = 1, average_decay: float | None = None) -> None:
        super().__init__()
        check_at_least(1, steps_per_execution=steps_per_execution)
        if average_decay is not None and not 0 <= average_decay < 1:
            raise ValueError(
                f"average_decay is {average_decay}: it must be at least 0 and below 1, or null"
            )
        self.average_decay = average_decay
        # During a fit. In a list, since it is no part of the model: no optimizer is to find it.
        self._average: list[Any] = []
        self._in_place = False  # the average has taken the place of the network
        self._trained: dict[str, Any] = {}  # of a checkpoint, until the fit starts
        self.steps_per_execution = steps_per_execution
        self.automatic_optimization = steps_per_execution == 1

    def __setattr__(self, name: str, value: Any) -> None:
        # `nn.Module.__setattr__` costs 4 µs, and Lightning sets this name some 40 times a step.
        if name == "_current_fx_name":
            self.__dict__[name] = value
        else:
            super().__setattr__(name, value)

    @property
    def attached_trainer(self) -> Trainer | None:
        """The trainer, if the model has one."""
        return self._trainer

    def batch_loss(self, batch: Batch) -> Tensor:
        """Compute the mean loss of a batch, a scalar to be minimized."""
        raise NotImplementedError

    def step_scores(self) -> dict[str, float]:
        """Return the scores to log with the learning rate: those since the last call."""
        return {}

    def training_step(self, batch: Batch | Block, batch_idx: int) -> Tensor | None:
        """Compute a batch's loss, or make an optimizer step for each batch of a block.

        Raises:
            TypeError: A block was served, but a hook turned it into a single batch.
        """
        if self.automatic_optimization:
            return self.batch_loss(cast("Batch", batch))
        # Whatever is the same for all steps is asked once: a small network's step is so short that
        # a cold function of Python costs a per cent of it.
        optimizer = cast("LightningOptimizer", self.optimizers())
        make = self._fast_step if self._can_skip_hooks() else self._step
        make_step = self._outside_autocast(make(optimizer))  # as in automatic optimization
        schedulers = self._schedulers("step")
        steps_before = self.global_step
        for one in self._batches(batch):
            loss = self.batch_loss(one)
            make_step(loss)
            for scheduler in schedulers:
                scheduler.step()
        self._finish_block(steps_before)
        return None

    def on_fit_start(self) -> None:
        """Refuse unsupported settings of the trainer; let ranks draw different dropout masks."""
        self.check_supported(self.trainer)
        seed_per_rank(self.trainer)
        self.start_average()

    def start_average(self) -> None:
        """Start to average the weights, or resume it: a checkpoint's network is the average."""
        trained, self._trained = self._trained, {}
        self._average, self._in_place = [], False
        if self.average_decay is None:
            return
        averaging = get_ema_multi_avg_fn(self.average_decay)  # type: ignore[no-untyped-call]
        average = AveragedModel(self.network, multi_avg_fn=averaging)
        if trained:
            self.network.load_state_dict(trained["network"])
            average.n_averaged.fill_(trained["steps"])
        self._average = [average]
        for optimizer in self.trainer.optimizers:
            optimizer.register_step_post_hook(lambda *_: average.update_parameters(self.network))

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Put the averaged weights in the place of the network's in the `with` block, if any."""
        was_in_place = self._in_place
        self._put_average(True)
        try:
            yield
        finally:
            self._put_average(was_in_place)

    def _put_average(self, in_place: bool) -> None:
        if self._average and in_place != self._in_place:
            self.exchange_average()
            self._in_place = in_place

    def exchange_average(self) -> None:
        """Exchange the network and its average."""
        (average,) = self._average
        self.network, average.module = average.module, self.network
        self.train(self.training)

    def on_validation_start(self) -> None:
        """Validate the averaged weights."""
        self._put_average(True)

    def on_validation_end(self) -> None:
        """Train on."""
        self._put_average(False)

    def on_train_end(self) -> None:
        """Leave the averaged weights in the network."""
        self._put_average(True)
        self._average = []

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the averaged weights as the network's, and what a resumed run needs beside them."""
        for average in self._average:
            with self.averaged():
                checkpoint["state_dict"] = self.state_dict()
                trained = {"network": average.module.state_dict()}
                checkpoint["averaging"] = {**trained, "steps": int(average.n_averaged)}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what a resumed fit needs beside the averaged weights.

        Raises:
            ValueError: The checkpoint has an average and this model has none, or the other way.
        """
        if not (self.attached_trainer and self.trainer.state.fn == "fit"):
            return
        self._trained = checkpoint.get("averaging", {})
        if bool(self._trained) != (self.average_decay is not None):
            has = "has" if self._trained else "has no"
            raise ValueError(
                f"average_decay is {self.average_decay}, and the checkpoint {has} averaged "
                "weights: resume with the setting that the run was started with"
            )

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        self.log_step(optimizer)

    def log_step(self, optimizer: Optimizer) -> None:
        """Log the scores since the last entry and the learning rate, every `log_every_n_steps`.

        Called before a step is made. One call of `self.log` would cost as much as a small network's
        step, and it counts calls of `training_step`. The axis counts steps from 0, as Lightning's.
        """
        step = self.global_step
        interval: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]  # set at run time
        if interval and (step + 1) % interval == 0:
            values = {**self.step_scores(), "epoch": self.current_epoch}
            if (rate := learning_rate(optimizer)) is not None:
                values["train/learning_rate_step"] = rate
            log_metrics(self, values, step)

    def scheduler_config(self, scheduler: LRScheduler, interval: str) -> dict[str, Any]:
        """Describe a scheduler to Lightning, for `configure_optimizers`."""
        config: dict[str, Any] = {"scheduler": scheduler, "interval": interval}
        if isinstance(scheduler, ReduceLROnPlateau) and self.automatic_optimization:
            # `step_plateau_schedulers` does it: Lightning would step after the checkpoint.
            config |= {"monitor": monitored(scheduler), "frequency": sys.maxsize}
        return config

    def step_plateau_schedulers(self) -> None:
        """Step the `ReduceLROnPlateau` schedulers, once an epoch's scores are logged.

        Raises:
            ValueError: The value that a scheduler monitors was not logged.
        """
        metrics = self.trainer.callback_metrics
        for config in self.trainer.lr_scheduler_configs:
            if isinstance(scheduler := config.scheduler, ReduceLROnPlateau):
                if (name := monitored(scheduler)) not in metrics:
                    raise ValueError(
                        f"lr_scheduler monitors {name}, which this epoch did not log: validate "
                        f"each epoch, or monitor one of {', '.join(metrics)}"
                    )
                scheduler.step(metrics[name])

    def training_ends_inside_epoch(self) -> bool:
        """Return whether `max_steps` or a callback ends training before the epoch's last batch."""
        trainer = self.trainer
        stopped = trainer.should_stop and trainer.fit_loop._can_stop_early
        return not trainer.is_last_batch and (stopped or self.global_step == trainer.max_steps)

    def check_supported(self, trainer: Trainer) -> None:
        """Refuse settings of the trainer, its callbacks or this class that K > 1 would ignore."""
        if self.steps_per_execution == 1:
            return
        found = (of_automatic_optimization(trainer), of_calls(trainer), self._of_hooks())
        for setting, remedy in chain(*found):
            raise ValueError(
                f"{setting} is not supported with steps_per_execution {self.steps_per_execution}: "
                f"{remedy}, or set steps_per_execution to 1"
            )

    def _of_hooks(self) -> Iterator[tuple[str, str]]:
        # Lightning calls these under automatic optimization only.
        steps = ("lr_scheduler_step", "optimizer_step", "optimizer_zero_grad")
        for hook in ("configure_gradient_clipping", *steps):
            if overrides(self, LightningModule, hook):
                yield f"{type(self).__name__}.{hook}", "override on_before_optimizer_step"

    def _batches(self, served: Batch | Block) -> Iterator[Batch]:
        if isinstance(served, Block):
            return served.batches()
        if getattr(self.trainer.train_dataloader, "steps_per_execution", 1) > 1:
            raise TypeError(
                f"a hook returned {type(served).__name__} for a Block of several batches: return "
                "batch._replace(images=...), or set steps_per_execution to 1"
            )
        return iter([served])

    def _outside_autocast(self, make_step: Callable[[Tensor], None]) -> Callable[[Tensor], None]:
        precision = self.trainer.precision_plugin
        if isinstance(precision, MixedPrecision):
            return torch.autocast(precision.device, enabled=False)(make_step)  # type: ignore[no-any-return]
        return make_step

    def _step(self, optimizer: LightningOptimizer) -> Callable[[Tensor], None]:
        """Make the function that makes a step with a batch's loss."""

        def make_step(loss: Tensor) -> None:
            call._call_callback_hooks(self.trainer, "on_before_zero_grad", optimizer.optimizer)
            self.on_before_zero_grad(optimizer.optimizer)
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()

        return make_step

    def _fast_step(self, optimizer: LightningOptimizer) -> Callable[[Tensor], None]:
        """Make a function that does the same as `_step`'s, where Lightning has nothing to add.

        Passing through its layers costs a tenth of a small network's step.
        """
        inner = optimizer.optimizer
        is_due, step = self._hook_is_due(), fused_adam_step(inner)
        before, after = optimizer._on_before_step, optimizer._on_after_step
        parameters = [it for group in inner.param_groups for it in group["params"]]

        def make_step(loss: Tensor) -> None:
            for parameter in parameters:
                parameter.grad = None
            loss.backward()  # type: ignore[no-untyped-call]
            before()
            if next(is_due):
                self.on_before_optimizer_step(inner)
            step()
            after()

        return make_step

    def _hook_is_due(self) -> Iterator[bool]:
        """Yield for each step of a block whether `on_before_optimizer_step` has anything to do."""
        if overrides(self, MultiStepModule, "log_step") or not self.only_logs_before_steps():
            return repeat(True)
        interval: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]  # set at run time
        steps = count(self.global_step + 1)
        return (step % interval == 0 for step in steps) if interval else repeat(False)

    def only_logs_before_steps(self) -> bool:
        """Return whether `on_before_optimizer_step` is this class's, which logs and no more."""
        return not overrides(self, MultiStepModule, "on_before_optimizer_step")

    def _can_skip_hooks(self) -> bool:
        """Return whether there is no rank to synchronize, no gradient to scale, no hook to call."""
        shared = ("on_before_zero_grad", "on_before_backward", "on_after_backward")
        of_callbacks = (*shared, "on_before_optimizer_step")
        trainer = self.trainer
        precision = trainer.precision_plugin
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]  # set at run time
        return (
            type(trainer.strategy) is SingleDeviceStrategy
            and type(precision) in (Precision, DoublePrecision, HalfPrecision, MixedPrecision)
            and getattr(precision, "scaler", None) is None
            and not any(overrides(self, LightningModule, hook) for hook in (*shared, "backward"))
            and not any(overrides(it, Callback, hook) for it in callbacks for hook in of_callbacks)
        )

    def _finish_block(self, steps_before: int) -> None:
        """Count the steps of a block for Lightning's loggers; step the schedulers of an epoch."""
        # Lightning itself counts one step per call.
        made = self.global_step - steps_before
        epoch_loop = self.trainer.fit_loop.epoch_loop
        epoch_loop._batches_that_stepped += made - 1
        left = getattr(self.trainer.train_dataloader, "batches_left", 0)
        if left and self.steps_per_execution > 1:  # else Lightning's own `limit_train_batches`
            # `max_steps` has cut the epoch's last block short: this is not the end of the epoch.
            epoch_loop.batch_progress.is_last_batch = False
        if self.trainer.is_last_batch:
            for scheduler in self._schedulers("epoch"):
                scheduler.step()

    def _schedulers(self, interval: str) -> list[LRScheduler]:
        """Find those that are stepped at every interval, `step` or `epoch`."""
        return [
            config.scheduler
            for config in self.trainer.lr_scheduler_configs
            if config.interval == interval and not isinstance(config.scheduler, ReduceLROnPlateau)
        ]


class NullProfiler(PassThroughProfiler):
    """Measures nothing, in the shortest time; Lightning calls it some 60 times a step.

    Lightning's own takes 2.3 µs per call, in all a tenth of a small network's step.
    """

    _nothing = nullcontext()

    def profile(self, action_name: str) -> Any:
        return self._nothing


@contextmanager
def counted_step(optimizer: LightningOptimizer) -> Iterator[None]:
    """Count and profile a step that is made in the `with` block, not by `optimizer.step`."""
    optimizer._on_before_step()
    yield
    optimizer._on_after_step()


def learning_rate(optimizer: Optimizer) -> float | None:
    """Read the learning rate of the first parameter group, if it has one."""
    rate = optimizer.param_groups[0].get("lr")
    return None if rate is None else float(rate)


def epoch_end_step(trainer: Trainer) -> int:
    """Compute the step, from 0, at which an epoch's values are logged.

    If `max_steps` cut the epoch short, it is the step at which a longer run replaces them.
    """
    return trainer.global_step - trainer.is_last_batch


def log_metrics(model: LightningModule, values: dict[str, float], step: int) -> None:
    """Pass values to all loggers at an optimizer step, counted from 0."""
    for logger in model.trainer.loggers:
        logger.log_metrics(values, step=step)


def monitored(scheduler: ReduceLROnPlateau) -> str:
    """Name the value that a scheduler monitors: Lightning's class has a name, torch's has not."""
    return getattr(scheduler, "monitor", "val/loss")


def overrides(thing: Any, base: type, hook: str) -> bool:
    """Return whether an object overrides a hook, in its class or as an attribute."""
    return getattr(getattr(thing, hook), "__func__", None) is not getattr(base, hook)
