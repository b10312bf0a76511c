"""`digitlab validate`, `test` and `predict`: score a trained network, or classify images."""

import json
import math
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
import yaml
from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningArgumentParser
from PIL import Image

from digitlab import files, run_folder
from digitlab.callbacks.pictures import validation_label
from digitlab.checkpoints import load_weights
from digitlab.cli.options import add_evaluation_options, add_prediction_options
from digitlab.cli.parser import RunCLI, split_off
from digitlab.data import DigitsDataModule, ImageDataModule
from digitlab.data.datamodule import Subset
from digitlab.data.photographs import PreparedImage, open_image
from digitlab.distributed import starts_processes
from digitlab.errors import reading_input
from digitlab.scores import describe_score
from digitlab.signals import StopSignals
from digitlab.terminal import printable

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = ("file", "class", "class_name", "probability", "probabilities", "error")
# An evaluation uses these settings of the run's trainer; one process is enough for it.
TRAINER = ("accelerator", "precision")
# An evaluation makes neither, so it imports no class that they name.
TRAINING = ("optimizer", "lr_scheduler")
# Settings of the data that may differ from the run's; others would score other images.
DATA = {"root", "folder", "batch_size", "eval_batch_size"}


class EvaluationCLI(RunCLI):
    """The options of `digitlab validate` and `test`."""

    def dump(self) -> str:
        """Write the settings as YAML, without those of the training, which were not read."""
        settings = yaml.safe_load(super().dump())
        for name in TRAINING:
            settings["model"].get("init_args", {}).pop(name, None)
        text: str = yaml.safe_dump(settings, sort_keys=False)
        return text

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        add_evaluation_options(parser)


class PredictionCLI(EvaluationCLI):
    """The options of `digitlab predict`."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        super().add_arguments_to_parser(parser)
        add_prediction_options(parser)


@dataclass
class Evaluation:
    """The command line of an evaluation, read and checked."""

    cli: EvaluationCLI  # the run's settings, and the flags' over them
    folder: Path
    flags: list[str]  # besides `--run`
    images: list[str]  # files to classify instead of the test split
    framework: run_folder.Framework

    @property
    def checkpoint(self) -> Path:
        """The file of the weights."""
        return run_folder.find_checkpoint(self.folder, self.cli.config.checkpoint)

    def load(self) -> None:
        """Load the weights; a Keras run's model takes the place of the network."""
        if self.framework == "torch":
            load_weights(self.cli.model, self.checkpoint)
        else:
            from digitlab.parity.backend import choose_device, set_threads
            from digitlab.parity.keras_files import load_classifier

            config = self.cli.config
            if config.threads:
                # TensorFlow may have computed in this process: other threads differ by rounding.
                with suppress(ValueError):
                    set_threads(config.threads)
            choose_device(config.trainer.accelerator, config.allow_tf32)
            precision = config.trainer.precision
            self.cli.model = load_classifier(self.cli.model, self.checkpoint, precision)

    def predictions(self, split: Subset) -> "pd.DataFrame":
        """Classify the images of a split by the loaded weights, on the CPU, as `tabulate` says."""
        model, data = self.cli.model.eval(), self.cli.datamodule
        loaders = {"train": data.train_eval_dataloader, "validation": data.val_dataloader}
        with torch.no_grad(), model.averaged():
            batches = map(model.predict_step, loaders.get(split, data.test_dataloader)())
            return tabulate(batches, data)

    def make_trainer(self) -> Trainer:
        settings: dict[str, Any] = {"logger": False, "enable_checkpointing": False}
        if self.images:  # all of them
            settings |= {"limit_predict_batches": 1.0, "fast_dev_run": False}
        if self.framework == "keras":
            # TensorFlow's device and the saved model's precision were checked by `load`.
            settings |= {"accelerator": "cpu", "precision": "32-true"}
        return self.cli.instantiate_trainer(**settings)


def run(name: str, help: str, options: list[str]) -> int:
    """Score a run, or classify images with it; return 1 if an image could not be classified."""
    with reading_input():
        evaluation = read_evaluation(name, options, help)
        cli, images = evaluation.cli, evaluation.images
        if cli.config_files:
            print(f"config: {printable(cli.origin)}")
        if name == "predict":
            _check_outputs(images, cli.config)
        else:
            run_folder.read_metrics(evaluation.folder)  # refused now if it is damaged
        if not images:
            run_folder.check_writable(evaluation.folder)
        evaluation.load()
        if not images:
            cli.datamodule.setup(name)
        cli.datamodule.mean_and_std()  # may read training images, which may have changed
        trainer = evaluation.make_trainer()
        if trainer.world_size > 1 or starts_processes(trainer):
            raise ValueError(
                f"{name} needs one process that sees all images: leave out torchrun, "
                "trainer.devices, trainer.num_nodes and trainer.strategy"
            )
    with StopSignals(trainer).handled():
        if images:
            return _classify(images, cli, trainer)
        if name == "predict":
            batches = trainer.predict(cli.model, cli.datamodule)
            _write_predictions(tabulate(batches or [], cli.datamodule), evaluation.folder)
        elif name == "validate":
            trainer.validate(cli.model, cli.datamodule, verbose=False)
            _save_score(evaluation, "val", cli.datamodule.validation_split)
        else:
            trainer.test(cli.model, cli.datamodule, verbose=False)
            _save_score(evaluation, "test", "test")
    files.write_text(evaluation.folder / f"{name}.yaml", cli.dump())
    return 0


def read_evaluation(name: str, options: list[str], help: str = "") -> Evaluation:
    """Read a command line and the settings of the run that it names."""
    make_cli = PredictionCLI if name == "predict" else EvaluationCLI
    if {"-h", "--help"} & set(options):
        make_cli(name, ["--help"], help=help)  # prints and exits
    images, options = split_files(options) if name == "predict" else ([], options)
    given, flags = split_off(options, "--run")
    if not given:
        raise ValueError(f"{name} needs trained weights: name a run, --run RUN_DIR or latest")
    folder = run_folder.find_run(given[-1])
    with run_folder.naming_newer_version(folder):
        trained = needed_settings(run_folder.read_config(folder, run_folder.NEEDED))
        cli = make_cli(name, [f"--run={folder}", *flags], yaml.safe_dump(trained), help)
    _check_data(cli, trained["data"])
    limit = f"limit_{'val' if name == 'validate' else name}_batches"
    if cli.config.trainer.get(limit) == 0:
        raise ValueError(f"trainer.{limit} is 0: leave at least one batch to score")
    return Evaluation(cli, folder, flags, images, run_folder.framework(folder))


def read_on_cpu(folder: Path, checkpoint: str = "last") -> Evaluation:
    """Read a run to compute on the CPU, in float32 unless a Keras model has another precision."""
    options = [f"--run={folder}", f"--checkpoint={checkpoint}", "--trainer.accelerator=cpu"]
    if run_folder.framework(folder) == "torch":
        options.append("--trainer.precision=32-true")
    return read_evaluation("predict", options)


def tabulate(batches: Iterable[Any], data: ImageDataModule) -> "pd.DataFrame":
    """Make a row for each image, by its `index`, of what `predict_step` returns for batches."""
    import pandas as pd  # takes a third of a second

    batches = list(batches)
    labels, numbers, probability, probabilities = (
        torch.cat([batch[name] for batch in batches]).cpu().numpy()
        for name in ("label", "class", "probability", "probabilities")
    )
    columns = {
        **{"label": labels, "class": numbers},
        "class_name": [data.class_names[number] for number in numbers],
        **{"probability": probability, "probabilities": list(probabilities)},
    }
    return pd.DataFrame(columns).rename_axis("index")


def mistakes(rows: "pd.DataFrame") -> "pd.DataFrame":
    """Return the wrong ones of `Evaluation.predictions`, the most probable first."""
    wrong = rows[rows["class"] != rows["label"]]
    return wrong.sort_values("probability", ascending=False, kind="stable")


def needed_settings(config: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of a run that an evaluation needs: model, data, device, seed, threads."""
    kept = ("model", "data", "seed_everything", "threads", "allow_tf32", "from_configs")
    trained = {key: config[key] for key in (*kept, "class_names") if key in config}
    trained["trainer"] = {key: config["trainer"][key] for key in TRAINER}
    if isinstance(arguments := trained["model"].get("init_args"), dict):
        others = {key: value for key, value in arguments.items() if key not in TRAINING}
        if "optimizer" in arguments:  # it is never made, but a class may require one
            others["optimizer"] = {"class_path": "torch.optim.SGD"}
        trained["model"] = trained["model"] | {"init_args": others}
    return trained


def _check_data(cli: EvaluationCLI, trained: dict[str, Any]) -> None:
    ours = yaml.safe_load(cli.dump())["data"]
    if ours["class_path"] != trained["class_path"]:
        raise ValueError(
            f"data is {ours['class_path']}, but the run was trained on {trained['class_path']}: "
            "leave it out; other data can be scored in Python, by model.evaluate"
        )
    for name, value in ours["init_args"].items():
        theirs = trained["init_args"].get(name)
        if name not in DATA and value != theirs:
            raise ValueError(
                f"data.{name} is {value}, but the run was trained with {theirs}: leave it out, "
                "or train a run with it"
            )


def _save_score(evaluation: Evaluation, phase: Literal["val", "test"], split: str) -> None:
    """Print a score, and add it to metrics.json with the checkpoint, the split and the flags."""
    cli, folder = evaluation.cli, evaluation.folder
    score, checkpoint = cli.model.epoch_score(phase), cli.config.checkpoint
    entry: dict[str, Any] = {**score, "checkpoint": checkpoint, "split": split}
    if others := split_off(evaluation.flags, "--checkpoint")[1]:
        entry["flags"] = others
    shown = validation_label(split == "test") if phase == "val" else split
    sentence = f"{describe_score(shown, score)}, checkpoint {checkpoint}"
    if evaluation.checkpoint.stem == "best":
        own = evaluation.checkpoint.resolve().parents[1] == folder.resolve()
        entry["chosen_on"] = cli.datamodule.validation_split if own else "unknown"
        sentence += f", which was chosen on the {entry['chosen_on']} images"
    print(printable(f"{sentence[0].upper()}{sentence[1:]}"), flush=True)  # the disk may be full
    run_folder.update_metrics(folder, {phase: entry})
    print(f"Written to {printable(folder / 'metrics.json')}")


def _write_predictions(rows: "pd.DataFrame", folder: Path) -> None:
    right = (rows["class"] == rows["label"]).sum()
    print(f"{right} of {len(rows)} test images are classified right", flush=True)
    files.write_csv(folder / "predictions.csv", _records(rows.reset_index()))
    print(f"Written to {printable(folder / 'predictions.csv')}")


def _records(rows: "pd.DataFrame") -> list[dict[str, Any]]:
    """List rows as plain values, which CSV and JSON files take."""
    lists = [values.tolist() for values in rows["probabilities"]]
    records: list[dict[str, Any]] = rows.assign(probabilities=lists).to_dict("records")
    return records


def split_files(words: list[str]) -> tuple[list[str], list[str]]:
    """Separate image files from options; an option's value follows it, or a `=` in it.

    >>> split_files(["a.png", "--run", "latest", "b.png", "--csv=x.csv", "--", "-c.png"])
    (['a.png', 'b.png', '-c.png'], ['--run', 'latest', '--csv=x.csv'])
    """
    images: list[str] = []
    options: list[str] = []
    rest = iter(words)
    for word in rest:
        if word == "--":
            images += rest
        elif not word.startswith("-") or word == "-":
            images.append(word)
        else:
            has_value_behind = "=" not in word and word != "--print_config"
            options += [word, *islice(rest, has_value_behind)]
    return images, options


def _check_outputs(images: list[str], config: Any) -> None:
    """Check that there are images for the output files, and folders to write these to."""
    for option in ("json", "csv", "save_prepared"):
        path = config[option]
        if path is None:
            continue
        if not images:
            raise ValueError(
                f"{option} is {path}, but there are no images: name their files, as in "
                "digitlab predict --run latest photo.png"
            )
        if option == "save_prepared":
            Path(path).mkdir(parents=True, exist_ok=True)
        elif Path(path).is_dir():
            raise ValueError(f"{option} is {path}, a folder: give a file's name")
        elif not Path(path).parent.is_dir():
            raise ValueError(f"{option} is {path}: there is no folder {Path(path).parent}")


def _classify(images: list[str], cli: EvaluationCLI, trainer: Trainer) -> int:
    """Prepare and classify image files, print a line for each, and write the outputs."""
    prepared = [_prepare(image, cli.datamodule) for image in images]
    predictions = _predict(trainer, cli, [it for it in prepared if isinstance(it, PreparedImage)])
    rows: list[dict[str, Any]] = []
    for image, result in zip(images, prepared, strict=True):
        found = next(predictions) if isinstance(result, PreparedImage) else {"error": result}
        # Escaped, as a file's name need not be in the system's encoding.
        name = image.encode("utf-8", "backslashreplace").decode()
        rows.append({"file": name, **found})
        if isinstance(result, str) or "error" in found:
            print(printable(f"digitlab: error: {name}: {found['error']}"), file=sys.stderr)
        else:
            text = f"{found['class_name']} ({found['probability']:.2%}); {', '.join(result.steps)}"
            # Flushed, so that lines and errors keep their order where both go to one file.
            print(printable(f"{name}: {text}"), flush=True)
    failures = sum("error" in row for row in rows)
    if len(rows) > 1:
        print(f"{len(rows) - failures} of {len(rows)} images are classified")
    if failures < len(rows) and isinstance(cli.datamodule, DigitsDataModule):
        print("Networks trained on scikit-learn's digits read photographs poorly: use MNIST's")
    _write_outputs(cli.config, images, prepared, rows)
    return 1 if failures else 0


def _prepare(name: str, data: ImageDataModule) -> PreparedImage | str:
    """Open and prepare an image, or return the reason why it cannot be prepared.

    The shell has expanded the name: a file that is there is opened as it is named.
    """
    try:
        image, steps = open_image(Path(name) if os.path.lexists(name) else files.expand_path(name))
        prepared = data.prepare_image(image)
    except (ValueError, OSError, MemoryError) as error:
        return getattr(error, "strerror", None) or str(error) or type(error).__name__
    return PreparedImage(prepared.pixels, (*steps, *prepared.steps))


def _predict(
    trainer: Trainer, cli: EvaluationCLI, images: list[PreparedImage]
) -> Iterator[dict[str, Any]]:
    if not images:
        return
    loader = cli.datamodule.image_loader(np.stack([image.pixels for image in images]))
    rows = tabulate(trainer.predict(cli.model, loader) or [], cli.datamodule)
    for row in _records(rows.drop(columns="label")):  # the loader's, without meaning
        is_finite = math.isfinite(row["probability"])
        yield row if is_finite else {"error": "the network's output is not finite: train it again"}


def _write_outputs(
    config: Any, images: list[str], prepared: list[PreparedImage | str], rows: list[dict[str, Any]]
) -> None:
    if config.save_prepared is not None:
        written = Counter[str]()
        for image, result in zip(images, prepared, strict=True):
            if isinstance(result, PreparedImage):
                # Not the photograph's own name: it may lie in that folder.
                stem = f"{Path(image).stem}-prepared"
                written[stem] += 1
                again = f"-{written[stem]}" if written[stem] > 1 else ""
                path = Path(config.save_prepared, f"{stem}{again}.png")
                files.write_image(path, Image.fromarray(result.pixels))
    if config.json is not None:
        lines = ",\n".join(json.dumps(row) for row in rows)
        files.write_text(Path(config.json), f"[\n{lines}\n]\n")
    if config.csv is not None:
        files.write_csv(Path(config.csv), [dict.fromkeys(COLUMNS) | row for row in rows])
    for target in filter(None, (config.save_prepared, config.json, config.csv)):
        print(f"Written to {printable(target)}")
