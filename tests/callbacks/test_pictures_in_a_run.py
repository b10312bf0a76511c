"""Pictures leave a run as it is, and are left out where nothing shows them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from PIL import Image
from torch import Tensor, nn

from digitlab.callbacks import (
    ConfusionMatrix,
    FirstLayerKernels,
    History,
    ModelGraph,
    Projector,
    Rates,
    Stopwatch,
    WorstMistakes,
    tensorboard,
)
from digitlab.classifier import Classifier
from digitlab.cli import main
from digitlab.data.download import Split
from digitlab.models import LeNet5
from tests import commands, events, fitting
from tests.fitting import assert_bitwise_equal, small_mlp, weights

DRAWN = ("val/confusion_matrix", "val/mistakes", "weights/conv1")


def all_callbacks(folder: Path) -> list[Callback]:
    stopwatch, history = Stopwatch(), History(folder / "history.csv")
    rates = Rates(history, stopwatch)
    while_training = [rates, ConfusionMatrix(), WorstMistakes(), FirstLayerKernels()]
    return [stopwatch, history, *while_training, ModelGraph(), Projector()]


@pytest.fixture
def _no_drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("this is shown to nobody")

    monkeypatch.setattr(Image, "new", refuse)
    monkeypatch.setattr(tensorboard, "_features", refuse)


@pytest.mark.usefixtures("_no_drawing")
@pytest.mark.parametrize("logger", ["none", "csv"])
def test_without_tensorboard_nothing_is_drawn_and_scalars_go_where_they_can(
    tmp_path: Path, logger: str
) -> None:
    other = CSVLogger(tmp_path) if logger == "csv" else None
    fitting.fit(LeNet5(), *all_callbacks(tmp_path), logger=other or False, log_every_n_steps=2)
    assert not list(tmp_path.rglob("projector*"))
    if other:
        other.save()
        columns = Path(other.log_dir, "metrics.csv").read_text("utf-8").splitlines()[0].split(",")
        expected = {"train/images_per_second", "train/learning_rate", "train/learning_rate_step"}
        assert expected | {"train/images_per_second_step", "val/loss"} <= {*columns}


def test_another_tensorboard_logger_gets_all_of_it(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path, name="own", default_hp_metric=False)
    fitting.fit(LeNet5(), *all_callbacks(tmp_path), logger=logger, log_every_n_steps=2)
    logger.finalize("success")
    folder = tmp_path / "own" / "version_0"
    assert events.pictures(folder).keys() == {*DRAWN}
    assert events.read(folder).Graph().node
    assert (folder / "projector_config.pbtxt").is_file()


@pytest.mark.parametrize("options", [{}, {"steps_per_execution": 3, "dropout_in_evaluation": True}])
def test_weights_and_random_numbers_are_those_of_a_run_without(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    def train(*callbacks: Callback) -> tuple[dict[str, Tensor], Tensor]:
        model = small_mlp(dropout=0.5, **options)
        logger = TensorBoardLogger(tmp_path, name="", version="", default_hp_metric=False)
        fitting.fit(model, *callbacks, logger=logger, max_epochs=2, log_every_n_steps=2)
        assert model.training
        return weights(model), torch.get_rng_state()

    (plain, numbers), (shown, same_numbers) = train(), train(*all_callbacks(tmp_path))
    assert_bitwise_equal(shown, plain)
    assert torch.equal(numbers, same_numbers)


def test_a_run_with_a_hold_out_shows_its_images_and_leaves_the_test_split_unread(
    tmp_path: Path, read_splits: list[Split]
) -> None:
    options = ["--data", "tests.tiny.SpiedDataModule", "--data.validation_size", "40"]
    folder = commands.fit(tmp_path, *options, model="LeNet5")
    assert set(read_splits) == {"train"}
    assert len((folder / "projector" / "labels.tsv").read_text().splitlines()) == 41
    assert {*DRAWN} <= events.pictures(folder).keys()


def test_without_validation_the_filters_are_still_shown(tmp_path: Path) -> None:
    folder = commands.fit(tmp_path, "--trainer.limit_val_batches", "0", model="LeNet5")
    assert events.pictures(folder).keys() == {"train/samples", "weights/conv1"}


def test_lightning_s_sanity_check_is_not_shown(tmp_path: Path) -> None:
    folder = commands.fit(tmp_path, "--trainer.num_sanity_val_steps", "2", model="LeNet5")
    steps = [step for step, _ in events.pictures(folder)["val/confusion_matrix"]]
    assert steps == [6]


class Perfect(Classifier):
    """Reads the class off the first pixel, where the test has written it."""

    def __init__(self) -> None:
        super().__init__(network=nn.Sequential(nn.Flatten(), nn.Linear(784, 10)))

    def validation_step(self, batch: Any, batch_idx: int) -> Tensor:
        super().validation_step(batch, batch_idx)
        return nn.functional.one_hot(batch[1], 10).float()


def test_a_validation_without_mistakes_shows_none(tmp_path: Path) -> None:
    folder = commands.fit(tmp_path, model="tests.callbacks.test_pictures_in_a_run.Perfect")
    assert events.pictures(folder).keys() == {"train/samples", "val/confusion_matrix"}


def test_a_run_that_goes_on_shows_its_new_settings_from_there(tmp_path: Path) -> None:
    folder = commands.fit(tmp_path)
    assert main(["fit", "--run", str(folder), "--trainer.max_epochs", "2"]) == 0
    (first, before), (second, after) = events.texts(folder, "config")
    assert (first, second) == (0, 7)
    assert "max_epochs: 1" in before
    assert "max_epochs: 2" in after
    assert [step for step, _ in events.pictures(folder)["train/samples"]] == [0]
