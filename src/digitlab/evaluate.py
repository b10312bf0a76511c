"""`digitlab validate`, `test` and `predict`: what a trained network gives on whole splits."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningArgumentParser

from digitlab import runs
from digitlab.arguments import RunCLI, ctrl_c_raises, split_off
from digitlab.scores import describe
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


def prepare(command: str, options: list[str]) -> Callable[[], None]:
    """Check all input of an evaluation, and return the evaluation that is then left to do.

    Raises:
        ValueError, OSError, MisconfigurationException: The input is bad.
    """
    if {"-h", "--help"} & set(options):
        EvaluationCLI(command, ["--help"])  # prints and exits
    given, flags = split_off(options, "--run")
    if not given:
        raise ValueError(f"{command} needs trained weights: name a run, --run RUN_DIR or latest")
    folder = runs.find(given[-1])
    trained = yaml.safe_load((folder / "config.yaml").read_text("utf-8"))
    trained = {key: trained[key] for key in trained.keys() - {"name", "weights"}}
    trained["trainer"] = {key: trained["trainer"][key] for key in TRAINER}
    cli = EvaluationCLI(command, ["--run", str(folder), *flags], base=yaml.safe_dump(trained))
    _check_data(cli, trained["data"])
    limit = f"limit_{'val' if command == 'validate' else command}_batches"
    if cli.config.trainer[limit] == 0:
        raise ValueError(f"trainer.{limit} is 0: leave at least one batch to measure")
    load_weights(cli.model, runs.find_checkpoint(folder, cli.config.checkpoint))
    cli.datamodule.setup(command)
    trainer = cli.instantiate_trainer(logger=False, enable_checkpointing=False)
    evaluate = {"validate": _validate, "test": _test, "predict": _predict}[command]

    def run() -> None:
        with ctrl_c_raises(trainer):
            evaluate(cli, trainer, folder, flags)
        runs.write_text(folder / f"{command}.yaml", cli.dump())

    return run


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


def _validate(cli: EvaluationCLI, trainer: Trainer, folder: Path, flags: list[str]) -> None:
    trainer.validate(cli.model, cli.datamodule, verbose=False)
    _keep(cli, folder, flags, "val", cli.datamodule.validation_split)


def _test(cli: EvaluationCLI, trainer: Trainer, folder: Path, flags: list[str]) -> None:
    trainer.test(cli.model, cli.datamodule, verbose=False)
    _keep(cli, folder, flags, "test", "test")


def _keep(
    cli: EvaluationCLI, folder: Path, flags: list[str], phase: Literal["val", "test"], split: str
) -> None:
    """Print a score, and put it into metrics.json with what is needed to judge it."""
    score, checkpoint = cli.model.epoch_score(phase), cli.config.checkpoint
    entry: dict[str, Any] = {**score, "checkpoint": checkpoint, "split": split}
    if others := split_off(flags, "--checkpoint")[1]:
        entry["flags"] = others
    sentence = f"{describe(split, score)}, checkpoint {checkpoint}"
    path = runs.find_checkpoint(folder, checkpoint)
    if path.name == "best.ckpt":
        own = path.resolve().parents[1] == folder.resolve()
        entry["chosen_on"] = cli.datamodule.validation_split if own else "unknown"
        sentence += f", which was chosen on the {entry['chosen_on']} images"
    runs.update_metrics(folder, {phase: entry})
    print(f"{sentence[0].upper()}{sentence[1:]}\nWritten to {folder / 'metrics.json'}")


def _predict(cli: EvaluationCLI, trainer: Trainer, folder: Path, flags: list[str]) -> None:
    rows = list(_rows(trainer.predict(cli.model, cli.datamodule) or []))
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
