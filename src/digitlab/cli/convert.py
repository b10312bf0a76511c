"""`digitlab convert`: a run's network as a Keras file, and a Keras file as a run."""

from pathlib import Path

import torch
import yaml
from lightning.pytorch import Trainer

from digitlab import files, run_folder
from digitlab.callbacks.results import versions
from digitlab.checkpoints import load_weights, sha256
from digitlab.classifier import Classifier
from digitlab.cli.evaluate import read_evaluation
from digitlab.cli.fit import FitCLI
from digitlab.data import ImageDataModule
from digitlab.errors import RunError, reading_input
from digitlab.parity.differences import TOLERANCES, relative_difference
from digitlab.parity.keras_files import (
    SUFFIXES,
    KerasNetwork,
    in_float32,
    load_from_keras,
    load_keras_model,
    save_keras_model,
)
from digitlab.parity.twins import to_keras
from digitlab.terminal import command, printable

USAGE = (
    "digitlab convert RUN_DIR OUT.keras [--checkpoint best], or "
    "digitlab convert MODEL.keras NEW_RUN_DIR --config CONFIG; .h5 works as well"
)


def run(name: str, help: str, options: list[str]) -> int:
    """Convert a run to a Keras file, or a Keras file to a run; keep neither if they differ."""
    if {"-h", "--help"} & set(options):
        print(f"usage: {USAGE}")
        return 0
    with reading_input():
        if len(options) < 2 or any(word.startswith("-") for word in options[:2]):
            raise ValueError(f"convert needs two paths before its options: {USAGE}")
        source, target = map(files.expand_path, options[:2])
        flags = options[2:]
        if (source.suffix in SUFFIXES) == (target.suffix in SUFFIXES):
            raise ValueError(f"{source} and {target}: one must be a Keras file: {USAGE}")
        if target.exists():
            raise ValueError(f"{target} exists: nothing is overwritten, so give another path")
        if not target.absolute().parent.is_dir():
            raise ValueError(f"there is no folder {target.parent}: make it first")
    (_to_file if target.suffix in SUFFIXES else _to_run)(name, source, target, flags)
    return 0


def compare_predictions(model: Classifier, keras_model: object, data: ImageDataModule) -> str:
    """Compare both models' outputs for the whole test split, and return the result as a sentence.

    A Keras model of mixed precision is compared in float32: its weights are float32, and rounding
    between its layers says nothing about the conversion.

    Raises:
        RunError: They differ by more than rounding in float32 can explain.
    """
    keras_network = KerasNetwork(in_float32(keras_model))
    model.network.eval()
    with torch.no_grad():
        outputs = [(model(images), keras_network(images)) for images, _ in data.test_dataloader()]
    ours, theirs = (torch.cat(parts) for parts in zip(*outputs, strict=True))
    if keras_network.gives_probabilities:  # `KerasNetwork` clips their logarithms
        ours, theirs = ours.softmax(1), theirs.softmax(1)
    difference = relative_difference(ours.numpy(), theirs.numpy())
    equal = int((ours.argmax(1) == theirs.argmax(1)).sum()) if ours.shape == theirs.shape else 0
    sentence = (
        f"{equal} of {len(ours)} test images get the same class, and the outputs differ by at most "
        f"{difference:.1e} of the largest"
    )
    if not difference <= TOLERANCES["float32"]:  # NaN fails too
        raise RunError(f"{sentence}, more than {TOLERANCES['float32']}: nothing was kept")
    return sentence


def _to_file(name: str, source: Path, target: Path, flags: list[str]) -> None:
    with reading_input():
        if run_folder.framework(run_folder.find_run(str(source))) == "keras":
            raise ValueError(
                f"{source} is a Keras run: its model.keras is a Keras file already; to make it a "
                "PyTorch run, use digitlab convert MODEL.keras NEW_RUN_DIR"
            )
        evaluation = read_evaluation(name, ["--run", str(source), *flags])
        model, data = evaluation.cli.model, evaluation.cli.datamodule
        load_weights(model, evaluation.checkpoint)
        keras_model = to_keras(model)
        data.setup("test")
    with files.atomic_write(target) as path:
        save_keras_model(keras_model, path)
        print(compare_predictions(model, load_keras_model(path), data))
    print(f"Written to {printable(target)}")


def _to_run(name: str, source: Path, target: Path, flags: list[str]) -> None:
    with reading_input():
        cli = FitCLI(name, flags)  # its options are those of a run's config.yaml
        model, data = cli.model, cli.datamodule
        keras_model = load_from_keras(model, source, compare=False)
        data.setup("test")
    print(compare_predictions(model, keras_model, data))
    score = model.evaluate(data.test_dataloader())
    with files.atomic_write(target) as temporary:
        temporary.mkdir()
        settings = yaml.safe_load(cli.dump())
        for setting in ("name", "weights", "framework", "output"):  # only training uses them
            settings.pop(setting, None)
        files.write_text(temporary / "config.yaml", yaml.safe_dump(settings, sort_keys=False))
        # Not the config's trainer, whose callbacks and device are for training.
        trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False)
        trainer.strategy.connect(model)
        last = temporary / run_folder.CHECKPOINTS["torch"]["last"]
        trainer.save_checkpoint(last, weights_only=True)
        metrics = {
            "test": {**score, "checkpoint": "last", "split": "test"},
            "framework": "torch",
            "model": type(model).__name__,
            "dataset": data.name,
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "versions": versions("keras"),
            "weights": {"file": str(source), "sha256": sha256(source)},
        }
        run_folder.update_metrics(temporary, metrics)
    print(f"Written to {printable(target)}. What to do next:")
    print(f"  {command('digitlab', 'test', '--run', target)}")
