"""`digitlab validate`, `test` and `predict`: measure a trained network."""

import json
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, count
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
import yaml
from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningArgumentParser
from PIL import Image

from digitlab import files, run_folder
from digitlab.checkpoints import load_weights
from digitlab.classifier import Classifier
from digitlab.cli.parser import RunCLI, split_off
from digitlab.data import ImageDataModule
from digitlab.data.photographs import PreparedImage as Prepared
from digitlab.data.photographs import open_image
from digitlab.scores import describe_score
from digitlab.signals import StopSignals

COLUMNS = ("file", "class", "class_name", "probability", "probabilities", "error")
IMAGE_TRAINER: dict[str, Any] = {"limit_predict_batches": 1.0, "fast_dev_run": False}
"""Settings of the trainer with which no image is left out."""


def add_image_options(parser: LightningArgumentParser) -> None:
    """Add the options that go with image files."""
    group = parser.add_argument_group(
        "Image files",
        "Words behind no option are image files, as in digitlab predict --run latest photo.png "
        "more/*.jpg. They are classified instead of the test split, each prepared as the images "
        "that the run was trained on were. Behind -- all words are files.",
    )
    group.add_argument("--json", type=str, help="JSON file to write a row for each image to.")
    group.add_argument("--csv", type=str, help="CSV file to write a row for each image to.")
    group.add_argument(
        *("--save_prepared", "--save-prepared"),
        type=str,
        help="Folder to write the prepared images to, as PNG files of 28x28 pixels to look at.",
    )


def split_files(words: list[str]) -> tuple[list[str], list[str]]:
    """Separate image files from options, each of which has its value behind it or behind a `=`.

    >>> split_files(["a.png", "--run", "latest", "b.png", "--csv=x.csv", "--", "-c.png"])
    (['a.png', 'b.png', '-c.png'], ['--run', 'latest', '--csv=x.csv'])
    """
    files: list[str] = []
    options: list[str] = []
    rest = iter(words)
    for word in rest:
        if word == "--":
            files += rest
        elif not word.startswith("-"):
            files.append(word)
        else:
            options.append(word)
            if "=" not in word and word != "--print_config":
                options += [value for value in [next(rest, None)] if value is not None]
    return files, options


@dataclass
class OwnImages:
    """Image files to be classified, and where to write what comes out.

    Args:
        files: Their paths, at least one.
        json: A file for the rows, if wanted, as is `csv`.
        csv: Another.
        save_prepared: A folder for the prepared images, if wanted; made if it is missing.
    """

    files: Sequence[str]
    json: str | None = None
    csv: str | None = None
    save_prepared: str | None = None

    def classify(self, trainer: Trainer, model: Classifier, data: ImageDataModule) -> int:
        """Prepare and classify the images, print a line for each, and write what is wanted.

        Returns:
            The exit code: 1 if there is an image that was not classified, else 0.
        """
        prepared = [_prepare(Path(file), data) for file in self.files]
        images = [image for image in prepared if isinstance(image, Prepared)]
        predictions = iter(_predict(trainer, model, data, images))
        rows: list[dict[str, Any]] = []
        for file, image in zip(self.files, prepared, strict=True):
            said = next(predictions) if isinstance(image, Prepared) else {"error": image}
            rows.append({"file": _printable(file), **said})
            _say(rows[-1], image)
        failures = sum("error" in row for row in rows)
        if len(rows) > 1:
            print(f"{len(rows) - failures} of {len(rows)} images are classified")
        self._write(rows, prepared)
        return 1 if failures else 0

    def _write(self, rows: list[dict[str, Any]], prepared: list[Prepared | str]) -> None:
        if self.save_prepared is not None:
            _save(self.files, prepared, Path(self.save_prepared))
            print(f"Written to {self.save_prepared}")
        if self.json is not None:
            lines = ",\n".join(json.dumps(row) for row in rows)
            files.write_text(Path(self.json), f"[\n{lines}\n]\n")
            print(f"Written to {self.json}")
        if self.csv is not None:
            files.write_csv(Path(self.csv), [dict.fromkeys(COLUMNS) | row for row in rows])
            print(f"Written to {self.csv}")


def read_images(files: Sequence[str], options: Any) -> OwnImages | None:
    """Check what is wanted of image files, and where to write it.

    Returns:
        None if there are no files, and so the test split is meant.

    Raises:
        ValueError, OSError: There is nowhere to write to, or nothing to write.
    """
    given = {name: options[name] for name in ("json", "csv", "save_prepared")}
    for name, path in given.items():
        if path is not None and not files:
            raise ValueError(
                f"{name} is {path}, but there are no images: name their files, as in "
                "digitlab predict --run latest photo.png"
            )
        if path is not None and name != "save_prepared":
            if Path(path).is_dir():
                raise ValueError(f"{name} is {path}, a folder: give a file's name")
            if not Path(path).parent.is_dir():
                raise ValueError(f"{name} is {path}: there is no folder {Path(path).parent}")
    if given["save_prepared"] is not None:
        Path(given["save_prepared"]).mkdir(parents=True, exist_ok=True)
    return OwnImages(files, **given) if files else None


def _prepare(path: Path, data: ImageDataModule) -> Prepared | str:
    """Open and prepare an image, or say what is wrong with it."""
    try:
        image, steps = open_image(path)
        prepared = data.prepare_image(image)
    except (ValueError, OSError, MemoryError) as error:
        return getattr(error, "strerror", None) or str(error) or type(error).__name__
    return Prepared(prepared.pixels, (*steps, *prepared.steps))


def _predict(
    trainer: Trainer, model: Classifier, data: ImageDataModule, images: list[Prepared]
) -> Iterator[dict[str, Any]]:
    if not images:
        return
    loader = data.image_loader(np.stack([image.pixels for image in images]))
    for batch in cast("list[dict[str, Any]]", trainer.predict(model, loader)):
        columns = (batch[name].tolist() for name in ("class", "probability", "probabilities"))
        for number, probability, probabilities in zip(*columns, strict=True):
            if not math.isfinite(probability):
                yield {"error": "the network gives a value that is not finite: train it anew"}
                continue
            yield {
                "class": number,
                "class_name": data.class_names[number],
                "probability": probability,
                "probabilities": probabilities,
            }


def _say(row: dict[str, Any], image: Prepared | str) -> None:
    if isinstance(image, str) or "error" in row:
        print(f"digitlab: error: {row['file']}: {row['error']}", file=sys.stderr)
    else:
        steps = ", ".join(image.steps)
        # Flushed, so that lines and errors keep their order where both go to one file.
        print(f"{row['file']}: {row['class_name']} ({row['probability']:.2%}); {steps}", flush=True)


def _save(files: Sequence[str], prepared: Sequence[Prepared | str], folder: Path) -> None:
    taken: set[str] = set()
    for file, image in zip(files, prepared, strict=True):
        if isinstance(image, str):
            continue
        # Another name than the photograph's own, which may lie in that folder.
        ends = chain([""], map("-{}".format, count(2)))
        names = (f"{Path(file).stem}-prepared{end}.png" for end in ends)
        name = next(name for name in names if name not in taken)
        taken.add(name)
        Image.fromarray(image.pixels).save(folder / name)


def _printable(file: str) -> str:
    """Name a file, also if its name is not in the system's encoding."""
    return file.encode("utf-8", "backslashreplace").decode()


# What of a fit's trainer an evaluation takes over; one process is enough for it.
TRAINER = ("accelerator", "precision")
# What may differ from the fit's data; anything else would measure another thing than the run.
DATA = {"root", "batch_size", "eval_batch_size"}


class EvaluationCLI(RunCLI):
    """The options of `digitlab validate`, `test` and `predict`."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the options that name trained weights."""
        parser.add_argument("--run", type=str, help="Run folder, or latest. Required.")
        parser.add_argument(
            "--checkpoint", type=str, default="last", help="last, best, or a checkpoint's path."
        )


class PredictionCLI(EvaluationCLI):
    """The options of `digitlab predict`."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the options of image files too."""
        super().add_arguments_to_parser(parser)
        add_image_options(parser)


@dataclass
class Evaluation:
    """The checked input of an evaluation.

    Args:
        command: `validate`, `test` or `predict`.
        cli: The run's settings, and the flags' over them.
        folder: The run folder.
        flags: The flags besides `--run`.
        checkpoint: The file of the weights.
        own: Image files to predict instead of the test split, if there are any.
    """

    command: str
    cli: EvaluationCLI
    folder: Path
    flags: list[str]
    checkpoint: Path
    own: OwnImages | None = None

    def make_trainer(self, **settings: Any) -> Trainer:
        """Read the data, and make the trainer.

        Raises:
            ValueError, OSError, MisconfigurationException: The input is bad.
        """
        if self.own:
            settings |= IMAGE_TRAINER
        else:
            self.cli.datamodule.setup(self.command)
        return self.cli.instantiate_trainer(logger=False, enable_checkpointing=False, **settings)

    def run(self, trainer: Trainer) -> int:
        """Measure the model and write what came out into the run folder; give the exit code."""
        cli = self.cli
        with StopSignals(trainer).handled():
            if self.own:
                return self.own.classify(trainer, cli.model, cli.datamodule)
            if self.command == "predict":
                _write_predictions(trainer.predict(cli.model, cli.datamodule) or [], self.folder)
            elif self.command == "validate":
                trainer.validate(cli.model, cli.datamodule, verbose=False)
                self._keep("val", cli.datamodule.validation_split)
            else:
                trainer.test(cli.model, cli.datamodule, verbose=False)
                self._keep("test", "test")
        files.write_text(self.folder / f"{self.command}.yaml", cli.dump())
        return 0

    def _keep(self, phase: Literal["val", "test"], split: str) -> None:
        """Print a score, and put it into metrics.json with what is needed to judge it."""
        score, checkpoint = self.cli.model.epoch_score(phase), self.cli.config.checkpoint
        entry: dict[str, Any] = {**score, "checkpoint": checkpoint, "split": split}
        if others := split_off(self.flags, "--checkpoint")[1]:
            entry["flags"] = others
        sentence = f"{describe_score(split, score)}, checkpoint {checkpoint}"
        if self.checkpoint.stem == "best":
            own = self.checkpoint.resolve().parents[1] == self.folder.resolve()
            entry["chosen_on"] = self.cli.datamodule.validation_split if own else "unknown"
            sentence += f", which was chosen on the {entry['chosen_on']} images"
        run_folder.update_metrics(self.folder, {phase: entry})
        print(f"{sentence[0].upper()}{sentence[1:]}\nWritten to {self.folder / 'metrics.json'}")


def prepare(command: str, options: list[str]) -> Callable[[], int]:
    """Check all input of an evaluation, and return the evaluation that is then left to do.

    Raises:
        ValueError, OSError, MisconfigurationException: The input is bad.
    """
    evaluation = read_evaluation(command, options)
    load_weights(evaluation.cli.model, evaluation.checkpoint)
    trainer = evaluation.make_trainer()
    if trainer.world_size > 1:
        raise ValueError(
            f"there are {trainer.world_size} processes, of which each would see a part: {command} "
            "needs one, so leave out torchrun, trainer.devices and trainer.num_nodes"
        )
    return partial(evaluation.run, trainer)


def read_evaluation(
    command: str, options: list[str], framework: run_folder.Framework = "torch"
) -> Evaluation:
    """Read a command line and the settings of the run that it names.

    Raises:
        ValueError, OSError, MisconfigurationException: The input is bad.
    """
    name = command.rpartition(" ")[2]
    make_cli = PredictionCLI if name == "predict" else EvaluationCLI
    if {"-h", "--help"} & set(options):
        make_cli(command, ["--help"])  # prints and exits
    files: list[str] = []
    if name == "predict":
        files, options = split_files(options)
    given, flags = split_off(options, "--run")
    if not given:
        raise ValueError(f"{command} needs trained weights: name a run, --run RUN_DIR or latest")
    folder = run_folder.find_run(given[-1])
    trained = yaml.safe_load((folder / "config.yaml").read_text("utf-8"))
    trained = {key: trained[key] for key in ("model", "data", "trainer", "seed_everything")}
    trained["trainer"] = {key: trained["trainer"][key] for key in TRAINER}
    cli = make_cli(command, ["--run", str(folder), *flags], base=yaml.safe_dump(trained))
    _check_data(cli, trained["data"])
    limit = f"limit_{'val' if name == 'validate' else name}_batches"
    if cli.config.trainer.get(limit) == 0:
        raise ValueError(f"trainer.{limit} is 0: leave at least one batch to measure")
    checkpoint = run_folder.find_checkpoint(folder, cli.config.checkpoint, framework)
    own = read_images(files, cli.config) if name == "predict" else None
    return Evaluation(name, cli, folder, flags, checkpoint, own)


def _check_data(cli: EvaluationCLI, trained: dict[str, Any]) -> None:
    ours = yaml.safe_load(cli.dump())["data"]
    if ours["class_path"] != trained["class_path"]:
        raise ValueError(
            f"data is {ours['class_path']}, but the run was trained on {trained['class_path']}: "
            "leave it out; other data can be measured in Python, by model.evaluate"
        )
    for name, value in ours["init_args"].items():
        theirs = trained["init_args"].get(name)
        if name not in DATA and value != theirs:
            raise ValueError(
                f"data.{name} is {value}, but the run was trained with {theirs}: leave it out, "
                "or train a run with it"
            )


def _write_predictions(batches: Sequence[Any], folder: Path) -> None:
    rows = list(_rows(batches))
    files.write_csv(folder / "predictions.csv", rows)
    right = sum(row["class"] == row["label"] for row in rows)
    print(f"{right} of {len(rows)} test images are classified right")
    print(f"Written to {folder / 'predictions.csv'}")


def _rows(batches: Sequence[Any]) -> Iterator[dict[str, Any]]:
    """Give a row for each image: `index` in the test split, and the columns of `predict_step`."""
    index = 0
    for batch in batches:
        columns = {
            name: values.tolist() if isinstance(values, torch.Tensor) else values
            for name, values in batch.items()
        }
        for values in zip(*columns.values(), strict=True):
            yield {"index": index, **dict(zip(columns, values, strict=True))}
            index += 1
