"""A Dask scheduler and two workers on the loopback interface, each a process."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from digitlab.cli import main
from digitlab.reproduce import results
from tests.commands import refusal
from tests.reproduce.inline import Inline

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("cluster")]
pytest.importorskip("distributed")

CONFIG = "model: LinearClassifier\ndata: DigitsDataModule\ntrainer:\n  max_epochs: "
DASK = [sys.executable, "-m", "dask"]


def until(condition: Callable[[], Any], seconds: float = 300) -> Any:
    """Wait for a condition, and return its value."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, "it has not happened"
        time.sleep(0.1)
    return value


class Cluster:
    def __init__(self, root: Path) -> None:
        self.root = root
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.address = f"tcp://127.0.0.1:{self.port}"
        self.processes: list[subprocess.Popen[str]] = []
        where = ["--host", "127.0.0.1", "--port", str(self.port), "--no-dashboard"]
        self.scheduler = self.start("scheduler", *where)
        until(self.listens)
        for name in ("one", "two"):
            self.start("worker", self.address, "--nthreads", "1", "--no-dashboard", place=name)

    def listens(self) -> bool:
        with socket.socket() as client:
            return client.connect_ex(("127.0.0.1", self.port)) == 0

    def start(self, *words: str, place: str = "scheduler") -> subprocess.Popen[str]:
        (self.root / place).mkdir()
        environment = os.environ | {"DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "1"}
        with (self.root / place / "log.txt").open("w") as log:
            process = subprocess.Popen(
                [*DASK, *words],
                cwd=self.root / place,
                env=environment,
                stdout=log,
                stderr=log,
                text=True,
            )
        self.processes.append(process)
        return process

    def reproduce(self, *options: str) -> subprocess.Popen[str]:
        words = [sys.executable, "-m", "digitlab", "reproduce", "./one.yaml", "--out", "out"]
        process = subprocess.Popen(
            [*words, "--scheduler", self.address, *options],
            cwd=self.root,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.processes.append(process)
        return process

    def training(self) -> list[Path]:
        """The histories of the runs that workers have begun."""
        return [*self.root.glob("*/out/runs/*/*/version_*/history.csv")]

    def kill_worker(self, place: str) -> None:
        from distributed import Client

        with Client(self.address) as client:
            found = client.run(lambda: (__import__("os").getcwd(), __import__("os").getpid()))
        (number,) = (pid for folder, pid in found.values() if Path(folder).name == place)
        os.kill(number, signal.SIGKILL)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    cluster = Cluster(tmp_path)
    yield cluster
    for process in reversed(cluster.processes):
        with suppress(OSError):
            process.terminate()
        process.communicate()


def test_rows_are_those_of_local_runs_also_if_a_worker_is_killed(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    (cluster.root / "one.yaml").write_text(f"{CONFIG}60\n")
    monkeypatch.chdir(cluster.root)
    monkeypatch.setattr("digitlab.reproduce.executors.Processes", Inline)
    command = cluster.reproduce("--seeds", "2", "--fetch")
    place = until(cluster.training)[0].relative_to(cluster.root).parts[0]
    cluster.kill_worker(place)
    assert main(["reproduce", "./one.yaml", "--seeds", "2", "--out", "local"]) == 0
    output, errors = command.communicate()
    assert (command.returncode, errors) == (0, "")
    assert "Dask's dashboard: http://127.0.0.1:" in output
    here, there = (
        sorted(
            (replace(it, train_seconds=None) for it in results.read(Path(out, "results.csv"))),
            key=lambda it: it.seed,
        )
        for out in ("local", "out")
    )
    assert here == there
    assert len(there) == 2
    assert len([*Path("out").glob("runs/*/digits-one/version_*/checkpoints/last.ckpt")]) == 2
    assert len([*Path("out").glob("runs/*/log.txt")]) == 2


def test_a_killed_command_ends_its_runs_and_the_workers_stay(cluster: Cluster) -> None:
    (cluster.root / "one.yaml").write_text(f"{CONFIG}100000\n")
    command = cluster.reproduce("--seeds", "1")
    (history,) = until(cluster.training)
    command.kill()
    log = history.parents[2] / "log.txt"
    until(lambda: "interrupted by SIGTERM" in log.read_text(), 60)
    (cluster.root / "one.yaml").write_text(f"{CONFIG}1\n")
    again = cluster.reproduce("--seeds", "1")
    again.communicate()
    assert again.returncode == 0


def test_a_lost_scheduler_is_named_in_a_line(cluster: Cluster) -> None:
    (cluster.root / "one.yaml").write_text(f"{CONFIG}1\n")
    assert cluster.reproduce("--seeds", "1").wait() == 0
    table = cluster.root / "out" / "results.csv"
    recorded = table.read_bytes()
    (cluster.root / "one.yaml").write_text(f"{CONFIG}100000\n")
    table.rename(cluster.root / "kept.csv")
    before = {*cluster.training()}
    command = cluster.reproduce("--seeds", "1", "--first_seed", "7")
    until(lambda: {*cluster.training()} - before)
    (cluster.root / "kept.csv").rename(table)
    cluster.scheduler.kill()
    _, errors = command.communicate()
    assert command.returncode == 1
    assert errors.startswith("digitlab: error: the Dask scheduler is lost; all recorded results")
    assert len(errors.splitlines()) == 1
    assert table.read_bytes() == recorded


def test_a_run_whose_workers_are_killed_has_failed_and_is_named(cluster: Cluster) -> None:
    (cluster.root / "one.yaml").write_text(f"{CONFIG}100000\n")
    command = cluster.reproduce("--seeds", "1")
    seen: set[Path] = set()
    for _ in range(2):
        (begun,) = until(lambda: {*cluster.training()} - seen)
        seen.add(begun)
        cluster.kill_worker(begun.relative_to(cluster.root).parts[0])
    output, errors = command.communicate()
    assert (command.returncode, errors) == (1, "")
    log = Path(
        "out", "runs", next((cluster.root / "out" / "runs").glob("*-seed_0")).name, "log.txt"
    )
    assert f"torch seed 0 failed: see {log}\n" in output
    assert "each process that trained it was killed" in (cluster.root / log).read_text()


def test_an_address_where_no_scheduler_answers_is_bad_input(
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = ["reproduce", "digits/linear", "--scheduler", "tcp://127.0.0.1:9"]
    assert "scheduler is tcp://127.0.0.1:9: none answers there" in refusal(capsys, *command)
