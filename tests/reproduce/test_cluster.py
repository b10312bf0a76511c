"""A Dask scheduler and its workers on the loopback interface: threads, or processes to kill."""

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

pytestmark = pytest.mark.xdist_group("cluster")
pytest.importorskip("distributed")

CONFIG = "model: LinearClassifier\ndata: DigitsDataModule\ntrainer:\n  max_epochs: "
ENDLESS = 100_000


def until(condition: Callable[[], Any], seconds: float = 300) -> Any:
    """Wait for a condition, and return its value."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, "it has not happened"
        time.sleep(0.1)
    return value


class Cluster:
    """A scheduler and two workers, each a process; the workers of killed ones are started anew."""

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
                [sys.executable, "-m", "dask", *words],
                cwd=self.root / place,
                env=environment,
                stdout=log,
                stderr=log,
                text=True,
            )
        self.processes.append(process)
        return process

    def reproduce(self, place: Path, epochs: int, *options: str) -> subprocess.Popen[str]:
        """Start `digitlab reproduce` in a folder, with a config of so many epochs."""
        (place / "one.yaml").write_text(f"{CONFIG}{epochs}\n")
        words = [sys.executable, "-m", "digitlab", "reproduce", "./one.yaml", "--out", "out"]
        process = subprocess.Popen(
            [*words, "--scheduler", self.address, *options],
            cwd=place,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.processes.append(process)
        return process

    def training(self) -> set[Path]:
        """The histories of the runs that workers have begun."""
        return {*self.root.glob("*/out/runs/*/*/version_*/history.csv")}

    def begun(self, before: set[Path]) -> Path:
        """Wait for a run that is not among those before."""
        found: set[Path] = until(lambda: self.training() - before)
        return next(iter(found))

    def kill_worker(self, history: Path) -> None:
        """Kill the worker that trains a run."""
        from distributed import Client

        with Client(self.address) as client:
            found = client.run(lambda: (__import__("os").getcwd(), __import__("os").getpid()))
        place = self.root / history.relative_to(self.root).parts[0]
        (number,) = (pid for folder, pid in found.values() if Path(folder) == place)
        os.kill(number, signal.SIGKILL)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, tiny_for_module: None) -> Iterator[Cluster]:
    cluster = Cluster(tmp_path_factory.mktemp("cluster"))
    yield cluster
    for process in reversed(cluster.processes):
        with suppress(OSError):
            process.terminate()
        process.communicate()


def check_as_local(monkeypatch: pytest.MonkeyPatch, seeds: int) -> None:
    """Train the runs of the folder here too, and compare the results."""
    monkeypatch.setattr("digitlab.reproduce.executors.Processes", Inline)
    assert main(["reproduce", "./one.yaml", "--seeds", str(seeds), "--out", "local"]) == 0
    here, there = (
        sorted(
            (replace(it, train_seconds=None) for it in results.read(Path(out, "results.csv"))),
            key=lambda it: it.seed,
        )
        for out in ("local", "out")
    )
    assert here == there
    assert len(there) == seeds


def test_rows_of_a_cluster_are_those_of_local_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from distributed import LocalCluster

    monkeypatch.chdir(tmp_path)
    Path("one.yaml").write_text(f"{CONFIG}1\n")
    with LocalCluster(
        n_workers=1, threads_per_worker=1, processes=False, dashboard_address=":0"
    ) as local:
        words = ["--scheduler", local.scheduler_address, "--seeds", "1", "--out", "out", "--fetch"]
        assert main(["reproduce", "./one.yaml", *words]) == 0
    assert "Dask's dashboard: " in capsys.readouterr().out
    check_as_local(monkeypatch, seeds=1)
    # The worker's own folder, which is here, has a digest behind the seed.
    (run,) = Path("out", "runs").glob("*-seed_0")
    assert (run / "log.txt").exists()
    assert len([*run.glob("digits-one/version_*/checkpoints/last.ckpt")]) == 1


@pytest.mark.slow
def test_a_killed_worker_s_run_is_trained_by_another(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = cluster.training()
    command = cluster.reproduce(tmp_path, 60, "--seeds", "2")
    cluster.kill_worker(cluster.begun(before))
    _, errors = command.communicate()
    assert (command.returncode, errors) == (0, "")
    check_as_local(monkeypatch, seeds=2)


@pytest.mark.slow
def test_a_killed_command_ends_its_runs_and_the_workers_stay(
    cluster: Cluster, tmp_path: Path
) -> None:
    before = cluster.training()
    command = cluster.reproduce(tmp_path, ENDLESS, "--seeds", "1")
    history = cluster.begun(before)
    command.kill()
    log = history.parents[2] / "log.txt"
    until(lambda: "interrupted by SIGTERM" in log.read_text(), 60)
    assert cluster.reproduce(tmp_path, 1, "--seeds", "1").wait() == 0


@pytest.mark.slow
def test_a_run_whose_workers_are_killed_has_failed_and_is_named(
    cluster: Cluster, tmp_path: Path
) -> None:
    before = cluster.training()
    command = cluster.reproduce(tmp_path, ENDLESS, "--seeds", "1", "--first_seed", "3")
    for _ in range(2):
        history = cluster.begun(before)
        before |= {history}
        cluster.kill_worker(history)
    output, errors = command.communicate()
    assert (command.returncode, errors) == (1, "")
    (log,) = tmp_path.glob("out/runs/*-seed_3/log.txt")
    assert f"torch seed 3 failed: see {log.relative_to(tmp_path)}\n" in output
    assert "each process that trained it was killed" in log.read_text()


@pytest.mark.slow  # the last of the module's cluster
def test_a_lost_scheduler_is_named_in_a_line(cluster: Cluster, tmp_path: Path) -> None:
    assert cluster.reproduce(tmp_path, 2, "--seeds", "1").wait() == 0
    table = tmp_path / "out" / "results.csv"
    recorded, before = table.read_bytes(), cluster.training()
    table.rename(tmp_path / "kept.csv")
    command = cluster.reproduce(tmp_path, ENDLESS, "--seeds", "1", "--first_seed", "7")
    cluster.begun(before)
    (tmp_path / "kept.csv").rename(table)
    cluster.scheduler.kill()
    _, errors = command.communicate()
    assert command.returncode == 1
    assert errors.startswith("digitlab: error: the Dask scheduler is lost; all recorded results")
    assert len(errors.splitlines()) == 1
    assert table.read_bytes() == recorded


@pytest.mark.slow  # waits ten seconds for an answer
def test_an_address_where_no_scheduler_answers_is_bad_input(
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = ["reproduce", "digits/linear", "--scheduler", "tcp://127.0.0.1:9"]
    assert "scheduler is tcp://127.0.0.1:9: none answers there" in refusal(capsys, *command)
