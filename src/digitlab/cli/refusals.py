"""Bad input that only the trainer can know: a monitor that nothing logs, a callback's complaint."""

import sysconfig
from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from pathlib import Path
from traceback import walk_tb
from types import CodeType, FunctionType
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import LambdaCallback, LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.loggers import Logger
from torch.optim.lr_scheduler import ReduceLROnPlateau

from digitlab.classifier import Classifier
from digitlab.errors import InputError, describe_error
from digitlab.execution import monitored

LOGGED = ("val/loss", "val/accuracy", "train/loss", "train/accuracy")
"""The values that every `Classifier` logs once an epoch."""

_SCHEDULER = "model.lr_scheduler"
_WRONG_PATH = (FileNotFoundError, FileExistsError, NotADirectoryError, PermissionError)
_INSTALLED = tuple({str(Path(path)) for path in sysconfig.get_paths().values()})


def check_monitors(model: Classifier, trainer: Trainer) -> None:
    """Refuse callbacks and schedulers that monitor a value which the run cannot log.

    A user's own hooks and callbacks may log any name, so with them nothing is refused here;
    `as_input_error` then reports it at the end of the first epoch.
    """
    if _logs_other_values(model, trainer):
        return
    made: Any = model.configure_optimizers()
    scheduler = made["lr_scheduler"]["scheduler"] if isinstance(made, dict) else None
    each_epoch = trainer.check_val_every_n_epoch in (1, None)
    for owner, name in _monitors(trainer, [scheduler]):
        validates = trainer.limit_val_batches and (each_epoch or owner != _SCHEDULER)
        logged = [it for it in LOGGED if validates or it.startswith("train")]
        if name in logged:
            continue
        if name in LOGGED:
            reason = f"is logged after a validation: validate each epoch, or monitor {logged[0]}"
        else:
            near = get_close_matches(name.replace("_", "/").replace("valid", "val"), logged, n=1)
            hint = f"did you mean {near[0]}?" if near else f"monitor one of {', '.join(logged)}"
            reason = f"this run does not log: {hint}"
        raise InputError(f"{owner} monitors {name}, which {reason}")


def _monitors(trainer: Trainer, schedulers: Iterable[Any]) -> Iterator[tuple[str, str]]:
    """List the callbacks and schedulers that need a value to be logged, and its name."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]  # set at run time
        name = getattr(callback, "monitor", None)
        counted = isinstance(callback, ModelCheckpoint) and name in ("epoch", "step")
        if isinstance(name, str) and not counted and getattr(callback, "strict", True):
            yield type(callback).__name__, name
    for scheduler in schedulers:
        if isinstance(scheduler, ReduceLROnPlateau):
            yield _SCHEDULER, monitored(scheduler)


def _logs_other_values(model: Classifier, trainer: Trainer) -> bool:
    """Return whether code that is not digitlab's or Lightning's might log values."""
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]  # set at run time
    others = (LambdaCallback, LearningRateMonitor)
    if any(isinstance(it, others) or not _is_known(type(it)) for it in callbacks):
        return True
    for kind in type(model).__mro__:
        if _is_known(kind):
            return False
        for name, value in vars(kind).items():
            if name == "__init__" and isinstance(value, FunctionType):
                if "log" in _names(value.__code__):
                    return True
            elif callable(value) or hasattr(value, "__get__"):  # a method or a property
                return True
    return False


def _is_known(kind: type) -> bool:
    return kind.__module__.partition(".")[0] in ("digitlab", "lightning")


def _names(code: CodeType) -> set[str]:
    inner = [it for it in code.co_consts if isinstance(it, CodeType)]
    return {part for name in code.co_names for part in name.split("_")}.union(*map(_names, inner))


def as_input_error(error: Exception, trainer: Trainer, first_step: int) -> InputError | None:
    """Return an error of a fit as bad input, if it is one.

    Lightning, loggers and callbacks check some settings only when training starts, and raise
    whatever they like. A `ValueError` before the first step is taken for bad input, and any other
    error if no code of the user's is involved, whose traceback would help to find it.
    """
    for owner, name in _monitors(trainer, (it.scheduler for it in trainer.lr_scheduler_configs)):
        if name not in (logged := trainer.callback_metrics) and name in str(error):
            return InputError(
                f"{owner} monitors {name}, which this run does not log then: monitor one of "
                f"{', '.join(logged)}"
            )
    if trainer.global_step not in (0, first_step):
        return None
    if isinstance(error, (ValueError, MisconfigurationException, *_WRONG_PATH)):
        return InputError(describe_error(error))
    if isinstance(error, OSError):  # a full disk, say
        return None
    frames = [frame for frame, _ in walk_tb(error.__traceback__)]
    modules = [frame.f_globals.get("__name__", "").partition(".")[0] for frame in frames]
    own = [
        module != "digitlab" and not frame.f_code.co_filename.startswith((*_INSTALLED, "<"))
        for module, frame in zip(modules, frames, strict=True)
    ]
    if modules[-1] == "digitlab" or any(own):
        return None
    selves = [frame.f_locals.get("self") for frame in reversed(frames)]
    named = next((it for it in selves if isinstance(it, Callback | Logger)), error)
    return InputError(f"{type(named).__name__}: {describe_error(error)}")
