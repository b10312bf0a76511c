"""Runs of `digitlab` in processes of their own, to be killed, and how two runs are compared."""

import csv
import json
import multiprocessing
import os
import signal
from collections.abc import Callable, Sequence
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any

import torch

from tests import events

Fault = Callable[[], None]
"""What is done in a victim's process before its command; it must pickle."""

SIGKILLED = -signal.SIGKILL

# What the place of a run and wall time have a part in.
_PLACES_AND_TIMES = {"seconds", "time_elapsed", "dirpath", "best_k_models", "best_model_path"}
_PLACES_AND_TIMES |= {"kth_best_model_path", "last_model_path"}
_PLACES_AND_TIMES |= {"current_score"}  # of the last save by this process, which nothing reads
_TIMES = {"wall_time", "phases", "images_per_second"}


def context() -> ForkServerContext:
    """Processes that start in no time, for they have imported all, and share nothing else."""
    forkserver = multiprocessing.get_context("forkserver")
    forkserver.set_forkserver_preload(["tests.faults.warm"])
    return forkserver


def _run(arguments: Sequence[str], log: str, fault: Fault | None) -> None:
    torch.set_num_threads(1)
    # A shell's background jobs, as which tests may run, are started with SIGINT ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    from digitlab.cli import main

    if fault:
        fault()
    raise SystemExit(main(list(arguments)))


def start(arguments: Sequence[str], log: Path, fault: Fault | None = None) -> ForkServerProcess:
    """Starts `digitlab` with these arguments; what it prints is appended to `log`."""
    process = context().Process(target=_run, args=(arguments, str(log), fault))
    process.start()
    return process


def run(arguments: Sequence[str], log: Path, fault: Fault | None = None) -> int:
    """Runs `digitlab`, and gives its exit code, below 0 for a signal."""
    process = start(arguments, log, fault)
    process.join(timeout=300)
    code = process.exitcode
    if code is None:
        process.kill()
        raise TimeoutError(log.read_text("utf-8"))
    return code


def kill_self() -> None:
    """Ends this process as a power cut would."""
    os.kill(os.getpid(), signal.SIGKILL)


def differences(ours: Path, theirs: Path) -> list[str]:
    """Names what differs between two runs, bit for bit but for wall time."""
    compared = {
        **{name: _checkpoints(ours, theirs, name) for name in ("last", "best")},
        "history.csv": _history(ours) == _history(theirs),
        "metrics.json": _metrics(ours) == _metrics(theirs),
        "events": scalars(ours) == scalars(theirs),
        "pictures": pictures(ours) == pictures(theirs),
    }
    return [name for name, same in compared.items() if not same]


def _checkpoints(ours: Path, theirs: Path, name: str) -> bool:
    paths = [folder / "checkpoints" / f"{name}.ckpt" for folder in (ours, theirs)]
    if not any(path.exists() for path in paths):
        return name == "best"  # of a run without validation
    contents = [torch.load(path, weights_only=True) for path in paths]
    parts = (
        "state_dict",
        "optimizer_states",
        "lr_schedulers",
        "epoch",
        "global_step",
        "keras",
        "MixedPrecision",
    )
    return (
        all(equal(*(content.get(part) for content in contents)) for part in parts)
        and equal(*(content["exact_resume"]["processes"] for content in contents))
        and equal(*(_without_place_and_time(content["callbacks"]) for content in contents))
    )


def _without_place_and_time(state: Any) -> Any:
    """Leaves out, of callbacks' states, what may differ between equal runs."""
    if isinstance(state, dict):
        kept = {name: it for name, it in state.items() if name not in _PLACES_AND_TIMES}
        return {name: _without_place_and_time(it) for name, it in kept.items()}
    return [_without_place_and_time(it) for it in state] if isinstance(state, list) else state


def equal(ours: Any, theirs: Any) -> bool:
    """Compares nested values, tensors bit for bit."""
    if isinstance(ours, torch.Tensor):
        return torch.equal(ours, theirs) and ours.dtype == theirs.dtype
    if isinstance(ours, dict):
        return ours.keys() == theirs.keys() and all(equal(ours[k], theirs[k]) for k in ours)
    if isinstance(ours, list | tuple):
        return len(ours) == len(theirs) and all(map(equal, ours, theirs))
    return bool(ours == theirs)


def _history(folder: Path) -> list[dict[str, str]]:
    with (folder / "history.csv").open(newline="") as file:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]


def _metrics(folder: Path) -> dict[str, Any]:
    metrics = json.loads((folder / "metrics.json").read_text("utf-8"))
    return {name: value for name, value in metrics.items() if name not in _TIMES}


def pictures(folder: Path) -> dict[str, list[tuple[int, bytes]]]:
    """Reads a run's pictures as TensorBoard does."""
    return {
        tag: [(step, pixels.tobytes()) for step, pixels in shown]
        for tag, shown in events.pictures(folder).items()
    }


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Reads a run's curves, but for those of its speed."""
    curves = events.scalars(folder)
    # Wall time has a part in these.
    return {
        tag: it
        for tag, it in curves.items()
        if not tag.startswith("while_training/images_per_second")
    }
