"""What TensorBoard shows of a finished run, without any setting."""

from pathlib import Path

import numpy as np
import pytest
import torch
from google.protobuf import text_format
from PIL import Image
from sklearn.metrics import confusion_matrix
from tensorboard.plugins.projector.projector_config_pb2 import ProjectorConfig

from digitlab.callbacks.pictures import draw_confusion_matrix, draw_images, draw_kernels
from digitlab.models import LeNet5
from tests import events, tiny
from tests.commands import fit
from tests.fitting import whole

NAMES = list("0123456789")
LOGGED = [4, 9, 14, 19]  # every fifth of 21 steps, counted from 0
EPOCHS = [6, 13, 20]
PICTURES = ("val/confusion_matrix", "val/mistakes", "weights/conv1")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_for_module: None) -> Path:
    """Three epochs that leave mistakes to show."""
    root = tmp_path_factory.mktemp("runs")
    slow = ["--model.optimizer", "SGD", "--model.optimizer.lr", "0.05"]
    step = ["--model.lr_scheduler", "ExponentialLR", "--model.lr_scheduler.gamma", "0.5"]
    lengths = ["--trainer.max_epochs", "3", "--trainer.log_every_n_steps", "5"]
    return fit(root, *slow, *step, *lengths, model="LeNet5")


@pytest.fixture(scope="module")
def model(run: Path) -> LeNet5:
    return LeNet5.load_from_checkpoint(run / "checkpoints" / "last.ckpt").eval()


@pytest.fixture(scope="module")
def probabilities(model: LeNet5) -> np.ndarray:
    with torch.no_grad():
        return np.asarray(model(whole("test")[0]).softmax(1))


def test_scalars_stand_at_their_steps(run: Path) -> None:
    curves = events.scalars(run)
    steps = {tag: [step for step, _ in points] for tag, points in curves.items()}
    quantities = ("loss", "accuracy", "learning_rate", "images_per_second")
    of_steps = {f"train/{name}_step": LOGGED for name in quantities}
    of_epochs = {f"train/{name}": EPOCHS for name in quantities}
    validated = {f"val/{name}": EPOCHS for name in ("loss", "accuracy")}
    final = {f"hparams/val_{name}": [21] for name in ("loss", "accuracy")}
    del steps["epoch"]  # Lightning's own
    assert steps == of_steps | of_epochs | validated | final


def test_the_learning_rate_is_that_of_the_step_or_of_the_epoch_s_start(run: Path) -> None:
    curves = events.scalars(run)
    rates = [0.05, 0.025, 0.0125]
    assert [rate for _, rate in curves["train/learning_rate"]] == pytest.approx(rates)
    of_steps = [rates[step // 7] for step in LOGGED]
    assert [rate for _, rate in curves["train/learning_rate_step"]] == pytest.approx(of_steps)


def test_the_config_is_shown_as_it_is(run: Path) -> None:
    ((step, text),) = events.texts(run, "config")
    assert step == 0
    lines = text.splitlines()
    assert all(line.startswith("    ") for line in lines)
    shown = "".join(f"{line[4:]}\n" for line in lines)
    assert shown == (run / "config.yaml").read_text("utf-8")


def test_pictures_stand_at_each_validation(run: Path) -> None:
    shown = events.pictures(run)
    assert {tag: [step for step, _ in points] for tag, points in shown.items()} == {
        "train/samples": [0],
        **dict.fromkeys(PICTURES, EPOCHS),
    }


def test_the_samples_are_those_of_the_file(run: Path) -> None:
    ((_, shown),) = events.pictures(run)["train/samples"]
    np.testing.assert_array_equal(shown, np.asarray(Image.open(run / "samples.png")))


def test_the_confusion_matrix_counts_the_validation_s_images(
    run: Path, probabilities: np.ndarray
) -> None:
    counts = confusion_matrix(tiny.TEST[1], probabilities.argmax(1), labels=range(10))
    assert 0 < np.trace(counts) < counts.sum() == 50
    _, shown = events.pictures(run)["val/confusion_matrix"][-1]
    np.testing.assert_array_equal(shown, np.asarray(draw_confusion_matrix(counts, NAMES)))


def test_the_mistakes_are_the_most_confident_ones(run: Path, probabilities: np.ndarray) -> None:
    images, labels = tiny.TEST
    predicted, certainty = probabilities.argmax(1), probabilities.max(1)
    wrong = [i for i in range(50) if predicted[i] != labels[i]]
    worst = sorted(wrong, key=lambda i: -certainty[i])[:16]
    # As bright as the brightest pixel and as dark as the darkest, whatever the normalization.
    shades = [images[i].astype(float) - images[i].min() for i in worst]
    stretched = np.stack([(255 * shade / shade.max()).round() for shade in shades])
    expected = draw_images(
        stretched.astype(np.uint8),
        [str(labels[i]) for i in worst],
        [f"{predicted[i]} ({certainty[i]:.0%})" for i in worst],
    )
    _, shown = events.pictures(run)["val/mistakes"][-1]
    assert shown.shape == np.asarray(expected).shape
    difference = np.abs(shown.astype(int) - np.asarray(expected, int))
    assert difference.max() <= 1  # images were normalized in float32


def test_the_filters_are_the_first_layer_s(run: Path, model: LeNet5) -> None:
    _, shown = events.pictures(run)["weights/conv1"][-1]
    kernels = model.network.get_submodule("conv1").state_dict()["weight"]
    np.testing.assert_array_equal(shown, np.asarray(draw_kernels(kernels[:, 0].numpy())))


def test_the_graph_is_the_network_s_layers_in_their_order(run: Path, model: LeNet5) -> None:
    named = model.network.named_children()
    layers = [f"{name}/{type(layer).__name__}" for name, layer in named]
    assert len(layers) == 12
    nodes = {node.name: node for node in events.read(run).Graph().node}
    assert [*nodes] == ["input_1", *layers, "output"]
    given = [list(node.input) for node in nodes.values()]
    assert given == [[], ["input_1"], *([name] for name in layers)]
    assert nodes["conv2/Conv2d"].op == "Conv2d"
    assert nodes["conv2/Conv2d"].attr["weight"].s == b"(16, 6, 5, 5)"
    sizes = nodes["pool2/MaxPool2d"].attr["_output_shapes"].list.shape[0].dim
    assert [dim.size for dim in sizes] == [1, 16, 5, 5]


def test_the_projector_has_the_penultimate_layer_with_images_and_labels(
    run: Path, model: LeNet5, probabilities: np.ndarray
) -> None:
    text = (run / "projector_config.pbtxt").read_text("utf-8")
    (embedding,) = text_format.Parse(text, ProjectorConfig()).embeddings
    features = np.loadtxt(run / embedding.tensor_path, delimiter="\t", dtype=np.float32)
    with torch.no_grad():
        expected = model.network[:-1](whole("test")[0]).numpy()  # type: ignore[index]
    assert features.shape == (50, 84)
    np.testing.assert_allclose(features, expected, rtol=1e-5, atol=1e-6)  # six digits are written
    header, *rows = (run / embedding.metadata_path).read_text("utf-8").splitlines()
    assert header == "class\tpredicted"
    predicted = probabilities.argmax(1)
    assert rows == [f"{a}\t{b}" for a, b in zip(tiny.TEST[1], predicted, strict=True)]
    sprite = np.asarray(Image.open(run / embedding.sprite.image_path))
    assert list(embedding.sprite.single_image_dim) == [28, 28]
    assert sprite.shape == (8 * 28, 8 * 28)  # room for 64
    for number, image in enumerate(tiny.TEST[0]):
        row, column = divmod(number, 8)
        tile = sprite[28 * row : 28 * row + 28, 28 * column : 28 * column + 28]
        np.testing.assert_array_equal(tile, image)


def test_a_perceptron_has_no_filters_and_a_projector_of_its_own_width(tmp_path: Path) -> None:
    folder = fit(tmp_path, "--model.hidden_features", "[12]", model="MLP")
    assert not [tag for tag in events.pictures(folder) if tag.startswith("weights/")]
    assert np.loadtxt(folder / "projector" / "features.tsv").shape == (50, 12)
