"""`digitlab fit --run RUN_DIR`: what a run goes on from, and whether it still is the same run."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from digitlab import checkpoints, run_folder
from digitlab.distributed import print_rank_zero

FREE = (
    "checkpoint_every_n_minutes",
    "checkpoint_every_n_steps",
    "data.init_args.root",
    "trainer.default_root_dir",
    "trainer.enable_progress_bar",
    "trainer.max_epochs",
    "trainer.max_steps",
    "trainer.max_time",
    "trainer.profiler",
)
"""Settings that may differ from the run's: they change how long it is, or nothing that it gives."""

# A checkpoint's optimizer and scheduler would win over settings of them.
_FIXED = ("model.init_args.optimizer", "model.init_args.lr_scheduler")


@dataclass
class ResumePoint:
    """Where a run starts, or goes on.

    Args:
        again: Whether the run was started before.
        checkpoint: The file to go on from; none for the beginning, where nothing was saved.
        step: Optimizer steps that are done.
        world_size: Processes that the run had, 0 where nothing was saved.
        trained: Whether all is trained already, and only the results are to be measured.
        finished: Whether they are written too, in words; empty if not.
    """

    again: bool = False
    checkpoint: Path | None = None
    step: int = 0
    world_size: int = 0
    trained: bool = False
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


def find_resume_point(folder: Path, settings: str, allow_changes: bool = False) -> ResumePoint:
    """Choose what a run goes on from: its last checkpoint, the one before, or its beginning.

    Args:
        folder: The run folder.
        settings: All settings that it is to go on with, as YAML.
        allow_changes: Accept any but those of optimizer and scheduler.

    Raises:
        ValueError: A setting differs from the run's, the run is past a limit already, or there is
            no checkpoint that it could go on from.
        OSError: A checkpoint cannot be read.
    """
    ours = yaml.safe_load(settings)
    if ours["trainer"].get("enable_checkpointing") is False:
        raise ValueError(f"{folder} keeps no checkpoints to go on from: start a new run")
    path, content = _read_last(folder)
    if path is None:
        theirs = yaml.safe_load((folder / "config.yaml").read_text("utf-8"))
        _check_same(ours, theirs, folder, allow_changes)
        return ResumePoint(again=True)
    if "exact_resume" not in content:
        raise ValueError(
            f"{path} is of an older digitlab or of another program, without what a run goes on "
            f"from: start a new run, --weights {path}"
        )
    state, step = content["exact_resume"], content["global_step"]
    # Not those in config.yaml, which may have been edited since.
    theirs = yaml.safe_load(state["settings"])
    _check_same(ours, theirs, folder, allow_changes)
    epochs = content["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]
    start = ResumePoint(True, path, step, len(state["processes"]))
    start.trained = _is_at_limit(ours["trainer"], epochs, step)
    if state["stopped"] and _times(ours) == _times(theirs):
        start.trained = True  # a callback has ended it
    if start.trained and run_folder.read_metrics(folder).get("optimizer_steps") == step:
        longer = "a larger --trainer.max_epochs or max_steps goes on"
        start.finished = f"{epochs} epochs, {step} steps; {longer}"
    return start


def _read_last(folder: Path) -> tuple[Path | None, dict[str, Any]]:
    """Read the last checkpoint that is whole; None where none was written."""
    last = folder / run_folder.CHECKPOINTS["torch"]["last"]
    paths = [path for path in (last, last.with_name("previous.ckpt")) if path.exists()]
    for path in paths:
        try:
            return path, checkpoints.read_checkpoint(path)
        except ValueError as error:
            if path == paths[-1]:
                raise
            sentence = f"{error}; going on from {paths[-1]}"
            print_rank_zero(f"digitlab: warning: {sentence}", sys.stderr)
    return None, {}


def _check_same(
    ours: dict[str, Any], theirs: dict[str, Any], folder: Path, allow_changes: bool
) -> None:
    ours, theirs = dict(_leaves(ours)), dict(_leaves(theirs))
    for name in [*ours, *theirs]:
        if ours.get(name) == theirs.get(name) or _is_below(name, FREE):
            continue
        if name not in theirs and "." not in name:
            continue  # an option that an older digitlab did not have
        option = name.replace(".init_args", "").removesuffix(".class_path")
        differs = (
            f"{option} is {ours.get(name)}, but the run in {folder} was started with "
            f"{theirs.get(name)}: leave it out"
        )
        if _is_below(name, _FIXED):
            raise ValueError(f"{differs}, or start a new run from its --weights")
        if not allow_changes:
            raise ValueError(f"{differs}, or add --allow_changes true and give up the exact result")


def _is_below(name: str, groups: tuple[str, ...]) -> bool:
    return any(name == group or name.startswith(f"{group}.") for group in groups)


def _is_at_limit(trainer: dict[str, Any], epochs: int, steps: int) -> bool:
    """Say whether all is trained.

    Raises:
        ValueError: More than that is.
    """
    most_epochs, most_steps = trainer.get("max_epochs"), trainer.get("max_steps", -1)
    if most_epochs is None:  # as Lightning takes it
        most_epochs = 1000 if most_steps == -1 and trainer.get("max_time") is None else -1
    limits = {"max_epochs": (most_epochs, epochs), "max_steps": (most_steps, steps)}
    for name, (limit, count) in limits.items():
        if 0 <= limit < count:
            raise ValueError(f"trainer.{name} is {limit}, but the run has had {count} already")
    return any(limit == count for limit, count in limits.values())


def _times(settings: dict[str, Any]) -> list[Any]:
    names = ("max_epochs", "max_steps", "max_time")
    return [settings["trainer"].get(name) for name in names]


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
