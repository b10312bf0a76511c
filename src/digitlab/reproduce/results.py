"""Results of runs: a CSV file with a line for each run, which several processes may append to."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Self

import pandas as pd
from filelock import FileLock
from jsonargparse.typing import (
    ClosedUnitInterval,
    NonNegativeFloat,
    NonNegativeInt,
    NotEmptyStr,
    PositiveInt,
    restricted_string_type,
)

from digitlab import files, run_folder
from digitlab.errors import InputError
from digitlab.reproduce.rows import Row
from digitlab.run_folder import Framework

Curve = tuple[tuple[int, float], ...]
"""Points: the number of optimizer steps, and the accuracy then, in [0, 1]."""


@dataclass(frozen=True)
class Result:
    """The result of a run's last weights, in evaluation mode unless the config says otherwise."""

    row: str
    config: str  # the data set, and the config's name without folder, such as `mnist/lenet5`
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
    device: str  # a GPU, or CPU and threads; `cpu (1 thread)` where its model was not recorded
    versions: str  # such as `digitlab 0.1.0`, separated by commas; digitlab's came later

    @property
    def key(self) -> tuple[str, Framework, int]:
        """The row, framework and seed, which identify the run."""
        return self.row, self.framework, self.seed

    @classmethod
    def of_run(cls, row: Row, folder: Path) -> Self:
        """Read the result of a finished run from its folder.

        Raises:
            ValueError: The run was not measured on the test split, its loss is not finite, or its
                metrics.json is damaged.
        """
        metrics = run_folder.read_metrics(folder)
        try:
            if metrics.get("test", {}).get("loss") is None:
                raise InputError(f"{folder} has no loss on the test split: its training diverged")
            framework, steps = metrics["framework"], metrics["optimizer_steps"]
            packages = ("torch", "lightning") if framework == "torch" else ("keras", "tensorflow")
            versions = (f"{name} {metrics['versions'][name]}" for name in ("digitlab", *packages))
            result = cls(
                row=row.name,
                config=f"{metrics['dataset']}/{row.config.stem}",
                recipe=row.recipe,
                framework=framework,
                seed=metrics["seed"],
                test_accuracy=metrics["test"]["accuracy"],
                test_loss=round(metrics["test"]["loss"], 6),
                train_accuracy=round(metrics["train"]["accuracy"], 6),
                optimizer_steps=steps,
                train_seconds=round(metrics["phases"]["training"], 1),
                train_curve=_read_curve(folder, "train/accuracy", steps),
                val_curve=_read_curve(folder, "val/accuracy", steps),
                device=_describe_device(metrics),
                versions=", ".join(versions),
            )
            _parse(_format(result))  # a check of its values
        except InputError:
            raise
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            path = folder / "metrics.json"
            raise ValueError(f"{path} is damaged, {error}: remove the run, and train it") from error
        return result


def read(path: Path) -> list[Result]:
    """Read all results of a CSV file; an empty list if there is no file.

    Raises:
        InputError: The file is damaged, or of another kind.
    """
    results: dict[Any, Result] = {}
    for number, line in enumerate(_read_table(path).to_dict("records"), start=1):
        try:
            result = _parse(line)
            if results.setdefault(result.key, result) is not result:
                raise ValueError(f"{result.row} {result.framework} seed {result.seed} is repeated")
        except ValueError as error:
            raise _damaged(path, f"in run {number}, {error}") from error
    return [*results.values()]


def add(path: Path, results: Sequence[Result]) -> None:
    """Append results to a CSV file, atomically, except those of runs that are in it already."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with lock(path.parent, path.name):
        old, new = _read_table(path), pd.DataFrame(map(_format, results), dtype=object)
        table = pd.concat([old, new]).drop_duplicates(["row", "framework", "seed"])
        if len(table) > len(old):
            text = table.map(files.csv_cell).to_csv(index=False, lineterminator="\n")
            files.write_text(path, text)


def _read_table(path: Path) -> pd.DataFrame:
    """Read a CSV file with every cell as text; an empty table if there is no file."""
    if not path.exists():
        return pd.DataFrame()
    try:
        table = pd.read_csv(path, dtype=object, keep_default_na=False, na_filter=False)
    except ValueError as error:
        raise _damaged(path, str(error)) from error
    return table.map(files.from_csv_cell)


def _damaged(path: Path, reason: str) -> InputError:
    return InputError(f"{path} is damaged or of another kind: {reason}; restore it or move it away")


def lock(out: Path, name: str) -> FileLock:
    """Make a lock, for all processes that work in the folder `out`."""
    folder = out / "runs" / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    return FileLock(folder / f"{name}.lock")


def _describe_device(metrics: dict[str, Any]) -> str:
    """Name the device, a CPU by its model and the number of threads."""
    device = str(metrics["device"])
    threads = re.fullmatch(r"cpu \((.+)\)", device)
    return f"{metrics['cpu']}, {threads[1]}" if threads and "cpu" in metrics else device


def list_devices(measured: Sequence[Result]) -> str:
    """Write a Markdown table of the devices that runs were trained on, the most used first."""
    counts = Counter(
        re.sub(r"^cpu \((.+)\)$", r"CPU unrecorded, \1", result.device) for result in measured
    )
    lines = [f"| {device} | {count} |" for device, count in counts.most_common()]
    return "\n".join(["| device | runs |", "| --- | --- |", *lines])


def _read_curve(folder: Path, tag: str, steps: int) -> Curve:
    # Imports TensorFlow if it can, unless the command line has prevented that.
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})  # 0: keep every point
    events.Reload()
    if tag not in events.Tags()["scalars"]:
        return ()
    # Lightning counts from 0; TensorBoard keeps float32, which has six exact digits. The final
    # evaluation is logged behind the last step.
    points = ((event.step + 1, round(event.value, 6)) for event in events.Scalars(tag))
    return tuple(point for point in points if point[0] <= steps)


def _format(result: Result) -> dict[str, str]:
    cells = {name: "" if value is None else str(value) for name, value in asdict(result).items()}
    for name in ("train_curve", "val_curve"):
        cells[name] = " ".join(f"{step}:{value}" for step, value in getattr(result, name))
    return cells


def _parse(line: dict[str, str]) -> Result:
    values: dict[str, Any] = {}
    for name in (field.name for field in fields(Result)):
        parse: Any = _PARSERS.get(name, NotEmptyStr)
        try:
            values[name] = parse(line.get(name, ""))
        except ValueError as error:
            raise ValueError(f"{name} is {line.get(name, '')!r:.30}") from error
    return Result(**values)


def _parse_curve(text: str) -> Curve:
    points = (point.split(":") for point in text.split())
    return tuple((PositiveInt(step), ClosedUnitInterval(value)) for step, value in points)


_PARSERS: dict[str, Any] = {
    "framework": restricted_string_type("FrameworkName", "^(torch|keras)$"),
    "seed": NonNegativeInt,
    **dict.fromkeys(("test_accuracy", "train_accuracy"), ClosedUnitInterval),
    "test_loss": NonNegativeFloat,
    "optimizer_steps": PositiveInt,
    "train_seconds": lambda text: NonNegativeFloat(text) if text else None,
    **dict.fromkeys(("train_curve", "val_curve"), _parse_curve),
}
