"""`digitlab keras fit`: train the Keras twin of a config's network, by Keras itself."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from lightning.pytorch.cli import LightningArgumentParser
from numpy.typing import NDArray

from digitlab import runs
from digitlab.arguments import BAD_INPUT
from digitlab.assembly import make_logger
from digitlab.callbacks import Stopwatch
from digitlab.callbacks.console import tabulate_layers
from digitlab.callbacks.figures import draw_curves, draw_samples
from digitlab.callbacks.results import circumstances, describe_end, entries, log_hyperparameters
from digitlab.checks import check_settings, check_together
from digitlab.claim import claim, released_if_refused
from digitlab.classifier import Classifier
from digitlab.data import ImageLoader, ImageOrder
from digitlab.fit import (
    FitCLI,
    describe,
    say_what_is_next,
)
from digitlab.parity.backend import import_keras, import_tensorflow, keras_dtype
from digitlab.parity.network import KerasNetwork, load_initial_weights
from digitlab.parity.recipe import to_keras_optimizer
from digitlab.parity.recorder import ProbabilityRecorder, Recorder
from digitlab.parity.settings import Schedule, Settings, choose_device, read_settings
from digitlab.parity.weights import build_twin, to_keras
from digitlab.weights import sha256

Arrays = tuple[NDArray[np.float32], NDArray[np.int64]]


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
    folder = claim(cli, suffix="-keras")
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
    runs.write_text(folder / "config.yaml", cli.dump())
    print(describe(cli, device, settings.precision, "'s Keras twin"))
    print(_describe_layers(keras_model), flush=True)
    runs.write_picture(folder / "samples.png", draw_samples(cli.datamodule))
    logger = make_logger(folder) if settings.logs else None
    recorder = Recorder(
        folder,
        keras_model,
        settings,
        schedule,
        stopwatch,
        logger,
        cli.datamodule.size("train"),
        cli.datamodule.size("validation"),
        cli.datamodule.batch_size,
    )
    last = folder / runs.CHECKPOINTS["keras"]["last"]
    with released_if_refused(folder), keras_dtype(settings.policy):
        try:
            _fit(cli, keras_model, recorder)
        except BAD_INPUT as error:
            if recorder.step == 0:
                raise
            raise RuntimeError(f"training failed after {recorder.step} steps") from error
        except KeyboardInterrupt:
            rest = f"{last} is of the last whole epoch" if last.exists() else "nothing was saved"
            raise KeyboardInterrupt(rest) from None
    metrics = _measure(cli, recorder)
    runs.update_metrics(folder, metrics | {"device": device})
    if logger:
        optimizer, step = schedule.optimizer, recorder.step
        log_hyperparameters([logger], metrics, cli.model, cli.datamodule, optimizer, step)
        logger.finalize("success")
    say_what_is_next(folder, "digitlab keras", folder if logger else None)


def _fit(cli: KerasFitCLI, keras_model: Any, recorder: Recorder) -> None:
    data, settings = cli.datamodule, recorder.settings
    with recorder.stopwatch.time("data"):
        images, labels = _whole(data.train_eval_dataloader())
        held_out = _whole(data.val_dataloader())
    if cli.config.output == "softmax":
        one_hot = partial(import_keras().utils.to_categorical, num_classes=len(data.class_names))
        labels, held_out = one_hot(labels), (held_out[0], one_hot(held_out[1]))
    order = data.train_dataloader().sampler
    callbacks = [
        import_keras().callbacks.LambdaCallback(
            on_epoch_begin=lambda epoch, _: order.set_epoch(epoch)
        ),
        recorder.callback(),
    ]
    if settings.probabilities_every:
        callbacks.append(ProbabilityRecorder(recorder, images, data.class_names).callback())
    keras_model.fit(
        _batches(images, labels, order, data.batch_size),
        epochs=settings.epochs,
        shuffle=False,  # the data set is in an order of its own
        validation_data=held_out,
        validation_batch_size=data.eval_batch_size,
        validation_freq=settings.validate_every,
        callbacks=callbacks,
        verbose=0,
    )


def _batches(images: NDArray[Any], labels: NDArray[Any], order: ImageOrder, size: int) -> Any:
    """Make a `tf.data.Dataset` that serves, each time, the epoch that `order` is set to.

    Keras's own shuffling does not do: once a seed is set, as it must be for a run that repeats, it
    serves the same order in every epoch.
    """
    tensorflow = import_tensorflow()
    data = tensorflow.data

    def epoch() -> Iterator[NDArray[np.int64]]:
        yield order.indices()

    signature = tensorflow.TensorSpec((len(order),), "int64")
    indices = data.Dataset.from_generator(epoch, output_signature=signature).unbatch().batch(size)
    served = [tensorflow.constant(array) for array in (images, labels)]
    batches = indices.map(
        lambda chosen: tuple(tensorflow.gather(array, chosen) for array in served)
    )
    count = data.experimental.assert_cardinality(-(-len(order) // size))
    return batches.apply(count).prefetch(data.AUTOTUNE)


def _measure(cli: KerasFitCLI, recorder: Recorder) -> dict[str, Any]:
    """Measure the trained model on whole splits, and give and print what came out."""
    data, settings = cli.datamodule, recorder.settings
    measured = Classifier(network=KerasNetwork(recorder.keras_model))
    with recorder.stopwatch.time("evaluation"):
        train = measured.evaluate(data.train_eval_dataloader())
        other = measured.evaluate(data.val_dataloader())
    if recorder.rows:
        runs.write_figure(recorder.folder / "curves.png", draw_curves(recorder.rows))
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


def _whole(loader: ImageLoader) -> Arrays:
    """Give all that a loader serves: images `(N, 28, 28, C)` float32, and labels `(N,)`."""
    images, labels = zip(*loader, strict=True)
    return torch.cat(images).permute(0, 2, 3, 1).contiguous().numpy(), torch.cat(labels).numpy()


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
