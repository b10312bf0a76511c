from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from digitlab import models
from digitlab.parity.backend import import_keras
from digitlab.parity.weights import to_keras
from tests.commands import fit
from tests.parity.keras_runs import (
    KERAS_INITIAL_VALUES,
    history_of,
    keras_fit,
    metrics_of,
    weights_of,
)

pytestmark = pytest.mark.skipif(not find_spec("tensorflow"), reason="needs the extra `parity`")

STANDING_STILL = ["--model.optimizer", "SGD", "--model.optimizer.lr", "0"]


def assert_equal(ours: list[Any], theirs: list[Any]) -> None:
    assert len(ours) == len(theirs) > 0
    for left, right in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(left, right)


def test_the_seed_alone_decides_what_comes_out(tmp_path: Path) -> None:
    seeds = {name: ["--seed_everything", seed] for name, seed in (("a", "1"), ("b", "1"))}
    first, second = (weights_of(keras_fit(tmp_path / n, *s)) for n, s in seeds.items())
    assert_equal(first, second)
    other = weights_of(keras_fit(tmp_path / "c", "--seed_everything", "2"))
    assert not np.array_equal(first[0], other[0])


def test_pytorch_s_initial_values_are_drawn_as_in_a_pytorch_run(tmp_path: Path) -> None:
    ours = weights_of(keras_fit(tmp_path, *STANDING_STILL, "--seed_everything", "5"))
    torch.manual_seed(5)
    assert_equal(ours, to_keras(models.LinearClassifier()).get_weights())


def test_keras_s_initial_values_are_its_own(tmp_path: Path) -> None:
    kernel, bias = weights_of(keras_fit(tmp_path, *STANDING_STILL, *KERAS_INITIAL_VALUES))
    limit = (6 / (784 + 10)) ** 0.5  # Glorot and Bengio 2010, equation 16
    assert 0.99 * limit < np.abs(kernel).max() <= limit
    assert not bias.any()


@pytest.mark.parametrize("suffix", [".keras", ".ckpt"])
def test_initial_weights_come_from_a_run_of_either_framework(tmp_path: Path, suffix: str) -> None:
    if suffix == ".keras":
        source = keras_fit(tmp_path / "first")
        file, expected = source / "model.keras", weights_of(source)
    else:
        file = fit(tmp_path / "first") / "checkpoints" / "last.ckpt"
        model = models.LinearClassifier.load_from_checkpoint(file)
        expected = to_keras(model).get_weights()
    folder = keras_fit(tmp_path, "--weights", str(file), *STANDING_STILL, *KERAS_INITIAL_VALUES)
    assert_equal(weights_of(folder), expected)
    assert metrics_of(folder)["weights"]["file"] == str(file)


@pytest.mark.parametrize("interval", ["epoch", "step"])
def test_a_scheduler_gives_the_rates_of_a_pytorch_run(tmp_path: Path, interval: str) -> None:
    options = ["--model.lr_scheduler", "StepLR", "--model.lr_scheduler.step_size", "2"]
    options += ["--model.lr_scheduler_interval", interval, "--trainer.max_epochs", "3"]
    ours, theirs = keras_fit(tmp_path, *options), fit(tmp_path / "torch", *options)
    rates = [[float(row["learning_rate"]) for row in history_of(run)] for run in (ours, theirs)]
    assert rates[0] == pytest.approx(rates[1], rel=1e-6)  # float32 in Keras
    assert len(set(rates[1])) > 1


def test_steps_end_a_run_exactly_and_validations_are_as_rare_as_asked_for(tmp_path: Path) -> None:
    options = ["--trainer.max_epochs", "-1", "--trainer.max_steps", "17"]
    folder = keras_fit(tmp_path, *options, "--trainer.check_val_every_n_epoch", "2")
    assert [row["step"] for row in history_of(folder)] == ["7", "14", "17"]
    assert [bool(row["val_loss"]) for row in history_of(folder)] == [False, True, False]
    assert metrics_of(folder)["optimizer_steps"] == 17


@pytest.mark.parametrize(
    ("precision", "variables", "computed"),
    [("64-true", "float64", "float64"), ("bf16-mixed", "float32", "bfloat16")],
)
def test_a_precision_is_a_dtype_policy(
    tmp_path: Path, precision: str, variables: str, computed: str
) -> None:
    folder = keras_fit(tmp_path, "--trainer.precision", precision)
    model = import_keras().models.load_model(folder / "model.keras", safe_mode=True)
    layer = model.get_layer("fc1")
    assert (layer.variable_dtype, layer.compute_dtype) == (variables, computed)
    assert metrics_of(folder)["test"]["accuracy"] > 0.3
    assert import_keras().config.floatx() == "float32"


def test_document_a_s_form_ends_in_a_softmax_and_trains_the_same(tmp_path: Path) -> None:
    ours = keras_fit(tmp_path / "softmax", "--output", "softmax")
    theirs = keras_fit(tmp_path / "logits")
    last = [
        import_keras().models.load_model(run / "model.keras").layers[-1] for run in (ours, theirs)
    ]
    assert [type(layer).__name__ for layer in last] == ["Softmax", "Dense"]
    losses = [metrics_of(run)["train"]["loss"] for run in (ours, theirs)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)  # float32, and another formula


def test_clipping_reaches_keras_s_optimizer(tmp_path: Path) -> None:
    folder = keras_fit(tmp_path, "--model.gradient_clip_norm", "0.25")
    optimizer = import_keras().models.load_model(folder / "model.keras").optimizer
    assert optimizer.global_clipnorm == 0.25


def test_without_logger_bar_and_checkpoints_nothing_of_them_is_made(tmp_path: Path) -> None:
    options = ["--trainer.logger", "false", "--trainer.enable_progress_bar", "false"]
    folder = keras_fit(tmp_path, *options, "--trainer.enable_checkpointing", "false")
    assert not [path for path in folder.iterdir() if path.suffix == ".keras"]
    assert not list(folder.glob("events*"))
    assert metrics_of(folder)["test"]["checkpoint"] is None
