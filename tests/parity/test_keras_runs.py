"""A Keras run leaves and shows what a PyTorch run of the same settings does."""

import csv
import json
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from google.protobuf import text_format
from numpy.typing import NDArray
from PIL import Image
from sklearn.metrics import confusion_matrix
from tensorboard.plugins.projector.projector_config_pb2 import ProjectorConfig

from digitlab import models
from digitlab.callbacks.pictures import draw_confusion_matrix, draw_kernels
from digitlab.cli import main
from digitlab.parity import to_keras
from digitlab.parity.backend import import_keras
from digitlab.parity.keras_files import load_keras_model
from tests import commands, events, tiny
from tests.commands import SHORT, config_of, refusal
from tests.pictures import SEVEN, seven

pytestmark = pytest.mark.skipif(not find_spec("tensorflow"), reason="needs the extra `parity`")

# Three epochs of 7 steps that leave mistakes to show.
OPTIONS = [
    *("--model.optimizer", "SGD", "--model.optimizer.lr", "0.05"),
    *("--model.lr_scheduler", "ExponentialLR", "--model.lr_scheduler.gamma", "0.5"),
    *("--trainer.max_epochs", "3", "--trainer.log_every_n_steps", "5"),
]
STANDING_STILL = ["--model.optimizer", "SGD", "--model.optimizer.lr", "0"]
PLATEAU = ["--model.lr_scheduler", "torch.optim.lr_scheduler.ReduceLROnPlateau"]
PLATEAU += ["--model.lr_scheduler.patience", "0", "--model.lr_scheduler.threshold", "0.9"]
BLOCKS = ["--model.steps_per_execution", "3", "--trainer.log_every_n_steps", "2"]
BLOCKS += ["--trainer.callbacks", "ClassProbabilities", "--trainer.callbacks.every_n_steps", "4"]
BY_STEP = ["--model.lr_scheduler", "StepLR", "--model.lr_scheduler.step_size", "2"]
BY_STEP += ["--model.lr_scheduler_interval", "step"]


def fit(root: Path, *options: str, model: str = "LinearClassifier") -> Path:
    """Train the Keras twin on the tiny data."""
    return commands.fit(root, "--framework", "keras", *options, model=model)


@pytest.fixture(scope="module", params=["logits", pytest.param("softmax", marks=pytest.mark.slow)])
def run(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tiny_for_module: None
) -> Path:
    """A finished Keras run; tests that change it take `copied`."""
    root = tmp_path_factory.mktemp("keras")
    return fit(root, *OPTIONS, "--output", request.param, model="LeNet5")


@pytest.fixture
def copied(run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run, tmp_path / "run"))


@pytest.fixture(scope="module")
def torch_run(tmp_path_factory: pytest.TempPathFactory, tiny_for_module: None) -> Path:
    """A PyTorch run of the same settings."""
    return commands.fit(tmp_path_factory.mktemp("torch"), *OPTIONS, model="LeNet5")


@pytest.fixture(scope="module")
def outputs(run: Path) -> NDArray[np.float32]:
    """Reference: what Keras's `predict` gives for the test images, by the saved model."""
    given: NDArray[np.float32] = load_keras_model(run / "model.keras").predict(
        split("test")[0], verbose=0
    )
    return given


def split(name: str) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Reference: a split of the tiny data with channels last, scaled to 0..1 by NumPy."""
    images, labels = tiny.TRAIN if name == "train" else tiny.TEST
    return (images[..., None] / np.float32(255)).astype(np.float32), labels.astype(np.int64)


def keras_scores(path: Path, name: str) -> dict[str, Any]:
    """Reference: a saved model's scores of a split, by Keras's `evaluate`."""
    keras, model = import_keras(), load_keras_model(path)
    softmax = type(model.layers[-1]).__name__ == "Softmax"
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=not softmax)
    model.compile(loss=loss, metrics=["accuracy"])
    loss, accuracy = model.evaluate(*split(name), verbose=0)
    return {"loss": pytest.approx(loss, rel=1e-5), "accuracy": pytest.approx(accuracy, abs=1e-6)}


def weights_of(folder: Path, name: str = "model.keras") -> list[NDArray[Any]]:
    weights: list[NDArray[Any]] = load_keras_model(folder / name).get_weights()
    return weights


def assert_equal(ours: list[NDArray[Any]], theirs: list[NDArray[Any]]) -> None:
    for left, right in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(left, right)


def metrics_of(folder: Path) -> dict[str, Any]:
    metrics: dict[str, Any] = json.loads((folder / "metrics.json").read_text("utf-8"))
    return metrics


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def history_of(folder: Path) -> list[dict[str, str]]:
    """The rows without the time that they took."""
    rows = rows_of(folder / "history.csv")
    return [{name: row[name] for name in row if name != "seconds"} for row in rows]


def steps_of(folder: Path) -> dict[str, list[int]]:
    """The steps of each curve and picture."""
    shown: dict[str, list[tuple[int, Any]]] = {**events.scalars(folder), **events.pictures(folder)}
    del shown["epoch"]  # Lightning's own
    return {tag: [step for step, _ in points] for tag, points in shown.items()}


def names_in(folder: Path) -> set[str]:
    paths = {str(path.relative_to(folder)) for path in folder.rglob("*")}
    return {path for path in paths if not path.startswith("events")}


def test_a_run_leaves_what_a_pytorch_run_leaves(run: Path, torch_run: Path) -> None:
    assert names_in(run) ^ names_in(torch_run) == {"model.keras", "checkpoints/best.keras"}
    assert history_of(run)[0].keys() == history_of(torch_run)[0].keys()
    for name in ("epoch", "step", "learning_rate"):
        ours, theirs = ([row[name] for row in history_of(it)] for it in (run, torch_run))
        assert ours == theirs
    assert config_of(run)["framework"] == "keras"
    ours, theirs = metrics_of(run), metrics_of(torch_run)
    assert ours.keys() == theirs.keys() | {"output"}
    same = ("model", "dataset", "parameters", "epochs", "optimizer_steps", "precision", "device")
    assert [ours[name] for name in same] == [theirs[name] for name in same]
    assert (ours["framework"], ours["parameters"]) == ("keras", 61_706)  # as LeCun et al. count
    assert ours["output"] == config_of(run)["output"]
    assert {"keras", "tensorflow"} <= ours["versions"].keys()


def test_scores_are_those_of_keras_s_own_evaluation(run: Path) -> None:
    metrics, rows, best = metrics_of(run), history_of(run), run / "checkpoints" / "best.keras"
    for name in ("train", "test"):
        score = {key: metrics[name][key] for key in ("loss", "accuracy")}
        assert score == keras_scores(run / "model.keras", name)
    scores = [{"loss": float(r["val_loss"]), "accuracy": float(r["val_accuracy"])} for r in rows]
    assert scores[-1] == keras_scores(run / "model.keras", "test")
    # The first of the best epochs; SGD's loss falls, so that the epochs can be told apart.
    assert max(scores, key=lambda score: score["accuracy"]) == keras_scores(best, "test")


def test_tensorboard_shows_the_tags_of_a_pytorch_run_at_the_same_steps(
    run: Path, torch_run: Path
) -> None:
    ours = steps_of(run)
    assert ours == steps_of(torch_run)
    assert ours["train/images_per_second_step"] == [4, 9, 14, 19]
    assert ours["val/loss"] == ours["val/mistakes"] == ours["weights/conv1"] == [6, 13, 20]
    for tag in ("train/learning_rate", "train/learning_rate_step"):
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
        "train/samples": Image.open(run / "samples.png"),
    }
    for tag, picture in expected.items():
        _, shown = events.pictures(run)[tag][-1]
        np.testing.assert_array_equal(shown, np.asarray(picture))
    nodes = {node.name for node in events.read(run).Graph().node}
    # Keras opens a layer's scope twice, and TensorFlow numbers the second.
    assert {"lenet5_1/conv1_1/convolution", "lenet5_1/fc3_1/MatMul"} <= nodes, nodes
    assert [path.parent for path in run.rglob("events*")] == [run]


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


def test_without_a_logger_the_same_is_trained_and_nothing_is_shown(
    run: Path, tmp_path: Path
) -> None:
    options = ["--trainer.logger", "false", "--trainer.enable_progress_bar", "false"]
    output = str(config_of(run)["output"])
    folder = fit(tmp_path, *OPTIONS, *options, "--output", output, model="LeNet5")
    assert_equal(weights_of(folder), weights_of(run))
    assert history_of(folder) == history_of(run)
    assert not {name for name in names_in(folder) if "projector" in name}
    assert not list(folder.rglob("events*"))


def test_commands_know_the_framework_and_give_the_runs_own_scores(
    copied: Path, outputs: NDArray[np.float32], capsys: pytest.CaptureFixture[str]
) -> None:
    before = metrics_of(copied)
    assert main(["test", "--run", str(copied)]) == 0
    assert metrics_of(copied) == before
    assert main(["validate", "--run", str(copied), "--checkpoint", "best"]) == 0
    assert "checkpoint best, which was chosen on the test images" in capsys.readouterr().out
    best = max(float(row["val_accuracy"]) for row in history_of(copied))
    assert metrics_of(copied)["val"]["accuracy"] == best
    assert main(["predict", "--run", str(copied)]) == 0
    rows = rows_of(copied / "predictions.csv")
    assert [int(row["class"]) for row in rows] == outputs.argmax(1).tolist()
    assert [int(row["label"]) for row in rows] == tiny.TEST[1].tolist()
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
    new = tmp_path / "new"
    config = ["--config", str(run / "config.yaml")]
    assert main(["convert", str(run / "model.keras"), str(new), *config]) == 0
    assert main(["test", "--run", str(new)]) == 0
    ours, theirs = metrics_of(new)["test"], metrics_of(run)["test"]
    assert ours["correct"] == theirs["correct"]
    assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)  # float32


def test_a_finished_run_is_lengthened(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, weights = history_of(copied), weights_of(copied)
    assert main(["fit", "--run", str(copied)]) == 0
    assert "is finished: 3 epochs, 21 steps" in capsys.readouterr().out
    assert main(["fit", "--run", str(copied), "--trainer.max_epochs", "4"]) == 0
    assert history_of(copied)[:3] == before
    assert float(history_of(copied)[3]["learning_rate"]) == 0.05 * 0.5**3
    assert metrics_of(copied)["optimizer_steps"] == 28
    assert not np.array_equal(weights_of(copied)[0], weights[0])
    assert steps_of(copied)["val/loss"] == [6, 13, 20, 27]
    message = refusal(capsys, "fit", "--run", str(copied), "--framework", "torch")
    assert "framework is torch, but the run" in message


LIKE_PYTORCH = {
    "limit_train_batches": [*BLOCKS, "--trainer.limit_train_batches", "4"],
    "max_steps inside a block": [*BLOCKS, "--trainer.max_steps", "10"],
    "plateau": [*PLATEAU, "--trainer.max_epochs", "3"],
    "schedule by step": BY_STEP,
}


@pytest.mark.parametrize(
    "name", [*list(LIKE_PYTORCH)[:3], pytest.param("schedule by step", marks=pytest.mark.slow)]
)
def test_steps_and_learning_rates_are_those_of_a_pytorch_run(name: str, tmp_path: Path) -> None:
    options = ["--trainer.max_epochs", "2", *LIKE_PYTORCH[name]]
    ours, theirs = fit(tmp_path / "keras", *options), commands.fit(tmp_path / "torch", *options)
    assert steps_of(ours) == steps_of(theirs)
    assert metrics_of(ours)["optimizer_steps"] == metrics_of(theirs)["optimizer_steps"]
    rates, expected = ([row["learning_rate"] for row in history_of(it)] for it in (ours, theirs))
    assert rates == expected
    assert len(set(rates)) == 1 + (name in ("plateau", "schedule by step"))
    if name == "max_steps inside a block":
        assert [row["step"] for row in history_of(ours)] == ["7", "10"]
        assert steps_of(ours)["probabilities/0"] == [5, 9]


@pytest.mark.parametrize("framework", ["keras", "torch"])
def test_initial_weights_come_from_a_run_of_either_framework(
    framework: str, run: Path, torch_run: Path, tmp_path: Path
) -> None:
    file, expected = run / "model.keras", weights_of(run)
    if framework == "torch":
        file = torch_run / "checkpoints" / "last.ckpt"
        expected = to_keras(models.LeNet5.load_from_checkpoint(file)).get_weights()
    options = [*STANDING_STILL, "--model.initialization", "keras", "--trainer.max_steps", "1"]
    folder = fit(tmp_path, "--weights", str(file), *options, model="LeNet5")
    assert_equal(weights_of(folder), expected)
    assert metrics_of(folder)["weights"]["file"] == str(file)


@pytest.mark.parametrize(
    ("precision", "variables", "computed"),
    [
        ("bf16-mixed", "float32", "bfloat16"),
        pytest.param("64-true", "float64", "float64", marks=pytest.mark.slow),
    ],
)
def test_precision_and_output_are_those_of_the_model_in_later_commands_too(
    precision: str,
    variables: str,
    computed: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = fit(tmp_path, "--trainer.precision", precision, "--output", "softmax")
    shown = capsys.readouterr()
    assert f"LinearClassifier's Keras twin on cpu (1 thread), precision {precision}" in shown.out
    assert "fc1      Dense    kernel (784, 10), bias (10,)    7,850" in shown.out.splitlines()
    assert shown.err == ""
    model = load_keras_model(folder / "model.keras")
    layer, last = model.get_layer("fc1"), model.layers[-1]
    assert (layer.variable_dtype, layer.compute_dtype) == (variables, computed)
    assert (type(last).__name__, import_keras().config.floatx()) == ("Softmax", "float32")
    before = metrics_of(folder)
    assert (before["precision"], before["output"]) == (precision, "softmax")
    assert main(["test", "--run", str(folder)]) == 0
    assert metrics_of(folder) == before


REFUSED = {
    "label_smoothing is 0.1": ["--model.label_smoothing", "0.1"],
    "dropout_in_evaluation is True": ["--model.dropout_in_evaluation", "true"],
    "gradient_clip_val 1": ["--trainer.gradient_clip_val", "1"],
    "accumulate_grad_batches 2": ["--trainer.accumulate_grad_batches", "2"],
    "2 processes": ["--trainer.devices", "2"],
    "trainer.precision is bf16-true": ["--trainer.precision", "bf16-true"],
    "trainer.accelerator is gpu": ["--trainer.accelerator", "gpu"],
    "weight_decay": ["--model.optimizer", "Adam", "--model.optimizer.weight_decay", "0.1"],
    "Adadelta": ["--model.optimizer", "Adadelta"],
    "there is no Keras model": ["--weights", "no/such.keras"],
    "there is no checkpoint": ["--weights", "no/such.ckpt"],
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
    file, before = tmp_path / "other.keras", metrics_of(run)
    to_keras(models.LinearClassifier()).save(file)
    message = refusal(capsys, "test", "--run", str(run), "--checkpoint", str(file))
    assert message.startswith(f"{file} is of another architecture than LeNet5")
    last = run / "model.keras"
    message = refusal(capsys, "test", "--run", str(torch_run), "--checkpoint", str(last))
    assert message.startswith(f"{last} is a Keras model")
    assert metrics_of(run) == before


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


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted(Path("configs").glob("*/*_keras_recipe*.yaml")), ids=str)
def test_the_documents_keras_rows_train_in_keras(path: Path, tmp_path: Path) -> None:
    options = ["--config", str(path), "--data.train_images", "null", "--trainer.max_steps", "2"]
    if "weights" in yaml.safe_load(path.read_text("utf-8")):
        torch.save(models.LeNet1(padding="same").state_dict(), tmp_path / "weights.pth")
        options += ["--weights", str(tmp_path / "weights.pth")]
    place = ["--framework", "keras", "--trainer.default_root_dir", str(tmp_path)]
    assert main(["fit", *options, *SHORT, *place]) == 0
    (folder,) = tmp_path.glob(f"*-{path.stem}-keras/version_0")
    assert metrics_of(folder)["optimizer_steps"] == 2
    assert np.isfinite(metrics_of(folder)["train"]["loss"])
