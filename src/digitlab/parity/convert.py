"""`digitlab convert`: a run's network as a Keras file, and a Keras file as a run."""

import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import yaml
from lightning.pytorch import Trainer
from torch import Tensor

from digitlab import files, run_folder
from digitlab.callbacks.results import versions
from digitlab.checkpoints import load_weights, sha256
from digitlab.classifier import Classifier
from digitlab.cli.evaluate import read_evaluation
from digitlab.cli.fit import FitCLI
from digitlab.cli.parser import RunCLI
from digitlab.data import ImageDataModule
from digitlab.errors import reading_input
from digitlab.parity.checks import TOLERANCES, copy_in, relative_difference
from digitlab.parity.keras_files import (
    SUFFIXES,
    KerasNetwork,
    load_from_keras,
    load_keras_model,
    save_keras_model,
)
from digitlab.parity.weights import keras_layers, to_keras

_HALF = ("float16", "bfloat16")
USAGE = (
    "digitlab convert RUN_DIR OUT.keras [--checkpoint best], or "
    "digitlab convert MODEL.keras NEW_RUN_DIR --config CONFIG; .h5 does as well"
)


class DisagreementError(Exception):
    """Both models were compared, and are not the same function."""


def prepare(command: str, options: list[str]) -> Callable[[], int]:
    """Check all input of a conversion, and return the conversion that is then left to do.

    That returns the exit code: 1, with nothing kept, if the predictions differ.

    Raises:
        ValueError, OSError: The input is bad.
    """
    if {"-h", "--help"} & set(options):
        print(f"usage: {USAGE}")
        raise SystemExit(0)
    if len(options) < 2 or any(word.startswith("-") for word in options[:2]):
        raise ValueError(f"convert needs two paths before its options: {USAGE}")
    source, target, flags = Path(options[0]), Path(options[1]), options[2:]
    if (source.suffix in SUFFIXES) == (target.suffix in SUFFIXES):
        raise ValueError(f"{source} and {target}: one must be a Keras file: {USAGE}")
    if target.exists():
        raise ValueError(f"{target} exists: nothing is overwritten, so give another path")
    if not target.absolute().parent.is_dir():
        raise ValueError(f"there is no folder {target.parent}: make it first")
    make = _prepare_file if target.suffix in SUFFIXES else _prepare_run
    return partial(_convert, make(command, source, target, flags))


def _convert(work: Callable[[], None]) -> int:
    try:
        work()
    except DisagreementError as difference:
        print(f"digitlab: error: {difference}", file=sys.stderr)
        return 1
    return 0


def compare_predictions(model: Classifier, keras_model: object, data: ImageDataModule) -> str:
    """Compare what both models give for the whole test split, and say it in words.

    A Keras model of mixed precision is compared in float32: its weights are float32, and what it
    rounds between them says nothing about the conversion.

    Raises:
        DisagreementError: They differ by more than rounding in float32 can explain.
    """
    if any(layer.compute_dtype in _HALF for layer in keras_layers(keras_model)):
        keras_model = copy_in(keras_model, "float32")
    keras_network = KerasNetwork(keras_model)
    model.network.eval()
    with torch.no_grad():
        outputs = [(model(images), keras_network(images)) for images, _ in data.test_dataloader()]
    ours, theirs = (torch.cat(parts) for parts in zip(*outputs, strict=True))
    if keras_network.gives_probabilities:  # whose logarithms were clipped
        ours, theirs = ours.softmax(1), theirs.softmax(1)
    return _judge(ours, theirs)


def _judge(ours: Tensor, theirs: Tensor) -> str:
    difference = relative_difference(ours.numpy(), theirs.numpy())
    equal = int((ours.argmax(1) == theirs.argmax(1)).sum()) if ours.shape == theirs.shape else 0
    sentence = (
        f"{equal} of {len(ours)} test images get the same class, and the outputs differ by at most "
        f"{difference:.1e} of the largest"
    )
    if not difference <= TOLERANCES["float32"]:  # NaN, too, is no agreement
        raise DisagreementError(f"{sentence}, more than {TOLERANCES['float32']}: nothing was kept")
    return sentence


def _prepare_file(command: str, run: Path, target: Path, flags: list[str]) -> Callable[[], None]:
    if (run / run_folder.CHECKPOINTS["keras"]["last"]).exists():
        raise ValueError(
            f"{run} is a Keras run: its model.keras is what you want, or what to make a PyTorch "
            "run of"
        )
    evaluation = read_evaluation(command, ["--run", str(run), *flags])
    cli = evaluation.cli
    load_weights(cli.model, evaluation.checkpoint)
    keras_model = to_keras(cli.model)
    cli.datamodule.setup("test")
    return partial(_write_file, cli.model, keras_model, cli.datamodule, target)


def _write_file(
    model: Classifier, keras_model: object, data: ImageDataModule, target: Path
) -> None:
    with files.atomic_write(target) as path:
        save_keras_model(keras_model, path)
        print(compare_predictions(model, load_keras_model(path), data))
    print(f"Written to {target}")


def _prepare_run(command: str, file: Path, target: Path, flags: list[str]) -> Callable[[], None]:
    cli = FitCLI(command, flags)  # either framework's run has its config.yaml for `--config`
    keras_model = load_keras_model(file)
    load_from_keras(cli.model, file)
    cli.datamodule.setup("test")
    return partial(_write_run, cli, keras_model, file, target)


def _write_run(cli: RunCLI, keras_model: object, file: Path, target: Path) -> None:
    model, data = cli.model, cli.datamodule
    print(compare_predictions(model, keras_model, data))
    score = model.evaluate(data.test_dataloader())
    beside = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.absolute().parent))
    try:
        settings = yaml.safe_load(cli.dump())
        for name in ("name", "weights", "output"):  # of a fit, which this was not
            del settings[name]
        settings["framework"] = "torch"
        files.write_text(beside / "config.yaml", yaml.safe_dump(settings, sort_keys=False))
        # Not the config's trainer: its callbacks and device are for training.
        trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False)
        trainer.strategy.connect(model)
        last = beside / run_folder.CHECKPOINTS["torch"]["last"]
        trainer.save_checkpoint(last, weights_only=True)
        metrics = {
            "test": {**score, "checkpoint": "last", "split": "test"},
            "framework": "torch",
            "model": type(model).__name__,
            "dataset": data.name,
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "versions": versions("keras"),
            "weights": {"file": str(file), "sha256": sha256(file)},
        }
        run_folder.update_metrics(beside, metrics)
        beside.chmod(0o755)  # as `mkdir` makes it; a temporary folder is its owner's alone
        os.rename(beside, target)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    print(f"Written to {target}. What to do next:\n  digitlab test --run {target}")


def run(name: str, help: str, options: list[str]) -> int:
    """Read the input and do the work; give the exit code."""
    with reading_input():
        work = prepare(name, options)
    return work() or 0
