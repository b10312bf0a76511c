"""What TensorBoard shows of a Keras run, beside a PyTorch run of the same config."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf import text_format
from numpy.typing import NDArray
from PIL import Image
from sklearn.metrics import confusion_matrix
from tensorboard.plugins.projector.projector_config_pb2 import ProjectorConfig

from digitlab.callbacks.pictures import draw_confusion_matrix, draw_kernels
from digitlab.callbacks.tensorboard import FOLDER
from digitlab.parity.backend import import_keras
from digitlab.parity.keras_files import load_keras_model
from tests import events, tiny
from tests.commands import fit
from tests.parity.keras_runs import history_of, keras_fit, names_in, whole

pytestmark = pytest.mark.skipif(not find_spec("tensorflow"), reason="needs the extra `parity`")

# Three epochs of 7 steps that leave mistakes to show.
OPTIONS = [
    *("--model.optimizer", "SGD", "--model.optimizer.lr", "0.05"),
    *("--model.lr_scheduler", "ExponentialLR", "--model.lr_scheduler.gamma", "0.5"),
    *("--trainer.max_epochs", "3", "--trainer.log_every_n_steps", "5"),
]
NAMES = list("0123456789")


@pytest.fixture(scope="module", params=["logits", "softmax"])
def run(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tiny_for_module: None
) -> Path:
    root = tmp_path_factory.mktemp("keras")
    return keras_fit(root, *OPTIONS, "--output", request.param, model="LeNet5")


@pytest.fixture(scope="module")
def torch_run(tmp_path_factory: pytest.TempPathFactory, tiny_for_module: None) -> Path:
    return fit(tmp_path_factory.mktemp("torch"), *OPTIONS, model="LeNet5")


@pytest.fixture(scope="module")
def model(run: Path) -> Any:
    """The saved model."""
    return load_keras_model(run / "model.keras")


@pytest.fixture(scope="module")
def predicted(model: Any) -> NDArray[np.int64]:
    """Reference: what the saved model takes the test images for."""
    outputs = model.predict(whole("test")[0], verbose=0)
    return np.asarray(outputs.argmax(1))


def steps_of(points: dict[str, list[tuple[int, Any]]]) -> dict[str, list[int]]:
    return {tag: [step for step, _ in of_tag] for tag, of_tag in points.items()}


def test_scalars_stand_at_the_steps_of_a_pytorch_run(run: Path, torch_run: Path) -> None:
    ours, theirs = (steps_of(events.scalars(folder)) for folder in (run, torch_run))
    del ours["epoch"], theirs["epoch"]  # Lightning's own
    assert ours == theirs
    assert ours["train/images_per_second_step"] == [4, 9, 14, 19]
    assert ours["val/loss"] == [6, 13, 20]


def test_pictures_stand_at_the_steps_of_a_pytorch_run(run: Path, torch_run: Path) -> None:
    ours, theirs = (steps_of(events.pictures(folder)) for folder in (run, torch_run))
    assert ours == theirs
    assert ours["val/mistakes"] == ours["weights/conv1"] == [6, 13, 20]


def test_an_epoch_that_max_steps_cuts_stands_where_pytorch_s_does(tmp_path: Path) -> None:
    options = ["--trainer.max_epochs", "3", "--trainer.max_steps", "10"]
    folders = (
        keras_fit(tmp_path, *options, model="LeNet5"),
        fit(tmp_path / "torch", *options, model="LeNet5"),
    )
    ours, theirs = (
        steps_of({**events.scalars(folder), **events.pictures(folder)}) for folder in folders
    )
    for tag in ("train/loss", "train/learning_rate", "weights/conv1"):
        assert ours[tag] == theirs[tag] == [6, 10]
    # Keras validates that epoch too, Lightning does not.
    for tag in ("val/loss", "val/confusion_matrix"):
        assert (ours[tag], theirs[tag]) == ([6, 10], [6])


def test_of_several_steps_per_execution_the_last_has_the_record(tmp_path: Path) -> None:
    options = ["--model.steps_per_execution", "3", "--trainer.log_every_n_steps", "4"]
    steps = steps_of(events.scalars(keras_fit(tmp_path, *options, "--trainer.max_epochs", "2")))
    assert steps["train/loss_step"] == steps["train/images_per_second_step"] == [5, 9, 12]
    assert steps["train/loss"] == steps["val/loss"] == [6, 13]


def test_both_learn_at_the_rates_of_the_schedule(run: Path, torch_run: Path) -> None:
    for name in ("train/learning_rate", "train/learning_rate_step"):
        ours, theirs = (
            [value for _, value in events.scalars(folder)[name]] for folder in (run, torch_run)
        )
        assert ours == theirs
    rows = [float(row["learning_rate"]) for row in history_of(run)]
    epochs = [value for _, value in events.scalars(run)["train/learning_rate"]]
    assert epochs == pytest.approx(rows)  # events are float32


@pytest.mark.parametrize("interval", ["step", "epoch"])
def test_a_step_s_learning_rate_is_the_one_that_it_is_made_with(
    tmp_path: Path, interval: str
) -> None:
    schedule = ["--model.lr_scheduler", "StepLR", "--model.lr_scheduler.step_size", "2"]
    options = [*schedule, "--model.lr_scheduler_interval", interval, "--trainer.max_epochs", "3"]
    options += ["--trainer.log_every_n_steps", "1"]
    runs = (keras_fit(tmp_path, *options), fit(tmp_path / "torch", *options))
    ours, theirs = (events.scalars(folder)["train/learning_rate_step"] for folder in runs)
    assert ours == theirs
    assert len({rate for _, rate in ours}) > 1


def test_images_per_second_leave_the_validation_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0

    def train(*_: object, **__: object) -> None:
        nonlocal now
        now += 2

    def validate(*_: object, **__: object) -> None:
        nonlocal now
        now += 1000

    recorder = "digitlab.parity.recorder.Recorder"
    monkeypatch.setattr("digitlab.callbacks.logging.perf_counter", lambda: now)
    monkeypatch.setattr(f"{recorder}.on_train_batch_begin", train, raising=False)
    monkeypatch.setattr(f"{recorder}.on_test_batch_begin", validate, raising=False)
    options = ["--trainer.max_epochs", "2", "--trainer.log_every_n_steps", "7"]
    curves = events.scalars(keras_fit(tmp_path, *options))
    for name in ("train/images_per_second", "train/images_per_second_step"):
        rates = [rate for _, rate in curves[name]]
        assert rates == pytest.approx([200 / 14] * 2)  # an epoch's 200 images, in 7 steps of 2 s


def test_config_and_samples_are_those_of_the_files(run: Path) -> None:
    ((step, text),) = events.texts(run, "config")
    assert step == 0
    lines = (run / "config.yaml").read_text("utf-8").splitlines()
    assert text.splitlines() == [f"    {line}" for line in lines]
    ((_, shown),) = events.pictures(run)["train/samples"]
    np.testing.assert_array_equal(shown, np.asarray(Image.open(run / "samples.png")))


def test_the_confusion_matrix_counts_the_saved_model_s_predictions(
    run: Path, predicted: NDArray[np.int64]
) -> None:
    counts = confusion_matrix(tiny.TEST[1], predicted, labels=range(10))
    assert 0 < np.trace(counts) < counts.sum() == 50
    _, shown = events.pictures(run)["val/confusion_matrix"][-1]
    np.testing.assert_array_equal(shown, np.asarray(draw_confusion_matrix(counts, NAMES)))


def test_the_filters_are_the_saved_kernel(run: Path, model: Any) -> None:
    kernel, *_ = model.get_layer("conv1").get_weights()
    kernels = np.stack([kernel[:, :, 0, channel] for channel in range(6)])
    _, shown = events.pictures(run)["weights/conv1"][-1]
    np.testing.assert_array_equal(shown, np.asarray(draw_kernels(kernels)))


def test_the_graph_names_the_layers_and_stands_in_the_run_s_own_events(
    run: Path, model: Any
) -> None:
    nodes = [node.name for node in events.read(run).Graph().node]
    for layer in model.layers:
        # Keras opens a layer's scope twice, and TensorFlow numbers the second.
        assert any(f"/{layer.name}_1/" in name for name in nodes), nodes
    assert [path.parent for path in run.rglob("events*")] == [run]


def test_the_projector_has_what_the_last_dense_layer_is_given(
    run: Path, torch_run: Path, model: Any, predicted: NDArray[np.int64]
) -> None:
    assert names_in(run / FOLDER) == names_in(torch_run / FOLDER)
    text = (run / "projector_config.pbtxt").read_text("utf-8")
    assert text == (torch_run / "projector_config.pbtxt").read_text("utf-8")
    (embedding,) = text_format.Parse(text, ProjectorConfig()).embeddings
    features = np.loadtxt(run / embedding.tensor_path, delimiter="\t", dtype=np.float32)
    before = import_keras().Sequential(
        [layer for layer in model.layers if layer.name not in ("fc3", "softmax")]
    )
    expected = before.predict(whole("test")[0], verbose=0)
    assert features.shape == (50, 84)
    np.testing.assert_allclose(features, expected, rtol=1e-5, atol=1e-6)  # six digits are written
    _, *rows = (run / embedding.metadata_path).read_text("utf-8").splitlines()
    assert rows == [f"{a}\t{b}" for a, b in zip(tiny.TEST[1], predicted, strict=True)]
    sprites = [(folder / embedding.sprite.image_path).read_bytes() for folder in (run, torch_run)]
    assert sprites[0] == sprites[1]


def test_a_perceptron_has_no_filters_and_a_projector_of_its_own_width(tmp_path: Path) -> None:
    folder = keras_fit(tmp_path, "--model.hidden_features", "[12]", model="MLP")
    assert not [tag for tag in events.pictures(folder) if tag.startswith("weights/")]
    assert np.loadtxt(folder / FOLDER / "features.tsv").shape == (50, 12)
