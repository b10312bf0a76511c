import csv
import json
from pathlib import Path
from typing import Any

import pytest

from digitlab.cli import main
from digitlab.models import MLP
from tests.commands import config_of, fit, refusal
from tests.tiny import TEST, TinyDataModule


@pytest.fixture
def run(copied_run: Path) -> Path:
    return copied_run


@pytest.mark.parametrize("checkpoint", ["last", "best", "path of last", "path of best"])
def test_test_scores_a_checkpoint_and_adds_it_to_the_metrics(
    checkpoint: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = json.loads((run / "metrics.json").read_text())
    name = checkpoint.split()[-1]
    path = run / "checkpoints" / f"{name}.ckpt"
    chosen = str(path) if checkpoint.startswith("path") else checkpoint
    assert main(["test", "--run", str(run), "--checkpoint", chosen]) == 0
    metrics = json.loads((run / "metrics.json").read_text())
    expected = MLP.load_from_checkpoint(path).evaluate(TinyDataModule().test_dataloader())
    entry = metrics["test"]
    assert {key: entry[key] for key in expected} == pytest.approx(expected)
    assert (entry["checkpoint"], entry["split"], "flags" in entry) == (chosen, "test", False)
    assert entry.get("chosen_on") == ("test" if name == "best" else None)
    assert {key: metrics[key] for key in before if key != "test"} == {
        key: before[key] for key in before if key != "test"
    }
    shown = capsys.readouterr().out
    assert f"Test accuracy {expected['accuracy']:.2%} ({expected['correct']}/50)" in shown
    assert ("chosen on the test images" in shown) == (name == "best")


def test_validate_scores_the_images_that_the_run_was_validated_on_and_names_the_split(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["validate", "--run", str(run)]) == 0
    assert capsys.readouterr().out.startswith("Validation (test split) accuracy ")
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["val"]["split"] == "test"
    same = ("loss", "accuracy", "correct", "n")
    assert [metrics["val"][key] for key in same] == [metrics["test"][key] for key in same]


def test_predict_writes_a_row_for_each_test_image(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["predict", "--run", str(run)]) == 0
    with (run / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["index"]) for row in rows] == list(range(50))
    assert [int(row["label"]) for row in rows] == TEST[1].tolist()
    for row in rows:
        probabilities = json.loads(row["probabilities"])
        assert sum(probabilities) == pytest.approx(1)
        assert float(row["probability"]) == max(probabilities)
        assert probabilities.index(max(probabilities)) == int(row["class"])
        assert row["class_name"] == TinyDataModule.class_names[int(row["class"])]
    right = sum(row["class"] == row["label"] for row in rows)
    assert right == json.loads((run / "metrics.json").read_text())["test"]["correct"]
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
    assert json.loads((run / "metrics.json").read_text())["test"]["flags"] == flags


@pytest.mark.parametrize(
    ("flag", "value", "message"),
    [
        ("--data.validation_size", "40", "data.validation_size is 40, but the run was trained"),
        ("--data", "DigitsDataModule", "DigitsDataModule, but the run was trained on tests.tiny"),
        ("--trainer.limit_test_batches", "0", "trainer.limit_test_batches is 0"),
        ("--model.hidden_features", "[32]", "than MLP: its hidden_features is [16], not [32]"),
    ],
)
def test_settings_that_would_score_other_images_or_weights_are_refused(
    flag: str, value: str, message: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (run / "metrics.json").read_bytes()
    assert message in refusal(capsys, "test", "--run", str(run), flag, value)
    assert (run / "metrics.json").read_bytes() == before


def test_settings_of_training_do_not_disturb_an_evaluation(tmp_path: Path) -> None:
    options = ["--trainer.limit_val_batches", "0", "--trainer.callbacks", "ModelCheckpoint"]
    options += ["--trainer.callbacks.monitor", "train/loss", "--trainer.profiler", "simple"]
    run = fit(tmp_path, *options)
    assert main(["validate", "--run", str(run)]) == 0
    assert json.loads((run / "metrics.json").read_text())["val"]["n"] == 50


@pytest.mark.parametrize("command", ["validate", "test", "predict"])
def test_untrained_weights_are_refused(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    shown = refusal(capsys, command, "--config", "configs/digits/lenet5.yaml")
    assert shown == f"{command} needs trained weights: name a run, --run RUN_DIR or latest"


@pytest.mark.parametrize("name", ["validate", "test", "predict"])
def test_an_evaluation_in_several_processes_is_refused(
    run: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for option, value in (("devices", "2"), ("strategy", "ddp_spawn")):
        error = refusal(capsys, name, "--run", str(run), f"--trainer.{option}", value)
        assert error.startswith(f"{name} needs one process that sees all images: leave out")
    assert not (run / "predictions.csv").exists()
