"""Results of runs: a CSV file with a line for each run, which several processes may append to."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import pandas as pd
from filelock import FileLock

from digitlab import files, run_folder
from digitlab.errors import InputError
from digitlab.reproduce.rows import Row
from digitlab.run_folder import Framework

Curve = tuple[tuple[int, float], ...]
"""Points: the number of optimizer steps, and the accuracy then, in [0, 1]."""

KEY = ["row", "framework", "seed"]
"""The columns that identify a run."""


@dataclass(frozen=True)
class Result:
    """The result of a run's last weights, in evaluation mode unless the config says otherwise."""

    row: str
    config: str  # such as `mnist/lenet5`
    recipe: str  # the digest of the config's settings, `Row.recipe`
    framework: Framework
    seed: int
    test_accuracy: float  # on the whole test split, in [0, 1]
    test_loss: float  # mean cross-entropy on the test split, in nats
    train_accuracy: float  # on the whole training split, after training, in [0, 1]
    optimizer_steps: int
    train_seconds: float | None  # wall time of the training alone; None if it was not recorded
    train_curve: Curve  # over each epoch's training batches, while the weights changed
    val_curve: Curve  # of each validation during training
    device: str  # such as `cpu (1 thread)`
    versions: str  # packages and versions, such as `torch 2.15.0`, separated by commas

    @property
    def key(self) -> tuple[str, Framework, int]:
        """The row, framework and seed, which identify the run."""
        return self.row, self.framework, self.seed

    @classmethod
    def of_run(cls, row: Row, folder: Path) -> Self:
        """Read the result of a finished run from its folder.

        Raises:
            ValueError: The run was not measured on the test split, or its loss is not finite.
        """
        metrics = run_folder.read_metrics(folder)
        if metrics.get("test", {}).get("loss") is None:
            raise ValueError(f"{folder} has no loss on the test split: it diverged, or held out")
        of_torch = metrics["framework"] == "torch"
        packages = ("torch", "lightning") if of_torch else ("keras", "tensorflow")
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
            versions=", ".join(f"{name} {metrics['versions'][name]}" for name in packages),
        )


def read(path: Path) -> list[Result]:
    """Read all results of a CSV file; an empty list if there is no file.

    Raises:
        InputError: The file is damaged, or of another kind.
    """
    try:
        return [_parse(line) for line in read_table(path).to_dict("records")]
    except (TypeError, ValueError) as error:
        raise InputError(f"{path} is not a results file: {error}") from error


def add(path: Path, results: Sequence[Result]) -> None:
    """Append results to a CSV file, except those of runs that are in it already."""
    append(path, [_format(result) for result in results], KEY)


def read_table(path: Path) -> pd.DataFrame:
    """Read a CSV file with every cell as text; an empty table if there is no file."""
    if not path.exists():
        return pd.DataFrame()
    table = pd.read_csv(path, dtype=object, keep_default_na=False, na_filter=False)
    return table.map(files.from_csv_cell)


def append(path: Path, lines: Sequence[dict[str, Any]], key: list[str]) -> None:
    """Append lines to a CSV file, atomically, except those whose key columns it has already."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with lock(path.parent, path.name):
        old = read_table(path)
        new = pd.DataFrame(lines, dtype=object).fillna("").astype(str)
        table = pd.concat([old, new]).drop_duplicates(key)
        if len(table) > len(old):
            table = table.map(files.csv_cell)
            files.write_text(path, table.to_csv(index=False, lineterminator="\n"))


def lock(out: Path, name: str) -> FileLock:
    """Make the lock of that name among all processes that work in the folder `out`."""
    folder = out / "runs" / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    return FileLock(folder / f"{name}.lock")


def _read_curve(folder: Path, tag: str) -> Curve:
    # Imports TensorFlow if it can, unless the command line has prevented that.
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})  # 0: keep every point
    events.Reload()
    if tag not in events.Tags()["scalars"]:
        return ()
    # Lightning counts from 0; TensorBoard keeps float32, which has six exact digits.
    return tuple((event.step + 1, round(event.value, 6)) for event in events.Scalars(tag))


def _format(result: Result) -> dict[str, Any]:
    curves = {
        name: " ".join(f"{step}:{value}" for step, value in getattr(result, name))
        for name in ("train_curve", "val_curve")
    }
    return asdict(result) | curves


def _parse(line: dict[str, str]) -> Result:
    if not line.get("versions"):
        raise ValueError(f"the line of {line.get('row')} is not complete")
    parsers: dict[str, Callable[[str], Any]] = {
        **dict.fromkeys(("seed", "optimizer_steps"), int),
        **dict.fromkeys(("test_accuracy", "test_loss", "train_accuracy"), float),
        **dict.fromkeys(("train_curve", "val_curve"), _parse_curve),
        "train_seconds": lambda text: float(text) if text else None,
    }
    return Result(**{name: parsers.get(name, str)(text) for name, text in line.items()})


def _parse_curve(text: str) -> Curve:
    points = (point.split(":") for point in text.split())
    return tuple((int(step), float(value)) for step, value in points)
