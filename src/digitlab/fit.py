"""`digitlab fit`: train a network, in a run folder of its own."""

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.loggers import TensorBoardLogger

from digitlab import runs, unsupported
from digitlab.arguments import BAD_INPUT, RunCLI, ctrl_c_raises
from digitlab.callbacks import Console, Figures, History, Results, StepCheckpoint, Stopwatch
from digitlab.callbacks.results import describe_device
from digitlab.classifier import Classifier
from digitlab.data import ImageDataModule
from digitlab.weights import load_weights, sha256

release = rank_zero_only(runs.release)  # a folder is its first process's: no other removes it


class FitCLI(RunCLI):
    """The options of `digitlab fit`."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the options that only training has."""
        parser.add_argument(
            "--name",
            type=str | None,
            default=None,
            help="Name of the run: its folder is <data set>-<name> under trainer.default_root_dir. "
            "Default: the first config's.",
        )
        parser.add_argument(
            "--weights",
            type=str | None,
            default=None,
            help="Checkpoint or state dict to take the initial weights, and nothing else, from.",
        )


def prepare(command: str, options: list[str]) -> Callable[[], None]:
    """Check all input of a fit, and return the training that is then left to do.

    Raises:
        ValueError, OSError, MisconfigurationException: The input is bad.
    """
    # Adam's moments of silent units become denormal after some hundred steps, and a CPU computes
    # with such numbers so slowly that a small network's step takes half as long again. As zeros
    # they give the same weights. Now, because the threads of later operations inherit it.
    torch.set_flush_denormal(True)
    cli = FitCLI(command, options)
    check_settings(cli)
    stopwatch = Stopwatch()
    with stopwatch.time("data"):
        cli.datamodule.setup("fit")
    check_together(cli.model, cli.datamodule)
    weights = None
    if cli.config.weights:
        load_weights(cli.model, Path(cli.config.weights))
        weights = {"file": cli.config.weights, "sha256": sha256(Path(cli.config.weights))}
    if cli.config.trainer.fast_dev_run:
        trainer = cli.instantiate_trainer()
        unsupported.check(cli.model, trainer)
        return partial(_fit, cli, trainer)

    folder = claim(cli)
    try:
        trainer = _make_trainer(cli, folder, stopwatch, weights)
        unsupported.check(cli.model, trainer)
    except BAD_INPUT:
        release(folder)
        raise
    return partial(_fit_in, folder, cli, trainer)


def claim(cli: FitCLI, suffix: str = "") -> Path:
    """Claim a folder in the first process; the others, which it starts, are told of it."""
    told = "DIGITLAB_RUN_FOLDER"
    if rank_zero_only.rank == 0:  # type: ignore[attr-defined]  # set when it was imported
        root = Path(cli.config.trainer.default_root_dir)
        folder = runs.claim(root, f"{cli.datamodule.name}-{cli.config.name}{suffix}")
        os.environ[told] = str(folder)
    elif told not in os.environ:
        raise ValueError("digitlab must start the processes itself: give --trainer.devices N")
    return Path(os.environ[told])


def _fit_in(folder: Path, cli: FitCLI, trainer: Trainer) -> None:
    if trainer.is_global_zero:
        runs.write_text(folder / "config.yaml", cli.dump())
        device = describe_device(trainer.strategy.root_device)
        print(describe(cli, device, str(trainer.precision)))
    with training_in(folder, folder / "checkpoints" / "last.ckpt"):
        _fit(cli, trainer)
    if trainer.is_global_zero:
        logger = trainer.logger  # and not `trainer.log_dir`, which waits for all processes
        events = Path(logger.log_dir) if isinstance(logger, TensorBoardLogger) else None
        say_what_is_next(folder, "digitlab", events)


@contextmanager
def training_in(folder: Path, last: Path) -> Iterator[None]:
    """Train in the `with` block: bad input leaves no folder, Ctrl-C says what is left."""
    try:
        yield
    except BAD_INPUT:
        release(folder)
        raise
    except KeyboardInterrupt:
        rest = f"{last} is of the last whole epoch" if last.exists() else "no epoch was finished"
        raise KeyboardInterrupt(rest) from None


def say_what_is_next(folder: Path, program: str, events: Path | None) -> None:
    """Print where the results are, and the commands that go on from there."""
    print(f"\nResults are in {folder}. What to do next:")
    if any((folder / names["last"]).exists() for names in runs.CHECKPOINTS.values()):
        print(f"  {program} test --run {folder}\n  {program} predict --run {folder}")
    if events:
        print(f"  tensorboard --logdir {events}")


def _fit(cli: FitCLI, trainer: Trainer) -> None:
    try:
        with ctrl_c_raises(trainer):
            trainer.fit(cli.model, cli.datamodule)
    except BAD_INPUT as error:
        if trainer.global_step == 0:
            raise  # a setting that Lightning or a callback checks only now
        raise RuntimeError(f"training failed after {trainer.global_step} steps") from error


def check_settings(cli: FitCLI) -> None:
    """Check what the parser cannot, and give the run a name."""
    for name in ("max_epochs", "max_steps", "limit_train_batches"):
        if cli.config.trainer[name] == 0:
            raise ValueError(f"trainer.{name} is 0: leave at least one step to train")
    default = Path(cli.config_files[0]).stem if cli.config_files else type(cli.model).__name__
    cli.config.name = cli.config.name or default.lower()
    if not re.fullmatch(r"[\w.+-]*\w[\w.+-]*", cli.config.name):
        raise ValueError(
            f"name is {cli.config.name}: give a part of a folder's name, without a slash or a space"
        )


def check_together(model: Classifier, data: ImageDataModule) -> None:
    """Check what neither the model nor the data module can check alone, before anything is made."""
    model.configure_optimizers()  # whose settings nothing has checked yet
    classes = len(data.class_names)
    model.network.eval()  # no dropout: the run's random numbers stay as they are
    try:
        with torch.no_grad():
            logits = model(torch.zeros(1, 1, 28, 28))
    except RuntimeError as error:
        raise ValueError(
            f"{type(model).__name__} cannot take {data.name}'s images, (N, 1, 28, 28): {error}"
        ) from error
    model.network.train()
    if logits.shape != (1, classes):
        raise ValueError(
            f"{type(model).__name__} gives logits {tuple(logits.shape)} for an image: {data.name} "
            f"has {classes} classes, so give (1, {classes}), by --model.num_classes {classes}"
        )


def _make_trainer(
    cli: RunCLI, folder: Path, stopwatch: Stopwatch, weights: dict[str, str] | None
) -> Trainer:
    settings = cli.config.trainer
    history = History(folder / "history.csv")
    callbacks: list[Callback] = [
        stopwatch,
        history,
        Console(history),
        Figures(folder, history),
        Results(folder, stopwatch, weights),
    ]
    if settings.enable_checkpointing is not False:
        callbacks += _checkpoints(folder / "checkpoints", settings.limit_val_batches != 0)
    if settings.logger not in (None, True):
        return cli.instantiate_trainer(*callbacks)  # with the user's own logger, or none
    return cli.instantiate_trainer(*callbacks, logger=make_logger(folder))


def make_logger(folder: Path) -> TensorBoardLogger:
    """Make the logger that writes a run's events into its folder."""
    # `Results` logs the hyper-parameters when there are metrics to show beside them; Lightning's
    # default is a placeholder of -1.
    logger = TensorBoardLogger(folder, name="", version="", default_hp_metric=False)
    # Lightning writes hyper-parameters to this file unless it exists, as this one does by then.
    logger.NAME_HPARAMS_FILE = "config.yaml"
    return logger


def _checkpoints(folder: Path, validated: bool) -> list[Callback]:
    # Without the version counter a checkpoint takes its predecessor's name and place.
    common: dict[str, Any] = {"dirpath": folder, "enable_version_counter": False}
    last = StepCheckpoint(filename="last", save_on_train_epoch_end=True, **common)
    if not validated:
        return [last]
    best = StepCheckpoint(
        filename="best",
        monitor="val/accuracy",
        mode="max",
        save_on_train_epoch_end=False,  # but after each validation
        **common,
    )
    return [last, best]


def describe(cli: RunCLI, device: str, precision: str, kind: str = "") -> str:
    """Say in words what is trained on what; `kind` stands behind the network's name."""
    data = cli.datamodule
    return (
        f"{data.name}: {data.size('train')} training images, "
        f"{data.size('validation')} {data.validation_split} images, "
        f"normalization {data.normalization}\n"
        f"{type(cli.model).__name__}{kind} on {device}, "
        f"precision {precision}, seed {cli.config.seed_everything}\n"
    )
