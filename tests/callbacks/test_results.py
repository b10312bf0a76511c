import json
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import seed_everything
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import StepLR
from torchmetrics.classification import MulticlassAccuracy

from digitlab.callbacks import FinalEvaluation, Stopwatch
from digitlab.callbacks.results import describe_device
from digitlab.data.download import Split
from digitlab.models import MLP
from tests import events
from tests.fitting import small_mlp, trainer, whole
from tests.tiny import SpiedDataModule, TinyDataModule


def fit(folder: Path, model: MLP, data: TinyDataModule, **options: Any) -> dict[str, Any]:
    """Trains with a logger and gives what metrics.json then has."""
    stopwatch = Stopwatch()
    logger = TensorBoardLogger(folder, name="", version="", default_hp_metric=False)
    seed_everything(5, verbose=False)
    callbacks = [stopwatch, FinalEvaluation(folder, stopwatch, **options)]
    trainer(max_epochs=2, logger=logger, callbacks=callbacks, log_every_n_steps=5).fit(model, data)
    metrics: dict[str, Any] = json.loads((folder / "metrics.json").read_text())
    return metrics


def check_score(
    entry: dict[str, Any], split: str, model: MLP, images: torch.Tensor, labels: torch.Tensor
) -> None:
    """Compares with the loss in float64 and with torchmetrics, over all images at once."""
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


def test_without_a_hold_out_the_scores_are_of_training_and_test_images(tmp_path: Path) -> None:
    model = small_mlp()
    metrics = fit(tmp_path, model, TinyDataModule(eval_batch_size=30))
    check_score(metrics["train"], "train", model, *whole("train"))
    check_score(metrics["test"], "test", model, *whole("test"))
    assert "val" not in metrics


def test_with_a_hold_out_the_test_split_stays_unread(
    tmp_path: Path, read_splits: list[Split]
) -> None:
    model, data = small_mlp(), SpiedDataModule(validation_size=40)
    metrics = fit(tmp_path, model, data)
    assert read_splits == ["train"]
    assert "test" not in metrics
    for entry, subset in (("train", "train"), ("val", "validation")):
        images, labels = data.arrays(subset)  # type: ignore[arg-type]
        scaled = torch.from_numpy(images[:, None]) / 255
        check_score(metrics[entry], subset, model, scaled, torch.from_numpy(labels))


def test_metrics_say_what_the_scores_belong_to(tmp_path: Path) -> None:
    (tmp_path / "metrics.json").write_text('{"earlier": 1}')
    weights = {"file": "there.ckpt", "sha256": "0" * 64}
    metrics = fit(tmp_path, small_mlp(), TinyDataModule(), weights=weights)
    phases = metrics["phases"]
    assert set(phases) == {"training", "validation", "evaluation"}
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
    assert metrics["versions"] == {
        "python": platform.python_version(),
        **{name: version(name) for name in ("digitlab", "torch", "torchvision", "lightning")},
        **{name: version(name) for name in ("numpy", "scikit-learn", "pillow")},
    }


def test_the_event_file_has_hyperparameters_with_the_final_scores(tmp_path: Path) -> None:
    model = small_mlp(
        dropout=0.25,
        optimizer=lambda params: torch.optim.SGD(params, lr=0.05),
        lr_scheduler=lambda optimizer: StepLR(optimizer, step_size=1, gamma=0.5),
    )
    metrics = fit(tmp_path, model, TinyDataModule(normalization="symmetric"))
    scalars = {
        name: [value for _, value in points] for name, points in events.scalars(tmp_path).items()
    }
    assert scalars["hparams/val_accuracy"] == [pytest.approx(metrics["test"]["accuracy"])]
    assert scalars["hparams/val_loss"] == [pytest.approx(metrics["test"]["loss"])]
    assert not {"hp_metric", "step"} & scalars.keys()
    assert not any(-1 in values for values in scalars.values())
    assert len(scalars["train/loss"]) == len(scalars["val/accuracy"]) == 2
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
    assert {info.name.tag for info in experiment.metric_infos} == {
        "hparams/val_accuracy",
        "hparams/val_loss",
    }


def test_the_last_lines_name_the_scores_and_phases(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    metrics = fit(tmp_path, small_mlp(), TinyDataModule())
    *_, scores, phases = capsys.readouterr().out.splitlines()
    test = metrics["test"]
    assert scores == (
        f"Train accuracy {metrics['train']['accuracy']:.2%}, test accuracy {test['accuracy']:.2%} "
        f"({test['correct']}/50), test loss {test['loss']:.4f}"
    )
    assert [phase.split()[0] for phase in phases.split(", ")] == [
        "training",
        "validation",
        "evaluation",
    ]


@pytest.mark.gpu
def test_a_gpu_is_named() -> None:
    device = torch.device("cuda", 0)
    assert describe_device(device) == torch.cuda.get_device_properties(device).name
