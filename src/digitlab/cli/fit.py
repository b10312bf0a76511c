"""`digitlab fit`: train a network in a run folder of its own."""

import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.loggers import TensorBoardLogger

from digitlab import execution, files, run_folder
from digitlab.callbacks import (
    ConfusionMatrix,
    ExactResume,
    FinalEvaluation,
    FiniteLoss,
    FirstLayerKernels,
    History,
    LastCheckpoint,
    ModelGraph,
    PrintEpoch,
    Projector,
    Rates,
    SaveConfig,
    SaveFigures,
    StepCheckpoint,
    Stopwatch,
    WorstMistakes,
)
from digitlab.callbacks.results import describe_device
from digitlab.checkpoints import AtomicCheckpointIO, load_weights, sha256
from digitlab.cli.parser import BAD_INPUT, RunCLI, check_settings, check_together, split_off
from digitlab.distributed import (
    is_child,
    is_rank_zero,
    note_job,
    print_rank_zero,
    requeue,
    requeued,
    watch_ranks,
)
from digitlab.errors import RunError
from digitlab.resume import ResumePoint, find_resume_point
from digitlab.signals import Interrupted, StopSignals


def new_run_dir(cli: RunCLI, suffix: str = "") -> Path:
    """Claim a run folder in the first process; no other writes, so that a name does for it."""
    root, name = Path(cli.config.trainer.default_root_dir), run_name(cli) + suffix
    if not is_rank_zero():
        return root / name / "version_of_the_first_process"
    folder = run_folder.create_run_dir(root, name)
    note_job(folder)
    return folder


def remove(folder: Path) -> None:
    """Take back a claim, in the process that made it."""
    if is_rank_zero():
        run_folder.remove_run_dir(folder)


def run_name(cli: RunCLI) -> str:
    """Give the name of the folder that holds the versions of a run."""
    return f"{cli.datamodule.name}-{cli.config.name}"


@contextmanager
def removed_on_error(folder: Path, new: bool = True) -> Iterator[None]:
    """Leave no folder where the input of a new run is refused in the `with` block."""
    try:
        yield
    except BAD_INPUT:
        if new:
            remove(folder)
        raise


def make_trainer(
    cli: RunCLI,
    folder: Path,
    stopwatch: Stopwatch,
    weights: dict[str, str] | None,
    start: ResumePoint,
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
        PrintEpoch(history),
        SaveConfig(folder / "config.yaml", cli.dump()),
        SaveFigures(folder, history),
        *_for_tensorboard(history, stopwatch),
        FinalEvaluation(
            folder, stopwatch, weights
        ),  # the last to act at the end: then a run is finished
        finite,
    ]
    if settings.enable_checkpointing is not False:
        callbacks += _checkpoints(cli, folder / "checkpoints", finite, allow_changes)
    plugins = [*_plugins(settings.plugins), AtomicCheckpointIO()]
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
    # `FinalEvaluation` logs the hyper-parameters with the final metrics; Lightning's default is a
    # placeholder of -1.
    logger = TensorBoardLogger(
        folder, name="", version="", default_hp_metric=False, purge_step=purge_step
    )
    # Lightning writes hyper-parameters to this file unless it exists, as this one does by then.
    logger.NAME_HPARAMS_FILE = "config.yaml"
    return logger


def _for_tensorboard(history: History, stopwatch: Stopwatch) -> list[Callback]:
    while_training = [
        Rates(history, stopwatch),
        ConfusionMatrix(),
        WorstMistakes(),
        FirstLayerKernels(),
    ]
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


class FitCLI(RunCLI):
    """The options of `digitlab fit`."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the options that only training has."""
        if type(self).__name__ in ("FitCLI", "ParityCLI"):
            parser.add_argument("--framework", type=str, default="torch")
            parser.add_argument("--output", type=str, default="logits")
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
        parser.add_argument(
            "--run",
            type=str | None,
            default=None,
            help="Go on with this run, a folder or latest, where it was stopped or killed, with "
            "its settings. A larger trainer.max_epochs lengthens it.",
        )
        parser.add_argument(
            "--allow_changes",
            type=bool,
            default=False,
            help="With --run: accept settings that change the result. An unfinished epoch starts "
            "over, with the weights so far.",
        )
        parser.add_argument(
            "--checkpoint_every_n_steps",
            type=int | None,
            default=None,
            help="Optimizer steps between two checkpoints inside an epoch. Default: none.",
        )
        parser.add_argument(
            "--checkpoint_every_n_minutes",
            type=float | None,
            default=1.0,
            help="Minutes between two checkpoints inside an epoch; null for none.",
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
    cli, again = read_fit(command, options)
    allow_changes, cli.config.allow_changes = cli.config.allow_changes, False  # for this time
    alone = run_folder.lock_run(again) if again and is_rank_zero() else nullcontext()
    start = find_resume_point(again, cli.dump(), allow_changes) if again else ResumePoint()
    if start.finished:
        return partial(_say_finished, alone, f"{again} is finished: {start.finished}")
    stopwatch = Stopwatch()
    with stopwatch.time("data"):
        cli.datamodule.setup("fit")
    check_together(cli.model, cli.datamodule)
    weights = None
    if start.checkpoint:
        load_weights(cli.model, start.checkpoint)  # says better than Lightning what does not fit
    elif cli.config.weights:
        load_weights(cli.model, Path(cli.config.weights))
        weights = {"file": cli.config.weights, "sha256": sha256(Path(cli.config.weights))}
    if cli.config.trainer.fast_dev_run:
        trainer = cli.instantiate_trainer()
        execution.check_supported(cli.model, trainer)
        return partial(_fit, cli, trainer, start)

    folder = again or new_run_dir(cli)
    with removed_on_error(folder, new=not again):
        trainer = make_trainer(cli, folder, stopwatch, weights, start, allow_changes)
        execution.check_supported(cli.model, trainer)
        start.check_processes(trainer.world_size, allow_changes)
        if not again and is_rank_zero():
            alone = run_folder.lock_run(folder)
    return partial(_fit_in, folder, cli, trainer, start, alone)


def _say_finished(alone: AbstractContextManager[Any], sentence: str) -> None:
    with alone:
        print_rank_zero(sentence)


def read_fit(command: str, options: list[str]) -> tuple[FitCLI, Path | None]:
    """Read a command line, and the folder of the run that is to go on, if one is.

    Raises:
        ValueError, OSError, MisconfigurationException: The input is bad.
    """
    given, others = split_off(options, "--run")
    if not given or {"-h", "--help"} & set(options):
        cli = FitCLI(command, options)
        check_settings(cli)
        folder = requeued(Path(cli.config.trainer.default_root_dir) / run_name(cli))
        if not folder:
            return cli, None
        given = [str(folder)]
    folder = run_folder.find_run(given[-1])
    if (folder / run_folder.CHECKPOINTS["keras"]["last"]).exists():
        raise ValueError(f"{folder} was trained in Keras: only PyTorch's runs go on")
    cli = FitCLI(command, others, base=(folder / "config.yaml").read_text("utf-8"))
    check_settings(cli)
    return cli, folder


def _fit_in(
    folder: Path,
    cli: FitCLI,
    trainer: Trainer,
    start: ResumePoint,
    alone: AbstractContextManager[Any],
) -> None:
    if not trainer.is_global_zero:
        _fit(cli, trainer, start)
        return
    with alone:
        if start.again:
            files.remove_partial_files(folder)
            print(start.describe())
        else:
            files.write_text(folder / "config.yaml", cli.dump())
        device = describe_device(trainer.strategy.root_device)
        print(describe_run(cli, device, str(trainer.precision)))
        left = report_interruption(folder, trainer, start)
        with removed_on_error(folder, new=not start.again), left:
            _fit(cli, trainer, start)
        logger = trainer.logger  # and not `trainer.log_dir`, which waits for all processes
        events = Path(logger.log_dir) if isinstance(logger, TensorBoardLogger) else None
        print_next_steps(folder, "digitlab", events)


@contextmanager
def report_interruption(folder: Path, trainer: Trainer, start: ResumePoint) -> Iterator[None]:
    """Train in the `with` block; where it ends early, say what the run can go on from.

    Raises:
        Interrupted: It was asked to end.
        RunError: It cannot go on.
    """
    try:
        yield
    except (Interrupted, FloatingPointError, RunError) as error:
        steps = (
            it.saved_step for it in trainer.checkpoint_callbacks if isinstance(it, LastCheckpoint)
        )
        saved = max([start.step, *steps])
        last = folder / run_folder.CHECKPOINTS["torch"]["last"]
        rest = f"{last} is of step {saved}" if saved else "nothing was saved"
        if isinstance(error, FloatingPointError):
            raise RunError(f"{error}; {rest}") from error
        go_on = f"digitlab fit --run {folder} goes on"
        if isinstance(error, RunError):
            raise RunError(f"{error}; {rest}, {go_on}") from error
        if error.number == signal.SIGUSR1:
            go_on = requeue()
        raise Interrupted(error.number, f"{error.rest or rest}; {go_on}") from None


def print_next_steps(folder: Path, program: str, events: Path | None) -> None:
    """Print where the results are, and the commands that go on from there."""
    print(f"\nResults are in {folder}. What to do next:")
    if any((folder / names["last"]).exists() for names in run_folder.CHECKPOINTS.values()):
        print(f"  {program} test --run {folder}\n  {program} predict --run {folder}")
        print(f"  digitlab report {folder}")
    if events:
        print(f"  tensorboard --logdir {events}")


def _fit(cli: FitCLI, trainer: Trainer, start: ResumePoint) -> None:
    signals = StopSignals(trainer)
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, LastCheckpoint):
            callback.signals = signals
    if start.trained:
        trainer.fit_loop.run = partial(_end_only, trainer, signals)  # type: ignore[method-assign]
    try:
        with watch_ranks(trainer), signals.handled():
            trainer.fit(cli.model, cli.datamodule, ckpt_path=start.checkpoint)
    except OSError as error:  # a full disk, say
        raise RunError(f"training failed after {trainer.global_step} steps: {error}") from error
    except BAD_INPUT as error:
        if trainer.global_step in (0, start.step):
            raise  # a setting that Lightning or a callback checks only now
        raise RuntimeError(f"training failed after {trainer.global_step} steps") from error
    except (Interrupted, FloatingPointError) as end:
        if trainer.is_global_zero:
            raise
        # The first process says it. SLURM may take another code of a process for a failure, and
        # end the first before it has asked for a new start.
        told = is_child() or SLURMEnvironment.detect()
        raise SystemExit(0 if told else getattr(end, "exit_code", 1)) from None


def _end_only(trainer: Trainer, signals: StopSignals) -> None:
    """Do in place of the training loop what follows it, where its results were not written yet."""
    trainer.fit_loop.setup_data()
    trainer.fit_loop.on_run_start()
    signals.deferring = False  # nothing is left to be saved
    trainer.fit_loop.on_run_end()


def describe_run(cli: RunCLI, device: str, precision: str, kind: str = "") -> str:
    """Say in words what is trained on what; `kind` stands behind the network's name."""
    data = cli.datamodule
    return (
        f"{data.name}: {data.size('train')} training images, "
        f"{data.size('validation')} {data.validation_split} images, "
        f"normalization {data.normalization}\n"
        f"{type(cli.model).__name__}{kind} on {device}, "
        f"precision {precision}, seed {cli.config.seed_everything}\n"
    )
