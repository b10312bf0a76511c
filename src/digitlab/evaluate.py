"""`digitlab validate`, `test` and `predict`: what a trained network gives on whole splits."""

import csv
import io
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningArgumentParser

from digitlab import runs
from digitlab.arguments import RunCLI, split_off
from digitlab.callbacks.results import describe
from digitlab.weights import load_weights


class EvaluationCLI(RunCLI):
    """The options of `digitlab validate`, `test` and `predict`."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the options that name trained weights."""
        parser.add_argument("--run", type=str, help="Run folder, or latest. Required.")
        parser.add_argument(
            "--checkpoint", type=str, default="last", help="last, best, or a checkpoint's path."
        )


def prepare(command: str, options: list[str]) -> Callable[[], None]:
    """Check all input of an evaluation, and return the evaluation that is then left to do.

    Raises:
        ValueError, OSError, MisconfigurationException: The input is bad.
    """
    if {"-h", "--help"} & set(options):
        EvaluationCLI(command, ["--help"])  # prints and exits
    given, others = split_off(options, "--run")
    if not given:
        raise ValueError(f"{command} needs trained weights: name a run, --run RUN_DIR or latest")
    folder = runs.find(given[-1])
    cli = EvaluationCLI(command, ["--config", _config_of(folder), "--run", str(folder), *others])
    load_weights(cli.model, runs.find_checkpoint(folder, cli.config.checkpoint))
    cli.datamodule.setup(command)
    trainer = cli.instantiate_trainer(logger=False, enable_checkpointing=False)
    evaluate = {"validate": _validate, "test": _test, "predict": _predict}[command]

    def run() -> None:
        runs.write_text(folder / f"{command}.yaml", cli.dump())
        evaluate(cli, trainer, folder)

    return run


def _config_of(folder: Path) -> str:
    """Read a run's config, as a string, without the options that only training has."""
    config = yaml.safe_load((folder / "config.yaml").read_text("utf-8"))
    return json.dumps({key: config[key] for key in config.keys() - {"name", "weights"}})


def _validate(cli: EvaluationCLI, trainer: Trainer, folder: Path) -> None:
    trainer.validate(cli.model, cli.datamodule, verbose=False)
    _keep(cli, folder, "val")


def _test(cli: EvaluationCLI, trainer: Trainer, folder: Path) -> None:
    trainer.test(cli.model, cli.datamodule, verbose=False)
    _keep(cli, folder, "test")


def _keep(cli: EvaluationCLI, folder: Path, phase: Literal["val", "test"]) -> None:
    """Print a score, and put it into metrics.json with what is needed to judge it."""
    held_out = "validation" if cli.datamodule.validation_size else "test"
    split = held_out if phase == "val" else "test"
    score, checkpoint = cli.model.epoch_score(phase), cli.config.checkpoint
    entry: dict[str, Any] = {**score, "checkpoint": checkpoint, "split": split}
    sentence = f"{describe(split, score)}, checkpoint {checkpoint}"
    if checkpoint == "best":
        entry["chosen_on"] = held_out
        sentence += f", which was chosen on the {held_out} images"
    runs.update_metrics(folder, {phase: entry})
    print(f"{sentence[0].upper()}{sentence[1:]}\nWritten to {folder / 'metrics.json'}")


def _predict(cli: EvaluationCLI, trainer: Trainer, folder: Path) -> None:
    rows = list(_rows(trainer.predict(cli.model, cli.datamodule) or []))
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    path = folder / "predictions.csv"
    runs.write_text(path, text.getvalue())
    right = sum(row["class"] == row["label"] for row in rows)
    print(f"{right} of {len(rows)} test images are classified right\nWritten to {path}")


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
