import json
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock

from digitlab.reproduce.queue import Item, Queue
from digitlab.reproduce.rows import Row

FIRST, SECOND = (Row(name, Path("configs", "tiny", f"{name}.yaml")) for name in ("one", "two"))
CONTINUED = Row("more", Path("configs", "tiny", "one_continued.yaml"))


class Trainings:
    """Stands in for the processes that train: keeps the commands, and leaves run folders."""

    def __init__(self, fails: Callable[[list[str]], bool] = lambda command: False) -> None:
        self.commands: list[list[str]] = []
        self.fails = fails

    def __call__(self, command: list[str], log: Path, held: FileLock) -> bool:
        self.commands.append(command)
        log.write_text("said by the run")
        root = Path(command[command.index("--trainer.default_root_dir") + 1], "run")
        folder = root / f"version_{len(list(root.glob('version_*')))}"
        folder.mkdir(parents=True)
        if self.fails(command):
            return False
        (folder / "metrics.json").write_text(json.dumps({"seed": self.option(-1, "--seed")}))
        return True

    def option(self, index: int, name: str) -> str:
        """The value of an option of a command."""
        command = self.commands[index]
        return command[next(i for i, word in enumerate(command) if word.startswith(name)) + 1]


def make_queue(
    out: Path, trainings: Trainings, monkeypatch: pytest.MonkeyPatch
) -> tuple[Queue, dict[Item, Path]]:
    recorded: dict[Item, Path] = {}

    def record(item: Item, folder: Path) -> str:
        recorded[item] = folder
        return "recorded"

    queue = Queue(out, lambda item: item in recorded, record)
    monkeypatch.setattr(queue, "_call", trainings)
    return queue, recorded


def test_each_item_is_trained_by_its_framework_with_its_config_and_seed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainings = Trainings()
    queue, recorded = make_queue(tmp_path, trainings, monkeypatch)
    items = [Item(FIRST, "torch", 4), Item(SECOND, "keras", 5)]
    assert queue.work(items) == []
    assert [command[3:-6] for command in trainings.commands] == [["fit"], ["keras", "fit"]]
    assert [trainings.option(i, "--config") for i in range(2)] == [
        str(item.row.config) for item in items
    ]
    assert [trainings.option(i, "--seed_everything") for i in range(2)] == ["4", "5"]
    assert list(recorded) == items


def test_what_is_done_is_not_trained_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainings = Trainings()
    queue, _ = make_queue(tmp_path, trainings, monkeypatch)
    queue.work([Item(FIRST, "torch", 0)])
    queue.work([Item(FIRST, "torch", 0), Item(FIRST, "torch", 1)])
    assert [trainings.option(i, "--seed_everything") for i in range(2)] == ["0", "1"]
    assert len(trainings.commands) == 2


def test_a_finished_run_that_was_not_recorded_is_recorded_without_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainings = Trainings()
    queue, recorded = make_queue(tmp_path, trainings, monkeypatch)
    item = Item(FIRST, "torch", 0)
    queue.work([item])
    folder = recorded.pop(item)
    queue.work([item])
    assert recorded == {item: folder}
    assert len(trainings.commands) == 1


def test_half_a_run_starts_over_and_is_removed_once_it_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    item = Item(FIRST, "torch", 0)
    half = tmp_path / "runs" / item.name / "run" / "version_0"
    (half / "checkpoints").mkdir(parents=True)
    trainings = Trainings()
    queue, recorded = make_queue(tmp_path, trainings, monkeypatch)
    queue.work([item])
    assert recorded[item] == half.with_name("version_1")
    assert not half.exists()


def test_an_item_that_another_process_trains_is_left_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trainings = Trainings()
    queue, recorded = make_queue(tmp_path, trainings, monkeypatch)
    taken, free = Item(FIRST, "torch", 0), Item(FIRST, "torch", 1)
    locks = tmp_path / "runs" / "locks"
    locks.mkdir(parents=True)
    with FileLock(locks / f"{taken.name}.lock"):
        assert queue.work([taken, free]) == []
    assert list(recorded) == [free]
    assert f"{taken}: left to another process" in capsys.readouterr().out


def test_a_failed_run_is_named_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainings = Trainings(fails=lambda command: "0" in command)
    queue, recorded = make_queue(tmp_path, trainings, monkeypatch)
    bad, good = Item(FIRST, "torch", 0), Item(FIRST, "torch", 1)
    assert queue.work([bad, good]) == [bad]
    assert list(recorded) == [good]
    assert queue.log(bad).read_text() == "said by the run"


def test_a_row_that_goes_on_from_another_starts_with_its_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainings = Trainings()
    queue, recorded = make_queue(tmp_path, trainings, monkeypatch)
    first, second = Item(FIRST, "keras", 0), Item(CONTINUED, "keras", 0)
    queue.work([second, first])  # in whichever order they are asked for
    assert len(trainings.commands) == 2
    assert trainings.option(1, "--weights") == str(recorded[first] / "model.keras")


def test_the_row_that_another_goes_on_from_is_trained_for_it_where_it_was_not_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainings = Trainings()
    queue, recorded = make_queue(tmp_path, trainings, monkeypatch)
    assert queue.work([Item(CONTINUED, "torch", 3)]) == []
    assert [trainings.option(i, "--config") for i in range(2)] == [
        str(FIRST.config),
        str(CONTINUED.config),
    ]
    assert list(recorded) == [Item(CONTINUED, "torch", 3)]
    assert trainings.option(1, "--weights").endswith("checkpoints/last.ckpt")


def test_as_many_runs_as_workers_go_on_beside_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainings = Trainings()
    queue, recorded = make_queue(tmp_path, trainings, monkeypatch)
    queue.workers = 3
    all_there = threading.Barrier(3, timeout=20)  # breaks unless three wait at once

    def train(command: list[str], log: Path, held: FileLock) -> bool:
        all_there.wait()
        return trainings(command, log, held)

    monkeypatch.setattr(queue, "_call", train)
    assert queue.work([Item(FIRST, "torch", seed) for seed in range(6)]) == []
    assert len(recorded) == 6


def test_ctrl_c_ends_the_runs_under_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainings = Trainings()
    queue, recorded = make_queue(tmp_path, trainings, monkeypatch)
    monkeypatch.undo()
    lasting = ["sleep", "600"]
    log = tmp_path / "log"
    monkeypatch.setattr(Queue, "_train", lambda self, item, held: self._call(lasting, log, held))

    def interrupt(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("digitlab.reproduce.queue.wait", interrupt)
    with pytest.raises(KeyboardInterrupt):
        queue.work([Item(FIRST, "torch", seed) for seed in range(3)])
    assert not recorded


def test_a_run_that_gives_no_result_fails_alone_and_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainings = Trainings()
    queue, recorded = make_queue(tmp_path, trainings, monkeypatch)
    keep = queue.record

    def record(item: Item, folder: Path) -> str:
        if item.seed == 0:
            raise ValueError("it diverged")
        return keep(item, folder)

    queue.record = record
    bad, good = Item(FIRST, "torch", 0), Item(FIRST, "torch", 1)
    assert queue.work([bad, good]) == [bad]
    assert queue.work([bad, good]) == [bad]
    assert list(recorded) == [good]
    assert "it diverged" in queue.log(bad).read_text()
