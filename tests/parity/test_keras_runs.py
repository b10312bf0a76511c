"""A Keras run leaves and shows what a PyTorch run of the same settings does."""

import json
import shutil
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from google.protobuf import text_format
from lightning import LightningModule, Trainer
from numpy.typing import NDArray
from sklearn.metrics import confusion_matrix
from tensorboard.plugins.projector.projector_config_pb2 import ProjectorConfig

from digitlab import models
from digitlab.callbacks import LastCheckpoint
from digitlab.callbacks.pictures import draw_confusion_matrix, draw_kernels
from digitlab.cli import main
from digitlab.parity import to_keras
from digitlab.parity.backend import import_keras
from digitlab.parity.keras_files import load_keras_model
from digitlab.run_folder import read_metrics
from tests import commands, events, tiny
from tests.commands import SHORT, config_of, refusal
from tests.parity.test_keras_files import GADGETS, write_gadget
from tests.pictures import SEVEN, seven

# Three epochs of 7 steps that leave mistakes to show.
OPTIONS = "--model.optimizer SGD --model.optimizer.lr 0.05 --model.lr_scheduler ExponentialLR"
OPTIONS += " --model.lr_scheduler.gamma 0.5 --trainer.max_epochs 3 --trainer.log_every_n_steps 5"
BLOCKS = "--model.steps_per_execution 3 --trainer.log_every_n_steps 2 --trainer.callbacks"
BLOCKS += " ClassProbabilities --trainer.callbacks.every_n_steps 4 --trainer.max_epochs 2"
SLOW = pytest.mark.slow


def fit(root: Path, *options: str, model: str = "LinearClassifier") -> Path:
    """Train the Keras twin on the tiny data."""
    return commands.fit(root, "--framework", "keras", *options, model=model)


@pytest.fixture(scope="module", params=["logits", pytest.param("softmax", marks=SLOW)])
def run(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tiny_for_module: None
) -> Path:
    """A finished Keras run; tests that change it take `copied`."""
    root = tmp_path_factory.mktemp("keras")
    return fit(root, *OPTIONS.split(), "--output", request.param, model="LeNet5")


@pytest.fixture
def copied(run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run, tmp_path / "run"))


@pytest.fixture(scope="module")
def torch_run(tmp_path_factory: pytest.TempPathFactory, tiny_for_module: None) -> Path:
    """A PyTorch run of the same settings."""
    return commands.fit(tmp_path_factory.mktemp("torch"), *OPTIONS.split(), model="LeNet5")


@pytest.fixture(scope="module")
def outputs(run: Path) -> NDArray[np.float32]:
    """Reference: what Keras's `predict` gives for the test images, by the saved model."""
    model = load_keras_model(run / "model.keras")
    return np.asarray(model.predict(split("test")[0], verbose=0))


def split(name: str) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Reference: a split of the tiny data with channels last, scaled to 0..1 by NumPy."""
    images, labels = tiny.TRAIN if name == "train" else tiny.TEST
    return (images[..., None] / np.float32(255)).astype(np.float32), labels.astype(np.int64)


def weights_of(folder: Path) -> list[NDArray[Any]]:
    return list(load_keras_model(folder / "model.keras").get_weights())


def history_of(folder: Path) -> list[dict[str, Any]]:
    """The rows without the time that they took."""
    rows = pd.read_csv(folder / "history.csv").drop(columns="seconds")
    return [dict(row) for row in rows.to_dict("records")]


def steps_of(folder: Path) -> dict[str, list[int]]:
    """The steps of each curve and picture."""
    shown: dict[str, list[tuple[int, Any]]] = {**events.scalars(folder), **events.pictures(folder)}
    return {tag: [step for step, _ in points] for tag, points in shown.items()}


def test_a_run_leaves_what_a_pytorch_run_leaves(run: Path, torch_run: Path) -> None:
    names = [{str(path.relative_to(it)) for path in it.rglob("*")} for it in (run, torch_run)]
    others = {name for name in names[0] ^ names[1] if not name.startswith("events")}
    assert others == {"model.keras", "checkpoints/best.keras"}
    assert history_of(run)[0].keys() == history_of(torch_run)[0].keys()
    for name in ("epoch", "step", "learning_rate"):
        columns = [[row[name] for row in history_of(it)] for it in (run, torch_run)]
        assert columns[0] == columns[1]
    ours, theirs, config = read_metrics(run), read_metrics(torch_run), config_of(run)
    assert ours.keys() == theirs.keys() | {"output"}
    same = ("model", "dataset", "parameters", "epochs", "optimizer_steps", "precision", "device")
    assert [ours[name] for name in same] == [theirs[name] for name in same]
    assert (ours["framework"], ours["parameters"]) == ("keras", 61_706)  # as LeCun et al. count
    assert (ours["framework"], ours["output"]) == (config["framework"], config["output"])


def test_tensorboard_shows_the_tags_of_a_pytorch_run_at_the_same_steps(
    run: Path, torch_run: Path
) -> None:
    ours = steps_of(run)
    assert ours == steps_of(torch_run)
    assert ours["while_training/images_per_second_step"] == [4, 9, 14, 19]
    assert ours["val/mistakes"] == ours["weights/conv1"] == [6, 13, 20]
    assert ours["val/loss"] == [6, 13, 20, 21], "without the final score"
    for tag in ("while_training/learning_rate", "while_training/learning_rate_step"):
        assert events.scalars(run)[tag] == events.scalars(torch_run)[tag]
    ((step, text),) = events.texts(run, "config")
    lines = (run / "config.yaml").read_text("utf-8").splitlines()
    assert (step, text.splitlines()) == (0, [f"    {line}" for line in lines])


def test_pictures_show_the_saved_model(run: Path, outputs: NDArray[np.float32]) -> None:
    counts = confusion_matrix(tiny.TEST[1], outputs.argmax(1), labels=range(10))
    assert 0 < np.trace(counts) < counts.sum() == 50
    kernel, *_ = load_keras_model(run / "model.keras").get_layer("conv1").get_weights()
    expected = {
        "val/confusion_matrix": draw_confusion_matrix(counts, list("0123456789")),
        "weights/conv1": draw_kernels(kernel[:, :, 0].transpose(2, 0, 1)),
    }
    for tag, picture in expected.items():
        _, shown = events.pictures(run)[tag][-1]
        np.testing.assert_array_equal(shown, np.asarray(picture))
    nodes = {node.name for node in events.read(run).Graph().node}
    # Keras opens a layer's scope twice, and TensorFlow numbers the second.
    assert {"lenet5_1/conv1_1/convolution", "lenet5_1/fc3_1/MatMul"} <= nodes, nodes


def test_the_projector_has_what_the_last_dense_layer_is_given(
    run: Path, torch_run: Path, outputs: NDArray[np.float32]
) -> None:
    text = (run / "projector_config.pbtxt").read_text("utf-8")
    assert text == (torch_run / "projector_config.pbtxt").read_text("utf-8")
    (embedding,) = text_format.Parse(text, ProjectorConfig()).embeddings
    features = np.loadtxt(run / embedding.tensor_path, delimiter="\t", dtype=np.float32)
    layers = load_keras_model(run / "model.keras").layers
    before = import_keras().Sequential([it for it in layers if it.name not in ("fc3", "softmax")])
    expected = before.predict(split("test")[0], verbose=0)
    assert features.shape == (50, 84)
    np.testing.assert_allclose(features, expected, rtol=1e-5, atol=1e-6)  # six digits are written
    _, *rows = (run / embedding.metadata_path).read_text("utf-8").splitlines()
    assert rows == [f"{a}\t{b}" for a, b in zip(tiny.TEST[1], outputs.argmax(1), strict=True)]
    sprites = [(folder / embedding.sprite.image_path).read_bytes() for folder in (run, torch_run)]
    assert sprites[0] == sprites[1]


def test_commands_know_the_framework_and_give_the_runs_own_scores(
    copied: Path, outputs: NDArray[np.float32], capsys: pytest.CaptureFixture[str]
) -> None:
    before = read_metrics(copied)
    assert main(["test", "--run", str(copied)]) == 0
    assert read_metrics(copied) == before
    assert main(["validate", "--run", str(copied), "--checkpoint", "best"]) == 0
    assert "checkpoint best, which was chosen on the test images" in capsys.readouterr().out
    best = max(row["val_accuracy"] for row in history_of(copied))
    assert read_metrics(copied)["val"]["accuracy"] == best
    assert main(["predict", "--run", str(copied)]) == 0
    rows = pd.read_csv(copied / "predictions.csv")
    np.testing.assert_array_equal(rows["class"], outputs.argmax(1))
    np.testing.assert_array_equal(rows["label"], tiny.TEST[1])
    assert main(["report", str(copied)]) == 0
    page = (copied / "report.html").read_text("utf-8")
    assert "Keras" in page
    assert f"{before['test']['accuracy']:.2%}" in page


def test_an_image_file_is_classified_by_the_saved_model(run: Path, tmp_path: Path) -> None:
    image, rows = tmp_path / "seven.png", tmp_path / "rows.json"
    seven().save(image)
    assert main(["predict", str(image), "--run", str(run), "--json", str(rows)]) == 0
    pixels = SEVEN[None, :, :, None] / np.float32(255)
    model = load_keras_model(run / "model.keras")
    expected = np.asarray(model(pixels), np.float64)[0]
    if type(model.layers[-1]).__name__ != "Softmax":
        expected = np.exp(expected) / np.exp(expected).sum()
    (row,) = json.loads(rows.read_text("utf-8"))
    assert row["probabilities"] == pytest.approx(expected, rel=1e-5)  # float32


def test_a_run_s_model_becomes_a_pytorch_run(run: Path, tmp_path: Path) -> None:
    new, config = tmp_path / "new", str(run / "config.yaml")
    assert main(["convert", str(run / "model.keras"), str(new), "--config", config]) == 0
    assert main(["test", "--run", str(new)]) == 0
    ours, theirs = read_metrics(new)["test"], read_metrics(run)["test"]
    assert ours["correct"] == theirs["correct"]
    assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)  # float32


def test_a_finished_run_is_lengthened(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, weights = history_of(copied), weights_of(copied)
    assert main(["fit", "--run", str(copied)]) == 0
    assert "is finished: 3 epochs, 21 steps" in capsys.readouterr().out
    assert main(["fit", "--run", str(copied), "--trainer.max_epochs", "4"]) == 0
    assert history_of(copied)[:3] == before
    assert history_of(copied)[3]["learning_rate"] == 0.05 * 0.5**3
    assert read_metrics(copied)["optimizer_steps"] == 28
    assert not np.array_equal(weights_of(copied)[0], weights[0])
    assert steps_of(copied)["val/loss"] == [6, 13, 20, 27, 28]  # the last: the final evaluation
    shown = refusal(capsys, "fit", "--run", str(copied), "--framework", "torch")
    assert "framework is torch, but the run" in shown


def test_steps_and_learning_rates_are_those_of_a_pytorch_run(tmp_path: Path) -> None:
    options = [*BLOCKS.split(), "--trainer.max_steps", "10"]  # inside a block
    ours, theirs = fit(tmp_path / "keras", *options), commands.fit(tmp_path / "torch", *options)
    assert steps_of(ours) == steps_of(theirs)
    assert read_metrics(ours)["optimizer_steps"] == read_metrics(theirs)["optimizer_steps"]
    rates, expected = ([row["learning_rate"] for row in history_of(it)] for it in (ours, theirs))
    assert rates == expected
    assert [row["step"] for row in history_of(ours)] == [7, 10]
    assert steps_of(ours)["probabilities/0"] == [5, 9]


def test_initial_weights_come_from_a_keras_run(run: Path, tmp_path: Path) -> None:
    file = run / "model.keras"
    options = ["--model.optimizer", "SGD", "--model.optimizer.lr", "0", "--trainer.max_steps", "1"]
    folder = fit(tmp_path, "--weights", str(file), *options, model="LeNet5")
    np.testing.assert_equal(weights_of(folder), weights_of(run))
    assert read_metrics(folder)["weights"]["file"] == str(file)


def test_precision_and_output_are_those_of_the_model_in_later_commands_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = fit(tmp_path, "--trainer.precision", "bf16-mixed", "--output", "softmax")
    shown = capsys.readouterr()
    assert "LinearClassifier's Keras twin on cpu (1 thread), precision bf16-mixed" in shown.out
    (row,) = (line for line in shown.out.splitlines() if line.startswith("fc1 "))
    assert row.split(maxsplit=2)[:2] == ["fc1", "Dense"]
    assert row.endswith("kernel (784, 10), bias (10,)    7,850")
    assert shown.err == ""
    model = load_keras_model(folder / "model.keras")
    layer, last = model.get_layer("fc1"), model.layers[-1]
    assert (layer.variable_dtype, layer.compute_dtype) == ("float32", "bfloat16")
    assert (type(last).__name__, import_keras().config.floatx()) == ("Softmax", "float32")
    before = read_metrics(folder)
    assert (before["precision"], before["output"]) == ("bf16-mixed", "softmax")
    assert main(["test", "--run", str(folder)]) == 0
    assert read_metrics(folder) == before
    flags = {
        "--trainer.precision=32-true": "in mixed_bfloat16: set --trainer.precision bf16-mixed",
        "--trainer.accelerator=gpu": "gpu out, or set --trainer.accelerator auto",
    }
    for command, (flag, message) in product(("test", "predict"), flags.items()):
        assert refusal(capsys, command, "--run", str(folder), flag).endswith(message)
    assert read_metrics(folder) == before


REFUSED = {
    "label_smoothing is 0.1": ["--model.label_smoothing", "0.1"],
    "dropout_in_evaluation is True": ["--model.dropout_in_evaluation", "true"],
    "2 processes": ["--trainer.devices", "2"],
    "trainer.precision is bf16-true": ["--trainer.precision", "bf16-true"],
    "trainer.accelerator is mps": ["--trainer.accelerator", "mps"],
    "weight_decay": ["--model.optimizer", "Adam", "--model.optimizer.weight_decay", "0.1"],
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_keras_cannot_do_is_refused_by_name(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = ["--framework", "keras", "--trainer.default_root_dir", str(tmp_path / "runs")]
    options = ["--model", "LinearClassifier", *SHORT, *place, *REFUSED[name]]
    assert name in refusal(capsys, "fit", *options)
    assert not list(tmp_path.glob("runs/*/*"))


def test_a_model_of_another_architecture_or_framework_is_not_measured_as_the_run_s(
    run: Path, torch_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, before = tmp_path / "other.keras", read_metrics(run)
    to_keras(models.LinearClassifier()).save(file)
    shown = refusal(capsys, "test", "--run", str(run), "--checkpoint", str(file))
    assert shown.startswith(f"{file} is of another architecture than LeNet5")
    shown = refusal(capsys, "test", "--run", str(torch_run), "--checkpoint", str(file))
    assert shown.startswith(f"{file} is a Keras model")
    assert read_metrics(run) == before


@pytest.mark.parametrize(
    "command",
    [
        ["test", "--run", "{run}"],  # a run that somebody mailed
        ["predict", "--run", "{run}", "--checkpoint", "{file}"],
        ["convert", "{file}", "{new}", "--model", "LeNet5"],
        [
            *("fit", "--framework", "keras", "--model", "LeNet5", "--weights", "{file}"),
            *("--trainer.max_epochs", "1"),
        ],
        ["parity", "--model", "LeNet5", "--weights", "{file}"],
    ],
    ids=lambda command: command[0],
)
def test_no_command_runs_the_code_of_a_keras_file(
    command: list[str],
    copied: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file, new = tmp_path / "gadget.keras", tmp_path / "new"
    write_gadget(file, GADGETS["Lambda"])
    shutil.copy(file, copied / "model.keras")
    words = [word.format(run=copied, file=file, new=new) for word in command]
    if "--model" in command:
        words += ["--data", "tests.tiny.TinyDataModule"]
        monkeypatch.chdir(tmp_path)
    assert "needs code of its own" in refusal(capsys, *words)
    assert not new.exists()
    assert not list(Path().rglob("harmed"))


@pytest.mark.parametrize("steps", [pytest.param(1, marks=SLOW), 3])
def test_a_run_killed_in_its_first_epoch_is_tested_and_resumed(
    steps: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class KilledError(BaseException):
        """Ends a fit as nothing foreseen would."""

    def kill(self: LastCheckpoint, trainer: Trainer, pl_module: LightningModule) -> None:
        write(self, trainer, pl_module)
        raise KilledError

    write = LastCheckpoint.save
    options = ["--checkpoint_every_n_steps", "3", "--model.steps_per_execution", str(steps)]
    with monkeypatch.context() as patch:
        patch.setattr(LastCheckpoint, "save", kill)
        with pytest.raises(KilledError):
            fit(tmp_path, *options)
    (folder,) = tmp_path.glob("*/version_0")
    assert main(["test", "--run", str(folder)]) == 0
    variables = torch.load(folder / "checkpoints" / "last.ckpt")["keras"]["model"]
    np.testing.assert_equal(weights_of(folder), [value.numpy() for value in variables])
    assert main(["fit", "--run", str(folder)]) == 0


def test_the_memory_of_gpus_is_limited_before_the_model_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[object] = []
    monkeypatch.setattr("digitlab.parity.backend.limit_gpu_memory", calls.append)
    monkeypatch.setattr("digitlab.parity.keras_module.KerasClassifier", lambda *_: calls[1])
    limit = ["--trainer.callbacks+=GPUMemoryLimit", "--trainer.callbacks.megabytes", "512"]
    with pytest.raises(IndexError):  # where the model is made
        fit(tmp_path, *limit)
    assert calls == [512]


@SLOW
@pytest.mark.parametrize("path", sorted(Path("configs").glob("*/*_keras_recipe*.yaml")), ids=str)
def test_the_documents_keras_rows_train_in_keras(path: Path, tmp_path: Path) -> None:
    options = ["--config", str(path), "--data.train_images", "null", "--weights", "null"]
    place = ["--framework", "keras", "--trainer.default_root_dir", str(tmp_path)]
    assert main(["fit", *options, *SHORT, *place, "--trainer.max_steps", "2"]) == 0
    (folder,) = tmp_path.glob(f"*-{path.stem}-keras/version_0")
    assert read_metrics(folder)["optimizer_steps"] == 2
    assert np.isfinite(read_metrics(folder)["train"]["loss"])
