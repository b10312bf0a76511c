"""From where a run is resumed, and whether its settings, device and threads are still the same.

`digitlab fit --run RUN_DIR` resumes a run of either framework from its last whole checkpoint.
"""

import platform
import re
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.pytorch import LightningModule, Trainer

from digitlab import checkpoints, run_folder
from digitlab.distributed import print_rank_zero
from digitlab.terminal import command, printable

FREE = (
    "allow_inexact_resume",
    "checkpoint_every_n_minutes",
    "checkpoint_every_n_steps",
    "data.init_args.folder",  # whose images are compared with data.digests
    "data.init_args.root",
    "from_configs",
    "trainer.default_root_dir",
    "trainer.enable_progress_bar",
    "trainer.max_epochs",
    "trainer.max_steps",
    "trainer.max_time",
    "trainer.profiler",
)
"""Settings that a resumed run may change: they set its length, or do not change its results."""

# Other values of these round differently, and do nothing else.
_ROUNDING = (
    *("allow_tf32", "threads", "trainer.accelerator", "trainer.benchmark"),
    "trainer.deterministic",
)

# A checkpoint holds the state of these, which would win over other settings.
_FIXED = ("framework", "model.init_args.optimizer", "model.init_args.lr_scheduler")


@dataclass
class ResumePoint:
    """Where a run starts.

    Args:
        resumed: Whether the run was started before.
        checkpoint: The file to resume from; None for the beginning, if nothing was saved.
        step: Optimizer steps that are done.
        world_size: Number of ranks that the run had, 0 if nothing was saved.
        trained: Whether training is complete, and only the results are to be measured.
        finished: A sentence on its length if they are measured too; otherwise empty.
        numerics: What else the run's bits depend on, see `ExactResume`; empty if nothing was saved.
    """

    resumed: bool = False
    checkpoint: Path | None = None
    step: int = 0
    world_size: int = 0
    trained: bool = False
    finished: str = ""
    numerics: dict[str, Any] = field(default_factory=dict)

    def check_processes(self, world_size: int, allow_changes: bool) -> None:
        """Compare the number of ranks with the run's.

        Raises:
            ValueError: It differs, so that batches and random numbers would.
        """
        if self.world_size not in (0, world_size) and not allow_changes:
            raise ValueError(
                f"there are {world_size} processes, but the run had {self.world_size}: start as "
                "many, or add --allow_changes true and give up the exact result"
            )

    def describe(self) -> str:
        """Describe where the run starts."""
        if self.checkpoint:
            return f"Resuming from {printable(self.checkpoint)}, step {self.step}"
        return "Starting over: nothing was saved"


def check_resumable(folder: Path) -> dict[str, Any]:
    """Read a run's settings before its folder is locked, which leaves a file there.

    Raises:
        ValueError: A file is damaged, or the run is one of version 0.1 in Keras: no checkpoint, and
            its config.yaml names no framework.
    """
    model = folder / run_folder.CHECKPOINTS["keras"]["last"]
    config = run_folder.read_config(folder, run_folder.NEEDED)
    run_folder.read_metrics(folder)  # now, and not when the training is done
    if "framework" not in config and model.exists() and not (folder / run_folder.LAST).exists():
        raise ValueError(
            f"{folder} is a Keras run of an older digitlab and has no checkpoint to resume from: "
            f"start a new run, {command('--framework', 'keras', '--weights', model)}"
        )
    return config


def recorded_threads(folder: Path) -> int:
    """Find the number of threads of a run whose settings lack it."""
    device = str(run_folder.read_metrics(folder).get("device"))
    if found := re.fullmatch(r"cpu \((\d+) threads?\)", device):
        return int(found[1])
    number = torch.get_num_threads()
    print_rank_zero(f"{folder} has no number of threads: using {number}, see --threads")
    return number


def find_resume_point(folder: Path, settings: str, allow_changes: bool = False) -> ResumePoint:
    """Choose where to resume a run: its last checkpoint, the one before, or its beginning.

    Args:
        folder: The run folder.
        settings: All settings to resume it with, as YAML.
        allow_changes: Accept any changed settings but those of optimizer and scheduler.

    Raises:
        ValueError: A setting differs, the run is past a limit, or it keeps no checkpoints.
        OSError: A checkpoint cannot be read.
    """
    ours = yaml.safe_load(settings)
    if ours["trainer"].get("enable_checkpointing") is False:
        raise ValueError(f"{folder} keeps no checkpoints to resume from: start a new run")
    path, content = _read_last(folder)
    if path is None:
        theirs = run_folder.read_config(folder)
        _check_same(ours, theirs, folder, allow_changes)
        return ResumePoint(resumed=True)
    if "exact_resume" not in content:
        raise ValueError(
            f"{path} was written by an older digitlab or another program, and cannot be resumed: "
            f"start a new run, {command('--weights', path)}"
        )
    state, step = content["exact_resume"], content["global_step"]
    # Not those in config.yaml, which may have been edited since.
    theirs = yaml.safe_load(state["settings"])
    _check_same(ours, theirs, folder, allow_changes)
    epochs = content["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]
    start = ResumePoint(True, path, step, len(state["processes"]))
    start.numerics = state.get("numerics", {})
    start.trained = _is_at_limit(ours["trainer"], epochs, step)
    if state["stopped"] and all(
        ours["trainer"].get(name) == theirs["trainer"].get(name)
        for name in ("max_epochs", "max_steps", "max_time")
    ):
        start.trained = True  # a callback had stopped it
    metrics = run_folder.read_metrics(folder)
    if start.trained and metrics.get("optimizer_steps") == step:
        counts = {"epoch": metrics.get("epochs", epochs), "step": step}  # also of a part of one
        length = ", ".join(f"{n} {name}{'s' * (n != 1)}" for name, n in counts.items())
        start.finished = f"{length}; lengthen it by a larger --trainer.max_epochs or max_steps"
    return start


def _read_last(folder: Path) -> tuple[Path | None, dict[str, Any]]:
    """Read the last checkpoint that is whole; None if none was written."""
    last = folder / run_folder.LAST
    paths = [path for path in (last, last.with_name("previous.ckpt")) if path.exists()]
    for path in paths:
        try:
            return path, checkpoints.read_checkpoint(path)
        except ValueError as error:
            if path == paths[-1]:
                raise
            message = printable(f"digitlab: warning: {error}; resuming from {paths[-1]}")
            print_rank_zero(message, sys.stderr)
    return None, {}


def _check_same(
    ours: dict[str, Any], theirs: dict[str, Any], folder: Path, allow_changes: bool
) -> None:
    theirs = {"framework": "torch"} | theirs  # runs of older versions do not say so
    ours, theirs = _leaves(ours), _leaves(theirs)
    for name in [*ours, *theirs]:
        if ours.get(name) == theirs.get(name) or _is_below(name, FREE):
            continue
        if name not in theirs and ("." not in name or ours[name] is False):
            continue  # a setting that older versions did not have, or that is off
        option = name.replace(".init_args", "").removesuffix(".class_path")
        differs = (
            f"{option} is {ours.get(name)}, but the run in {folder} was started with "
            f"{theirs.get(name)}: leave it out"
        )
        if _is_below(name, _FIXED):
            raise ValueError(f"{differs}, or start a new run from its --weights")
        rounds = _is_below(name, _ROUNDING)
        if not allow_changes and not (rounds and ours.get("allow_inexact_resume")):
            remedy = "--allow_inexact_resume" if rounds else "--allow_changes"
            raise ValueError(f"{differs}, or add {remedy} true and give up the exact result")


def _leaves(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested settings: `{"a": {"b": 1}}` to `{"a.b": 1}`."""
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        leaves |= _leaves(value, f"{name}.") if isinstance(value, dict) else {name: value}
    return leaves


def _is_below(name: str, groups: tuple[str, ...]) -> bool:
    return any(name == group or name.startswith(f"{group}.") for group in groups)


def _is_at_limit(trainer: dict[str, Any], epochs: int, steps: int) -> bool:
    """Return whether training is complete; refuse a limit that the run is past."""
    most_epochs, most_steps = trainer.get("max_epochs"), trainer.get("max_steps", -1)
    if most_epochs is None:  # Lightning's default
        most_epochs = 1000 if most_steps == -1 and trainer.get("max_time") is None else -1
    limits = {"max_epochs": (most_epochs, epochs), "max_steps": (most_steps, steps)}
    for name, (limit, count) in limits.items():
        if 0 <= limit < count:
            raise ValueError(f"trainer.{name} is {limit}, but the run has had {count} already")
    return any(limit == count for limit, count in limits.values())


def numerics(trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
    """Return what the bits of a result depend on besides the settings of a run."""
    device = trainer.strategy.root_device
    of_keras = getattr(pl_module, "run_details", {}).get("device", "cpu")
    if not of_keras.startswith("cpu"):
        kind, model = "cuda", of_keras
    elif device.type == "cuda":
        kind, model = "cuda", torch.cuda.get_device_name(device)
    else:
        kind, model = device.type, processor()
    return {
        "device": kind,
        "device_model": model,
        "threads": torch.get_num_threads(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "benchmark": torch.backends.cudnn.benchmark,
        "float32_matmul_precision": _read(torch.get_float32_matmul_precision),
        "torch": str(torch.__version__),
        **(
            {"allow_tf32": _read(lambda: torch.backends.cudnn.allow_tf32)} if kind == "cuda" else {}
        ),
    }


@cache
def processor() -> str:
    """Name the CPU, and the instructions that torch uses of it."""
    name = platform.processor() or platform.machine()
    with suppress(OSError):  # Linux
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        name = next(iter(names), name)
    return f"{name} ({torch.backends.cpu.get_cpu_capability()})"


def _read(flag: Callable[[], Any]) -> Any:
    try:
        return flag()
    except RuntimeError:  # it was set by both of torch's ways
        return "mixed"


def compare_numerics(
    saved: dict[str, Any], trainer: Trainer, pl_module: LightningModule, allow: bool
) -> list[str]:
    """Describe each difference between a checkpoint's `numerics` and those of this process.

    Raises:
        ValueError: More than the device's model or torch's version differs, and `allow` is false.
    """
    differing = {
        name: f"{name} is {value}, but the run had {saved[name]}"
        for name, value in numerics(trainer, pl_module).items()
        if saved.get(name, value) != value
    }
    for name, difference in differing.items():
        if name not in ("device_model", "torch") and not allow:
            raise ValueError(
                f"{difference}: resume with that, or add --allow_inexact_resume true (in Python, "
                "ExactResume(allow_inexact=True)) and give up the exact result"
            )
    return list(differing.values())
