"""Checkpoints to resume from exactly, and the check that stops a run whose loss is not finite.

`ExactResume` and `LastCheckpoint` use private names of Lightning's loops: checked against
Lightning 2.6.
"""

import os
import random
import shutil
import sys
from copy import deepcopy
from pathlib import Path
from time import monotonic
from typing import Any, NoReturn

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint
from torch import Tensor

from digitlab import files
from digitlab.callbacks.logging import named_weights
from digitlab.classifier import Classifier, Phase
from digitlab.distributed import all_reduce_max, gather, print_rank_zero
from digitlab.errors import check_at_least
from digitlab.execution import learning_rate
from digitlab.resume import compare_numerics, numerics
from digitlab.scores import BATCHES_AT_ONCE, RunningScore
from digitlab.signals import Interrupted, StopSignals


class FiniteLoss(Callback):
    """Stops a run whose loss or weights are not finite.

    Losses are read back from the device together, once there are 32 of them, since each reading
    stalls a GPU. Weights are checked before each validation and before they are saved.

    Raises:
        FloatingPointError: A loss or weight is infinite or NaN; the message names the step, from 1,
            and the learning rate.
    """

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, Classifier)
        sums = pl_module.sums.get("train")
        if trainer.is_last_batch or (sums and sums.unchecked >= BATCHES_AT_ONCE):
            self.check_losses(trainer, pl_module)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check losses and weights, which may be saved as the best after the validation."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self.check(trainer, pl_module)

    def check(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check the losses so far, and the weights."""
        assert isinstance(pl_module, Classifier)
        self.check_losses(trainer, pl_module)
        named = dict(named_weights(pl_module))
        finite = torch.stack([weight.isfinite().all() for weight in named.values()])
        for name, is_finite in zip(named, finite.tolist(), strict=True):  # one reading for all
            if not is_finite:
                _fail(f"{name} is not finite after step {trainer.global_step}", trainer)

    def check_losses(self, trainer: Trainer, pl_module: Classifier) -> None:
        """Check the losses since the last time."""
        found = pl_module.sums["train"].not_finite() if "train" in pl_module.sums else None
        # All ranks train on the sum of their losses: they stop together.
        if all_reduce_max(trainer, found is not None):
            ago, loss = max(filter(None, gather(trainer, found)))
            batches: int = trainer.accumulate_grad_batches
            _fail(f"the loss is {loss} at step {trainer.global_step - ago // batches}", trainer)


def _fail(fault: str, trainer: Trainer) -> NoReturn:
    rate = learning_rate(trainer.optimizers[0])
    raise FloatingPointError(f"{fault}, learning rate {rate}")


class BestCheckpoint(ModelCheckpoint):
    """Lightning's `ModelCheckpoint` for a run folder that may be moved before it is resumed."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the best score; of another folder, Lightning would forget it."""
        super().load_state_dict(state_dict | {"dirpath": self.dirpath})


class ExactResume(Callback):
    """Makes a resumed fit equal, bit for bit, to one that was not interrupted.

    It must be among the callbacks both of the run that writes the checkpoint and of the one that
    resumes from it, on the same machine. With digitlab's data modules a checkpoint may be written
    after any batch, unless a validation follows it; with other loaders, which do not save their
    position, only after epochs.

    Args:
        settings: The run's settings as YAML, to be compared with those it is resumed with.
        repeat_epoch: Serve the images of an unfinished epoch from the first again, where the
            position has no meaning any more: the batch size has changed, for example.
        trained: All steps are made, and the fit is only ended, by `end_training`.
        allow_inexact: Resume on another type of device, or with another number of threads or flag
            of torch, although the result is then another.

    Attributes:
        inexact: What made resumes inexact so far, a sentence each.

    Raises:
        ValueError: `numerics` differ from those of the checkpoint, and `allow_inexact` is false.
    """

    def __init__(
        self,
        settings: str = "{}",
        repeat_epoch: bool = False,
        trained: bool = False,
        allow_inexact: bool = False,
    ) -> None:
        self.settings = settings
        self.repeat_epoch = repeat_epoch
        self.trained = trained
        self.allow_inexact = allow_inexact
        self.inexact: list[str] = []
        self._random: dict[str, Any] | None = None  # until it is restored
        self._metrics: dict[str, Tensor] = {}  # likewise

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add the random state and running scores of each process, and whether to stop."""
        state = {"random": _random_state(trainer.strategy.root_device)}
        if isinstance(pl_module, Classifier) and not trainer.is_last_batch:
            state["sums"] = {phase: it.state_dict() for phase, it in pl_module.sums.items()}
        asked = trainer.should_stop
        checkpoint["exact_resume"] = {
            "processes": gather(trainer, state),
            "metrics": {name: value.cpu() for name, value in trainer.callback_metrics.items()},
            "settings": self.settings,
            "numerics": numerics(trainer, pl_module),
            "inexact": self.inexact,
            "should_stop": asked,
            "stopped": asked and trainer.fit_loop._can_stop_early,  # not before `min_epochs`
        }

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Restore running scores and counters; keep the random state until training starts."""
        saved = checkpoint["exact_resume"]
        # Older versions saved none of what has a default here.
        before = saved.get("numerics", {})
        self.inexact = [*saved.get("inexact", [])]
        for change in compare_numerics(before, trainer, pl_module, self.allow_inexact):
            self.inexact.append(f"from step {checkpoint['global_step']} on, {change}")
            message = f"digitlab: warning: the result is not bitwise equal: {self.inexact[-1]}"
            print_rank_zero(message, sys.stderr)
        # A run that had stopped, and is not only ended, is resumed to make it longer.
        trainer.should_stop = saved["should_stop"] and (self.trained or not saved["stopped"])
        self._metrics = saved.get("metrics", {})
        if trainer.global_rank < len(saved["processes"]):
            state = saved["processes"][trainer.global_rank]
            self._random = state["random"]
            for phase, sums in state.get("sums", {}).items():
                assert isinstance(pl_module, Classifier)
                pl_module.sums[phase] = RunningScore(pl_module.device)
                pl_module.sums[phase].load_state_dict(sums)
        _set_counters(trainer, checkpoint, self.repeat_epoch, self.trained)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore what the start of a process changes: random state and logged values."""
        if self._random is not None:
            _restore_random_state(self._random, trainer.strategy.root_device)
            self._random = None
        trainer.callback_metrics.update(self._metrics)
        self._metrics = {}


def _random_state(device: torch.device) -> dict[str, Any]:
    """Return the state of all generators, as tensors and plain values."""
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


def end_training(trainer: Trainer) -> None:
    """End a fit that has made all of its steps: replaces `trainer.fit_loop.run`.

    Where training was ended inside an epoch, its checkpoint was saved before the epoch's end.
    """
    loop: Any = trainer.fit_loop
    loop.setup_data()
    loop.on_run_start()
    epochs, batches = loop.epoch_progress.current, loop.epoch_loop.batch_progress.current
    if epochs.processed < epochs.started:
        loop.epoch_loop._skip_next_val = batches.completed == batches.processed  # saved after it
        module = trainer.lightning_module
        assert isinstance(module, Classifier)
        module._current_fx_name = "on_train_batch_end"
        Classifier.on_train_batch_end(module, None, None, 0)  # logs the score, after callbacks
        loop.epoch_loop.on_advance_end(loop._data_fetcher)  # validates, if it is time
        loop.on_advance_end()
        # In the last epoch, whoever asks meanwhile whether the loop is done has counted it already.
        epochs.completed = epochs.processed
    loop.on_run_end()


def _set_counters(
    trainer: Trainer, checkpoint: dict[str, Any], repeat_epoch: bool, trained: bool
) -> None:
    """Restore the loops' counters, since Lightning's own way loses steps or epochs.

    With `max_steps`, Lightning would end an epoch a second time when resumed at its end, and drop
    the rest of a block of steps that `max_steps` cut short.
    """
    # Remove the loop state, or Lightning restores it a second time.
    state = checkpoint.pop("loops")["fit_loop"]
    epochs, batches = state["epoch_progress"], state["epoch_loop.batch_progress"]
    steps = checkpoint["global_step"]
    loop = trainer.fit_loop.epoch_loop
    if epochs["current"]["processed"] < epochs["current"]["started"] and not repeat_epoch:
        put_back = not trained and _put_back_the_rest(state)
        trainer.fit_loop.load_state_dict(state)
        if put_back and batches["current"]["ready"] == 0:
            # With zero batches done, Lightning would go straight to validation.
            loop._restarting = False
            loop._batches_that_stepped = steps
        return
    for counter in (epochs["total"], epochs["current"]):
        done = counter["processed"]
        counter.update(ready=done, started=done, completed=done)
    # Manual and automatic optimization keep separate step counters; set both.
    automatic = state["epoch_loop.automatic_optimization.optim_progress"]["optimizer"]["step"]
    manual = state["epoch_loop.manual_optimization.optim_step_progress"]
    for counter in (automatic["total"], manual["total"]):
        counter.update(ready=steps, completed=steps)
    trainer.fit_loop.load_state_dict(state)
    trainer.fit_loop._combined_loader_states_to_load = []
    loop._batches_that_stepped = steps
    for restarted in (trainer.fit_loop, loop, loop.val_loop):
        restarted.on_iteration_done()  # nothing is restarted: the next epoch starts


def _put_back_the_rest(state: dict[str, Any]) -> bool:
    """Count a block that `max_steps` cut short as not served, so that its rest is served."""
    for loader in state["state_dict"].get("combined_loader", []):
        if loader.get("batches", 0) % loader.get("steps_per_execution", 1):
            progress = state["epoch_loop.batch_progress"]
            for counter in (progress["total"], progress["current"]):
                for name in counter:
                    counter[name] -= 1
            return True
    return False


class LastCheckpoint(Checkpoint):
    """Keeps the last checkpoint of a run, `last.ckpt`, and the one before, `previous.ckpt`.

    They are written after each epoch, inside epochs at intervals, when a signal asks the run to
    stop, and where `max_steps` or another callback ends it inside an epoch. Lightning calls
    checkpoint callbacks after all others, so their saved state belongs to the same step.

    Args:
        folder: Where to write the two.
        finite: Checks losses and weights before they are saved.
        every_n_steps: Optimizer steps between two checkpoints inside an epoch (at least 1); none
            if unset. With several steps per execution, saved after the last step of one.
        every_n_minutes: Minutes between two checkpoints inside an epoch (at least 0); none if
            unset.

    Attributes:
        signals: The signal handlers of the fit, which sets them here.

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
        check_at_least(1, every_n_steps=every_n_steps)
        check_at_least(0, every_n_minutes=every_n_minutes)
        self.path = Path(folder, "last.ckpt")
        self.signals: StopSignals | None = None
        self.finite = finite
        self.every_n_steps = every_n_steps
        self.every_n_minutes = every_n_minutes
        self.saved_step = 0
        self._is_whole = False  # this process has written the file, or was resumed from it
        self._seen_step = 0
        self._saved_at = 0.0
        self._sums: dict[Phase, RunningScore] = {}  # of an epoch that ends before its last batch

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start to count; from here on, signals wait for the end of a step."""
        self.saved_step = self._seen_step = trainer.global_step
        self._is_whole = str(trainer.ckpt_path) == str(self.path)
        self._saved_at = monotonic()
        if self.signals:
            self.signals.deferring = not trainer.fit_loop.done

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        seen, self._seen_step = self._seen_step, trainer.global_step
        assert isinstance(pl_module, Classifier)
        ends = pl_module.training_ends_inside_epoch()
        self._sums = deepcopy(pl_module.sums) if ends else {}
        if trainer.fit_loop._should_accumulate() or _validates_now(trainer):
            return  # a checkpoint here could not be resumed exactly; save after the validation
        number = self.signals.received() if self.signals else 0
        if number or ends or self._is_time(trainer, seen):
            self.save(trainer, pl_module)
        if number:
            raise Interrupted(number, self._saved())

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save after a validation with which training ends inside an epoch."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            assert isinstance(pl_module, Classifier)
            if pl_module.training_ends_inside_epoch():
                pl_module.sums |= self._sums  # which it has read, but a longer run adds to
                self.save(trainer, pl_module)
                for phase in self._sums:
                    del pl_module.sums[phase]

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_last_batch:  # otherwise the epoch was ended inside, and saved there
            self.save(trainer, pl_module)
        if self.signals:
            self.signals.deferring = not trainer.fit_loop.done  # nothing is left to be saved
            if number := self.signals.received():
                raise Interrupted(number, self._saved())

    def save(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the checkpoint, and keep the previous one.

        Raises:
            FloatingPointError: A loss or weight is not finite; both files stay as they were.
        """
        if self.finite:
            self.finite.check(trainer, pl_module)
        if trainer.is_global_zero:
            for logger in trainer.loggers:
                logger.save()  # a run killed after this has logged everything up to here
            if self._is_whole:
                _keep(self.path, self.path.with_name("previous.ckpt"))
        trainer.save_checkpoint(self.path)
        self._is_whole = True
        self.saved_step = trainer.global_step
        self._saved_at = monotonic()

    def _saved(self) -> str:
        return f"saved {self.path} at step {self.saved_step}"

    def _is_time(self, trainer: Trainer, seen: int) -> bool:
        every = self.every_n_steps
        if every and trainer.global_step // every > seen // every:
            return True
        if self.every_n_minutes is None:
            return False
        late = monotonic() - self._saved_at >= 60 * self.every_n_minutes
        return bool(all_reduce_max(trainer, late))  # the clocks of the processes differ


def _validates_now(trainer: Trainer) -> bool:
    """Whether a validation or the epoch's end follows this batch; no public API says so."""
    fetcher = trainer.fit_loop._data_fetcher
    assert fetcher is not None
    return trainer.is_last_batch or trainer.fit_loop.epoch_loop._should_check_val_fx(fetcher)


def _keep(path: Path, previous: Path) -> None:
    """Hard-link a file to a second name, which stays when another file replaces the first."""
    if not path.exists():
        return
    with files.atomic_write(previous) as beside:
        try:
            os.link(path, beside)
        except OSError:  # not every file system has hard links
            shutil.copyfile(path, beside)
