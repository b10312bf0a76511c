"""Networks of one's own show what they have, and no run ends without its figures for a picture."""

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from digitlab.callbacks import tensorboard
from digitlab.callbacks.tensorboard import trace
from digitlab.classifier import Classifier
from digitlab.cli import main
from digitlab.models import MLP
from tests import commands, events
from tests.tiny import TinyDataModule


def fit(tmp_path: Path, name: str, *options: str) -> Path:
    """A run that has ended as it should."""
    folder = commands.fit(tmp_path, *options, model=f"{__name__}.{name}")
    assert (folder / "metrics.json").is_file()
    return folder


class Silent(Classifier):
    """Its validation step gives nothing, and it has no fully connected layer."""

    def __init__(self) -> None:
        super().__init__(network=nn.Sequential(nn.Conv2d(1, 10, 28), nn.Flatten()))

    def validation_step(self, batch: Any, batch_idx: int) -> None:  # type: ignore[override]
        super().validation_step(batch, batch_idx)


class GivesTheLoss(MLP):
    """What other people's validation steps return."""

    def validation_step(self, batch: Any, batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(super().validation_step(batch, batch_idx), batch[1])


@pytest.mark.parametrize(
    ("name", "filters"), [("Silent", {"weights/0"}), ("GivesTheLoss", set[str]())]
)
def test_without_logits_of_the_validation_there_is_no_picture_of_it(
    tmp_path: Path, name: str, filters: set[str]
) -> None:
    folder = fit(tmp_path, name)
    assert events.pictures(folder).keys() == {"train/samples", *filters}
    assert (folder / "projector").exists() == (name == "GivesTheLoss")


class Untraceable(nn.Module):
    """Looks its width up in a table, but the trace has no number to look up."""

    def __init__(self) -> None:
        super().__init__()
        self.table = {784: 1}
        self.fc = nn.Linear(784, 10)

    def forward(self, images: Tensor) -> Tensor:
        flat = images.flatten(1)
        logits: Tensor = self.fc(flat) * self.table[flat.shape[1]]
        return logits


class Spare(nn.Module):
    """Its last fully connected layer is not called."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(784, 10)
        self.auxiliary = nn.Linear(784, 3)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.fc(images.flatten(1))
        return logits


class Rows(nn.Module):
    """Its last fully connected layer is given a sequence: 28 rows of an image."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(28, 10)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.fc(images[:, 0]).mean(1)
        return logits


class Own(Classifier):
    """A network by its name."""

    networks: ClassVar = {kind.__name__: kind for kind in (Untraceable, Spare, Rows)}

    def __init__(self, kind: str) -> None:
        super().__init__(network=self.networks[kind]())


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        ("Untraceable", "TensorBoard has no graph of this network: KeyError: Proxy("),
        ("Spare", "TensorBoard has no projector of this network: ValueError: its last fully"),
    ],
)
def test_what_cannot_be_shown_is_said_and_ends_no_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, sentence: str
) -> None:
    folder = fit(tmp_path, "Own", "--model.kind", kind)
    assert sentence in capsys.readouterr().out
    assert events.read(folder).Tags()["graph"] == (kind == "Spare")
    assert (folder / "projector_config.pbtxt").exists() == (kind == "Untraceable")


def test_a_layer_that_is_given_a_sequence_has_a_point_for_each_image(tmp_path: Path) -> None:
    folder = fit(tmp_path, "Own", "--model.kind", "Rows")
    assert np.loadtxt(folder / "projector" / "features.tsv").shape == (50, 28 * 28)


class OddlyNamed(TinyDataModule):
    class_names = ("c\t1\nx", *"123456789")


def test_a_name_of_several_lines_is_one_label(tmp_path: Path) -> None:
    folder = commands.fit(tmp_path, "--data", f"{__name__}.OddlyNamed")
    _, *rows = (folder / "projector" / "labels.tsv").read_text("utf-8").splitlines()
    assert len(rows) == 50
    assert all(len(row.split("\t")) == 2 for row in rows)
    assert any("c 1 x" in row for row in rows)


def test_the_projector_shows_the_first_thousand_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    assert tensorboard.IMAGES == 1000
    monkeypatch.setattr(tensorboard, "IMAGES", 20)
    folder = commands.fit(tmp_path)
    whole = commands.fit(tmp_path / "all", "--data.eval_batch_size", "7")
    labels = (folder / "projector" / "labels.tsv").read_text("utf-8").splitlines()
    assert labels == (whole / "projector" / "labels.tsv").read_text("utf-8").splitlines()
    assert len(labels) == 21
    assert np.loadtxt(folder / "projector" / "features.tsv").shape == (20, 784)


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


def test_a_full_disk_is_told_and_the_run_is_finished_when_there_is_room(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    place = ["--trainer.default_root_dir", str(tmp_path)]
    with monkeypatch.context() as patch:
        patch.setattr("digitlab.callbacks.tensorboard.write_projector", full)
        code = main(["fit", "--model", "LinearClassifier", *commands.SHORT, *place])
    assert code == 1
    assert "No space left on device" in capsys.readouterr().err
    (folder,) = tmp_path.glob("*/version_*")
    assert not (folder / "metrics.json").exists()
    assert main(["fit", "--run", str(folder)]) == 0
    assert (folder / "metrics.json").is_file()
    assert (folder / "projector_config.pbtxt").is_file()
