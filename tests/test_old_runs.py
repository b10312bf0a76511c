"""Run folders that an older version wrote, see old_runs/README.md, are still of use."""

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from digitlab.cli import main
from digitlab.resume import recorded_threads
from digitlab.run_folder import read_metrics
from tests.commands import config_of, refusal

OLD_RUNS = Path(__file__).parent / "old_runs"
VAL_LOSSES = [1.5919779539108276, 1.4453458786010742, 1.3117889165878296]
"""Of three epochs of the PyTorch run; they were computed by the version that wrote the folders."""

CopyRun = Callable[[str], Path]
both = pytest.mark.parametrize(
    "name", ["torch", pytest.param("keras", marks=pytest.mark.xdist_group("keras"))]
)


@pytest.fixture
def copy_run(tmp_path: Path) -> CopyRun:
    """Copy an old run folder, by its name, to a place where commands may write into it."""
    return lambda name: Path(shutil.copytree(OLD_RUNS / name, tmp_path / name))


@both
def test_test_and_predict_give_an_old_run_its_own_accuracy(name: str, copy_run: CopyRun) -> None:
    folder = copy_run(name)
    before = read_metrics(folder)
    (folder / "metrics.json").write_text(json.dumps(before | {"test": None}), "utf-8")
    for command in ("test", "predict"):
        assert main([command, "--run", str(folder)]) == 0
    score = read_metrics(folder)["test"]
    assert (score["checkpoint"], score["split"]) == ("last", "test")
    assert_same_score(score, before["test"])
    assert {**read_metrics(folder), "test": 0} == {**before, "test": 0}
    rows = read_csv(folder / "predictions.csv")
    assert len(rows) == score["n"]
    assert sum(row["class"] == row["label"] for row in rows) == score["correct"]
    # The best checkpoint's accuracy is in the history.
    assert main(["test", "--run", str(folder), "--checkpoint", "best"]) == 0
    best = max(float(row["val_accuracy"]) for row in read_csv(folder / "history.csv"))
    assert read_metrics(folder)["test"]["accuracy"] == best


@both
def test_report_shows_an_old_run(name: str, copy_run: CopyRun) -> None:
    folder = copy_run(name)
    assert main(["report", str(folder)]) == 0
    accuracy = read_metrics(folder)["test"]["accuracy"]
    assert f"{accuracy:.2%}" in (folder / "report.html").read_text("utf-8")


@both
def test_the_weights_of_an_old_run_start_a_new_one(
    name: str, copy_run: CopyRun, tmp_path: Path
) -> None:
    folder = copy_run(name)
    weights = folder / {"torch": "checkpoints/last.ckpt", "keras": "model.keras"}[name]
    options = ["--config", "configs/digits/nn128.yaml", "--model.hidden_features", "[4]"]
    options += ["--model.optimizer.init_args.lr", "0"]  # so that training keeps the weights
    options += ["--trainer.max_epochs", "1", "--trainer.accelerator", "cpu"]
    options += ["--trainer.default_root_dir", str(tmp_path / "runs"), "--weights", str(weights)]
    framework = ["--framework", "keras"] if name == "keras" else []
    assert main(["fit", *framework, *options]) == 0
    (new,) = (tmp_path / "runs").glob("*/version_0")
    assert_same_score(read_metrics(new)["test"], read_metrics(folder)["test"])


def test_an_old_pytorch_run_is_lengthened(copy_run: CopyRun) -> None:
    folder = copy_run("torch")
    before = read_csv(folder / "history.csv")
    assert main(["fit", "--run", str(folder), "--trainer.max_epochs", "3"]) == 0
    assert config_of(folder)["threads"] == 1
    rows = read_csv(folder / "history.csv")
    assert rows[:2] == before
    assert [row["step"] for row in rows] == ["90", "180", "270"]
    losses = [float(row["val_loss"]) for row in rows]
    assert losses == pytest.approx(VAL_LOSSES, rel=1e-4)  # other CPUs round differently
    assert read_metrics(folder)["optimizer_steps"] == 270


def test_an_old_pytorch_run_is_resumed_inside_an_epoch(
    copy_run: CopyRun, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = copy_run("interrupted")
    assert main(["fit", "--run", str(folder)]) == 0
    first, *_ = capsys.readouterr().out.splitlines()
    assert first == f"{folder} has no number of threads: using 1, see --threads"
    resumed, whole = (read_csv(path / "history.csv") for path in (folder, OLD_RUNS / "torch"))
    assert without_seconds(resumed[0]) == without_seconds(whole[0])
    expected = pytest.approx(without_seconds(whole[1]), rel=1e-4)  # other CPUs round differently
    assert without_seconds(resumed[1]) == expected
    assert_same_score(read_metrics(folder)["test"], read_metrics(OLD_RUNS / "torch")["test"])


@pytest.mark.parametrize(
    ("device", "threads"), [("cpu (1 thread)", 1), ("cpu (24 threads)", 24), ("Tesla T4", 5)]
)
def test_an_old_run_is_resumed_with_the_threads_that_it_recorded_else_with_torch_s(
    device: str, threads: int, copy_run: CopyRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.get_num_threads", lambda: 5)
    folder = copy_run("torch")
    (folder / "metrics.json").write_text(json.dumps({"device": device}), "utf-8")
    assert recorded_threads(folder) == threads


@pytest.mark.parametrize("options", [[], ["--trainer.max_epochs", "3"]])
def test_an_old_keras_run_is_refused_because_it_has_no_checkpoint_to_resume_from(
    options: list[str], copy_run: CopyRun, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = copy_run("keras")
    before = sorted(folder.rglob("*"))
    shown = refusal(capsys, "fit", "--run", str(folder), *options)
    assert str(folder) in shown
    assert "Keras" in shown
    assert "no checkpoint" in shown
    assert f"--framework keras --weights {folder / 'model.keras'}" in shown
    assert sorted(folder.rglob("*")) == before


def assert_same_score(score: dict[str, Any], expected: dict[str, Any]) -> None:
    assert score["accuracy"] == expected["accuracy"]
    assert (score["correct"], score["n"]) == (expected["correct"], expected["n"])
    assert score["loss"] == pytest.approx(
        expected["loss"], rel=1e-4
    )  # other CPUs round differently


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def without_seconds(row: dict[str, str]) -> dict[str, float]:
    return {name: float(value) for name, value in row.items() if name != "seconds"}
