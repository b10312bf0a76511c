"""`digitlab fit`: train a network in a run folder of its own, or resume a run."""

import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.loggers import TensorBoardLogger

from digitlab import callbacks as cb
from digitlab import files, run_folder
from digitlab.callbacks.checkpointing import end_training
from digitlab.callbacks.results import describe_device
from digitlab.checkpoints import load_weights, sha256
from digitlab.classifier import Classifier
from digitlab.cli import restoring_flags
from digitlab.cli.options import add_fit_options
from digitlab.cli.parser import RunCLI, check_end, check_settings, check_together, split_off
from digitlab.cli.refusals import as_input_error, check_monitors
from digitlab.cli.trainer import as_list, check_callbacks, make_trainer
from digitlab.distributed import (
    check_started,
    is_rank_zero,
    note_job,
    print_rank_zero,
    reporting_lost_rank,
    requeue,
    requeued,
)
from digitlab.errors import InputError, RunError, describe_error, reading_input
from digitlab.resume import (
    ResumePoint,
    check_resumable,
    compare_numerics,
    find_resume_point,
    recorded_threads,
)
from digitlab.signals import Interrupted, StopSignals
from digitlab.terminal import command, printable


class FitCLI(RunCLI):
    """The options of `digitlab fit`."""

    device = ""  # the name of TensorFlow's, in a Keras run
    precision = ""  # Keras's
    made: Trainer | None = None  # once it is made

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        add_fit_options(parser)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse, and name a run that has no name after its config or its network."""
        super().parse_arguments(parser, args)
        configs, model = [it for it in self.config_files if it.is_file()], self.config.model
        default = configs[0].stem if configs else model.class_path.rpartition(".")[2]
        self.config.name = self.config.name or re.sub(r"[^\w.+-]", "_", default.lower())

    def instantiate_trainer(self, *others: Callback, **kwargs: Any) -> Trainer:
        """Make the trainer; that of a Keras run leaves device and precision to TensorFlow."""
        if self.config.framework == "keras":
            kwargs |= {"accelerator": "cpu", "precision": "32-true"}
        self.made = super().instantiate_trainer(*others, **kwargs)
        return self.made


def run(name: str, help: str, options: list[str]) -> int:
    """Train a network, or resume its training."""
    train(options, name, help)
    return 0


def train(options: list[str], name: str = "fit", help: str = "") -> Path | None:
    """Train a network, or resume its training.

    Returns:
        The run folder; None after `fast_dev_run`, and in all ranks but the first.
    """
    # Adam's moments of silent units become denormal after some hundred steps, and a CPU computes
    # with such numbers so slowly that a small network's step takes half as long again. As zeros
    # they give the same weights. Now, because the threads of later operations inherit it.
    torch.set_flush_denormal(True)
    with ExitStack() as on_exit:
        on_exit.enter_context(restoring_flags())
        with reading_input():
            cli, folder = read_fit(name, options, help)
            allow_changes, cli.config.allow_changes = cli.config.allow_changes, False  # just once
            start = ResumePoint()
            if folder:
                if is_rank_zero():
                    on_exit.enter_context(run_folder.lock_run(folder))
                start = find_resume_point(folder, cli.dump(), allow_changes)
            if start.finished:
                print_rank_zero(f"{printable(folder)} is finished: {start.finished}")
                return folder
            throughput = cb.Throughput()
            with throughput.time("data"):
                cli.datamodule.setup("fit")
            if cli.datamodule.digests_read and not start.resumed:
                cli.config.data.init_args.digests = cli.datamodule.digests_read
            check_callbacks(cli)
            check_together(cli.model, cli.datamodule)
            weights = _load_weights(cli, start)
            if cli.config.trainer.fast_dev_run:
                trainer = cli.instantiate_trainer()
            else:
                if not folder:
                    folder = new_run_dir(cli)
                    on_exit.enter_context(removed_on_error(folder, cli))
                    if is_rank_zero():
                        on_exit.enter_context(run_folder.lock_run(folder))
                trainer = make_trainer(cli, folder, throughput, weights, start, allow_changes)
            cli.model.check_supported(trainer)
            check_started(trainer, cli.config.trainer, options)
            check_monitors(cli.model, trainer)
            start.check_processes(trainer.world_size, allow_changes)
            inexact = allow_changes or cli.config.allow_inexact_resume
            compare_numerics(start.numerics, trainer, cli.model, inexact)
        if batches := int(cli.config.trainer.fast_dev_run):
            _fit(cli, trainer, start)
            trainer.test(cli.model, cli.datamodule, verbose=False)
            print_rank_zero(
                f"{batches} batch{'es' * (batches > 1)} of training, validation and test passed; "
                "nothing was written"
            )
        elif folder and trainer.is_global_zero:
            _fit_in(folder, cli, trainer, start)
            return folder
        else:
            _fit(cli, trainer, start)
    return None


def read_fit(name: str, options: list[str], help: str = "") -> tuple[FitCLI, Path | None]:
    """Read a command line, and the folder of the run to resume, if any."""
    given, others = split_off(options, "--run")
    if not given or {"-h", "--help"} & set(options):
        cli = FitCLI(name, options, help=help)
        check_settings(cli)
        check_end(cli)
        if cli.config.output != "logits" and cli.config.framework != "keras":
            raise ValueError(
                f"output is {cli.config.output}: add --framework keras, or leave it out"
            )
        folder = requeued(Path(cli.config.trainer.default_root_dir) / run_name(cli))
        if not folder:
            return cli, None
        given = [str(folder)]
    folder = run_folder.find_run(given[-1])
    with run_folder.naming_newer_version(folder):
        config = check_resumable(folder)
        if "threads" not in config:
            config["threads"] = recorded_threads(folder)
        cli = FitCLI(name, others, yaml.safe_dump(config), help)
    check_settings(cli)
    check_end(cli)
    return cli, folder


def run_name(cli: RunCLI) -> str:
    """Name the folder that holds the versions of a run."""
    suffix = "-keras" if cli.config.framework == "keras" else ""
    return f"{cli.datamodule.name}-{cli.config.name}{suffix}"


def new_run_dir(cli: RunCLI, suffix: str = "") -> Path:
    """Create a run folder in rank 0; the other ranks write nothing, and get a placeholder."""
    root, name = Path(cli.config.trainer.default_root_dir), run_name(cli) + suffix
    if not is_rank_zero():
        return root / name / "version_of_rank_0"
    folder = run_folder.create_run_dir(root, name)
    note_job(folder)
    return folder


def remove(folder: Path) -> None:
    """Remove a run folder in which nothing was trained, in the rank that created it."""
    if is_rank_zero():
        run_folder.remove_run_dir(folder)


@contextmanager
def removed_on_error(folder: Path, cli: FitCLI) -> Iterator[None]:
    """Remove a new run's folder after an error before the first step, or input that is refused."""
    try:
        yield
    except Exception as error:
        refused = isinstance(error, InputError) or not cli.made or cli.made.global_step == 0
        if refused and not (folder / run_folder.LAST).exists():
            remove(folder)
        raise


def _load_weights(cli: FitCLI, start: ResumePoint) -> dict[str, str] | None:
    """Load initial weights, and give their `file` and `sha256`; put a Keras twin in its place."""
    given = None if start.resumed else cli.config.weights
    if cli.config.framework == "keras":
        cli.model = _as_keras(cli, given)
    elif start.checkpoint:
        load_weights(cli.model, start.checkpoint)  # reports a misfit better than Lightning
    elif given:
        load_weights(cli.model, Path(given))
    return {"file": given, "sha256": sha256(Path(given))} if given else None


def _as_keras(cli: FitCLI, weights: str | None) -> Classifier:
    """Make the Keras twin that is trained in place of the network, with weights from a file."""
    from digitlab.parity.backend import (
        POLICIES,
        choose_device,
        find_precision,
        limit_gpu_memory,
        set_threads,
    )
    from digitlab.parity.keras_files import load_initial_weights
    from digitlab.parity.keras_module import KerasClassifier

    config, side = cli.config, cli.datamodule.image_size
    set_threads(config.threads)
    cli.precision = find_precision(config.trainer.precision)
    cli.device = choose_device(config.trainer.accelerator, config.allow_tf32)
    for callback in as_list(cli.config_init.trainer.callbacks):
        if isinstance(callback, cb.GPUMemoryLimit):
            limit_gpu_memory(callback.megabytes)
    if weights:
        load_initial_weights(cli.model, Path(weights))
    copy_weights = True if weights else None  # else as the model's initialization asks for
    made = KerasClassifier(cli.model, POLICIES[cli.precision], config.output, copy_weights)
    if (taken := made.keras_model.input_shape[1:3]) != (side, side):
        raise ValueError(
            f"the Keras twin takes images of {'x'.join(map(str, taken))} pixels, and these have "
            f"{side}x{side}: set --data.size, or train without --framework keras"
        )
    return made


def _fit_in(folder: Path, cli: FitCLI, trainer: Trainer, start: ResumePoint) -> None:
    """Train in a run folder, in rank 0, and tell the user about it."""
    if start.resumed:
        print(start.describe())
    else:
        files.write_text(folder / "config.yaml", cli.dump())
    print(describe_run(cli, trainer))
    with report_interruption(folder, trainer, start):
        _fit(cli, trainer, start)
    print(f"\nResults are in {printable(folder)}. What to do next:")
    if (folder / "checkpoints").is_dir():
        for words in (("test", "--run"), ("predict", "--run"), ("report",)):
            print(f"  {command('digitlab', *words, folder)}")
    logger = trainer.logger  # and not `trainer.log_dir`, which waits for all ranks
    if isinstance(logger, TensorBoardLogger):
        print(f"  {command('tensorboard', '--logdir', Path(logger.log_dir))}")


@contextmanager
def report_interruption(folder: Path, trainer: Trainer, start: ResumePoint) -> Iterator[None]:
    """Train in the `with` block; add to an interruption or failure how to resume."""
    try:
        yield
    except (Interrupted, FloatingPointError, RunError) as error:
        steps = (getattr(it, "saved_step", 0) for it in trainer.checkpoint_callbacks)
        saved = max(start.step, *steps, 0)
        last = folder / run_folder.LAST
        rest = f"{last} was saved at step {saved}" if saved else "nothing was saved"
        if isinstance(error, FloatingPointError):
            raise RunError(f"{error}; {rest}") from error
        remedy = f"resume with: {command('digitlab', 'fit', '--run', folder)}"
        if isinstance(error, RunError):
            raise RunError(f"{error}; {rest}; {remedy}") from error
        if error.asks_to_requeue:
            remedy = requeue()
        raise Interrupted(error.number, f"{error.rest or rest}; {remedy}") from None


def _fit(cli: FitCLI, trainer: Trainer, start: ResumePoint) -> None:
    signals = StopSignals(trainer)
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, cb.LastCheckpoint):
            callback.signals = signals
    if start.trained:
        trainer.fit_loop.run = partial(end_training, trainer)  # type: ignore[method-assign]
    try:
        with reporting_lost_rank(), signals.handled():
            trainer.fit(cli.model, cli.datamodule, ckpt_path=start.checkpoint)
    except (Interrupted, FloatingPointError):
        if trainer.is_global_zero:
            raise
        # Rank 0 reports it. Launchers take another exit code for a failure, and would end rank 0.
        raise SystemExit(0) from None
    except Exception as error:
        if refused := as_input_error(error, trainer, start.step):
            raise refused from error
        failed = f"training failed after {trainer.global_step} steps"
        if isinstance(error, OSError):  # a full disk, say
            raise RunError(f"{failed}: {describe_error(error)}") from error
        error.add_note(failed)
        raise


def describe_run(cli: FitCLI, trainer: Trainer) -> str:
    """Describe the configs, the data, the network, the device and the seed."""
    data, network = cli.datamodule, cli.config.model.class_path.rpartition(".")[2]
    twin = "'s Keras twin" if cli.config.framework == "keras" else ""
    device = cli.device or describe_device(trainer.strategy.root_device)
    return (
        f"config: {printable(cli.origin)}\n"
        f"{printable(data.name)}: {data.size('train')} training images, "
        f"{data.size('validation')} {data.validation_split} images, "
        f"normalization {data.normalization}\nImages: {data.verification}\n"
        f"{network}{twin} on {device}, precision {cli.precision or trainer.precision}, "
        f"seed {cli.config.seed_everything}\n"
    )
