"""SLURM asks a run to make room, and starts the same command again; `scontrol` is a stand-in."""

import os
import signal
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import pytest

from tests.faults import processes
from tests.faults.conftest import Alone
from tests.faults.plants import at_step, send
from tests.faults.processes import (
    COMMAND,
    MLP,
    Environment,
    Fault,
    differences,
    fit,
    folder_of,
    said,
    slow,
)

pytestmark = pytest.mark.promise("slurm")
REQUEUED = 128 + signal.SIGUSR1


def make_room(step: int) -> Fault:
    """A fault: the process gets SLURM's signal in an optimizer step."""
    fault: Fault = at_step(step, partial(send, signal.SIGUSR1))
    return fault


@pytest.fixture
def cluster(tmp_path: Path) -> Path:
    """A folder with a `scontrol` that writes down what it is asked for, and obeys."""
    return stand_in(tmp_path, code=0)


def stand_in(folder: Path, code: int) -> Path:
    commands = folder / "commands"
    commands.mkdir(exist_ok=True)
    program = commands / "scontrol"
    program.write_text(f'#!/bin/sh\necho "$@" >> {folder}/asked\nexit {code}\n')
    program.chmod(0o755)
    return folder


def tell(cluster: Path, job: Environment, rank: int, size: int) -> Environment:
    """What `srun` tells a process."""
    numbers = {"NTASKS": size, "NTASKS_PER_NODE": size, "PROCID": rank, "LOCALID": rank}
    told = {"NNODES": "1", "NODEID": "0", "NODELIST": "localhost", "JOB_NAME": "train", **job}
    told |= {name: str(number) for name, number in numbers.items()}
    path = f"{cluster / 'commands'}{os.pathsep}{os.environ['PATH']}"
    return {f"SLURM_{name}": text for name, text in told.items()} | {"PATH": path}


def run(
    cluster: Path,
    arguments: list[str],
    job: Environment,
    faults: Mapping[int, Fault] | None = None,
    size: int = 1,
) -> list[int | None]:
    """Run `digitlab` as a job, and return its processes' exit codes."""
    return processes.run(arguments, cluster, faults, size, partial(tell, cluster, job))


@pytest.mark.parametrize(
    ("model", "size", "job", "asked"),
    [
        slow(MLP, 1, {"JOB_ID": "4242"}, "requeue 4242\n"),
        # The second process gets the signal alone.
        (
            COMMAND,
            2,
            {"JOB_ID": "4245", "ARRAY_JOB_ID": "4242", "ARRAY_TASK_ID": "3"},
            "requeue 4242_3\n",
        ),
    ],
)
def test_a_job_saves_is_requeued_and_ends_where_one_left_alone_does(
    cluster: Path, alone: Alone, model: str, size: int, job: Environment, asked: str
) -> None:
    arguments = fit(model, cluster / "runs")
    faults = {size - 1: make_room(7)}
    # One code for the job: srun may take the others' for failures, and end the first too soon.
    assert run(cluster, arguments, job, faults, size) == [REQUEUED, 0][:size]
    assert (cluster / "asked").read_text() == asked
    *_, last = said(cluster).splitlines()
    assert last.startswith("digitlab: interrupted by SIGUSR1: saved ")
    assert last.endswith(f"SLURM starts job {asked.split()[1]} again")
    assert run(cluster, arguments, job | {"RESTART_COUNT": "1"}, size=size) == [0] * size
    assert said(cluster).startswith("Resuming from ")
    assert differences(folder_of(cluster / "runs"), alone(model, size)) == []


@pytest.mark.slow
def test_each_step_of_a_job_resumes_its_own_run_and_a_new_one_starts_its_own(cluster: Path) -> None:
    arguments = fit(MLP, cluster / "runs")
    one = {"JOB_ID": "1", "STEP_ID": "0"}
    for job in (one, {"JOB_ID": "2", "STEP_ID": "0"}, {"JOB_ID": "1", "STEP_ID": "1"}):
        assert run(cluster, arguments, job, {0: make_room(7)}) == [REQUEUED]
    assert run(cluster, arguments, one | {"RESTART_COUNT": "1"}) == [0]
    finished = cluster.glob("runs/*/*/metrics.json")
    assert [path.parent.name for path in finished] == ["version_0"]
    assert run(cluster, arguments, one | {"RESTART_COUNT": "2"}) == [0]
    assert "version_0 is finished" in said(cluster)
    assert run(cluster, arguments, {"JOB_ID": "3", "RESTART_COUNT": "1"}) == [0]
    assert "version_3" in said(cluster)


@pytest.mark.slow
def test_a_job_that_is_not_requeued_says_so_and_has_saved(tmp_path: Path) -> None:
    cluster = stand_in(tmp_path, code=1)
    arguments = fit(MLP, cluster / "runs")
    assert run(cluster, arguments, {"JOB_ID": "7"}, {0: make_room(7)}) == [REQUEUED]
    *_, last = said(cluster).splitlines()
    assert "saved" in last
    assert "SLURM did not requeue job 7 " in last
    assert run(cluster, ["fit", "--run", str(folder_of(cluster / "runs"))], {"JOB_ID": "8"}) == [0]
    assert "Resuming from" in said(cluster)
