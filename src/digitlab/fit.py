"""`digitlab fit`: train a network, in a run folder of its own."""

import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.loggers import TensorBoardLogger

from digitlab import runs, unsupported
from digitlab.arguments import BAD_INPUT, RunCLI, split_off
from digitlab.assembly import make_trainer
from digitlab.callbacks import LastCheckpoint, Stopwatch
from digitlab.callbacks.results import describe_device
from digitlab.checks import check_settings, check_together
from digitlab.claim import claim, released_if_refused, run_name
from digitlab.launch import started_here, together
from digitlab.processes import is_first_process, say_once
from digitlab.resume import Start, find_start
from digitlab.runs import RunError
from digitlab.signals import Interrupted, StopSignals
from digitlab.slurm import requeue, requeued
from digitlab.weights import load_weights, sha256


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
    cli, again = read_options(command, options)
    allow_changes, cli.config.allow_changes = cli.config.allow_changes, False  # for this time
    alone = runs.alone(again) if again and is_first_process() else nullcontext()
    start = find_start(again, cli.dump(), allow_changes) if again else Start()
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
        unsupported.check(cli.model, trainer)
        return partial(_fit, cli, trainer, start)

    folder = again or claim(cli)
    with released_if_refused(folder, new=not again):
        trainer = make_trainer(cli, folder, stopwatch, weights, start, allow_changes)
        unsupported.check(cli.model, trainer)
        start.check_processes(trainer.world_size, allow_changes)
        if not again and is_first_process():
            alone = runs.alone(folder)
    return partial(_fit_in, folder, cli, trainer, start, alone)


def _say_finished(alone: AbstractContextManager[Any], sentence: str) -> None:
    with alone:
        say_once(sentence)


def read_options(command: str, options: list[str]) -> tuple[FitCLI, Path | None]:
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
    folder = runs.find(given[-1])
    if (folder / runs.CHECKPOINTS["keras"]["last"]).exists():
        raise ValueError(f"{folder} was trained in Keras: only PyTorch's runs go on")
    cli = FitCLI(command, others, base=(folder / "config.yaml").read_text("utf-8"))
    check_settings(cli)
    return cli, folder


def _fit_in(
    folder: Path, cli: FitCLI, trainer: Trainer, start: Start, alone: AbstractContextManager[Any]
) -> None:
    if not trainer.is_global_zero:
        _fit(cli, trainer, start)
        return
    with alone:
        if start.again:
            runs.remove_halves(folder)
            print(start.describe())
        else:
            runs.write_text(folder / "config.yaml", cli.dump())
        device = describe_device(trainer.strategy.root_device)
        print(describe(cli, device, str(trainer.precision)))
        left = saying_what_is_left(folder, trainer, start)
        with released_if_refused(folder, new=not start.again), left:
            _fit(cli, trainer, start)
        logger = trainer.logger  # and not `trainer.log_dir`, which waits for all processes
        events = Path(logger.log_dir) if isinstance(logger, TensorBoardLogger) else None
        say_what_is_next(folder, "digitlab", events)


@contextmanager
def saying_what_is_left(folder: Path, trainer: Trainer, start: Start) -> Iterator[None]:
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
        last = folder / runs.CHECKPOINTS["torch"]["last"]
        rest = f"{last} is of step {saved}" if saved else "nothing was saved"
        if isinstance(error, FloatingPointError):
            raise RunError(f"{error}; {rest}") from error
        go_on = f"digitlab fit --run {folder} goes on"
        if isinstance(error, RunError):
            raise RunError(f"{error}; {rest}, {go_on}") from error
        if error.number == signal.SIGUSR1:
            go_on = requeue()
        raise Interrupted(error.number, f"{error.rest or rest}; {go_on}") from None


def say_what_is_next(folder: Path, program: str, events: Path | None) -> None:
    """Print where the results are, and the commands that go on from there."""
    print(f"\nResults are in {folder}. What to do next:")
    if any((folder / names["last"]).exists() for names in runs.CHECKPOINTS.values()):
        print(f"  {program} test --run {folder}\n  {program} predict --run {folder}")
        print(f"  digitlab report {folder}")
    if events:
        print(f"  tensorboard --logdir {events}")


def _fit(cli: FitCLI, trainer: Trainer, start: Start) -> None:
    signals = StopSignals(trainer)
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, LastCheckpoint):
            callback.signals = signals
    if start.trained:
        trainer.fit_loop.run = partial(_end_only, trainer, signals)  # type: ignore[method-assign]
    try:
        with together(trainer), signals.handled():
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
        told = started_here() or SLURMEnvironment.detect()
        raise SystemExit(0 if told else getattr(end, "exit_code", 1)) from None


def _end_only(trainer: Trainer, signals: StopSignals) -> None:
    """Do in place of the training loop what follows it, where its results were not written yet."""
    trainer.fit_loop.setup_data()
    trainer.fit_loop.on_run_start()
    signals.deferring = False  # nothing is left to be saved
    trainer.fit_loop.on_run_end()


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
