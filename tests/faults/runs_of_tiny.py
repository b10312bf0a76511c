"""Command lines of short runs, and how they are killed."""

import os
from functools import partial
from pathlib import Path
from pydoc import locate
from typing import Any

from lightning.pytorch import Callback, Trainer

from digitlab.classifier import Classifier
from tests.faults.victims import SIGKILLED, Fault, kill_self, run

STEPS = 25  # in an epoch: 200 images in batches of 8
MLP = "MLP --model.hidden_features [16] --model.dropout 0.3"
BLOCKS = "--model.steps_per_execution 4"
COMMAND = f"{MLP} {BLOCKS}"


class StopAt(Callback):
    """Asks the trainer to stop at a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step >= self.step:
            trainer.should_stop = True


STOP = "--trainer.callbacks tests.faults.runs_of_tiny.StopAt --trainer.callbacks.step 37"


def fit(model: str, place: Path, epochs: int = 3, framework: str = "torch") -> list[str]:
    """Trains a model, with options behind its name, on the tiny data; saves every 4 steps."""
    data = "--data tests.tiny.TinyDataModule --data.batch_size 8"
    trainer = f"--trainer.accelerator cpu --trainer.max_epochs {epochs}"
    often = "--trainer.log_every_n_steps 3 --checkpoint_every_n_steps 4"
    where = ["--trainer.default_root_dir", str(place), "--name", "run", "--framework", framework]
    return ["fit", *where, *f"{data} {trainer} {often} --model {model}".split()]


def folder_of(place: Path) -> Path:
    """The only run folder below a place."""
    (folder,) = place.glob("*/version_*")
    return folder


def log_of(place: Path) -> Path:
    place.mkdir(parents=True, exist_ok=True)
    return place / "log"


def left_alone(command: list[str], place: Path) -> Path:
    """Runs a command to its end, and gives its run folder."""
    log = log_of(place)
    assert run(command, log) == 0, log.read_text("utf-8")
    return folder_of(place)


def resume(folder: Path, *options: str) -> str:
    """Resumes a run to its end, and gives its output."""
    log = folder / "log"
    assert run(["fit", "--run", str(folder), *options], log) == 0, log.read_text("utf-8")
    said = log.read_text("utf-8")
    log.unlink()
    return said


def send(*numbers: int) -> None:
    """Sends signals to this process."""
    for number in numbers:
        os.kill(os.getpid(), number)


def at_call(
    owner: Any, name: str, number: int, then: Fault = kill_self, after: bool = False
) -> None:
    """A fault: something happens before the `number`-th call of a function, or right after it."""
    owner = locate(owner) if isinstance(owner, str) else owner  # a module does not pickle
    calls, original = 0, getattr(owner, name)

    def count(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == number and not after:
            then()
        result = original(*args, **kwargs)
        if calls == number and after:
            then()
        return result

    setattr(owner, name, count)


# A fault in an optimizer step, counted from 1; by default, the process is killed before it.
at_step = partial(partial, at_call, Classifier, "on_before_optimizer_step")


def kill_before_keras_step(step: int) -> None:
    """The same for Keras, which makes the steps of a block inside TensorFlow."""
    from digitlab.parity.keras_module import KerasClassifier

    made, original = 0, KerasClassifier.training_step

    def count(self: Any, batch: Any, batch_idx: int) -> None:
        nonlocal made
        made += -(-len(batch[1]) // 8)  # the size of a batch
        if made >= step:
            kill_self()
        original(self, batch, batch_idx)

    KerasClassifier.training_step = count  # type: ignore[method-assign]


def killed(command: list[str], place: Path, fault: Any) -> Path:
    """Runs a command that a fault kills, and gives its run folder."""
    log = log_of(place)
    assert run(command, log, fault) == SIGKILLED, log.read_text("utf-8")
    return folder_of(place)


def killed_again(folder: Path, fault: Any) -> None:
    """Resumes a run, and a fault kills it."""
    log = folder / "log"
    assert run(["fit", "--run", str(folder)], log, fault) == SIGKILLED, log.read_text("utf-8")
    log.unlink()


def kill_before(*steps: int, framework: str = "torch") -> list[Any]:
    kill = {"torch": at_step, "keras": partial(partial, kill_before_keras_step)}[framework]
    return [kill(step) for step in steps]
