import os
import signal
import subprocess
import sys
import time
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import pytest
from filelock import FileLock, Timeout

from digitlab.reproduce import executors
from digitlab.reproduce.executors import Processes, train_items
from digitlab.reproduce.rows import Row
from digitlab.reproduce.worker import Item
from tests.reproduce.inline import Inline


def die(folder: Path, deaths: int) -> int:
    """Kill this process unless as many were killed here, and return its number."""
    for number in range(deaths):
        if not (folder / str(number)).exists():
            (folder / str(number)).touch()
            os.kill(os.getpid(), signal.SIGKILL)
    return os.getpid()


def last(folder: Path) -> None:
    """Say that this process is there, and last."""
    with FileLock(folder / "lock"):
        (folder / "there").write_text(str(os.getpid()))
        time.sleep(60)


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 60
    while not (path.exists() and path.read_text()):
        assert time.monotonic() < deadline, f"no {path}"
        time.sleep(0.05)


def test_a_killed_process_costs_its_own_call_which_is_made_once_more(tmp_path: Path) -> None:
    with Processes(2) as pool:
        other = {pool.submit(os.getpid).result() for _ in range(3)}
        killed, too_often = pool.submit(die, tmp_path, 1), tmp_path / "too often"
        assert killed.result() not in other
        too_often.mkdir()
        with pytest.raises(BrokenProcessPool):
            pool.submit(die, too_often, 2).result()
        numbers = [pool.submit(os.getpid) for _ in range(8)]
        assert len({number.result() for number in numbers}) <= 2  # and not one for each call
    assert os.getpid() not in {number.result() for number in numbers}


def test_a_call_that_runs_is_ended_if_nobody_waits_for_it(tmp_path: Path) -> None:
    pool = Processes(1)
    futures = [pool.submit(last, tmp_path), pool.submit(die, tmp_path, 0)]
    wait_for(tmp_path / "there")
    pool.shutdown(wait=False)
    with pytest.raises(BrokenProcessPool):
        futures[0].result(timeout=10)
    assert futures[1].cancelled()
    with FileLock(tmp_path / "lock", timeout=10):
        pass


def test_ctrl_c_ends_the_runs_and_says_how_to_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[bool] = []

    class Interrupted(Inline):
        def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
            ended.append(not wait)

    def interrupt(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(executors, "Processes", Interrupted)
    monkeypatch.setattr(executors, "train_run", lambda spec: None)
    monkeypatch.setattr(executors, "wait", interrupt)
    config = tmp_path / "one.yaml"
    config.write_text("model: MLP")
    with pytest.raises(KeyboardInterrupt, match="the same command resumes the queue"):
        train_items(
            [Item(Row("one", config), "torch", 0)], tmp_path, lambda it: False, lambda *_: ""
        )
    assert ended[0]


@pytest.mark.slow  # as processes
def test_workers_end_with_a_killed_command_and_free_their_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = """
from pathlib import Path
from digitlab.reproduce.executors import Processes
from tests.reproduce.test_executors import last
if __name__ == "__main__":
    with Processes(2) as pool:
        pool.submit(print, "idle", flush=True).result()
        pool.submit(print, "idle").result()
        pool.submit(last, Path("."))
"""
    (tmp_path / "program.py").write_text(program)
    command = [sys.executable, "program.py"]
    output, error = subprocess.PIPE, subprocess.DEVNULL
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))  # `tests`, from any folder
    with subprocess.Popen(command, cwd=tmp_path, stdout=output, stderr=error) as process:
        wait_for(tmp_path / "there")
        with pytest.raises(Timeout), FileLock(tmp_path / "lock", blocking=False):
            pass
        process.kill()
        assert process.stdout
        process.stdout.read()  # ends once no worker is left that might write, idle or not
    with FileLock(tmp_path / "lock", timeout=10):
        pass


@pytest.mark.slow  # as processes
def test_sigterm_ends_a_command_with_its_runs(tmp_path: Path) -> None:
    (tmp_path / "one.yaml").write_text(
        "model: LinearClassifier\ndata: DigitsDataModule\ntrainer:\n  max_epochs: 100000\n"
    )
    command = [sys.executable, "-m", "digitlab", "reproduce", "./one.yaml", "--out", "out"]
    output = subprocess.PIPE
    with subprocess.Popen(
        [*command, "--workers", "1"], cwd=tmp_path, stdout=output, stderr=output, text=True
    ) as process:
        deadline = time.monotonic() + 60
        while not list(tmp_path.glob("out/runs/*/*/version_0/history.csv")):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        process.terminate()
        said = process.communicate(timeout=30)
    assert process.returncode == 143
    assert said == ("", "")
