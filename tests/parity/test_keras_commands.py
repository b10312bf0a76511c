import csv
import json
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from digitlab.cli import COMMANDS, main
from digitlab.models import LeNet5
from digitlab.parity import to_keras
from digitlab.parity.keras_files import load_keras_model
from tests.commands import SHORT, config_of, fit, refusal
from tests.parity.keras_runs import OwnLeNet5, keras_fit, whole

pytestmark = pytest.mark.skipif(not find_spec("tensorflow"), reason="needs the extra `parity`")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_root: Path) -> Path:
    """A Keras run of two epochs; tests add to it but change no file that another reads."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DIGITLAB_DATA", str(tiny_root))
        return keras_fit(tmp_path_factory.mktemp("trained"), "--trainer.max_epochs", "2")


def test_the_model_loads_in_safe_mode_and_gives_the_scores(trained: Path) -> None:
    images, labels = whole("test")
    logits = np.asarray(load_keras_model(trained / "model.keras")(images), np.float64)
    correct = int((logits.argmax(1) == labels).sum())
    losses = np.log(np.exp(logits).sum(1)) - logits[np.arange(len(labels)), labels]
    score = json.loads((trained / "metrics.json").read_text("utf-8"))["test"]
    assert (score["correct"], score["n"], score["split"]) == (correct, 50, "test")
    assert score["loss"] == pytest.approx(losses.mean(), rel=1e-6)


def test_test_measures_the_saved_model(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = json.loads((trained / "metrics.json").read_text("utf-8"))
    assert main(["keras", "test", "--run", str(trained)]) == 0
    assert json.loads((trained / "metrics.json").read_text("utf-8")) == before
    shown = capsys.readouterr().out
    assert shown.startswith(f"Test accuracy {before['test']['accuracy']:.2%}")
    assert config_of(trained, "test.yaml")["data"]["class_path"] == "tests.tiny.TinyDataModule"


def test_validate_takes_the_best_model_and_says_what_it_was_chosen_on(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["keras", "validate", "--run", str(trained), "--checkpoint", "best"]) == 0
    assert "checkpoint best, which was chosen on the test images" in capsys.readouterr().out


def test_predict_writes_a_row_per_image(trained: Path) -> None:
    assert main(["keras", "predict", "--run", str(trained)]) == 0
    with (trained / "predictions.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    images, labels = whole("test")
    logits = np.asarray(load_keras_model(trained / "model.keras")(images))
    assert [int(row["class"]) for row in rows] == logits.argmax(1).tolist()
    assert [int(row["label"]) for row in rows] == labels.tolist()


def test_a_run_of_the_other_framework_is_refused_with_the_right_command(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    message = refusal(capsys, "test", "--run", str(trained))
    assert message.startswith(f"{trained} was trained in Keras: say digitlab keras test --run")
    other = fit(tmp_path)
    capsys.readouterr()
    message = refusal(capsys, "keras", "test", "--run", str(other))
    assert message.startswith(f"{other} was trained in PyTorch: say digitlab test --run")


REFUSED = {
    "model.dropout_in_evaluation": ["--model.dropout_in_evaluation", "true"],
    "trainer.limit_val_batches": ["--trainer.limit_val_batches", "5"],
    "trainer.accumulate_grad_batches": ["--trainer.accumulate_grad_batches", "2"],
    "trainer.gradient_clip_val": ["--trainer.gradient_clip_val", "1"],
    "trainer.devices": ["--trainer.devices", "2"],
    "trainer.strategy": ["--trainer.strategy", "ddp"],
    "trainer.fast_dev_run": ["--trainer.fast_dev_run", "true"],
    "trainer.precision": ["--trainer.precision", "bf16-true"],
    "trainer.logger": ["--trainer.logger", "CSVLogger", "--trainer.logger.save_dir", "."],
    "EarlyStopping": [
        *("--trainer.callbacks", "EarlyStopping", "--trainer.callbacks.monitor", "val/loss"),
    ],
    "ReduceLROnPlateau": [
        *("--model.lr_scheduler", "ReduceLROnPlateau", "--model.lr_scheduler.monitor", "val/loss"),
    ],
    "weight_decay": ["--model.optimizer", "Adam", "--model.optimizer.weight_decay", "0.1"],
    "Adadelta": ["--model.optimizer", "Adadelta"],
    "trainer.accelerator": ["--trainer.accelerator", "gpu"],
    "trainer.max_epochs": ["--trainer.max_epochs", "-1"],
    "there is no Keras model": ["--weights", "no/such.keras"],
    "there is no checkpoint": ["--weights", "no/such.ckpt"],
    "output": ["--output", "sigmoid"],
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_keras_cannot_do_is_refused_by_name(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = ["--trainer.default_root_dir", str(tmp_path / "runs")]
    message = refusal(
        capsys, "keras", "fit", "--model", "LinearClassifier", *SHORT, *place, *REFUSED[name]
    )
    assert name in message
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("name", ["TanhLeNet5", "InvertedLeNet5"])
def test_a_subclass_with_another_network_is_not_trained_as_its_parent(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    message = refusal(capsys, "keras", "fit", "--model", f"tests.parity.keras_runs.{name}", *SHORT)
    assert message.startswith(f"{name} has no Keras twin: write one")


def test_a_subclass_with_its_parent_s_network_has_its_twin() -> None:
    model = OwnLeNet5()
    state = torch.get_rng_state()
    assert to_keras(model).name == "lenet5"
    assert torch.equal(torch.get_rng_state(), state)


def test_a_file_of_another_architecture_is_not_measured_as_the_run_s(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "other.keras"
    to_keras(LeNet5()).save(file)
    before = (trained / "metrics.json").read_text("utf-8")
    message = refusal(capsys, "keras", "test", "--run", str(trained), "--checkpoint", str(file))
    assert message.startswith(f"{file} is of another architecture than LinearClassifier")
    assert (trained / "metrics.json").read_text("utf-8") == before
    of_torch = fit(tmp_path / "torch")
    capsys.readouterr()
    last = trained / "model.keras"
    message = refusal(capsys, "keras", "test", "--run", str(of_torch), "--checkpoint", str(last))
    assert "was trained in PyTorch" in message


@pytest.mark.parametrize("args", [["keras"], ["keras", "--help"], ["keras", "-h"]])
def test_keras_alone_shows_its_commands(
    args: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(args) == 0
    shown = capsys.readouterr().out
    assert all(f"\n  {name} " in shown for name in COMMANDS if name.startswith("keras "))


def test_an_unknown_keras_command_is_refused_with_the_nearest(
    capsys: pytest.CaptureFixture[str],
) -> None:
    message = refusal(capsys, "keras", "fti")
    assert message == "there is no command 'keras fti': did you mean 'keras fit'?"
