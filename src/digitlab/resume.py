"""`digitlab fit --run RUN_DIR`: what a run goes on from, and whether it still is the same run."""

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from digitlab import checkpoints, runs
from digitlab.processes import say_once

FREE = (
    "allow_changes",
    "checkpoint_every_n_minutes",
    "checkpoint_every_n_steps",
    "data.init_args.root",
    "trainer.default_root_dir",
    "trainer.enable_progress_bar",
    "trainer.max_epochs",
    "trainer.max_steps",
    "trainer.max_time",
    "trainer.profiler",
    "weights",
)
"""Settings that may differ from the run's: they change how long it is, or nothing that it gives."""

_JOB = ".slurm_job"


@dataclass
class Start:
    """Where a run starts, or goes on.

    Args:
        again: Whether the run was started before.
        checkpoint: The file to go on from; none for the beginning, where nothing was saved.
        step: Optimizer steps that are done.
        world_size: Processes that the run had, 0 where nothing was saved.
        finished: Whether the run has come to its end already, in words; empty if not.
    """

    again: bool = False
    checkpoint: Path | None = None
    step: int = 0
    world_size: int = 0
    finished: str = ""

    def check_processes(self, world_size: int, allow_changes: bool) -> None:
        """Compare the number of processes with what the run had.

        Raises:
            ValueError: It differs, so that batches and random numbers would.
        """
        if self.world_size not in (0, world_size) and not allow_changes:
            raise ValueError(
                f"there are {world_size} processes, but the run had {self.world_size}: start as "
                "many, or add --allow_changes true and give up the exact result"
            )

    def describe(self) -> str:
        """Say in words where the run goes on."""
        if self.checkpoint:
            return f"Going on from {self.checkpoint}, step {self.step}"
        return "Starting over: nothing was saved"


def find_start(folder: Path, settings: str, allow_changes: bool = False) -> Start:
    """Choose what a run goes on from: its last checkpoint, the one before, or its beginning.

    Args:
        folder: The run folder.
        settings: All settings that it is to go on with, as YAML.
        allow_changes: Accept any, also those that may change what the run gives.

    Raises:
        ValueError: A setting differs from the run's, the run is past a limit already, or it was
            not written by `digitlab fit`.
    """
    ours, theirs = yaml.safe_load(settings), _read_settings(folder)
    if not allow_changes:
        _check_same(dict(_leaves(ours)), dict(_leaves(theirs)), folder)
    limits = _limits(ours["trainer"])
    for path, content in _readable(folder):
        if "exact_resume" not in content or not content.get("optimizer_states"):
            raise ValueError(f"{path} has weights only: start a new run, --weights {path}")
        state, step = content["exact_resume"], content["global_step"]
        epochs = content["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]
        done = (epochs, step)
        for name, limit, count in zip(("max_epochs", "max_steps"), limits, done, strict=True):
            if 0 <= limit < count:
                raise ValueError(f"trainer.{name} is {limit}, but the run has had {count} already")
        stopped = state["stopped"] and _times(ours) == _times(theirs)
        start = Start(True, path, step, len(state["processes"]))
        if not stopped and epochs != limits[0] and step != limits[1]:
            return start
        if runs.read_metrics(folder).get("optimizer_steps") == step:
            start.finished = f"{epochs} epochs, {step} steps; a larger --trainer.max_epochs goes on"
            return start
        # All was trained, but the results were not written yet: the end is trained once more.
    return Start(again=True)


def _check_same(ours: dict[str, Any], theirs: dict[str, Any], folder: Path) -> None:
    for name, value in ours.items():
        if name not in theirs or name.startswith(FREE) or theirs[name] == value:
            continue
        option = name.replace(".init_args", "").removesuffix(".class_path")
        raise ValueError(
            f"{option} is {value}, but the run in {folder} was started with {theirs[name]}: "
            "leave it out, or add --allow_changes true and give up the exact result"
        )


def _readable(folder: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    for name in ("last", "previous"):
        path = folder / runs.CHECKPOINTS["torch"][name]
        if path.exists():
            try:
                yield path, checkpoints.read(path)
            except ValueError:
                sentence = f"{path} is damaged: going on from the checkpoint before"
                say_once(f"digitlab: warning: {sentence}", sys.stderr)


def _read_settings(folder: Path) -> dict[str, Any]:
    settings: dict[str, Any] = yaml.safe_load((folder / "config.yaml").read_text("utf-8"))
    return settings


def _limits(trainer: dict[str, Any]) -> tuple[int, int]:
    """Give `max_epochs` and `max_steps` as Lightning takes them, -1 for none."""
    epochs, steps = trainer["max_epochs"], trainer["max_steps"]
    if epochs is None:
        epochs = 1000 if steps == -1 and trainer["max_time"] is None else -1
    return epochs, steps


def _times(settings: dict[str, Any]) -> list[Any]:
    return [settings["trainer"][name] for name in ("max_epochs", "max_steps", "max_time")]


def _leaves(tree: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Give the values of nested settings by their dotted names.

    >>> dict(_leaves({"a": {"b": 1, "c": [2]}}))
    {'a.b': 1, 'a.c': [2]}
    """
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from _leaves(value, f"{name}.{key}" if name else str(key))
    else:
        yield name, tree


def note_job(folder: Path) -> None:
    """Note in a new run's folder which SLURM job it is of, if any."""
    if job := _job():
        runs.write_text(folder / _JOB, job)


def requeued(parent: Path) -> Path | None:
    """Find the folder of the run that this SLURM job had started before it was requeued."""
    if int(os.environ.get("SLURM_RESTART_COUNT", "0")) == 0:
        return None
    notes = parent.glob(f"version_*/{_JOB}")
    return next((note.parent for note in notes if note.read_text("utf-8") == _job()), None)


def _job() -> str:
    # A job script may train one run after another, each a step of the job.
    names = ("SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID", "SLURM_STEP_ID")
    return " ".join(os.environ[name] for name in names if name in os.environ)
