"""The trainer of `digitlab fit`: its callbacks, logger and checkpoints."""

import os
import socket
import time
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import BatchSizeFinder, LearningRateFinder, ModelCheckpoint

from digitlab import callbacks as cb
from digitlab.callbacks.tensorboard import EventLogger
from digitlab.checkpoints import AtomicCheckpointIO
from digitlab.cli.parser import RunCLI
from digitlab.resume import ResumePoint


def check_callbacks(cli: RunCLI) -> None:
    """Refuse callbacks that try out settings, so that config.yaml would not be what ran.

    Those that write a run's files could write any text to any file.
    """
    for callback in as_list(cli.config_init.trainer.callbacks):
        if isinstance(callback, cb.SaveConfig | cb.SaveFigures | cb.History | cb.FinalEvaluation):
            raise ValueError(
                f"trainer.callbacks has {type(callback).__name__}, which digitlab fit adds to each "
                "run: leave it out"
            )
        if isinstance(callback, BatchSizeFinder | LearningRateFinder):
            raise ValueError(
                f"{type(callback).__name__} changes settings that config.yaml has, and trains for "
                "trials: find them in Python with Lightning's Tuner, and give what it finds"
            )
        where = str(getattr(callback, "dirpath", None) or "")
        if isinstance(callback, ModelCheckpoint) and where and "://" not in where:
            Path(where).mkdir(parents=True, exist_ok=True)  # refused now, not when it first saves


def make_trainer(
    cli: RunCLI,
    folder: Path,
    throughput: cb.Throughput,
    weights: dict[str, str] | None,
    start: ResumePoint,
    allow_changes: bool = False,
) -> Trainer:
    """Make the trainer of a run.

    `weights` are the `file` and `sha256` of initial weights that were read from a file. Only the
    first process writes to the folder.
    """
    settings = cli.config.trainer
    history, finite = cb.History(folder / "history.csv"), cb.FiniteLoss()
    callbacks = [
        *(throughput, history, cb.PrintEpoch(history)),
        cb.SaveConfig(folder / "config.yaml", cli.dump()),
        cb.SaveFigures(folder, history),
        *(cb.ConfusionMatrix(), cb.WorstMistakes(), cb.FirstLayerKernels()),
        *(cb.ModelGraph(), cb.Projector()),
        cb.FinalEvaluation(folder, throughput, weights),  # the last to act: then a run is finished
        finite,
    ]
    if settings.enable_checkpointing is not False:
        callbacks += _checkpoints(cli, folder, finite, start, allow_changes)
    plugins = [*as_list(settings.plugins), AtomicCheckpointIO()]
    if settings.logger not in (None, True):  # the user's own logger, or none
        return cli.instantiate_trainer(*callbacks, plugins=plugins)
    # A run that was killed had logged steps after its checkpoint, and logs them again.
    purge_step = start.step if start.resumed else None
    if start.resumed:
        wait_for_events(folder)
    # `FinalEvaluation` logs the hyper-parameters with the final metrics.
    logger = EventLogger(folder, "", "", default_hp_metric=False, purge_step=purge_step)
    # Lightning writes hyper-parameters to this file unless it exists; by then this one does.
    logger.NAME_HPARAMS_FILE = "config.yaml"
    return cli.instantiate_trainer(*callbacks, logger=logger, plugins=plugins)


def wait_for_events(folder: Path) -> None:
    """Wait, for up to a second, until a new event file's name comes after those of a run folder.

    TensorBoard reads event files in the order of their names: the second, the host, and the process
    number as a text, in which 10001 comes before 9997.
    """
    for _ in range(25):
        name = f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}."
        if all(path.name < name for path in folder.glob("events.out.tfevents.*")):
            return
        time.sleep(0.05)  # a clock that was put back is not waited for


def _checkpoints(
    cli: RunCLI, folder: Path, finite: cb.FiniteLoss, start: ResumePoint, allow_changes: bool
) -> list[Callback]:
    config, where = cli.config, folder / "checkpoints"
    every = (config.checkpoint_every_n_steps, config.checkpoint_every_n_minutes)
    callbacks: list[Callback] = [
        cb.ExactResume(
            cli.dump(), allow_changes, start.trained, allow_changes or config.allow_inexact_resume
        )
    ]
    if config.framework == "keras":
        from digitlab.parity.keras_files import KerasFiles

        callbacks.append(KerasFiles(folder))
    if config.trainer.limit_val_batches != 0:
        best = cb.BestCheckpoint(
            dirpath=where,
            filename="best",
            monitor="val/accuracy",
            mode="max",
            save_on_train_epoch_end=False,  # but after each validation
            enable_version_counter=False,  # a checkpoint replaces the one before
        )
        callbacks.append(best)
    return [*callbacks, cb.LastCheckpoint(where, finite, *every)]


def as_list(given: Any) -> list[Any]:
    """Make a list of a setting that may be one thing, several or None."""
    return [] if given is None else given if isinstance(given, list) else [given]
