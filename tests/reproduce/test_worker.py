import json
import os
import re
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from filelock import FileLock

from digitlab import __version__
from digitlab.errors import InputError
from digitlab.reproduce import executors, worker
from digitlab.reproduce.executors import train_items
from digitlab.reproduce.results import Result
from digitlab.reproduce.rows import Row
from digitlab.reproduce.worker import Item, Outcome, Spec, train_run
from digitlab.run_folder import Framework
from tests.reproduce.inline import Inline
from tests.reproduce.samples import RESULT


class Laboratory:
    """A folder whose runs train nothing: it keeps their commands, and makes their folders."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.recorded: dict[Item, Result] = {}
        self.commands: list[list[str]] = []
        self.before: Callable[[list[str]], bool] = lambda command: True
        self.configs = out / "configs" / "tiny"
        self.configs.mkdir(parents=True)
        self.first, self.second, self.continued = (
            Row(name, self.configs / f"{name}.yaml") for name in ("one", "two", "one_continued")
        )
        for row in (self.first, self.second, self.continued):
            row.config.write_text("model: MLP\n")
        self.item, self.other = Item(self.first, "torch", 0), Item(self.first, "torch", 1)

    def train(self, *items: Item, **how: Any) -> list[Item]:
        return train_items(items, self.out, lambda item: item in self.recorded, self.keep, **how)

    def keep(self, item: Item, result: Result) -> str:
        self.recorded[item] = result
        return "recorded"

    def main(self, command: list[str]) -> int:
        self.commands.append(command)
        print("output of the run")
        root = Path(command[command.index("--trainer.default_root_dir") + 1], "run")
        folder = root / f"version_{len(list(root.glob('version_*')))}"
        folder.mkdir(parents=True)
        if not self.before(command):
            return 1
        (folder / "metrics.json").write_text(json.dumps({"test": {"loss": 0.1}}))
        return 0

    def values(self, name: str) -> list[str]:
        """An option's value in each command."""
        return [command[command.index(name) + 1] for command in self.commands]

    def run(self, item: Item) -> Path:
        return self.out / "runs" / item.name

    def spec(self, item: Item) -> Spec:
        return Spec.make(item, self.out)


@pytest.fixture
def laboratory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Laboratory:
    laboratory = Laboratory(tmp_path)
    monkeypatch.setattr(worker, "main", laboratory.main)
    monkeypatch.setattr(Result, "of_run", lambda row, folder: RESULT)
    monkeypatch.setattr("digitlab.reproduce.executors.Processes", Inline)
    return laboratory


def test_each_item_is_trained_by_its_framework_with_its_config_seed_and_threads(
    laboratory: Laboratory,
) -> None:
    items = [Item(laboratory.first, "torch", 4), Item(laboratory.second, "keras", 5)]
    assert laboratory.train(*items, threads=2) == []
    starts = [command[: command.index("--config")] for command in laboratory.commands]
    assert starts == [["fit"], ["fit", "--framework", "keras"]]
    assert laboratory.values("--config") == [str(item.row.config) for item in items]
    assert laboratory.values("--seed_everything") == ["4", "5"]
    assert laboratory.values("--threads") == ["2", "2"]
    assert list(laboratory.recorded) == items


def test_finished_items_are_not_trained_again_even_if_their_result_was_not_recorded(
    laboratory: Laboratory,
) -> None:
    laboratory.train(laboratory.item)
    result = laboratory.recorded.pop(laboratory.item)
    laboratory.train(laboratory.item, laboratory.other)
    assert laboratory.recorded[laboratory.item] == result
    laboratory.train(laboratory.item, laboratory.other)
    assert laboratory.values("--seed_everything") == ["0", "1"]


def test_half_a_run_starts_over_and_is_removed_once_it_is_whole(laboratory: Laboratory) -> None:
    half = laboratory.run(laboratory.item) / "run" / "version_0"
    (half / "checkpoints").mkdir(parents=True)
    laboratory.train(laboratory.item)
    assert [*half.parent.iterdir()] == [half.with_name("version_1")]


def test_an_item_that_another_process_trains_is_left_to_it(
    laboratory: Laboratory, capsys: pytest.CaptureFixture[str]
) -> None:
    locks = laboratory.out / "runs" / "locks"
    locks.mkdir(parents=True)
    with FileLock(locks / f"{laboratory.item.name}.lock"):
        assert laboratory.train(laboratory.item, laboratory.other) == []
    assert list(laboratory.recorded) == [laboratory.other]
    assert f"{laboratory.item}: left to another process" in capsys.readouterr().out


def test_a_failed_run_is_named_and_the_others_are_trained(
    laboratory: Laboratory, capsys: pytest.CaptureFixture[str]
) -> None:
    laboratory.before = lambda command: "0" not in command
    assert laboratory.train(laboratory.item, laboratory.other) == [laboratory.item]
    assert list(laboratory.recorded) == [laboratory.other]
    log = laboratory.run(laboratory.item) / "log.txt"
    assert log.read_text() == "output of the run\n"
    assert f"one torch seed 0 failed: see {log}\n" in capsys.readouterr().out


@pytest.mark.parametrize("asked", [True, False], ids=["asked for", "not asked for"])
@pytest.mark.parametrize(
    ("framework", "weights"), [("keras", "model.keras"), ("torch", "checkpoints/last.ckpt")]
)
def test_a_row_that_continues_another_starts_with_its_weights(
    framework: Framework, weights: str, asked: bool, laboratory: Laboratory
) -> None:
    first, second = (Item(row, framework, 3) for row in (laboratory.first, laboratory.continued))
    assert laboratory.train(*([second, first] if asked else [second])) == []  # in any order
    configs = [str(item.row.config) for item in (first, second)]
    assert laboratory.values("--config") == configs
    assert list(laboratory.recorded) == ([first, second] if asked else [second])
    run = laboratory.run(first) / "run" / "version_0"
    assert laboratory.commands[1][-2:] == ["--weights", str(run / weights)]


def test_a_run_without_a_result_fails_alone_and_each_time(
    laboratory: Laboratory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def of_run(row: Row, folder: Path) -> Result:
        if "seed_0" in str(folder):
            raise ValueError("it diverged")
        return RESULT

    monkeypatch.setattr(Result, "of_run", of_run)
    for _ in range(2):
        assert laboratory.train(laboratory.item, laboratory.other) == [laboratory.item]
    assert list(laboratory.recorded) == [laboratory.other]
    assert len(laboratory.commands) == 2
    assert "it diverged" in (laboratory.run(laboratory.item) / "log.txt").read_text()


def test_a_result_that_cannot_be_recorded_is_named(
    laboratory: Laboratory, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def keep(item: Item, result: Result) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(laboratory, "keep", keep)
    assert laboratory.train(laboratory.item) == [laboratory.item]
    assert "failed: [Errno 28] No space left on device; make room" in capsys.readouterr().out


def test_all_that_a_run_writes_is_in_its_log(
    laboratory: Laboratory, capfd: pytest.CaptureFixture[str]
) -> None:
    def write(command: list[str]) -> bool:
        os.write(2, b"as C++ code does\n")
        return True

    laboratory.before = write
    outcome = train_run(laboratory.spec(laboratory.item))
    log = b"output of the run\nas C++ code does\n"
    assert outcome == Outcome(RESULT, files={"log.txt": log})
    assert capfd.readouterr() == ("", "")
    print("after it")
    assert capfd.readouterr().out == "after it\n"


def test_a_worker_of_another_version_ends_the_command(
    laboratory: Laboratory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "__version__", "9.8")  # of the worker; the command made the spec
    said = rf"worker process \d+ has digitlab 9\.8: install {re.escape(__version__)}"
    with pytest.raises(InputError, match=said):
        laboratory.train(laboratory.item, laboratory.other)
    assert not laboratory.commands
    assert not laboratory.recorded


def test_a_dask_worker_of_several_threads_is_refused_by_name(laboratory: Laboratory) -> None:
    dask = SimpleNamespace(address="tcp://there:1", state=SimpleNamespace(nthreads=2))
    with pytest.raises(InputError, match="worker tcp://there:1 trains 2 runs in one process: st"):
        worker._check_worker(laboratory.spec(laboratory.item), dask)


@pytest.mark.parametrize("fetch", [True, False])
def test_a_worker_elsewhere_sends_its_log_and_if_it_is_asked_for_the_run_folder(
    fetch: bool, laboratory: Laboratory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executors, "_executor", lambda *_: nullcontext(Inline()))
    assert laboratory.train(laboratory.item, scheduler="there", fetch=fetch) == []
    run = laboratory.run(laboratory.item)
    assert (run / "log.txt").read_text() == "output of the run\n"
    assert (run / "run" / "version_0" / "metrics.json").exists() is fetch
    assert list(laboratory.recorded) == [laboratory.item]


def test_a_worker_without_the_config_trains_with_its_content_and_finds_its_own_runs(
    laboratory: Laboratory,
) -> None:
    row = laboratory.continued
    item = Item(row, "torch", 0)
    spec = Spec.make(item, laboratory.out, remote=True, fetch=True)
    row.config.write_text("model: LeNet5\n")
    other = Spec.make(item, laboratory.out, remote=True)
    assert spec.name != other.name
    for row in (laboratory.first, laboratory.continued):
        row.config.unlink()
    outcome = train_run(spec)
    configs = [Path(path) for path in laboratory.values("--config")]
    assert [path.name for path in configs] == ["one.yaml", "one_continued.yaml"]
    assert {path.parent.name for path in configs} == {"tiny"}
    assert configs[1].read_text() == "model: MLP\n"
    assert [*outcome.files] == ["log.txt", "run/version_0/metrics.json"]
    assert train_run(spec) == outcome
    assert len(laboratory.commands) == 2  # none was trained again
