"""`digitlab` in processes of its own, with faults planted in them, and how two runs are compared.

They start in no time: a server that has imported all forks them.
"""

import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from functools import partial
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any
from uuid import uuid4

import pandas as pd
import pytest
import torch

from digitlab.run_folder import read_metrics
from tests import events

Fault = Callable[[], None]
"""What is done in a process before its command; it must pickle."""

Environment = dict[str, str]
Launcher = Callable[[int, int], Environment]
"""Makes the environment of a rank from its number and the number of ranks."""

PATIENCE = 300.0
"""Seconds that the slowest machine may take for anything here."""

THOROUGH = "DIGITLAB_ENDURANCE" in os.environ
"""Whether benchmarks.endurance runs the tests: more examples, more combinations."""

SIGKILLED = -signal.SIGKILL
MLP = "MLP --model.hidden_features [16] --model.dropout 0.3"
BLOCKS = "--model.steps_per_execution 4"
COMMAND = f"{MLP} {BLOCKS}"
slow = partial(pytest.param, marks=pytest.mark.slow)


def fit(model: str, place: Path, epochs: int = 3, framework: str = "torch") -> list[str]:
    """Train on the tiny data, 25 steps an epoch, and save every 4 steps.

    Args:
        model: Its name and options, or `--config=CONFIG` and options.
        place: The folder of all runs.
        epochs: Their number.
        framework: Where it trains.
    """
    first, _, rest = model.partition(" ") if model.startswith("--config") else ("", "", model)
    data = "--data tests.tiny.TinyDataModule --data.batch_size 8"
    trainer = f"--trainer.accelerator cpu --trainer.max_epochs {epochs}"
    often = "--trainer.log_every_n_steps 3 --checkpoint_every_n_steps 4"
    where = ["--trainer.default_root_dir", str(place), "--name", "run", "--framework", framework]
    options = f"{data} {trainer} {often} {rest if first else f'--model {rest}'}".split()
    return ["fit", *first.split(), *where, *options]


def folder_of(place: Path) -> Path:
    """Return the only run folder below a place."""
    (folder,) = place.glob("*/version_*")
    return folder


def torchrun(rank: int, size: int) -> Environment:
    """Make the variables that torchrun gives a rank."""
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size}
    return {name: str(number) for name, number in numbers.items()} | {"TORCHELASTIC_RUN_ID": "a"}


def free_port() -> int:
    """Return a port that nobody listens at."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def start(
    arguments: Sequence[str],
    log: Path,
    fault: Fault | None = None,
    environment: Environment | None = None,
) -> ForkServerProcess:
    """Start `digitlab`; its output is appended to `log`."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.faults.warm"])
    process = context.Process(target=_run, args=(arguments, str(log), fault, environment or {}))
    process.start()
    return process


def _run(arguments: Sequence[str], log: str, fault: Fault | None, environment: Environment) -> None:
    torch.set_num_threads(1)
    # A shell's background jobs, as which tests may run, are started with SIGINT ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.environ |= environment
    from digitlab.cli import main

    if fault:
        fault()
    raise SystemExit(main(list(arguments)))


def run(
    arguments: Sequence[str],
    place: Path,
    faults: Fault | Mapping[int, Fault] | None = None,
    ranks: int = 0,
    launcher: Launcher = torchrun,
) -> list[int | None]:
    """Run `digitlab`, and return its processes' exit codes, below 0 for a signal.

    Args:
        arguments: The command line after `digitlab`.
        place: Where `said` finds the output.
        faults: Planted in all processes, or by rank.
        ranks: Number of ranks; with 0, one process that no launcher has started.
        launcher: What starts ranks.
    """
    place.mkdir(parents=True, exist_ok=True)
    environments: list[Environment] = [{}]
    if ranks:
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        environments = [address | launcher(rank, ranks) for rank in range(ranks)]
        arguments = [*arguments, "--trainer.devices", str(ranks), "--trainer.strategy", "ddp"]
    processes = []
    try:
        for rank, environment in enumerate(environments):
            log = place / f"log.{rank}"
            log.unlink(missing_ok=True)
            fault = faults.get(rank) if isinstance(faults, Mapping) else faults
            processes.append(start(arguments, log, fault, environment))
        for process in processes:
            process.join(PATIENCE)
        return [process.exitcode for process in processes]
    finally:
        for process in processes:
            process.kill()


def said(place: Path, rank: int = 0) -> str:
    """Return the output of the last `run`."""
    return (place / f"log.{rank}").read_text("utf-8")


def left_alone(
    arguments: Sequence[str], place: Path, ranks: int = 0, faults: Fault | None = None
) -> Path:
    """Run `digitlab` to its end, and return its run folder."""
    check_done(run(arguments, place, faults, ranks), place)
    return folder_of(place)


def check_done(codes: Sequence[int | None], place: Path) -> None:
    """Check that a run ended well, and that only rank 0 has printed."""
    output = [said(place, rank) for rank in range(len(codes))]
    assert [*codes, *output[1:]] == [0] * len(codes) + [""] * (len(codes) - 1), output


def resume(folder: Path, ranks: int = 0, faults: Fault | None = None) -> str:
    """Resume a run to its end, and return the output."""
    codes = run(["fit", "--run", str(folder)], folder.parent, faults, ranks)
    check_done(codes, folder.parent)
    return said(folder.parent)


def hidden(folder: Path) -> list[str]:
    """List what a killed process may leave in a run folder."""
    return [path.name for path in folder.rglob(".*") if path.name != ".lock"]


# In the environment of all processes that a command has started, whatever became of their parents.
_MARK = "DIGITLAB_TESTS_COMMAND"


class Command(AbstractContextManager["Command"]):
    """A command as a user gives it, of which nothing is left after its `with` block.

    Args:
        words: What stands after `python -m`.
        log: The file that its output is appended to.
    """

    def __init__(self, words: Sequence[str], log: Path) -> None:
        self.log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        self._mark = uuid4().hex
        with log.open("ab") as file:
            self._process = subprocess.Popen(
                [sys.executable, "-m", *words],
                stdout=file,
                stderr=subprocess.STDOUT,
                env=os.environ | {_MARK: self._mark},
                start_new_session=True,
            )
        self.first = self._process.pid

    def others(self) -> list[int]:
        """List the processes that were started with a rank, the first to start first."""
        return self._all(b"LOCAL_RANK=")

    def _all(self, name: bytes = b"") -> list[int]:
        """List all processes whose environment at their start had a variable."""
        mark = f"{_MARK}={self._mark}".encode()
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):  # it has just ended, or is another's
                variables = (folder / "environ").read_bytes().split(b"\0")
                if mark in variables and any(text.startswith(name) for text in variables):
                    found.append(int(folder.name))
        return sorted(found)

    def end(self) -> int:
        """Wait for the end of all its processes, and return the exit code, below 0 for a signal."""
        code = self._process.wait(PATIENCE)
        wait_for(lambda: not self._all())
        return code

    def said(self) -> str:
        return self.log.read_text("utf-8")

    def __exit__(self, *_: object) -> None:
        for number in self._all():
            with suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)
        self._process.wait(PATIENCE)


def wait_for(condition: Callable[[], object]) -> None:
    """Wait until something is true.

    Raises:
        TimeoutError: It was not, all the time.
    """
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError
        time.sleep(0.02)


# These depend on a run's place and on wall time.
_PLACES_AND_TIMES = {"seconds", "time_elapsed", "dirpath", "best_k_models", "best_model_path"}
_PLACES_AND_TIMES |= {"kth_best_model_path", "last_model_path"}
_PLACES_AND_TIMES |= {"current_score"}  # of the last save by this process, which nothing reads
_TIMES = {"wall_time", "phases", "images_per_second"}


def differences(ours: Path, theirs: Path) -> list[str]:
    """Name what differs between two runs, bit for bit but for wall time."""
    parts = {
        **{name: _same_checkpoint(ours, theirs, name) for name in ("last", "best")},
        **{
            name: read(ours) == read(theirs)
            for name, read in {
                "history.csv": _history,
                "metrics.json": _metrics,
                "events": scalars,
                "pictures": pictures,
            }.items()
        },
    }
    return [name for name, same in parts.items() if not same]


def _same_checkpoint(ours: Path, theirs: Path, name: str) -> bool:
    paths = [folder / "checkpoints" / f"{name}.ckpt" for folder in (ours, theirs)]
    if not any(path.exists() for path in paths):
        return name == "best"  # of a run without validation
    contents = [torch.load(path, weights_only=True) for path in paths]
    parts = ["state_dict", "optimizer_states", "lr_schedulers", "epoch", "global_step"]
    parts += ["keras", "MixedPrecision"]
    return (
        all(equal(*(content.get(part) for content in contents)) for part in parts)
        and equal(*(content["exact_resume"]["processes"] for content in contents))
        and equal(*(_without_place_and_time(content["callbacks"]) for content in contents))
    )


def _without_place_and_time(state: Any) -> Any:
    if isinstance(state, dict):
        kept = {name: it for name, it in state.items() if name not in _PLACES_AND_TIMES}
        return {name: _without_place_and_time(it) for name, it in kept.items()}
    return [_without_place_and_time(it) for it in state] if isinstance(state, list) else state


def equal(ours: Any, theirs: Any) -> bool:
    """Compare nested values, tensors bit for bit."""
    if isinstance(ours, torch.Tensor):
        return torch.equal(ours, theirs) and ours.dtype == theirs.dtype
    if isinstance(ours, dict):
        return ours.keys() == theirs.keys() and all(equal(ours[k], theirs[k]) for k in ours)
    if isinstance(ours, list | tuple):
        return len(ours) == len(theirs) and all(map(equal, ours, theirs))
    return bool(ours == theirs)


def _history(folder: Path) -> str:
    rows = pd.read_csv(folder / "history.csv", dtype=str)
    return str(rows.drop(columns="seconds").to_csv())


def _metrics(folder: Path) -> str:
    metrics = read_metrics(folder)  # JSON, as NaN differs from NaN
    kept = {name: value for name, value in metrics.items() if name not in _TIMES}
    return json.dumps(kept, sort_keys=True)


def pictures(folder: Path) -> dict[str, list[tuple[int, bytes]]]:
    """Read a run's pictures as TensorBoard does."""
    return {
        tag: [(step, pixels.tobytes()) for step, pixels in shown]
        for tag, shown in events.pictures(folder).items()
    }


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Read a run's curves, but for those of its speed."""
    speed = "while_training/images_per_second"
    return {tag: it for tag, it in events.scalars(folder).items() if not tag.startswith(speed)}
