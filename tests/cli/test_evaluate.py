import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from digitlab import Run
from digitlab.cli import main
from digitlab.models import MLP
from digitlab.run_folder import read_metrics
from tests.commands import config_of, fit
from tests.tiny import TEST, TinyDataModule


@pytest.fixture
def run(copied_run: Path) -> Path:
    return copied_run


@pytest.mark.parametrize("checkpoint", ["last", "best", "path of last", "path of best"])
def test_test_scores_a_checkpoint_and_adds_it_to_the_metrics(
    checkpoint: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = read_metrics(run)
    name = checkpoint.split()[-1]
    path = run / "checkpoints" / f"{name}.ckpt"
    chosen = str(path) if checkpoint.startswith("path") else checkpoint
    assert main(["test", "--run", str(run), "--checkpoint", chosen]) == 0
    metrics = read_metrics(run)
    expected = MLP.load_from_checkpoint(path).evaluate(TinyDataModule().test_dataloader())
    entry = metrics["test"]
    assert {key: entry[key] for key in expected} == pytest.approx(expected)
    assert (entry["checkpoint"], entry["split"], "flags" in entry) == (chosen, "test", False)
    assert entry.get("chosen_on") == ("test" if name == "best" else None)
    assert metrics | {"test": None} == before | {"test": None}
    shown = capsys.readouterr().out
    assert f"Test accuracy {expected['accuracy']:.2%} ({expected['correct']}/50)" in shown
    assert ("chosen on the test images" in shown) == (name == "best")


def test_validate_scores_the_images_that_the_run_was_validated_on_and_names_the_split(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["validate", "--run", str(run)]) == 0
    assert capsys.readouterr().out.startswith("Validation (test split) accuracy ")
    metrics = read_metrics(run)
    assert metrics["val"]["split"] == "test"
    same = ("loss", "accuracy", "correct", "n")
    assert [metrics["val"][key] for key in same] == [metrics["test"][key] for key in same]


def test_predict_writes_a_row_for_each_test_image(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["predict", "--run", str(run)]) == 0
    rows = pd.read_csv(run / "predictions.csv", index_col="index", dtype={"class_name": str})
    expected = Run(run).predictions("test")
    assert rows["label"].tolist() == TEST[1].tolist()
    rows["probabilities"] = rows["probabilities"].map(json.loads)
    pd.testing.assert_frame_equal(rows, expected, check_dtype=False)
    right = read_metrics(run)["test"]["correct"]
    assert f"{right} of 50 test images" in capsys.readouterr().out


def test_flags_that_change_a_score_stand_beside_it_and_in_a_config_of_its_own(run: Path) -> None:
    before = (run / "config.yaml").read_bytes()
    flags = ["--model.dropout_in_evaluation", "true"]
    assert main(["test", "--run", str(run), *flags, "--checkpoint", "last"]) == 0
    assert main(["predict", "--run", str(run)]) == 0
    assert (run / "config.yaml").read_bytes() == before
    config: Any = config_of(run, "test.yaml")
    assert config["model"]["init_args"]["dropout_in_evaluation"] is True
    assert (run / "predict.yaml").exists()
    assert read_metrics(run)["test"]["flags"] == flags


def test_settings_of_training_do_not_disturb_an_evaluation(tmp_path: Path) -> None:
    options = ["--trainer.limit_val_batches", "0", "--trainer.callbacks", "ModelCheckpoint"]
    options += ["--trainer.callbacks.monitor", "train/loss", "--trainer.profiler", "simple"]
    run = fit(tmp_path, *options)
    assert main(["validate", "--run", str(run)]) == 0
    assert read_metrics(run)["val"]["n"] == 50
