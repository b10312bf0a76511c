"""Faults that are planted in a process: it is killed, gets signals, cannot write, computes NaN."""

import os
import resource
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from pydoc import locate
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import Timer

from digitlab.callbacks import PrintEpoch
from digitlab.classifier import Classifier
from tests.faults.processes import Fault


def send(*numbers: int) -> None:
    """A fault: this process gets signals."""
    for number in numbers:
        os.kill(os.getpid(), number)


def sent(name: str) -> Fault:
    """Make a fault: this process gets the signal that digitlab calls so."""
    return partial(send, signal.SIGINT if name == "Ctrl-C" else signal.Signals[name])


kill_self = partial(send, signal.SIGKILL)  # ends this process as a power cut would


def both(*faults: Fault | None) -> None:
    """A fault: several of them."""
    for fault in faults:
        if fault:
            fault()


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


def at_step(step: int, then: Fault = kill_self) -> Fault:
    """Make a fault: something happens before an optimizer step, counted from 1."""
    return partial(at_call, Classifier, "log_step", step, then)  # a block calls it if overridden


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


def kill_before(*steps: int, framework: str = "torch") -> tuple[Fault, ...]:
    """Make a fault for each of a run's starts, at a step after it."""
    if framework == "keras":
        return tuple(partial(kill_before_keras_step, step) for step in steps)
    return tuple(at_step(step) for step in steps)


def in_half_of_a_file(name: str, number: int) -> None:
    """A fault: killed when half of the bytes of a file are on the disk, the `number`-th such."""
    writes, original = 0, Path.write_bytes

    def half(path: Path, content: Any) -> int:
        nonlocal writes
        writes += path.name.endswith(name)
        if writes == number and path.name.endswith(name):
            original(path, bytes(content)[: len(content) // 2])
            kill_self()
        return original(path, content)

    Path.write_bytes = half  # type: ignore[method-assign, assignment]


def when_time_is_up() -> None:
    """A fault in a run with `max_time`: the time is up at step 37, on any machine."""

    def check(timer: Timer, trainer: Any) -> None:
        trainer.should_stop = trainer.should_stop or trainer.global_step >= 37

    Timer._check_time_remaining = check  # type: ignore[method-assign, assignment]


def nohup() -> None:
    """A fault: the process is started to ignore SIGHUP, which it gets at a step."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    at_step(3, partial(send, signal.SIGHUP))()


def full() -> None:
    for number in (1, 2):
        os.dup2(os.open("/dev/full", os.O_WRONLY), number)


def closed() -> None:
    for number in (0, 1, 2):
        os.close(number)
    sys.stdout = sys.stderr = None  # as Python starts then


def lose(ends: Callable[[], tuple[int, int]]) -> None:
    """A fault: output goes to a terminal, or a pipe, which is lost in the second epoch."""
    theirs, ours = ends()
    for number in (1, 2):
        os.dup2(ours, number)
    at_call(PrintEpoch, "on_train_epoch_end", 2, partial(os.close, theirs))


def fill_disk(size: int) -> None:
    """A fault: no file of this process may become larger than some bytes."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a write fails instead: EFBIG
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def spoil_step(step: int) -> None:
    """A fault: at a step the images, and so the loss, become NaN."""
    made, original = 0, Classifier._loss_and_logits

    def spoil(self: Classifier, images: torch.Tensor, labels: torch.Tensor) -> Any:
        nonlocal made
        made += self.training
        if made == step and self.training:
            images = images * float("nan")
        return original(self, images, labels)

    Classifier._loss_and_logits = spoil  # type: ignore[method-assign]


def lose_the_loss(step: int) -> None:
    """A fault: this rank's loss is infinite at its `step`-th step."""
    made, original = 0, Classifier.training_step

    def spoilt(self: Classifier, batch: object, batch_idx: int) -> torch.Tensor | None:
        nonlocal made
        made += 1
        loss = original(self, batch, batch_idx)  # type: ignore[arg-type]
        if made == step:  # the gradient is spared, or the others' weights would show it
            assert self.sums["train"].loss  # adds up what waits
            self.sums["train"]._unchecked[-1] = torch.tensor(torch.inf)
        return loss

    Classifier.training_step = spoilt  # type: ignore[assignment]


class StopAt(Callback):
    """Asks the trainer to stop at a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step >= self.step:
            trainer.should_stop = True
