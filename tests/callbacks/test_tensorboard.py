"""What TensorBoard shows, and that showing it leaves a run as it is."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from google.protobuf import text_format
from lightning import Callback, Trainer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from PIL import Image
from sklearn.metrics import confusion_matrix
from tensorboard.plugins.projector.projector_config_pb2 import ProjectorConfig
from torch import Tensor, nn

from digitlab.callbacks import (
    ClassProbabilities,
    ConfusionMatrix,
    FirstLayerKernels,
    ModelGraph,
    Projector,
    Throughput,
    WorstMistakes,
    tensorboard,
)
from digitlab.callbacks.pictures import draw_confusion_matrix, draw_images, draw_kernels
from digitlab.callbacks.tensorboard import trace
from digitlab.classifier import Classifier
from digitlab.models import MLP, LeNet5
from tests import events, tiny
from tests.fitting import assert_bitwise_equal, small_mlp, trainer, weights, whole
from tests.tiny import TinyDataModule

pytestmark = pytest.mark.filterwarnings("ignore:The number of training batches .* is smaller")

NAMES = list("0123456789")
EPOCHS = [6, 13, 20]
DRAWN = ("val/confusion_matrix", "val/mistakes", "weights/conv1")


def all_callbacks() -> list[Callback]:
    while_training = [Throughput(), ConfusionMatrix(), WorstMistakes(), FirstLayerKernels()]
    return [*while_training, ModelGraph(), Projector()]


def fit(
    folder: Path, model: Classifier, data: TinyDataModule | None = None, **options: Any
) -> Trainer:
    """Train with all callbacks, and show it in a folder."""
    logger = TensorBoardLogger(folder, name="", version="", default_hp_metric=False)
    every = {"logger": logger, "callbacks": all_callbacks(), "num_sanity_val_steps": 0}
    fitted = trainer(**{**every, "log_every_n_steps": 5, **options})
    fitted.fit(model, data or TinyDataModule())
    logger.finalize("success")
    return fitted


@pytest.fixture(scope="module")
def run(
    tmp_path_factory: pytest.TempPathFactory, tiny_for_module: None
) -> tuple[Path, LeNet5, np.ndarray]:
    """Three epochs that leave mistakes to show: folder, model, probabilities of the test images."""
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(1)
    model = LeNet5(optimizer=lambda params: torch.optim.SGD(params, lr=0.05))
    fit(folder, model, max_epochs=3)
    with torch.no_grad():
        return folder, model.eval(), np.asarray(model(whole("test")[0]).softmax(1))


Run = tuple[Path, LeNet5, np.ndarray]


def test_scalars_and_pictures_stand_at_their_steps(run: Run) -> None:
    curves, shown = events.scalars(run[0]), events.pictures(run[0])
    steps = {tag: [step for step, _ in points] for tag, points in (curves | shown).items()}
    quantities = ("loss", "accuracy", "learning_rate", "images_per_second")
    # Every fifth of 21 steps, counted from 0.
    of_steps = {f"train/{name}_step": [4, 9, 14, 19] for name in quantities}
    of_epochs = {f"train/{name}": EPOCHS for name in quantities}
    validated = {f"val/{name}": EPOCHS for name in ("loss", "accuracy")}
    del steps["epoch"]  # Lightning's own
    assert steps == of_steps | of_epochs | validated | dict.fromkeys(DRAWN, EPOCHS)


def test_the_confusion_matrix_counts_the_images_validated_on(run: Run) -> None:
    folder, _, probabilities = run
    counts = confusion_matrix(tiny.TEST[1], probabilities.argmax(1), labels=range(10))
    assert 0 < np.trace(counts) < counts.sum() == 50
    _, shown = events.pictures(folder)["val/confusion_matrix"][-1]
    np.testing.assert_array_equal(shown, np.asarray(draw_confusion_matrix(counts, NAMES)))


def test_the_mistakes_are_the_most_confident_ones(run: Run) -> None:
    folder, _, probabilities = run
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
    _, shown = events.pictures(folder)["val/mistakes"][-1]
    assert shown.shape == np.asarray(expected).shape
    difference = np.abs(shown.astype(int) - np.asarray(expected, int))
    assert difference.max() <= 1  # images were normalized in float32


def test_the_kernels_are_the_first_layer_s(run: Run) -> None:
    folder, model, _ = run
    _, shown = events.pictures(folder)["weights/conv1"][-1]
    kernels = model.network.get_submodule("conv1").state_dict()["weight"]
    np.testing.assert_array_equal(shown, np.asarray(draw_kernels(kernels[:, 0].numpy())))


def test_the_graph_is_the_network_s_layers_in_their_order(run: Run) -> None:
    folder, model, _ = run
    layers = [f"{name}/{type(layer).__name__}" for name, layer in model.network.named_children()]
    assert len(layers) == 12
    nodes = {node.name: node for node in events.read(folder).Graph().node}
    assert [*nodes] == ["input_1", *layers, "output"]
    given = [list(node.input) for node in nodes.values()]
    assert given == [[], ["input_1"], *([name] for name in layers)]
    assert nodes["conv2/Conv2d"].op == "Conv2d"
    assert nodes["conv2/Conv2d"].attr["weight"].s == b"(16, 6, 5, 5)"
    sizes = nodes["pool2/MaxPool2d"].attr["_output_shapes"].list.shape[0].dim
    assert [dim.size for dim in sizes] == [1, 16, 5, 5]


def test_the_projector_has_the_penultimate_layer_with_images_and_labels(run: Run) -> None:
    folder, model, probabilities = run
    text = (folder / "projector_config.pbtxt").read_text("utf-8")
    (embedding,) = text_format.Parse(text, ProjectorConfig()).embeddings
    features = np.loadtxt(folder / embedding.tensor_path, delimiter="\t", dtype=np.float32)
    with torch.no_grad():
        expected = model.network[:-1](whole("test")[0]).numpy()  # type: ignore[index]
    assert features.shape == (50, 84)
    np.testing.assert_allclose(features, expected, rtol=1e-5, atol=1e-6)  # of smaller batches
    header, *rows = (folder / embedding.metadata_path).read_text("utf-8").splitlines()
    assert header == "class\tpredicted"
    predicted = probabilities.argmax(1)
    assert rows == [f"{a}\t{b}" for a, b in zip(tiny.TEST[1], predicted, strict=True)]
    sprite = np.asarray(Image.open(folder / embedding.sprite.image_path).convert("L"))
    assert sprite.shape == (8 * 28, 8 * 28)  # room for 64
    tiles = sprite.reshape(8, 28, 8, 28).swapaxes(1, 2).reshape(64, 28, 28)
    np.testing.assert_array_equal(tiles[:50], tiny.TEST[0])


class OddlyNamed(TinyDataModule):
    class_names = ("c\t1\nx", *"123456789")


def test_the_projector_shows_the_first_thousand_images_and_a_line_for_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tensorboard.IMAGES == 1000
    fit(tmp_path / "all", small_mlp(), OddlyNamed(eval_batch_size=7))
    monkeypatch.setattr(tensorboard, "IMAGES", 20)
    for _ in range(2):  # those of a longer run replace the others, without a word
        fit(tmp_path / "some", small_mlp())
    assert capsys.readouterr().out == ""
    every, some = (tmp_path / it / "projector" / "penultimate_layer" for it in ("all", "some"))
    points = np.loadtxt(some / "tensors.tsv")
    assert points.shape == (20, 16)
    np.testing.assert_allclose(points, np.loadtxt(every / "tensors.tsv")[:20], rtol=1e-4)
    labels = [(folder / "metadata.tsv").read_text("utf-8").splitlines() for folder in (every, some)]
    assert [len(rows) for rows in labels] == [51, 21]
    assert all(len(row.split("\t")) == 2 for row in labels[0])
    shown = [row.split("\t")[0].replace("c 1 x", "0") for row in labels[0][:21]]
    assert [row.split()[0] for row in labels[1]] == shown


class Nothing(MLP):
    """Its own methods, in place of those that read a PyTorch network, have nothing to show."""

    first_kernels = trace_graph = features = lambda *_: None


def validated(made: Callable[[Tensor, Tensor], Any]) -> MLP:
    """A network whose validation step returns what is made of its logits and the labels."""

    class Validated(MLP):
        def validation_step(self, batch: Any, batch_idx: int) -> Any:
            return made(super().validation_step(batch, batch_idx), batch[1])

    return Validated()


@pytest.mark.parametrize(
    ("model", "options", "shown", "projector"),
    [
        (validated(lambda *_: None), {}, set(), True),
        (validated(nn.functional.cross_entropy), {}, set(), True),  # as others' do
        (
            validated(lambda _, labels: nn.functional.one_hot(labels, 10).float()),
            {},
            {DRAWN[0]},
            True,
        ),
        (Nothing(), {}, {*DRAWN[:2]}, False),
        (
            Classifier(nn.Sequential(nn.Conv2d(1, 10, 28), nn.Flatten())),
            {},
            {*DRAWN[:2], "weights/0"},
            False,
        ),
        (LeNet5(), {"limit_val_batches": 0}, {"weights/conv1"}, True),
        (LeNet5(), {"num_sanity_val_steps": 2}, {*DRAWN}, True),
    ],
)
def test_only_what_there_is_is_shown_and_once_a_validation(
    tmp_path: Path, model: MLP, options: dict[str, Any], shown: set[str], projector: bool
) -> None:
    fit(tmp_path, model, **options)
    pictures = events.pictures(tmp_path)
    steps = {tag: [step for step, _ in points] for tag, points in pictures.items()}
    assert steps == {tag: [6] for tag in shown}
    assert (tmp_path / "projector").exists() == projector


class Untraceable(nn.Sequential):
    """Looks its width up in a table, but the trace has no number to look up."""

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = super().forward(images) * {784: 1}[images.flatten(1).shape[1]]
        return logits


class Spare(nn.Sequential):
    """Does not call its last fully connected layer."""

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self[1](self[0](images))
        return logits


LINEAR = nn.Flatten(), nn.Linear(784, 10)
# Its last fully connected layer is given a sequence: the 28 rows of an image.
ROWS = nn.Sequential(nn.Flatten(1, 2), nn.Linear(28, 10), nn.Conv1d(28, 1, 1), nn.Flatten())


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (Untraceable(*LINEAR), "TensorBoard has no graph of this network: KeyError: Proxy("),
        (
            Spare(*LINEAR, nn.Linear(784, 3)),
            "TensorBoard has no projector of this network: ValueError: its last fully",
        ),
        (ROWS, ""),
    ],
)
def test_what_cannot_be_shown_is_said_and_ends_no_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], network: nn.Module, message: str
) -> None:
    fit(tmp_path, Classifier(network))
    out = capsys.readouterr().out
    assert message in out
    assert out.count("TensorBoard has no") == bool(message)
    assert events.read(tmp_path).Tags()["graph"] == (not isinstance(network, Untraceable))
    assert (tmp_path / "projector_config.pbtxt").exists() == (not isinstance(network, Spare))
    if network is ROWS:  # a point for each image, not for each row
        (features,) = tmp_path.glob("projector/*/tensors.tsv")
        assert np.loadtxt(features).shape == (50, 28 * 28)


class Branching(nn.Module):
    """Calls a layer twice, a function, and layers inside of another."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
        self.again = nn.Linear(10, 10)

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.block(images)
        logits: Tensor = hidden + self.again(self.again(hidden))
        return logits


def test_a_graph_joins_what_is_added_and_tells_calls_of_one_layer_apart() -> None:
    graph = trace(Branching(), torch.zeros(1, 1, 28, 28))
    assert {node.name: list(node.input) for node in graph.node} == {
        "images": [],
        "block/0/Flatten": ["images"],
        "block/1/Linear": ["block/0/Flatten"],
        "again/Linear": ["block/1/Linear"],
        "again_1/Linear": ["again/Linear"],
        "add": ["block/1/Linear", "again_1/Linear"],
        "output": ["add"],
    }


@pytest.mark.parametrize("logs", [False, True])
def test_without_tensorboard_nothing_is_drawn_and_scalars_go_where_they_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, logs: bool
) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("nothing shows this")

    monkeypatch.setattr(Image, "new", refuse)
    for name in ("features", "trace", "first_kernels"):
        monkeypatch.setattr(tensorboard, name, refuse)
    other = CSVLogger(tmp_path)
    fit(tmp_path, LeNet5(), logger=other if logs else False, log_every_n_steps=2)
    assert not list(tmp_path.rglob("projector*"))
    if logs:
        other.save()
        columns = Path(other.log_dir, "metrics.csv").read_text("utf-8").splitlines()[0].split(",")
        expected = {"train/images_per_second", "train/learning_rate", "train/learning_rate_step"}
        assert expected | {"train/images_per_second_step", "val/loss"} <= {*columns}


@pytest.mark.parametrize("options", [{}, {"steps_per_execution": 3, "dropout_in_evaluation": True}])
def test_weights_and_random_numbers_are_those_of_a_run_without(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    def train(callbacks: list[Callback]) -> tuple[dict[str, Tensor], Tensor]:
        model = small_mlp(dropout=0.5, **options)
        fit(tmp_path, model, callbacks=callbacks, max_epochs=2, log_every_n_steps=2)
        assert model.training
        return weights(model), torch.get_rng_state()

    (plain, numbers), (shown, same_numbers) = (
        train(callbacks) for callbacks in ([], [*all_callbacks(), ClassProbabilities(1)])
    )
    assert_bitwise_equal(shown, plain)
    assert torch.equal(numbers, same_numbers)


def test_pictures_go_to_any_logger_with_lightning_s_log_image(tmp_path: Path) -> None:
    class PictureLogger(CSVLogger):
        """Keeps pictures, with the arguments of Lightning's `WandbLogger`."""

        def __init__(self) -> None:
            super().__init__(tmp_path)
            self.shown: dict[str, list[tuple[int | None, tuple[int, ...]]]] = {}

        def log_image(self, key: str, images: list[Any], step: int | None = None) -> None:
            (image,) = images
            self.shown.setdefault(key, []).append((step, image.shape[2:]))

    logger = PictureLogger()
    fitted = trainer(logger=logger, callbacks=all_callbacks(), max_epochs=2)
    fitted.fit(LeNet5(), TinyDataModule())
    assert logger.shown == {tag: [(6, (3,)), (13, (3,))] for tag in DRAWN}


def test_a_run_s_details_stand_behind_its_curves_of_accuracy_and_loss(tmp_path: Path) -> None:
    logger = tensorboard.EventLogger(tmp_path, "", "", default_hp_metric=False)
    details = ("loss_step", "learning_rate", "images_per_second_step")
    curves = ("train/accuracy", "train/loss", "train/f1", "val/loss")
    logged = dict.fromkeys(("epoch", *curves, *(f"train/{name}" for name in details)), 0.5)
    logger.log_metrics(logged, 3)
    logger.finalize("success")
    shown = events.scalars(tmp_path)
    assert shown.keys() == {*curves, *(f"while_training/{name}" for name in details)}
    assert all(points == [(3, 0.5)] for points in shown.values())
