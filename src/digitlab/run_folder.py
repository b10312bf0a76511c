"""Run folders: `runs/<name>/version_N` holds a run's settings and results.

config.yaml, checkpoints (last.ckpt, previous.ckpt, best.ckpt), TensorBoard events, history.csv,
metrics.json, samples.png, curves.png; each later command adds its own config, such as test.yaml. A
Keras run also has its trained models, model.keras and checkpoints/best.keras.
"""

import json
import math
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from filelock import FileLock, Timeout

from digitlab import __version__
from digitlab.files import expand_path, load_yaml, naming, remove_partial_files, write_text
from digitlab.terminal import command

if TYPE_CHECKING:
    import pandas as pd

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

NEEDED: dict[str, type] = {
    **{"model.class_path": str, "data.class_path": str, "data.init_args": dict},
    **{"trainer.accelerator": str, "trainer.precision": object, "seed_everything": int},
}
"""The settings that are needed to build a run's network and data, and their types."""

CURVES = ("train_accuracy", "val_accuracy", "train_loss", "val_loss")
"""The columns of history.csv that are drawn."""


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


def short_name(folder: Path) -> str:
    """Return the last two parts of a folder's path, such as `mnist-lenet5/version_0`."""
    return "/".join(folder.resolve().parts[-2:])


def lock_run(folder: Path) -> AbstractContextManager[Any]:
    """Lock a run folder at once, until the end of the `with` block.

    Raises:
        ValueError: Another process trains there.
        OSError: The folder belongs to another user, or its file system has no locks.
    """
    check_writable(folder)
    try:
        # The operating system releases it when the process ends, however it ends.
        with naming(folder):
            return FileLock(folder / ".lock").acquire(timeout=0)
    except Timeout as error:
        raise ValueError(
            f"{folder} is being trained by another process: wait for its end, or stop it"
        ) from error


def check_writable(folder: Path) -> None:
    """Check that a run's files may be changed, before there is something to write.

    Raises:
        ValueError: They may not.
    """
    if not os.access(folder, os.W_OK | os.X_OK):
        copy = command("cp", "-r", folder, Path(f"my-{folder.resolve().name}"))
        raise ValueError(
            f"{folder} may not be written, as a run of another user, say: copy it, {copy}, and "
            "name the copy"
        )


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
        started = {}
        for path in root.glob("*/version_*/config.yaml"):
            with suppress(OSError):  # it cannot be read, or was removed meanwhile
                if path.is_file():
                    started[path.parent] = path.stat().st_mtime
        if not started:
            raise ValueError(f"there is no run in {root}: train one with digitlab fit")
        folder = max(started, key=lambda path: started[path])
    else:
        folder = expand_path(run)
    if not (folder / "config.yaml").is_file():
        reason = f"{folder} has no config.yaml, so it is not a run folder"
        if not folder.exists():
            reason = f"there is no folder {folder}"
        raise ValueError(
            f"{reason}: give the folder that digitlab fit printed at its end, or latest"
        )
    remove_partial_files(folder)
    return folder


def read_settings(path: Path, content: bytes | None = None) -> dict[str, Any]:
    """Read a YAML file of settings, or its content if that was read already.

    Raises:
        ValueError: It is not valid YAML in UTF-8, or has no settings.
        OSError: It cannot be read.
    """
    try:
        content = path.read_bytes() if content is None else content
        settings = load_yaml(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not text in UTF-8: {error}") from error
    except ValueError as error:
        raise ValueError(f"{path} is {error}") from error
    if not isinstance(settings, dict):
        raise ValueError(f"{path} has no settings: write them as `name: value`")
    return settings


def read_config(folder: Path, needed: Mapping[str, type] = {}) -> dict[str, Any]:
    """Read a run's config.yaml.

    Raises:
        ValueError: It is damaged, or a setting of `needed` is missing or of another type.
        OSError: It cannot be read.
    """
    path = folder / "config.yaml"
    try:
        config = read_settings(path)
        for name, kind in needed.items():
            try:
                value = reduce(getitem, name.split("."), config)
            except (KeyError, TypeError) as error:
                raise ValueError(f"lacks {name}, which every run has") from error
            if not isinstance(value, kind):
                raise ValueError(f"sets {name} to {value!r:.80}")
    except ValueError as error:
        reason = str(error).removeprefix(f"{path} ")
        raise ValueError(f"{path} is damaged: it {reason}; {_RESTORE}") from error
    return config


_RESTORE = "restore it from a copy, or train the run anew"


def framework(folder: Path) -> Framework:
    """Return the framework in which a run was trained.

    Runs of version 0.1 do not say so in their config.yaml; in Keras they left a model.keras.

    Raises:
        ValueError: The run's config.yaml is damaged, or names another framework.
    """
    old: Framework = "keras" if (folder / CHECKPOINTS["keras"]["last"]).exists() else "torch"
    named = read_config(folder).get("framework", old)
    if not isinstance(named, str) or named not in CHECKPOINTS:
        raise ValueError(
            f"{folder / 'config.yaml'} has framework {named}: it must be torch or keras"
        )
    found: Framework = named
    return found


def find_checkpoint(folder: Path, checkpoint: str) -> Path:
    """Find a trained model of a run: its `last` or `best` one, or that in any file.

    Raises:
        ValueError: There is no such file.
    """
    paths = CHECKPOINTS[framework(folder)]
    if checkpoint in paths:
        path = folder / paths[checkpoint]
        resume = command("digitlab", "fit", "--run", folder)
        remedy = f"resume the run, {resume}, or give the path of a checkpoint"
    else:
        path = Path(checkpoint)
        remedy = "give last, best or the path of a checkpoint"
    if not path.is_file():
        raise ValueError(f"there is no checkpoint {path}: {remedy}")
    return path


@contextmanager
def naming_newer_version(folder: Path) -> Iterator[None]:
    """Add to a `ValueError` of the `with` block that a newer digitlab wrote the run, if so."""
    try:
        yield
    except ValueError as error:
        made: Any = None
        with suppress(ValueError, OSError):  # damaged, too
            made = read_metrics(folder).get("versions")
        made = str(made.get("digitlab")) if isinstance(made, dict) else ""
        numbers, ours = ([*map(int, re.findall(r"\d{1,9}", it))] for it in (made, __version__))
        if numbers <= ours:
            raise
        raise ValueError(
            f"{error}; digitlab {made} wrote {folder}, and this is {__version__}: install that one"
        ) from error


def read_metrics(folder: Path) -> dict[str, Any]:
    """Read a run's metrics.json; empty before there is one.

    Raises:
        ValueError: It is damaged.
        OSError: It cannot be read.
    """
    path = folder / "metrics.json"
    if not path.exists():
        return {}
    try:
        metrics: Any = json.loads(path.read_text("utf-8"), parse_int=_read_int)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: it is not valid JSON; {_DELETE}") from error
    if not isinstance(metrics, dict):
        raise ValueError(f"{path} is damaged: it is not a JSON object; {_DELETE}")
    return metrics


def _read_int(digits: str) -> int:
    if len(digits) > 18:
        raise ValueError("more digits than any entry has")
    return int(digits)


_DELETE = "restore it from a copy, or delete it, and digitlab test writes a new one"


def read_history(folder: Path) -> "pd.DataFrame":
    """Read a run's history.csv, a row for each epoch; empty before there is one.

    Its columns are float64; numbers that are not finite become NaN, which is not drawn.

    Raises:
        ValueError: It is damaged.
        OSError: It cannot be read.
    """
    import pandas as pd  # takes a third of a second

    path = folder / "history.csv"
    if not path.exists():
        return pd.DataFrame()
    try:
        read = pd.read_csv(path)
        others = [name for name in ("step", "learning_rate", "seconds") if name in read]
        history = read[["epoch", *CURVES, *others]].astype(float)
    except OSError:
        raise
    except Exception as error:  # a damaged byte can lead the reader anywhere
        raise ValueError(
            f"{path} is damaged: its columns or numbers are wrong; {_RESTORE}"
        ) from error
    history = history.where(history.abs() < math.inf)
    limits = {"epoch": (0, 1e9), "accuracy": (0, 1), "loss": (-3.5e38, 3.5e38)}  # float32's
    limits |= {"step": (0, 1e18), "rate": limits["loss"], "seconds": (0, 1e18)}
    for name, values in history.items():
        least, most = limits[str(name).rpartition("_")[2]]
        is_right = values.between(least, most) | (values.isna() & (name != "epoch"))
        if len(wrong := values[~is_right]):
            raise ValueError(f"{path} is damaged: it has {name} {wrong.iloc[0]:g}; {_RESTORE}")
    return history


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
