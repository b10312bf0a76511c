"""Run folders that an older version wrote, see old_runs/README.md, are still of use."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from digitlab import Run
from digitlab.cli import main
from digitlab.resume import recorded_threads
from digitlab.run_folder import read_metrics
from tests.commands import config_of, refusal, words

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
def test_an_old_run_is_tested_classified_and_reported(name: str, copy_run: CopyRun) -> None:
    folder = copy_run(name)
    before = read_metrics(folder)
    (folder / "metrics.json").write_text(json.dumps(before | {"test": None}), "utf-8")
    for command in ("test", "predict"):
        assert main([command, "--run", str(folder)]) == 0
    score = read_metrics(folder)["test"]
    assert (score["checkpoint"], score["split"]) == ("last", "test")
    assert_same_score(score, before["test"])
    assert {**read_metrics(folder), "test": 0} == {**before, "test": 0}
    for rows in (pd.read_csv(folder / "predictions.csv"), Run(folder).predictions("test")):
        assert (len(rows), (rows["class"] == rows["label"]).sum()) == (score["n"], score["correct"])
    assert main(["report", str(folder)]) == 0
    assert f"{score['accuracy']:.2%}" in (folder / "report.html").read_text("utf-8")
    # The best checkpoint's accuracy is in the history.
    assert main(["test", "--run", str(folder), "--checkpoint", "best"]) == 0
    assert read_metrics(folder)["test"]["accuracy"] == Run(folder).history["val_accuracy"].max()


@both
def test_the_weights_of_an_old_run_start_a_new_one(
    name: str, copy_run: CopyRun, tmp_path: Path
) -> None:
    folder = copy_run(name)
    weights = folder / {"torch": "checkpoints/last.ckpt", "keras": "model.keras"}[name]
    options = ["--data", "DigitsDataModule", "--model.hidden_features", "[4]"]
    options += ["--model.optimizer", "SGD", "--model.optimizer.lr", "0", "--framework", name]
    start = words(tmp_path / "runs", *options, "--weights", str(weights), model="MLP")
    assert main(start) == 0
    (new,) = (tmp_path / "runs").glob("*/version_0")
    assert_same_score(read_metrics(new)["test"], read_metrics(folder)["test"])


def test_an_old_pytorch_run_is_lengthened(copy_run: CopyRun) -> None:
    folder = copy_run("torch")
    before = history_of(folder)
    assert main(["fit", "--run", str(folder), "--trainer.max_epochs", "3"]) == 0
    assert config_of(folder)["threads"] == 1
    rows = history_of(folder)
    pd.testing.assert_frame_equal(rows[:2], before, check_exact=True)
    assert rows["step"].tolist() == [90, 180, 270]
    # Other CPUs round differently.
    assert rows["val_loss"].tolist() == pytest.approx(VAL_LOSSES, rel=1e-4)
    assert read_metrics(folder)["optimizer_steps"] == 270


def test_an_old_pytorch_run_is_resumed_inside_an_epoch(
    copy_run: CopyRun, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = copy_run("interrupted")
    assert main(["fit", "--run", str(folder)]) == 0
    first, *_ = capsys.readouterr().out.splitlines()
    assert first == f"{folder} has no number of threads: using 1, see --threads"
    resumed, whole = (history_of(path) for path in (folder, OLD_RUNS / "torch"))
    pd.testing.assert_frame_equal(resumed[:1], whole[:1], check_exact=True)
    pd.testing.assert_frame_equal(resumed, whole, rtol=1e-4)  # other CPUs round differently
    assert_same_score(read_metrics(folder)["test"], read_metrics(OLD_RUNS / "torch")["test"])


@pytest.mark.parametrize(
    ("device", "threads"), [("cpu (1 thread)", 1), ("cpu (24 threads)", 24), ("Tesla T4", 5)]
)
def test_an_old_run_is_resumed_with_the_threads_that_it_recorded_else_with_torch_s(
    device: str, threads: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.get_num_threads", lambda: 5)
    (tmp_path / "metrics.json").write_text(json.dumps({"device": device}), "utf-8")
    assert recorded_threads(tmp_path) == threads


@pytest.mark.parametrize("options", [[], ["--trainer.max_epochs", "3"]])
def test_an_old_keras_run_is_refused_because_it_has_no_checkpoint_to_resume_from(
    options: list[str], copy_run: CopyRun, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = copy_run("keras")
    before = sorted(folder.rglob("*"))
    shown = refusal(capsys, "fit", "--run", str(folder), *options)
    for part in (str(folder), "Keras", "no checkpoint"):
        assert part in shown
    assert f"--framework keras --weights {folder / 'model.keras'}" in shown
    assert sorted(folder.rglob("*")) == before


def assert_same_score(score: dict[str, Any], expected: dict[str, Any]) -> None:
    assert score["accuracy"] == expected["accuracy"]
    assert (score["correct"], score["n"]) == (expected["correct"], expected["n"])
    # Other CPUs round differently.
    assert score["loss"] == pytest.approx(expected["loss"], rel=1e-4)


def history_of(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "history.csv").drop(columns="seconds")
