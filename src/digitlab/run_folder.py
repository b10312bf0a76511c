"""Run folders: `runs/<name>/version_N` holds a run's settings and results.

config.yaml, checkpoints (last.ckpt, previous.ckpt, best.ckpt), TensorBoard events, history.csv,
metrics.json, samples.png, curves.png; each later command adds its own config, such as test.yaml. A
Keras run also has its trained models, model.keras and checkpoints/best.keras.
"""

import json
import math
import shutil
from collections.abc import Iterable
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any, Literal

import yaml
from filelock import FileLock, Timeout

from digitlab.files import write_text

Framework = Literal["torch", "keras"]
FRAMEWORKS: dict[Framework, str] = {"torch": "PyTorch", "keras": "Keras"}
"""The frameworks' names, in the order in which they are shown."""

LAST = "checkpoints/last.ckpt"
"""The checkpoint to resume from, in a run folder."""

CHECKPOINTS: dict[Framework, dict[str, str]] = {
    "torch": {"last": LAST, "best": "checkpoints/best.ckpt"},
    "keras": {"last": "model.keras", "best": "checkpoints/best.keras"},
}
"""Where in a run folder each framework's trained models are."""

NEEDED = (
    *("model.class_path", "data.class_path", "data.init_args"),
    *("trainer.accelerator", "trainer.precision", "seed_everything"),
)
"""The settings that are needed to build a run's network and data."""


def create_run_dir(root: Path, name: str) -> Path:
    """Create the next free folder `root/name/version_N`."""
    parent = root / name
    taken = [_version(folder) for folder in parent.iterdir()] if parent.is_dir() else []
    number = 1 + max(taken, default=-1)
    while True:
        folder = parent / f"version_{number}"
        try:
            folder.mkdir(parents=True)  # atomic: of several processes, one succeeds
        except FileExistsError:
            number += 1
        else:
            return folder


def lock_run(folder: Path) -> AbstractContextManager[Any]:
    """Lock a run folder at once, until the end of the `with` block.

    Raises:
        ValueError: Another process trains there.
    """
    try:
        # The operating system releases it when the process ends, however it ends.
        return FileLock(folder / ".lock").acquire(timeout=0)
    except Timeout as error:
        raise ValueError(
            f"{folder} is being trained by another process: wait for its end, or stop it"
        ) from error


def remove_run_dir(folder: Path) -> None:
    """Remove a run folder, and its parent if that is empty then."""
    shutil.rmtree(folder)
    with suppress(OSError):  # there are other runs of that name
        folder.parent.rmdir()


def find_run(run: str, root: Path = Path("runs")) -> Path:
    """Find a run folder.

    Args:
        run: A run folder, or `latest`, the run under `root` that was started last.
        root: Where `latest` looks.

    Raises:
        ValueError: There is no such run.
    """
    if run == "latest":
        configs = list(root.glob("*/version_*/config.yaml"))
        if not configs:
            raise ValueError(f"there is no run in {root}: train one with digitlab fit")
        return max(configs, key=lambda path: path.stat().st_mtime).parent
    if not Path(run, "config.yaml").is_file():
        raise ValueError(
            f"{run} has no config.yaml, so it is not a run folder: give the folder that "
            "digitlab fit printed at its end, or latest"
        )
    return Path(run)


def read_config(folder: Path, needed: Iterable[str] = ()) -> dict[str, Any]:
    """Read a run's config.yaml.

    Args:
        folder: The run folder.
        needed: Settings that it must have, such as `NEEDED`.

    Raises:
        ValueError: It is damaged, or lacks a setting.
        OSError: It cannot be read.
    """
    path = folder / "config.yaml"
    try:
        config = yaml.safe_load(path.read_text("utf-8"))
    except (UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: it is not valid YAML") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path} is damaged: it has no settings")
    for name in needed:
        value: Any = config
        for key in name.split("."):
            if not isinstance(value, dict) or key not in value:
                raise ValueError(f"{path} is damaged: it lacks {name}, which every run has")
            value = value[key]
    return config


def framework(folder: Path) -> Framework:
    """Return the framework in which a run was trained.

    Runs of version 0.1 do not say so in their config.yaml; in Keras they left a model.keras.
    """
    old: Framework = "keras" if (folder / CHECKPOINTS["keras"]["last"]).exists() else "torch"
    named = read_config(folder).get("framework", old)
    if named not in CHECKPOINTS:
        raise ValueError(
            f"{folder / 'config.yaml'} has framework {named}: it must be torch or keras"
        )
    found: Framework = named
    return found


def find_checkpoint(folder: Path, checkpoint: str) -> Path:
    """Find a trained model of a run.

    Args:
        folder: The run folder.
        checkpoint: `last`, `best`, or the path of any file.

    Raises:
        ValueError: There is no such file.
    """
    paths = CHECKPOINTS[framework(folder)]
    if checkpoint in paths:
        path = folder / paths[checkpoint]
        remedy = "train the run first, or give the path of a checkpoint"
    else:
        path = Path(checkpoint)
        remedy = "give last, best or the path of a checkpoint"
    if not path.is_file():
        raise ValueError(f"there is no checkpoint {path}: {remedy}")
    return path


def read_metrics(folder: Path) -> dict[str, Any]:
    """Read a run's metrics.json; empty before there is one."""
    path = folder / "metrics.json"
    metrics: dict[str, Any] = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    return metrics


def update_metrics(folder: Path, metrics: dict[str, Any]) -> None:
    """Set entries of a run's metrics.json, and keep the others."""
    write_metrics(folder, read_metrics(folder) | metrics)


def write_metrics(folder: Path, metrics: dict[str, Any]) -> None:
    """Write a run's metrics.json; NaN and infinity become null."""
    text = json.dumps(_finite(metrics), indent=2, allow_nan=False)
    write_text(folder / "metrics.json", text + "\n")


def _finite(value: Any) -> Any:
    # JSON has no NaN: most readers refuse a file with one.
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _version(folder: Path) -> int:
    prefix, _, number = folder.name.partition("_")
    return int(number) if prefix == "version" and number.isdecimal() else -1
