from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import (
    EventAccumulator,
)

from digitlab import models
from digitlab.cli import main
from digitlab.data import EpochSampler
from digitlab.parity.backend import import_keras
from tests.commands import SHORT, fit
from tests.parity.keras_runs import (
    KERAS_INITIAL_VALUES,
    history_of,
    keras_fit,
    metrics_of,
    weights_of,
    whole,
)

pytestmark = pytest.mark.skipif(not find_spec("tensorflow"), reason="needs the extra `parity`")


def curves_of(folder: Path) -> dict[str, list[int]]:
    """The steps at which each scalar was logged."""
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    return {
        tag: [point.step for point in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
        if tag != "epoch"
    }


def test_a_run_is_what_a_plain_keras_program_trains(tmp_path: Path) -> None:
    options = ["--model.hidden_features", "[16]", *KERAS_INITIAL_VALUES]
    short = ["--trainer.max_epochs", "2", "--seed_everything", "7"]
    folder = keras_fit(tmp_path, *options, *short, model="MLP")

    keras = import_keras()
    keras.utils.set_random_seed(7)
    layers = keras.layers
    stack = [layers.Flatten(), layers.Dense(16, "relu"), layers.Dropout(0.2), layers.Dense(10)]
    model = keras.Sequential([keras.Input((28, 28, 1)), *stack])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    adam = keras.optimizers.Adam(0.001, epsilon=1e-8)  # PyTorch's default, as the config's
    model.compile(adam, loss, metrics=["accuracy"])
    images, labels = whole("train")
    losses = []
    for epoch in range(2):  # as Keras's own shuffling would repeat the first epoch's order
        order = EpochSampler(len(labels), seed=7, shuffle=True, epoch=epoch).indices()
        fitted = model.fit(images[order], labels[order], batch_size=32, shuffle=False, verbose=0)
        losses += fitted.history["loss"]
    loss, accuracy = model.evaluate(*whole("test"), verbose=0)

    # The layers are the same but for the activation, which we have as a layer of its own.
    for left, right in zip(weights_of(folder), model.get_weights(), strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-4, atol=1e-6)  # fused otherwise
    score = metrics_of(folder)["test"]
    assert score["accuracy"] == pytest.approx(accuracy, abs=1e-6)
    assert score["loss"] == pytest.approx(loss, rel=1e-4)  # as the weights
    ours = [float(row["train_loss"]) for row in history_of(folder)]
    assert ours == pytest.approx(losses, rel=1e-4)  # as the weights


def test_a_run_leaves_what_a_pytorch_run_leaves(tmp_path: Path) -> None:
    options = ["--trainer.max_epochs", "2", "--trainer.log_every_n_steps", "3"]
    ours = keras_fit(tmp_path, *options)
    theirs = fit(tmp_path / "torch", *options)
    names = [{path.name for path in folder.iterdir()} for folder in (ours, theirs)]
    assert names[0] ^ names[1] == {"model.keras", ".lock"} | {
        name for name in names[0] | names[1] if name.startswith("events")
    }
    assert (ours / "checkpoints" / "best.keras").is_file()
    assert history_of(ours)[0].keys() == history_of(theirs)[0].keys()
    assert [row["step"] for row in history_of(ours)] == ["7", "14"]
    assert {row["learning_rate"] for row in history_of(ours)} == {"0.001"}  # not float32's
    assert metrics_of(ours)["test"]["accuracy"] == float(history_of(ours)[-1]["val_accuracy"])
    assert curves_of(ours) == curves_of(theirs)
    assert metrics_of(ours).keys() == metrics_of(theirs).keys() | {"output"}
    same = ("model", "dataset", "parameters", "epochs", "optimizer_steps", "precision", "device")
    for name in same:
        assert metrics_of(ours)[name] == metrics_of(theirs)[name]
    assert metrics_of(ours)["framework"] == "keras"


@pytest.mark.parametrize("steps", [3, 32])
def test_several_steps_per_execution_train_the_same_weights(tmp_path: Path, steps: int) -> None:
    options = ["--model.hidden_features", "[16]", "--trainer.max_epochs", "2"]
    options += ["--trainer.log_every_n_steps", "2"]
    ours, theirs = (
        keras_fit(tmp_path / str(k), *options, "--model.steps_per_execution", str(k), model="MLP")
        for k in (steps, 1)
    )
    assert metrics_of(ours)["optimizer_steps"] == metrics_of(theirs)["optimizer_steps"] == 14
    assert metrics_of(ours)["images_per_second"] > 0
    for our_weights, their_weights in zip(weights_of(ours), weights_of(theirs), strict=True):
        np.testing.assert_array_equal(our_weights, their_weights)
    ends = {3: [2, 5, 9, 12, 13], 32: [6, 13]}[steps]  # Keras's callbacks see nothing between
    assert curves_of(ours)["train/loss_step"] == ends
    assert curves_of(theirs)["train/loss_step"] == [1, 3, 5, 7, 9, 11, 13]


@pytest.mark.parametrize(
    "options",
    [
        ["--trainer.max_steps", "5"],
        [
            *("--model.lr_scheduler", "ExponentialLR", "--model.lr_scheduler.gamma", "0.5"),
            *("--model.lr_scheduler_interval", "step", "--trainer.max_epochs", "1"),
        ],
    ],
    ids=["max_steps", "schedule"],
)
def test_what_happens_at_a_step_of_its_own_makes_executions_single(
    tmp_path: Path, options: list[str]
) -> None:
    runs = [
        keras_fit(tmp_path / str(k), *options, "--model.steps_per_execution", str(k))
        for k in (4, 1)
    ]
    assert metrics_of(runs[0])["optimizer_steps"] == metrics_of(runs[1])["optimizer_steps"]
    for ours, theirs in zip(*map(weights_of, runs), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_the_screen_is_that_of_a_pytorch_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fit(tmp_path / "torch")
    theirs = capsys.readouterr().out.splitlines()
    keras_fit(tmp_path)
    shown = capsys.readouterr()
    ours = shown.out.splitlines()
    assert shown.err == ""
    assert ours[0] == theirs[0]
    assert ours[1] == theirs[1].replace("LinearClassifier", "LinearClassifier's Keras twin")
    assert "fc1      Dense    kernel (784, 10), bias (10,)    7,850" in ours
    starts = ("epoch   1  train loss", "Train accuracy", "data ", "Results are in")
    assert all(any(line.startswith(start) for line in ours) for start in starts)
    assert any(line.startswith("  digitlab keras test --run") for line in ours)


def test_class_probabilities_are_logged_under_the_same_tags(tmp_path: Path) -> None:
    options = ["--trainer.callbacks", "ClassProbabilities"]
    options += ["--trainer.callbacks.every_n_steps", "3"]
    ours, theirs = keras_fit(tmp_path, *options), fit(tmp_path / "torch", *options)
    assert curves_of(ours) == curves_of(theirs)
    assert curves_of(ours)["probabilities/0"] == [2, 5]


def test_one_callback_needs_no_list(tmp_path: Path) -> None:
    options = ["--trainer.callbacks", "ClassProbabilities", "--trainer.max_epochs", "8"]
    assert curves_of(keras_fit(tmp_path, *options))["probabilities/0"] == [49]


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def fail(*_: object) -> None:
    raise OSError("no space left on device")


def test_ctrl_c_keeps_the_epochs_that_were_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("digitlab.parity.recorder.describe_epoch", interrupt)
    place = ["--trainer.default_root_dir", str(tmp_path)]
    assert main(["keras", "fit", "--model", "LinearClassifier", *SHORT, *place]) == 130
    (folder,) = tmp_path.glob("*-keras/version_0")
    last = folder / "model.keras"
    assert capsys.readouterr().err == f"digitlab: interrupted: {last} is of the last whole epoch\n"
    assert weights_of(folder)


def test_a_failure_in_mid_run_keeps_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("digitlab.parity.recorder.describe_epoch", fail)
    place = ["--trainer.default_root_dir", str(tmp_path)]
    with pytest.raises(RuntimeError, match="training failed after 7 steps"):
        main(["keras", "fit", "--model", "LinearClassifier", *SHORT, *place])
    assert list(tmp_path.glob("*-keras/version_0/model.keras"))


KERAS_ROWS = [  # and TensorFlow's, and the row without a program
    *sorted(Path("configs").glob("*/*_keras_recipe*.yaml")),
    Path("configs/mnist/tensorflow_tutorial_cnn.yaml"),
    Path("configs/mnist/linear.yaml"),
]


@pytest.mark.parametrize("path", KERAS_ROWS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_the_documents_keras_rows_train_in_keras(path: Path, tmp_path: Path) -> None:
    options = ["--data", "tests.tiny.TinyDataModule", "--data.train_images", "null"]
    if "weights" in yaml.safe_load(path.read_text("utf-8")):
        model = models.LeNet1(padding="same")
        torch.save(model.state_dict(), tmp_path / "weights.pth")
        options += ["--weights", str(tmp_path / "weights.pth")]
    place = ["--trainer.default_root_dir", str(tmp_path), "--trainer.accelerator", "cpu"]
    short = ["--trainer.max_epochs", "-1", "--trainer.max_steps", "2"]
    assert main(["keras", "fit", "--config", str(path), *options, *place, *short]) == 0
    (folder,) = tmp_path.glob(f"*-{path.stem}-keras/version_0")
    metrics = metrics_of(folder)
    assert metrics["optimizer_steps"] == 2
    assert np.isfinite(metrics["train"]["loss"])
