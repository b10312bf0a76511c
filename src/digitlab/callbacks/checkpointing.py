"""Checkpoints to resume from exactly, and the check that stops a run whose loss is not finite."""

import os
import random
import shutil
from datetime import timedelta
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint

from digitlab import files
from digitlab.classifier import Classifier
from digitlab.distributed import all_reduce_max, gather
from digitlab.scores import BATCHES_AT_ONCE, RunningScore
from digitlab.signals import Interrupted, StopSignals


class FiniteLoss(Callback):
    """Stops a run whose loss or weights are not finite.

    Losses are looked at 32 steps, or an execution of several steps, at once, for reading back a
    value stalls a GPU; weights before each validation, and whoever saves them asks for them too.

    Raises:
        FloatingPointError: A loss or weight is infinite or no number; it names the step, from 1,
            and the learning rate.
    """

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Look at the losses, if it is time."""
        assert isinstance(pl_module, Classifier)
        if (
            pl_module.steps_per_execution > 1
            or batch_idx % BATCHES_AT_ONCE == 0
            or trainer.is_last_batch
        ):
            self.check_losses(trainer, pl_module)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at losses and weights: what is validated may be saved as the best."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self.check(trainer, pl_module)

    def check(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at the losses up to now, and at the weights."""
        assert isinstance(pl_module, Classifier)
        self.check_losses(trainer, pl_module)
        for name, parameter in pl_module.named_parameters():
            if not parameter.isfinite().all():
                step = trainer.global_step
                raise FloatingPointError(
                    f"{name} is not finite after step {step}, learning rate {_rate(trainer)}"
                )

    def check_losses(self, trainer: Trainer, pl_module: Classifier) -> None:
        """Look at the losses since the last time."""
        found = pl_module.sums["train"].not_finite() if "train" in pl_module.sums else None
        # The sum of processes' losses is what is trained on: all stop with the one that saw it.
        if not all_reduce_max(trainer, found is not None):
            return
        ago, loss = max(filter(None, gather(trainer, found)))
        batches: int = trainer.accumulate_grad_batches
        step = trainer.global_step - ago // batches
        raise FloatingPointError(
            f"the loss is {loss} at step {step}, learning rate {_rate(trainer)}"
        )


def _rate(trainer: Trainer) -> float:
    return float(trainer.optimizers[0].param_groups[0].get("lr", float("nan")))


class StepCheckpoint(ModelCheckpoint):
    """Lightning's `ModelCheckpoint` that also saves inside an epoch of several steps at once.

    Lightning's own looks whether the number of optimizer steps is a multiple of
    `every_n_train_steps`, which with `steps_per_execution` above 1 it may jump over. This one saves
    at the end of the first `training_step` that reaches or passes a multiple. Where no interval is
    given it saves after epochs, as Lightning's own does.

    Args:
        every_n_train_steps: Optimizer steps from one checkpoint to the next, at least 1.
        train_time_interval: Time from one checkpoint to the next, instead.
        **kwargs: Other arguments of `ModelCheckpoint`.

    Raises:
        ValueError: `monitor` is given beside an interval, although inside an epoch the metric is
            that of the weights at its start.
    """

    def __init__(
        self,
        every_n_train_steps: int | None = None,
        train_time_interval: timedelta | None = None,
        **kwargs: Any,
    ) -> None:
        inside = every_n_train_steps or train_time_interval is not None
        if inside and kwargs.get("monitor"):
            raise ValueError(
                f"monitor is {kwargs['monitor']}: a checkpoint inside an epoch knows no metric of "
                "its weights; leave monitor out, or the interval"
            )
        super().__init__(
            every_n_train_steps=every_n_train_steps,
            train_time_interval=train_time_interval,
            **kwargs,
        )
        self._seen_step = 0

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint, also in a folder that has moved since."""
        # Of another folder Lightning would forget which metric was the best so far.
        super().load_state_dict(state_dict | {"dirpath": self.dirpath})

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start to count, from the step that a run goes on from."""
        super().on_train_start(trainer, pl_module)
        self._seen_step = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save, if it is time."""
        seen, self._seen_step = self._seen_step, trainer.global_step
        if not self._is_time(seen, trainer) or self._should_skip_saving_checkpoint(trainer):
            return
        candidates = self._monitor_candidates(trainer)
        self._save_topk_checkpoint(trainer, candidates)
        self._save_last_checkpoint(trainer, candidates)
        self._last_time_checked = monotonic()

    def _is_time(self, seen: int, trainer: Trainer) -> bool:
        interval = self._train_time_interval
        if interval is not None:
            since = self._last_time_checked
            late = since is None or monotonic() - since >= interval.total_seconds()
            # Processes save together, when the first one's clock says so.
            return bool(trainer.strategy.broadcast(late))
        every = self._every_n_train_steps
        return every > 0 and trainer.global_step // every > seen // every


class ExactResume(Callback):
    """Makes a fit that goes on from a checkpoint give, bit for bit, what it would have given.

    It must be in the run that writes the checkpoint and in the one that goes on from it, on the
    same machine. With digitlab's data modules a checkpoint may be written after any batch but one
    that a validation follows; with other loaders, which do not keep their position, after epochs.

    Args:
        settings: What the run is made with, as YAML, to be compared with what it goes on with.
        repeat_epoch: Serve the images of an unfinished epoch again from the first one, where the
            position means nothing: batches have another size now, say.
    """

    def __init__(self, settings: str = "{}", repeat_epoch: bool = False) -> None:
        self.settings = settings
        self.repeat_epoch = repeat_epoch
        self._random: dict[str, Any] | None = None  # until it is restored

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add each process's random numbers and sums, and whether the run is asked to stop."""
        state = {"random": _random_state(trainer.strategy.root_device)}
        if isinstance(pl_module, Classifier) and not trainer.is_last_batch:
            state["sums"] = {phase: it.state_dict() for phase, it in pl_module.sums.items()}
        states = gather(trainer, state)
        asked = trainer.should_stop
        checkpoint["exact_resume"] = {
            "processes": states,
            "settings": self.settings,
            "should_stop": asked,
            "stopped": asked and trainer.fit_loop._can_stop_early,  # not before `min_epochs`
        }

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Keep the random numbers until training starts, set sums and counters."""
        kept = checkpoint["exact_resume"]
        # A run that was stopped and goes on is one that is longer now.
        trainer.should_stop = kept["should_stop"] and not kept["stopped"]
        states = kept["processes"]
        if trainer.global_rank < len(states):
            state = states[trainer.global_rank]
            self._random = state["random"]
            for phase, sums in state.get("sums", {}).items():
                assert isinstance(pl_module, Classifier)
                pl_module.sums[phase] = RunningScore(pl_module.device)
                pl_module.sums[phase].load_state_dict(sums)
        _set_counters(trainer, checkpoint, self.repeat_epoch)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore the random numbers: until now, all that was drawn was for the start."""
        if self._random is None:
            return
        _restore_random_state(self._random, trainer.strategy.root_device)
        self._random = None


def _random_state(device: torch.device) -> dict[str, Any]:
    """Give the state of all generators, as tensors and plain values."""
    name, keys, *rest = np.random.get_state(legacy=True)  # noqa: NPY002  # a user may draw from it
    state = {
        "torch": torch.get_rng_state(),
        "numpy": (str(name), torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest),
        "python": random.getstate(),
    }
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def _restore_random_state(state: dict[str, Any], device: torch.device) -> None:
    torch.set_rng_state(state["torch"])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002
    random.setstate(state["python"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)


def _set_counters(trainer: Trainer, checkpoint: dict[str, Any], repeat_epoch: bool) -> None:
    """Load the loops' counters here, since Lightning's own way loses steps or epochs.

    From a checkpoint of an epoch's end it would, with `max_steps`, end that epoch once more; of
    steps made at once of which `max_steps` cut some off, it would drop the others.
    """
    state = checkpoint.pop("loops")["fit_loop"]  # what Lightning finds no more, it leaves alone
    epochs, batches = state["epoch_progress"], state["epoch_loop.batch_progress"]
    steps = checkpoint["global_step"]
    if epochs["current"]["processed"] < epochs["current"]["started"] and not repeat_epoch:
        put_back = _put_back_the_rest(state)
        trainer.fit_loop.load_state_dict(state)
        if put_back and batches["current"]["ready"] == 0:
            # Lightning takes an epoch of which nothing was served for one to be validated.
            trainer.fit_loop.epoch_loop._restarting = False
            trainer.fit_loop.epoch_loop._batches_that_stepped = steps
        return
    for counter in (epochs["total"], epochs["current"]):
        done = counter["processed"]
        counter.update(ready=done, started=done, completed=done)
    # A number of steps at once counts elsewhere than single steps; one of the two has it.
    automatic = state["epoch_loop.automatic_optimization.optim_progress"]["optimizer"]["step"]
    manual = state["epoch_loop.manual_optimization.optim_step_progress"]
    for counter in (automatic["total"], manual["total"]):
        counter.update(ready=steps, completed=steps)
    trainer.fit_loop.load_state_dict(state)
    trainer.fit_loop._combined_loader_states_to_load = []
    trainer.fit_loop.epoch_loop._batches_that_stepped = steps
    for loop in (
        trainer.fit_loop,
        trainer.fit_loop.epoch_loop,
        trainer.fit_loop.epoch_loop.val_loop,
    ):
        loop.on_iteration_done()  # nothing is restarted: the next epoch starts


def _put_back_the_rest(state: dict[str, Any]) -> bool:
    """Count a block of batches that was cut short, if any, as not served: its rest is to come."""
    for loader in state["state_dict"].get("combined_loader", []):
        if loader.get("batches", 0) % loader.get("steps_per_execution", 1):
            progress = state["epoch_loop.batch_progress"]
            for counter in (progress["total"], progress["current"]):
                for name in counter:
                    counter[name] -= 1
            return True
    return False


class LastCheckpoint(Checkpoint):
    """Keeps `last.ckpt` of a run and, should that be damaged, the one before, `previous.ckpt`.

    They are written after each epoch, inside epochs at intervals, when the run is asked to stop,
    and where `max_steps` or another callback ends it inside an epoch. Lightning calls checkpoint
    callbacks after all others, so that what those keep is of the same step.

    Args:
        folder: Where to write the two.
        finite: Looks at the weights before they are saved.
        every_n_steps: Optimizer steps between two checkpoints inside an epoch (at least 1); none
            if unset. With several steps per execution, it is written after the last of those.
        every_n_minutes: Minutes between two checkpoints inside an epoch (at least 0); none if
            unset.

    Attributes:
        signals: Tell whether the run is asked to stop; they are the whole fit's, which sets them.

    Raises:
        ValueError: A number is out of its range.
    """

    def __init__(
        self,
        folder: Path | str,
        finite: FiniteLoss | None = None,
        every_n_steps: int | None = None,
        every_n_minutes: float | None = 1.0,
    ) -> None:
        if every_n_steps is not None and every_n_steps < 1:
            raise ValueError(f"every_n_steps is {every_n_steps}: it must be at least 1")
        if every_n_minutes is not None and not every_n_minutes >= 0:
            raise ValueError(f"every_n_minutes is {every_n_minutes}: it must be at least 0")
        self.path = Path(folder, "last.ckpt")
        self.signals: StopSignals | None = None
        self.finite = finite
        self.every_n_steps = every_n_steps
        self.every_n_minutes = every_n_minutes
        self.saved_step = 0
        self._is_whole = False  # the file, which this process has written or gone on from
        self._seen_step = 0
        self._saved_at = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start to count, and let signals wait for the end of a step from here on."""
        self.saved_step = self._seen_step = trainer.global_step
        self._is_whole = str(trainer.ckpt_path) == str(self.path)
        self._saved_at = monotonic()
        if self.signals:
            self.signals.deferring = True

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save inside an epoch, if it is time; stop, if the run is asked to."""
        # Lightning tells only its own code what follows a batch, and until 2.7 it stays as it is.
        seen, self._seen_step = self._seen_step, trainer.global_step
        ends = _ends_now(trainer)
        if trainer.fit_loop._should_accumulate() or (_validates_now(trainer) and not ends):
            return  # a run goes on exactly from what follows, and only from there
        number = self.signals.received() if self.signals else 0
        if number or ends or self._is_time(trainer, seen):
            self.save(trainer, pl_module)
        if number:
            self._stop(number)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the end of an epoch; stop, if the run is asked to."""
        if trainer.is_last_batch:  # or else it was ended inside, and saved there to go on from
            self.save(trainer, pl_module)
        if self.signals:
            self.signals.deferring = not trainer.fit_loop.done  # nothing is left to be saved
            if number := self.signals.received():
                self._stop(number)

    def save(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the checkpoint, and keep the one before.

        Raises:
            FloatingPointError: A loss or weight is not finite; then both files are as they were.
        """
        if self.finite:
            self.finite.check(trainer, pl_module)
        if trainer.is_global_zero:
            for logger in trainer.loggers:
                logger.save()  # a run that is killed after this has logged all until now
            if self._is_whole:
                _keep(self.path, self.path.with_name("previous.ckpt"))
        trainer.save_checkpoint(self.path)
        self._is_whole = True
        self.saved_step = trainer.global_step
        self._saved_at = monotonic()

    def _is_time(self, trainer: Trainer, seen: int) -> bool:
        every = self.every_n_steps
        if every and trainer.global_step // every > seen // every:
            return True
        minutes = self.every_n_minutes
        late = minutes is not None and monotonic() - self._saved_at >= 60 * minutes
        return bool(
            minutes is not None and all_reduce_max(trainer, late)
        )  # the processes' clocks differ

    def _stop(self, number: int) -> None:
        raise Interrupted(number, f"saved {self.path} at step {self.saved_step}")


def _validates_now(trainer: Trainer) -> bool:
    """Say whether a validation or the epoch's end follows the batch that has just ended."""
    fetcher = trainer.fit_loop._data_fetcher
    assert fetcher is not None
    return trainer.is_last_batch or trainer.fit_loop.epoch_loop._should_check_val_fx(fetcher)


def _ends_now(trainer: Trainer) -> bool:
    """Say whether training is ended inside an epoch, by `max_steps` or by a callback."""
    asked = trainer.should_stop and trainer.fit_loop._can_stop_early
    return not trainer.is_last_batch and (asked or trainer.global_step == trainer.max_steps)


def _keep(path: Path, previous: Path) -> None:
    """Give a file a second name, which the next to take its place leaves alone."""
    if not path.exists():
        return
    with files.atomic_write(previous) as beside:
        try:
            os.link(path, beside)
        except OSError:  # not every file system has two names for a file
            shutil.copyfile(path, beside)
