"""The trainer of `digitlab fit`: what goes into a run folder, and what a run survives."""

from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from digitlab.arguments import RunCLI
from digitlab.callbacks import (
    ConfusionMatrix,
    Console,
    ExactResume,
    Figures,
    Filters,
    FiniteLoss,
    History,
    LastCheckpoint,
    ModelGraph,
    Projector,
    Rates,
    Results,
    Settings,
    StepCheckpoint,
    Stopwatch,
    WorstMistakes,
)
from digitlab.checkpoints import WholeCheckpoints
from digitlab.resume import Start


def make_trainer(
    cli: RunCLI,
    folder: Path,
    stopwatch: Stopwatch,
    weights: dict[str, str] | None,
    start: Start,
    allow_changes: bool = False,
) -> Trainer:
    """Make the trainer of a run.

    Args:
        cli: The run's settings.
        folder: The run folder; only the first process writes there.
        stopwatch: Has timed what came before.
        weights: What the initial weights were read from, if anything: `file` and `sha256`.
        start: What the run goes on from.
        allow_changes: Whether it goes on with other settings than it had.
    """
    settings = cli.config.trainer
    history = History(folder / "history.csv")
    finite = FiniteLoss()
    callbacks = [
        stopwatch,
        history,
        Console(history),
        Settings(folder / "config.yaml", cli.dump()),
        Figures(folder, history),
        *_for_tensorboard(history, stopwatch),
        Results(folder, stopwatch, weights),  # the last to act at the end: then a run is finished
        finite,
    ]
    if settings.enable_checkpointing is not False:
        callbacks += _checkpoints(cli, folder / "checkpoints", finite, allow_changes)
    plugins = [*_plugins(settings.plugins), WholeCheckpoints()]
    if settings.logger not in (None, True):
        # With the user's own logger, or none.
        return cli.instantiate_trainer(*callbacks, plugins=plugins)
    # Of a run that was killed, steps after its checkpoint were logged, and will be again.
    logger = make_logger(folder, purge_step=start.step if start.again else None)
    return cli.instantiate_trainer(*callbacks, logger=logger, plugins=plugins)


def make_logger(folder: Path, purge_step: int | None = None) -> TensorBoardLogger:
    """Make the logger that writes a run's events into its folder.

    Args:
        folder: The run folder.
        purge_step: Step, from 0, from which on earlier events do not count; none by default.
    """
    # `Results` logs the hyper-parameters when there are metrics to show beside them; Lightning's
    # default is a placeholder of -1.
    logger = TensorBoardLogger(
        folder, name="", version="", default_hp_metric=False, purge_step=purge_step
    )
    # Lightning writes hyper-parameters to this file unless it exists, as this one does by then.
    logger.NAME_HPARAMS_FILE = "config.yaml"
    return logger


def _for_tensorboard(history: History, stopwatch: Stopwatch) -> list[Callback]:
    while_training = [Rates(history, stopwatch), ConfusionMatrix(), WorstMistakes(), Filters()]
    return [*while_training, ModelGraph(), Projector()]


def _checkpoints(
    cli: RunCLI, folder: Path, finite: FiniteLoss, allow_changes: bool
) -> list[Callback]:
    config = cli.config
    last = LastCheckpoint(
        folder, finite, config.checkpoint_every_n_steps, config.checkpoint_every_n_minutes
    )
    resume = ExactResume(cli.dump(), repeat_epoch=allow_changes)
    if config.trainer.limit_val_batches == 0:
        return [resume, last]
    best = StepCheckpoint(
        dirpath=folder,
        filename="best",
        monitor="val/accuracy",
        mode="max",
        save_on_train_epoch_end=False,  # but after each validation
        enable_version_counter=False,  # a checkpoint takes its predecessor's name and place
    )
    return [resume, best, last]


def _plugins(given: Any) -> list[Any]:
    return [] if given is None else list(given) if isinstance(given, list) else [given]
