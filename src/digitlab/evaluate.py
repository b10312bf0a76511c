"""`digitlab validate`, `test` and `predict`: what a trained network gives on whole splits."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningArgumentParser

from digitlab import predict_images, runs
from digitlab.arguments import RunCLI, split_off
from digitlab.scores import describe
from digitlab.signals import StopSignals
from digitlab.weights import load_weights

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
        predict_images.add_options(parser)


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
    own: predict_images.OwnImages | None = None

    def make_trainer(self, **settings: Any) -> Trainer:
        """Read the data, and make the trainer.

        Raises:
            ValueError, OSError, MisconfigurationException: The input is bad.
        """
        if self.own:
            settings |= predict_images.TRAINER
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
        runs.write_text(self.folder / f"{self.command}.yaml", cli.dump())
        return 0

    def _keep(self, phase: Literal["val", "test"], split: str) -> None:
        """Print a score, and put it into metrics.json with what is needed to judge it."""
        score, checkpoint = self.cli.model.epoch_score(phase), self.cli.config.checkpoint
        entry: dict[str, Any] = {**score, "checkpoint": checkpoint, "split": split}
        if others := split_off(self.flags, "--checkpoint")[1]:
            entry["flags"] = others
        sentence = f"{describe(split, score)}, checkpoint {checkpoint}"
        if self.checkpoint.stem == "best":
            own = self.checkpoint.resolve().parents[1] == self.folder.resolve()
            entry["chosen_on"] = self.cli.datamodule.validation_split if own else "unknown"
            sentence += f", which was chosen on the {entry['chosen_on']} images"
        runs.update_metrics(self.folder, {phase: entry})
        print(f"{sentence[0].upper()}{sentence[1:]}\nWritten to {self.folder / 'metrics.json'}")


def prepare(command: str, options: list[str]) -> Callable[[], int]:
    """Check all input of an evaluation, and return the evaluation that is then left to do.

    Raises:
        ValueError, OSError, MisconfigurationException: The input is bad.
    """
    evaluation = read_options(command, options)
    load_weights(evaluation.cli.model, evaluation.checkpoint)
    trainer = evaluation.make_trainer()
    if trainer.world_size > 1:
        raise ValueError(
            f"there are {trainer.world_size} processes, of which each would see a part: {command} "
            "needs one, so leave out torchrun, trainer.devices and trainer.num_nodes"
        )
    return partial(evaluation.run, trainer)


def read_options(
    command: str, options: list[str], framework: runs.Framework = "torch"
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
        files, options = predict_images.split_files(options)
    given, flags = split_off(options, "--run")
    if not given:
        raise ValueError(f"{command} needs trained weights: name a run, --run RUN_DIR or latest")
    folder = runs.find(given[-1])
    trained = yaml.safe_load((folder / "config.yaml").read_text("utf-8"))
    trained = {key: trained[key] for key in ("model", "data", "trainer", "seed_everything")}
    trained["trainer"] = {key: trained["trainer"][key] for key in TRAINER}
    cli = make_cli(command, ["--run", str(folder), *flags], base=yaml.safe_dump(trained))
    _check_data(cli, trained["data"])
    limit = f"limit_{'val' if name == 'validate' else name}_batches"
    if cli.config.trainer.get(limit) == 0:
        raise ValueError(f"trainer.{limit} is 0: leave at least one batch to measure")
    checkpoint = runs.find_checkpoint(folder, cli.config.checkpoint, framework)
    own = predict_images.read_options(files, cli.config) if name == "predict" else None
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
    runs.write_csv(folder / "predictions.csv", rows)
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
