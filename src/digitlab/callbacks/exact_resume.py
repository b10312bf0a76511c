"""What Lightning's checkpoints lack, so that a run that goes on from one ends as if never stopped.

Lightning keeps weights, optimizers, schedulers and counters, and the loader its position. Here are
random numbers and the sums of an epoch under way, and the counters are put right.
"""

import random
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from digitlab.classifier import Classifier
from digitlab.processes import gather
from digitlab.scores import Sums


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
                pl_module.sums[phase] = Sums(pl_module.device)
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
