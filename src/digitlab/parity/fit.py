"""`digitlab keras fit`: train the Keras twin of a config's network, by Keras itself."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.loggers import TensorBoardLogger
from numpy.typing import NDArray

from digitlab import files, run_folder
from digitlab.callbacks import Stopwatch
from digitlab.callbacks.logging import tabulate_layers
from digitlab.callbacks.results import (
    SAMPLES,
    circumstances,
    describe_end,
    draw_curves,
    draw_samples,
    entries,
    log_hyperparameters,
)
from digitlab.callbacks.tensorboard import show_picture, show_text
from digitlab.checkpoints import sha256
from digitlab.classifier import Classifier
from digitlab.cli.fit import (
    FitCLI,
    describe_run,
    make_logger,
    new_run_dir,
    print_next_steps,
    removed_on_error,
)
from digitlab.cli.parser import BAD_INPUT, check_settings, check_together
from digitlab.data import EpochSampler
from digitlab.parity.backend import import_keras, keras_dtype
from digitlab.parity.feeding import Arrays, batches, whole
from digitlab.parity.hooks import Hooks
from digitlab.parity.keras_files import KerasNetwork, load_initial_weights
from digitlab.parity.model_pictures import ModelPictures
from digitlab.parity.optimizers import to_keras_optimizer
from digitlab.parity.probabilities import ProbabilityRecorder
from digitlab.parity.recorder import Recorder
from digitlab.parity.settings import Schedule, Settings, choose_device, read_settings
from digitlab.parity.validation_pictures import ValidationPictures
from digitlab.parity.weights import build_twin, to_keras


class KerasFitCLI(FitCLI):
    """The options of `digitlab keras fit`."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the options that only the training of a twin has."""
        super().add_arguments_to_parser(parser)
        parser.add_argument(
            "--output",
            type=Literal["logits", "softmax"],
            default="logits",
            help="End in logits, or as document A writes its Keras network: in a softmax, with "
            "one-hot labels and the cross-entropy of clipped probabilities.",
        )


def prepare(command: str, options: list[str]) -> Callable[[], None]:
    """Check all input of a Keras fit, and return the training that is then left to do.

    Raises:
        ValueError, OSError: The input is bad.
    """
    cli = KerasFitCLI(command, options)
    check_settings(cli)
    stopwatch = Stopwatch()
    with stopwatch.time("data"):
        cli.datamodule.setup("fit")
    check_together(cli.model, cli.datamodule)
    steps = -(-cli.datamodule.size("train") // cli.datamodule.batch_size)
    settings = read_settings(cli, steps)
    device = choose_device(cli.config.trainer.accelerator)
    keras_model, schedule = _make(cli, settings)
    folder = new_run_dir(cli, suffix="-keras")
    return partial(_run, cli, settings, keras_model, schedule, stopwatch, folder, device)


def _make(cli: KerasFitCLI, settings: Settings) -> tuple[Any, Schedule]:
    """Build and compile the twin, with the config's initial weights and optimizer."""
    keras = import_keras()
    keras.utils.set_random_seed(cli.config.seed_everything)
    model, softmax = cli.model, cli.config.output == "softmax"
    if cli.config.weights:
        load_initial_weights(model, Path(cli.config.weights))
    schedule = Schedule(model)
    with keras_dtype(settings.policy):
        # Keras draws its own initial values by itself, if they are what is asked for.
        own = model.hparams["initialization"] == "keras" and not cli.config.weights
        keras_model = build_twin(model, softmax) if own else to_keras(model, softmax)
        optimizer = to_keras_optimizer(schedule.optimizer)
        if model.gradient_clip_norm:
            optimizer.global_clipnorm = model.gradient_clip_norm
        losses = keras.losses
        keras_model.compile(
            optimizer,
            losses.CategoricalCrossentropy()
            if softmax
            else losses.SparseCategoricalCrossentropy(from_logits=True),
            metrics=["accuracy"],
            steps_per_execution=settings.steps_per_execution,
        )
    return keras_model, schedule


def _run(
    cli: KerasFitCLI,
    settings: Settings,
    keras_model: Any,
    schedule: Schedule,
    stopwatch: Stopwatch,
    folder: Path,
    device: str,
) -> None:
    loggers = [make_logger(folder)] if settings.logs else []
    recorder = Recorder(folder, keras_model, settings, schedule, stopwatch, loggers, cli.datamodule)
    print(describe_run(cli, device, settings.precision, "'s Keras twin"))
    print(_describe_layers(keras_model), flush=True)
    _show_settings(cli, folder, loggers)
    with removed_on_error(folder), keras_dtype(settings.policy), _told_in_words(recorder):
        _fit(cli, recorder)
    metrics = _measure(cli, recorder)
    run_folder.update_metrics(folder, metrics | {"device": device})
    optimizer, step = schedule.optimizer, recorder.step
    log_hyperparameters(loggers, metrics, cli.model, cli.datamodule, optimizer, step)
    for logger in loggers:
        logger.finalize("success")
    print_next_steps(folder, "digitlab keras", folder if loggers else None)


def _show_settings(cli: KerasFitCLI, folder: Path, loggers: list[TensorBoardLogger]) -> None:
    """Write the settings and some training images, and show them in TensorBoard."""
    settings, samples = cli.dump(), draw_samples(cli.datamodule)
    files.write_text(folder / "config.yaml", settings)
    files.write_image(folder / "samples.png", samples)
    show_text(loggers, "config", settings, 0)
    show_picture(loggers, SAMPLES, samples, 0)


@contextmanager
def _told_in_words(recorder: Recorder) -> Iterator[None]:
    """Say, where training does not end, how far it has come."""
    try:
        yield
    except BAD_INPUT as error:
        if recorder.step == 0:
            raise
        raise RuntimeError(f"training failed after {recorder.step} steps") from error
    except KeyboardInterrupt:
        last = recorder.folder / run_folder.CHECKPOINTS["keras"]["last"]
        rest = f"{last} is of the last whole epoch" if last.exists() else "nothing was saved"
        raise KeyboardInterrupt(rest) from None


def _fit(cli: KerasFitCLI, recorder: Recorder) -> None:
    data, settings = cli.datamodule, recorder.settings
    with recorder.stopwatch.time("data"):
        images, labels = whole(data.train_eval_dataloader())
        held_out = whole(data.val_dataloader())
    order = data.train_dataloader().sampler
    callbacks = _make_callbacks(recorder, order, images, held_out)
    if cli.config.output == "softmax":
        one_hot = partial(import_keras().utils.to_categorical, num_classes=len(data.class_names))
        labels, held_out = one_hot(labels), (held_out[0], one_hot(held_out[1]))
    recorder.keras_model.fit(
        batches(images, labels, order, data.batch_size),
        epochs=settings.epochs,
        shuffle=False,  # the data set is in an order of its own
        validation_data=held_out,
        validation_batch_size=data.eval_batch_size,
        validation_freq=settings.validate_every,
        callbacks=callbacks,
        verbose=0,
    )


def _make_callbacks(
    recorder: Recorder, order: EpochSampler, images: NDArray[np.float32], held_out: Arrays
) -> list[Any]:
    """Make the Keras callbacks of a run, in their order."""
    new_order = import_keras().callbacks.LambdaCallback(
        on_epoch_begin=lambda epoch, _: order.set_epoch(epoch)
    )
    if not recorder.loggers:
        return [new_order, recorder.callback()]
    hooks: list[Hooks] = [
        ValidationPictures(recorder, *held_out),
        recorder,
        ModelPictures(recorder),
    ]
    if recorder.settings.probabilities_every:
        hooks.append(ProbabilityRecorder(recorder, images))
    return [new_order, *(of.callback() for of in hooks)]


def _measure(cli: KerasFitCLI, recorder: Recorder) -> dict[str, Any]:
    """Measure the trained model on whole splits, and give and print what came out."""
    data, settings = cli.datamodule, recorder.settings
    measured = Classifier(network=KerasNetwork(recorder.keras_model))
    with recorder.stopwatch.time("evaluation"):
        train = measured.evaluate(data.train_eval_dataloader())
        other = measured.evaluate(data.val_dataloader())
    if recorder.rows:
        files.write_figure(recorder.folder / "curves.png", draw_curves(recorder.rows))
    print(describe_end(train, data.validation_split, other, recorder.stopwatch))
    weights = cli.config.weights
    return {
        **entries(train, other, data, "last" if settings.saves else None),
        **circumstances("keras", cli.model, data, recorder.stopwatch),
        "epochs": len(recorder.rows),
        "optimizer_steps": recorder.step,
        "precision": settings.precision,
        "output": cli.config.output,
        **({"weights": {"file": weights, "sha256": sha256(Path(weights))}} if weights else {}),
    }


def _describe_layers(keras_model: Any) -> str:
    layers = [
        (
            layer.name,
            type(layer).__name__,
            {variable.name: tuple(variable.shape) for variable in layer.weights},
        )
        for layer in keras_model.layers
    ]
    return tabulate_layers(layers)
