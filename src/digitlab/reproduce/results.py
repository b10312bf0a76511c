"""What runs gave: one CSV, a line for each run, which several processes may append to."""

import csv
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from filelock import FileLock

from digitlab import files, run_folder
from digitlab.reproduce.rows import Row
from digitlab.run_folder import Framework

csv.field_size_limit(2**30)  # of a curve with a point for each step, too

Curve = tuple[tuple[int, float], ...]
"""Points: after how many optimizer steps, which accuracy in [0, 1]."""


@dataclass(frozen=True)
class Result:
    """What one run gave: the last weights, in evaluation mode unless the config says otherwise.

    Args:
        row: The row's name.
        config: The config, such as `mnist/lenet5`.
        recipe: The digest of the config's settings, `Row.recipe`.
        framework: `torch` or `keras`.
        seed: The run's seed.
        test_accuracy: Accuracy on the whole test split, in [0, 1].
        test_loss: Mean cross-entropy there, in nats.
        train_accuracy: Accuracy on the whole training split, after training, in [0, 1].
        optimizer_steps: Number of optimizer steps.
        train_seconds: Wall time of the training alone; None where it was not kept.
        train_curve: Accuracy over each epoch's training batches, while the weights changed.
        val_curve: Accuracy of each validation during training.
        device: The hardware, such as `cpu (1 thread)`.
        versions: Packages and versions, such as `torch 2.15.0`, separated by commas.
    """

    row: str
    config: str
    recipe: str
    framework: Framework
    seed: int
    test_accuracy: float
    test_loss: float
    train_accuracy: float
    optimizer_steps: int
    train_seconds: float | None
    train_curve: Curve
    val_curve: Curve
    device: str
    versions: str

    @property
    def key(self) -> tuple[str, Framework, int]:
        """What makes it the result of one item, and no other's."""
        return self.row, self.framework, self.seed

    @property
    def dataset(self) -> str:
        """The data set's name."""
        return self.config.partition("/")[0]

    @classmethod
    def of_run(cls, row: Row, folder: Path) -> Self:
        """Read what a finished run left in its folder.

        Raises:
            ValueError: It was not measured on the test split, or its loss is no number.
        """
        metrics = run_folder.read_metrics(folder)
        if metrics.get("test", {}).get("loss") is None:
            raise ValueError(f"{folder} has no loss on the test split: it diverged, or held out")
        of_torch = metrics["framework"] == "torch"
        shown = ("torch", "lightning") if of_torch else ("keras", "tensorflow")
        return cls(
            row=row.name,
            config=f"{row.dataset}/{row.config.stem}",
            recipe=row.recipe,
            framework=metrics["framework"],
            seed=metrics["seed"],
            test_accuracy=metrics["test"]["accuracy"],
            test_loss=round(metrics["test"]["loss"], 6),
            train_accuracy=round(metrics["train"]["accuracy"], 6),
            optimizer_steps=metrics["optimizer_steps"],
            train_seconds=round(metrics["phases"]["training"], 1),
            train_curve=_read_curve(folder, "train/accuracy"),
            val_curve=_read_curve(folder, "val/accuracy"),
            device=metrics["device"],
            versions=", ".join(f"{name} {metrics['versions'][name]}" for name in shown),
        )


def read(path: Path) -> list[Result]:
    """Read all results of a CSV file; none where there is no file.

    Raises:
        ValueError: The file is something else, or damaged.
    """
    try:
        return [_from_text(line) for line in read_lines(path)]
    except (AttributeError, KeyError, TypeError, ValueError, csv.Error) as error:
        raise ValueError(f"{path} is no file of results: {error!r}") from error


def add(path: Path, results: Sequence[Result]) -> None:
    """Append results to a CSV file, unless those of the same run are in it already."""
    add_lines(path, [_to_text(result) for result in results], ("row", "framework", "seed"))


def read_lines(path: Path) -> list[dict[str, str]]:
    """Read the lines of a CSV file; none where there is no file."""
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def add_lines(path: Path, lines: Sequence[dict[str, Any]], key: tuple[str, ...]) -> None:
    """Append lines to a CSV file, whole or not at all, but for those whose key is there already."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with lock(path.parent, path.name):
        old = read_lines(path)
        there = {tuple(line[name] for name in key) for line in old}
        new = [line for line in lines if tuple(str(line[name]) for name in key) not in there]
        if new:
            files.write_csv(path, [*old, *new])


def lock(out: Path, name: str) -> FileLock:
    """Make the lock of that name among all processes that work in the folder `out`."""
    folder = out / "runs" / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    return FileLock(folder / f"{name}.lock")


def _read_curve(folder: Path, tag: str) -> Curve:
    # It imports TensorFlow where it can, unless the command line has prevented that.
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})  # 0: keep every point
    events.Reload()
    if tag not in events.Tags()["scalars"]:
        return ()
    # Lightning counts from 0; TensorBoard keeps float32, of which six digits are exact.
    return tuple((event.step + 1, round(event.value, 6)) for event in events.Scalars(tag))


def _to_text(result: Result) -> dict[str, str]:
    line = {name: "" if value is None else str(value) for name, value in asdict(result).items()}
    for name in ("train_curve", "val_curve"):
        line[name] = " ".join(f"{step}:{value}" for step, value in getattr(result, name))
    return line


def _from_text(line: dict[str, str]) -> Result:
    if None in line.values():
        raise ValueError(f"half a line, of {line['row']}")
    pairs = {
        name: [point.split(":") for point in line[name].split()]
        for name in ("train_curve", "val_curve")
    }
    curves = {
        name: tuple((int(step), float(value)) for step, value in points)
        for name, points in pairs.items()
    }
    return Result(
        row=line["row"],
        config=line["config"],
        recipe=line["recipe"],
        framework="keras" if line["framework"] == "keras" else "torch",
        seed=int(line["seed"]),
        test_accuracy=float(line["test_accuracy"]),
        test_loss=float(line["test_loss"]),
        train_accuracy=float(line["train_accuracy"]),
        optimizer_steps=int(line["optimizer_steps"]),
        train_seconds=float(line["train_seconds"]) if line["train_seconds"] else None,
        train_curve=curves["train_curve"],
        val_curve=curves["val_curve"],
        device=line["device"],
        versions=line["versions"],
    )
