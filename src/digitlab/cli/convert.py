"""`digitlab convert`: a run's network as an ONNX, PyTorch or Keras file; a Keras file as a run."""

from pathlib import Path

import torch
import yaml
from lightning.pytorch import Trainer

from digitlab import export, files, run_folder
from digitlab.callbacks.results import versions
from digitlab.checkpoints import load_weights, sha256
from digitlab.classifier import Classifier
from digitlab.cli.evaluate import read_evaluation
from digitlab.cli.fit import FitCLI
from digitlab.data import ImageDataModule
from digitlab.errors import reading_input
from digitlab.export import Agreement, compare_outputs, export_model
from digitlab.parity.keras_files import (
    SUFFIXES,
    KerasNetwork,
    in_float32,
    load_from_keras,
    load_initial_weights,
    load_keras_model,
    save_keras_model,
)
from digitlab.parity.twins import to_keras
from digitlab.terminal import command, printable

RAW_PIXELS = {"--raw_pixels", "--raw-pixels"}
OPTIONS = ("--checkpoint", "--raw_pixels")
"""For completion by a shell."""

USAGE = "digitlab convert RUN OUT, or digitlab convert MODEL.keras NEW_RUN_DIR --config CONFIG"
HELP = """usage: digitlab convert RUN OUT [--checkpoint best] [--raw_pixels]
       digitlab convert MODEL.keras NEW_RUN_DIR --config CONFIG

Write a run's network to a file for other programs, or make a Keras model a run.
The ending of OUT chooses the format:

  .onnx         ONNX, for ONNX Runtime and others; needs the extra `export`
  .pt2          PyTorch, for torch.export.load
  .keras, .h5   Keras; needs the extra `parity`

RUN is a run folder, or latest. The result is compared with the original on the
whole test split, and kept if it computes the same. Nothing is overwritten.

options of a run:
  --checkpoint NAME  last (the default), best, or a checkpoint's path
  --raw_pixels       .onnx and .pt2: read uint8 pixels from 0 to 255, and
                     normalize them inside; else, read normalized float32 images

options of a Keras model: those of digitlab fit, such as --model and --data
"""


def run(name: str, help: str, options: list[str]) -> int:
    """Convert a run to a file, or a Keras file to a run; keep neither if they differ."""
    if {"-h", "--help"} & set(options):
        print(HELP, end="")
        return 0
    with reading_input():
        if len(options) < 2 or any(word.startswith("-") for word in options[:2]):
            raise ValueError(f"convert needs two paths before its options: {USAGE}")
        source, target = map(files.expand_path, options[:2])
        flags = [word for word in options[2:] if word not in RAW_PIXELS]
        raw_pixels = flags != options[2:]
        if target.suffix in export.SUFFIXES:
            export.check_target(target)
        elif raw_pixels:
            raise ValueError(f"--raw_pixels is for .onnx and .pt2, and {target} is neither")
        if (source.suffix in SUFFIXES) == (target.suffix in (*SUFFIXES, *export.SUFFIXES)):
            raise ValueError(
                f"{source} cannot become {target}: a run becomes a file that ends in .onnx, .pt2, "
                ".keras or .h5, and a Keras file a run folder"
            )
        if target.exists():
            raise ValueError(f"{target} exists: nothing is overwritten, so give another path")
        if not target.absolute().parent.is_dir():
            raise ValueError(f"there is no folder {target.parent}: make it first")
    if target.suffix in export.SUFFIXES:
        _export(name, source, target, flags, raw_pixels)
    else:
        (_to_file if target.suffix in SUFFIXES else _to_run)(name, source, target, flags)
    return 0


def compare_predictions(model: Classifier, keras_model: object, data: ImageDataModule) -> Agreement:
    """Compare both models' outputs for the whole test split.

    A Keras model of mixed precision is compared in float32: its weights are float32, and rounding
    between its layers says nothing about the conversion. A larger difference raises RunError.
    """
    keras_network = KerasNetwork(in_float32(keras_model))
    model.network.eval()
    with torch.no_grad():
        outputs = [(model(images), keras_network(images)) for images, _ in data.test_dataloader()]
    ours, theirs = (torch.cat(parts) for parts in zip(*outputs, strict=True))
    if keras_network.gives_probabilities:  # `KerasNetwork` clips their logarithms
        ours, theirs = ours.softmax(1), theirs.softmax(1)
    return compare_outputs(ours, theirs)


def _export(name: str, source: Path, target: Path, flags: list[str], raw_pixels: bool) -> None:
    with reading_input():
        evaluation = read_evaluation(name, ["--run", str(source), *flags])
        model, data = evaluation.cli.model, evaluation.cli.datamodule
        load_initial_weights(model, evaluation.checkpoint)
        data.setup("test")
    if evaluation.framework == "keras":
        keras_model = load_keras_model(evaluation.checkpoint)
        print(f"In PyTorch, {compare_predictions(model, keras_model, data)}")
    details = {
        "run": run_folder.short_name(evaluation.folder),
        "checkpoint": Path(evaluation.cli.config.checkpoint).name,
    }
    print(export_model(model, target, data, raw_pixels, details))
    print(f"Written to {printable(target)}")


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
    print(f"config: {printable(cli.origin)}")
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
