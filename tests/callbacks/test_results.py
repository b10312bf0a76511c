import importlib.metadata
import json
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning import Trainer, seed_everything
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import StepLR
from torchmetrics.classification import MulticlassAccuracy

import digitlab
from digitlab.callbacks import (
    FinalEvaluation,
    History,
    SaveConfig,
    SaveFigures,
    Throughput,
    results,
)
from digitlab.callbacks.results import describe_device, versions
from digitlab.data.download import Split
from digitlab.models import MLP
from tests import events
from tests.fitting import small_mlp, trainer
from tests.tiny import SpiedDataModule, TinyDataModule


def fit(folder: Path, model: MLP, data: TinyDataModule, **options: Any) -> dict[str, Any]:
    """Train with a logger and return what metrics.json then has."""
    throughput = Throughput()
    logger = TensorBoardLogger(folder, name="", version="", default_hp_metric=False)
    seed_everything(5, verbose=False)
    used = [throughput, FinalEvaluation(folder, throughput, **options)]
    trainer(max_epochs=2, logger=logger, callbacks=used, log_every_n_steps=5).fit(model, data)
    metrics: dict[str, Any] = json.loads((folder / "metrics.json").read_text())
    return metrics


def check_score(
    entry: dict[str, Any], split: str, model: MLP, images: torch.Tensor, labels: torch.Tensor
) -> None:
    """Compare with the loss in float64 and with torchmetrics, over all images at once."""
    with torch.no_grad():
        logits = model.eval()(images)
    accuracy = MulticlassAccuracy(num_classes=10, average="micro")(logits, labels).item()
    loss = cross_entropy(logits.double(), labels).item()
    assert entry == {
        "loss": pytest.approx(loss, rel=1e-6),  # float32 logits
        "accuracy": pytest.approx(accuracy),
        "correct": round(accuracy * len(labels)),
        "n": len(labels),
        "checkpoint": None,  # the trainer of these tests writes none
        "split": split,
    }


@pytest.mark.parametrize(("size", "other"), [(0, "test"), (40, "val")])
def test_the_scores_are_of_whole_splits_and_a_hold_out_leaves_the_test_split_unread(
    tmp_path: Path, read_splits: list[Split], size: int, other: str
) -> None:
    model, data = small_mlp(), SpiedDataModule(validation_size=size, eval_batch_size=30)
    metrics = fit(tmp_path, model, data)
    assert set(read_splits) == ({"train"} if size else {"train", "test"})
    assert {"val", "test"} & metrics.keys() == {other}
    for entry, subset in (("train", "train"), (other, "validation")):
        images, labels = data.arrays(subset)  # type: ignore[arg-type]
        scaled = torch.from_numpy(images[:, None] / np.float32(255))
        split = "test" if entry == "test" else subset
        check_score(metrics[entry], split, model, scaled, torch.from_numpy(labels))


def test_the_file_says_what_the_scores_belong_to(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "predictions.csv").touch()
    (tmp_path / "metrics.json").write_text('{"earlier": 1}')
    weights = {"file": "there.ckpt", "sha256": "0" * 64}
    metrics = fit(tmp_path, small_mlp(), TinyDataModule(), weights=weights)
    phases, test = metrics["phases"], metrics["test"]
    assert [*phases] == ["training", "validation", "evaluation"]
    assert metrics["wall_time"] == pytest.approx(sum(phases.values()), abs=0.01)  # rounded
    assert metrics["images_per_second"] == pytest.approx(400 / phases["training"], rel=0.05)
    expected = {
        "earlier": None,  # of weights that are no more
        "framework": "torch",
        "model": "MLP",
        "dataset": "tiny",
        "parameters": 784 * 16 + 16 + 16 * 10 + 10,
        "epochs": 2,
        "optimizer_steps": 14,
        "seed": 5,
        "precision": "32-true",
        "device": "cpu (1 thread)",
        "weights": weights,
    }
    assert {key: metrics.get(key) for key in expected} == expected
    assert not (tmp_path / "predictions.csv").exists()
    *_, scores, times = capsys.readouterr().out.splitlines()
    assert scores == (
        f"Train accuracy {metrics['train']['accuracy']:.2%}, test accuracy {test['accuracy']:.2%} "
        f"({test['correct']}/50), loss {test['loss']:.4f}"
    )
    assert [phase.split()[0] for phase in times.split(", ")] == [*phases]


def test_versions_are_those_of_installed_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("torch", "torchvision", "lightning", "numpy", "scikit-learn", "pillow")
    common = {"python": platform.python_version(), "digitlab": digitlab.__version__}
    assert versions("torch") == common | {name: version(name) for name in names}

    def missing(name: str) -> str:
        raise PackageNotFoundError(name)

    # As in a source tree that is not installed.
    monkeypatch.setattr(results, "version", missing)
    monkeypatch.setattr(importlib.metadata, "version", missing)
    assert versions("keras") == common


def test_the_event_file_has_hyperparameters_with_the_final_scores(tmp_path: Path) -> None:
    model = small_mlp(
        dropout=0.25,
        optimizer=lambda params: torch.optim.SGD(params, lr=0.05),
        lr_scheduler=lambda optimizer: StepLR(optimizer, step_size=1, gamma=0.5),
    )
    metrics = fit(tmp_path, model, TinyDataModule(normalization="symmetric"))
    scalars = events.scalars(tmp_path)
    for name in ("accuracy", "loss"):
        step, value = scalars[f"val/{name}"][-1]
        assert step == 14  # behind the last epoch's, at 13
        assert value == pytest.approx(metrics["test"][name])
    assert not {"hp_metric", "step"} & scalars.keys()
    assert not any(value == -1 for points in scalars.values() for _, value in points)
    assert (len(scalars["train/loss"]), len(scalars["val/accuracy"])) == (2, 3)
    assert not [tag for tag in scalars if tag.startswith("hparams/")]
    contents = events.read(tmp_path).PluginTagToContent("hparams")
    start = HParamsPluginData.FromString(contents["_hparams_/session_start_info"])
    values = {
        name: value.string_value or value.number_value
        for name, value in start.session_start_info.hparams.items()
    }
    expected = {
        "model": "MLP",
        "dataset": "tiny",
        "optimizer": "SGD",
        "learning_rate": 0.05,
        "seed": 5,
        "dropout": 0.25,
        "normalization": "symmetric",
        "batch_size": 32,
    }
    assert {name: values.get(name) for name in expected} == expected
    experiment = HParamsPluginData.FromString(contents["_hparams_/experiment"]).experiment
    assert {info.name.tag for info in experiment.metric_infos} == {"val/accuracy", "val/loss"}


@pytest.mark.gpu
def test_a_gpu_is_named() -> None:
    device = torch.device("cuda", 0)
    assert describe_device(device) == torch.cuda.get_device_properties(device).name


def test_a_fit_leaves_settings_and_both_pictures_also_in_tensorboard(tmp_path: Path) -> None:
    history = History(tmp_path / "history.csv")

    def run(settings: str, epochs: int, resume: Path | None) -> Trainer:
        used = [history, SaveConfig(tmp_path / "config.yaml", settings)]
        logger = TensorBoardLogger(tmp_path, name="", version="", default_hp_metric=False)
        every: dict[str, Any] = {"logger": logger, "log_every_n_steps": 5}
        fitted = trainer(
            callbacks=[*used, SaveFigures(tmp_path, history)], max_epochs=epochs, **every
        )
        fitted.fit(small_mlp(), TinyDataModule(), ckpt_path=resume, weights_only=True)
        fitted.save_checkpoint(tmp_path / "last.ckpt")
        return fitted

    run("max_epochs: 1\n", 1, None)
    for name, size in {"samples.png": (1001, 591), "curves.png": (1380, 540)}.items():
        with Image.open(tmp_path / name) as picture:
            assert (picture.format, picture.size) == ("PNG", size)
            assert len(np.unique(np.asarray(picture.convert("L")))) > 20  # not blank
    run("max_epochs: 2\n", 2, tmp_path / "last.ckpt")
    assert (tmp_path / "config.yaml").read_text("utf-8") == "max_epochs: 2\n"
    indented = [(0, "    max_epochs: 1\n"), (7, "    max_epochs: 2\n")]
    assert events.texts(tmp_path, "config") == indented
    [(step, shown)] = events.pictures(tmp_path)["train/samples"]
    assert step == 0
    large = np.asarray(Image.open(tmp_path / "samples.png"))
    np.testing.assert_array_equal(shown[8 : 8 + 84 : 3, 8 : 8 + 84 : 3], large[21:245:8, 21:245:8])
