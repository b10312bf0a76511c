import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock, Timeout

from digitlab.reproduce.queue import Item, Queue
from digitlab.reproduce.rows import Row
from digitlab.run_folder import Framework

FIRST, SECOND = (Row(name, Path("configs", "tiny", f"{name}.yaml")) for name in ("one", "two"))
CONTINUED = Row("more", Path("configs", "tiny", "one_continued.yaml"))
ITEM, OTHER = Item(FIRST, "torch", 0), Item(FIRST, "torch", 1)


class FakeQueue(Queue):
    """A queue whose runs are no processes: it keeps their commands, and makes their folders."""

    def __init__(self, out: Path) -> None:
        super().__init__(out, lambda item: item in self.recorded, self.keep)
        self.recorded: dict[Item, Path] = {}
        self.commands: list[list[str]] = []
        self.before: Callable[[list[str]], bool] = lambda command: True

    def keep(self, item: Item, folder: Path) -> str:
        self.recorded[item] = folder
        return "recorded"

    def _call(self, command: list[str], log: Path, held: FileLock) -> bool:
        self.commands.append(command)
        log.write_text("output of the run")
        root = Path(command[command.index("--trainer.default_root_dir") + 1], "run")
        folder = root / f"version_{len(list(root.glob('version_*')))}"
        folder.mkdir(parents=True)
        if not self.before(command):
            return False
        (folder / "metrics.json").write_text(json.dumps({}))
        return True

    def values(self, name: str) -> list[str]:
        """An option's value in each command."""
        return [command[command.index(name) + 1] for command in self.commands]


@pytest.fixture
def queue(tmp_path: Path) -> FakeQueue:
    return FakeQueue(tmp_path)


def test_each_item_is_trained_by_its_framework_with_its_config_seed_and_threads(
    queue: FakeQueue,
) -> None:
    items = [Item(FIRST, "torch", 4), Item(SECOND, "keras", 5)]
    queue.threads = 2
    assert queue.work(items) == []
    starts = [command[3 : command.index("--config")] for command in queue.commands]
    assert starts == [["fit"], ["fit", "--framework", "keras"]]
    assert queue.values("--config") == [str(item.row.config) for item in items]
    assert queue.values("--seed_everything") == ["4", "5"]
    assert queue.values("--threads") == ["2", "2"]
    assert list(queue.recorded) == items


def test_finished_items_are_not_trained_again_even_if_their_result_was_not_recorded(
    queue: FakeQueue,
) -> None:
    queue.work([ITEM])
    folder = queue.recorded.pop(ITEM)
    queue.work([ITEM, OTHER])
    assert queue.recorded[ITEM] == folder
    queue.work([ITEM, OTHER])
    assert queue.values("--seed_everything") == ["0", "1"]


def test_half_a_run_starts_over_and_is_removed_once_it_is_whole(queue: FakeQueue) -> None:
    half = queue.out / "runs" / ITEM.name / "run" / "version_0"
    (half / "checkpoints").mkdir(parents=True)
    queue.work([ITEM])
    assert queue.recorded[ITEM] == half.with_name("version_1")
    assert not half.exists()


def test_an_item_that_another_process_trains_is_left_to_it(
    queue: FakeQueue, capsys: pytest.CaptureFixture[str]
) -> None:
    locks = queue.out / "runs" / "locks"
    locks.mkdir(parents=True)
    with FileLock(locks / f"{ITEM.name}.lock"):
        assert queue.work([ITEM, OTHER]) == []
    assert list(queue.recorded) == [OTHER]
    assert f"{ITEM}: left to another process" in capsys.readouterr().out


def test_a_failed_run_is_named_and_the_others_are_trained(queue: FakeQueue) -> None:
    queue.before = lambda command: "0" not in command
    assert queue.work([ITEM, OTHER]) == [ITEM]
    assert list(queue.recorded) == [OTHER]
    assert queue.log(ITEM).read_text() == "output of the run"


@pytest.mark.parametrize("asked", [True, False], ids=["asked for", "not asked for"])
@pytest.mark.parametrize(
    ("framework", "weights"), [("keras", "model.keras"), ("torch", "checkpoints/last.ckpt")]
)
def test_a_row_that_continues_another_starts_with_its_weights(
    framework: Framework, weights: str, asked: bool, queue: FakeQueue
) -> None:
    first, second = (Item(row, framework, 3) for row in (FIRST, CONTINUED))
    assert queue.work([second, first] if asked else [second]) == []  # in any order
    assert queue.values("--config") == [str(FIRST.config), str(CONTINUED.config)]
    assert list(queue.recorded) == ([first, second] if asked else [second])
    run = queue.find_run(first)
    assert run
    assert queue.commands[1][-2:] == ["--weights", str(run / weights)]


def test_as_many_runs_as_workers_are_trained_at_a_time(queue: FakeQueue) -> None:
    queue.workers = 3
    all_there = threading.Barrier(3, timeout=20)  # breaks unless three wait at once
    queue.before = lambda command: all_there.wait() >= 0
    assert queue.work([Item(FIRST, "torch", seed) for seed in range(6)]) == []
    assert len(queue.recorded) == 6


def test_a_run_without_a_result_fails_alone_and_each_time(queue: FakeQueue) -> None:
    def record(item: Item, folder: Path) -> str:
        if item == ITEM:
            raise ValueError("it diverged")
        return queue.keep(item, folder)

    queue.record = record
    for _ in range(2):
        assert queue.work([ITEM, OTHER]) == [ITEM]
    assert list(queue.recorded) == [OTHER]
    assert "it diverged" in queue.log(ITEM).read_text()


@pytest.mark.parametrize(
    ("last_words", "error", "code"),
    [("", KeyboardInterrupt, None), (f"kill -TERM {os.getpid()};", SystemExit, 143)],
    ids=["ctrl-c", "sigterm"],
)
def test_an_interrupt_ends_the_runs(
    last_words: str,
    error: type[BaseException],
    code: int | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    queue = FakeQueue(tmp_path)
    monkeypatch.setattr(FakeQueue, "_call", Queue._call)
    lasting, log = ["sh", "-c", f"{last_words} exec sleep 600"], tmp_path / "log"
    monkeypatch.setattr(Queue, "_train", lambda self, item, held: self._call(lasting, log, held))

    def interrupt(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    if error is KeyboardInterrupt:
        monkeypatch.setattr("digitlab.reproduce.queue.wait", interrupt)
    with pytest.raises(error) as left:
        queue.work([ITEM])
    assert getattr(left.value, "code", None) == code
    assert not queue.recorded


@pytest.mark.parametrize(("command", "succeeds"), [("exit 0", True), ("exit 1", False)])
def test_a_process_s_exit_code_tells_whether_it_succeeded(
    command: str, succeeds: bool, tmp_path: Path
) -> None:
    queue = Queue(tmp_path, lambda item: False, lambda item, folder: "", threads=3)
    shown = f"echo $OMP_NUM_THREADS; {command}"
    with FileLock(tmp_path / "lock") as held:
        assert queue._call(["sh", "-c", shown], tmp_path / "log", held) is succeeds
    assert (tmp_path / "log").read_text() == "3\n"


@pytest.mark.slow  # as a process
def test_a_run_whose_queue_was_killed_keeps_its_item(tmp_path: Path) -> None:
    program = """
from pathlib import Path
from digitlab.reproduce.queue import Item, Queue
from digitlab.reproduce.rows import Row
from digitlab.run_folder import Framework
lasting = ["sh", "-c", "echo $$; exec sleep 30"]
Queue._train = lambda self, item, held: self._call(lasting, Path("log"), held)
Queue(Path("."), lambda item: False, lambda item, folder: "").work(
    [Item(Row("one", Path("configs", "tiny", "one.yaml")), "torch", 0)]
)
"""
    log = tmp_path / "log"
    with subprocess.Popen([sys.executable, "-c", program], cwd=tmp_path) as process:
        deadline = time.monotonic() + 60
        while not (log.exists() and log.read_text()) and time.monotonic() < deadline:
            time.sleep(0.05)
        process.kill()
    lock = FileLock(tmp_path / "runs" / "locks" / f"{ITEM.name}.lock", blocking=False)
    try:
        with pytest.raises(Timeout), lock:
            pass
    finally:
        os.kill(int(log.read_text()), 15)
    with FileLock(lock.lock_file, timeout=5):
        pass  # it is free once the run has ended
