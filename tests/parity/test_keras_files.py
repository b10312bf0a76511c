import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning import Callback

from digitlab.models import LeNet1, LeNet5
from digitlab.parity import twins
from digitlab.parity.backend import import_keras
from digitlab.parity.keras_files import (
    KerasFiles,
    KerasNetwork,
    load_classifier,
    load_from_keras,
    load_initial_weights,
    load_keras_model,
    save_keras_model,
)
from digitlab.parity.weights import to_keras
from tests.fitting import assert_bitwise_equal, checkpoint_of
from tests.parity.test_keras_module import Curves, make, small, train

Maker = Callable[[Path], object]


def saved(make: Callable[[], object]) -> Maker:
    return lambda path: save_keras_model(make(), path)


def damaged(path: Path) -> None:
    save_keras_model(twins.lenet1(), path)
    path.write_bytes(path.read_bytes()[:-1000])


def with_code(path: Path) -> None:
    """A model with a function of its own, which would say so if it ran."""
    keras = import_keras()
    harm = keras.layers.Lambda(lambda x: __import__("sys").stderr.write("harmed") and x)
    layers = [keras.Input((28, 28, 1)), harm, *twins.lenet1().layers]
    save_keras_model(keras.Sequential(layers), path)


OTHER = "{file} is of another architecture than LeNet1: "


@pytest.mark.parametrize(
    ("make", "name", "reason"),
    [
        (Path, "no.keras", "there is no Keras model {file}: train one with digitlab fit --fra"),
        (Path, "model.pt", "{file} is not a Keras model file: give one that ends in .keras"),
        (damaged, "cut.keras", "{file} is damaged"),
        (damaged, "cut.h5", "{file} is damaged"),
        (with_code, "code.keras", "needs code of its own to be loaded (Requested the"),
        (with_code, "code.h5", "needs code of its own to be loaded (Requested the"),
        (saved(twins.lenet5), "lenet5.keras", OTHER + "network.conv1.weight"),
        (saved(twins.mlp), "mlp.h5", OTHER + "5 PyTorch layers have weights"),
        (saved(lambda: twins.lenet1("same")), "s.h5", OTHER + "they differ in padding1;"),
        (saved(lambda: twins.lenet1(in_channels=3)), "rgb.keras", OTHER + "network.conv1.weight"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], make: Maker, name: str, reason: str
) -> None:
    make(file := tmp_path / name)
    capsys.readouterr()
    with pytest.raises(ValueError, match=re.escape(reason.format(file=file))) as refused:
        load_from_keras(LeNet1(), file)
    assert "\n" not in str(refused.value)
    assert "harmed" not in capsys.readouterr().err


@pytest.mark.parametrize("softmax", [False, True])
def test_a_keras_model_is_evaluated_as_a_classifier(tmp_path: Path, softmax: bool) -> None:
    model = LeNet5()
    save_keras_model(to_keras(model, softmax), tmp_path / "model.keras")
    theirs = load_classifier(LeNet5(), tmp_path / "model.keras")
    assert isinstance(theirs.network, KerasNetwork)
    images = torch.rand(4, 1, 28, 28)
    with torch.no_grad():
        ours = model.eval()(images)
    torch.testing.assert_close(theirs(images).softmax(1), ours.softmax(1))


def test_initial_weights_are_read_from_either_frameworks_file(tmp_path: Path) -> None:
    model = LeNet5()
    save_keras_model(to_keras(model), tmp_path / "model.keras")
    checkpoint_of(model, tmp_path / "model.ckpt")
    for name in ("model.keras", "model.ckpt"):
        other = LeNet5()
        load_initial_weights(other, tmp_path / name)
        assert_bitwise_equal(other.state_dict(), model.state_dict())


def test_other_programs_find_the_last_and_the_best_model(tmp_path: Path) -> None:
    model, curves = make(small), Curves()
    weights = []

    class Weights(Callback):
        def on_validation_end(self, *args: Any) -> None:
            weights.append(model.keras_model.get_weights())

    train(model, KerasFiles(tmp_path), curves, Weights(), max_epochs=4)
    accuracies = [score["accuracy"] for score in curves.val]
    expected = {
        "model.keras": weights[-1],
        "checkpoints/best.keras": weights[int(np.argmax(accuracies))],
    }
    for name, theirs in expected.items():
        for ours, their in zip(
            load_keras_model(tmp_path / name).get_weights(), theirs, strict=True
        ):
            np.testing.assert_array_equal(ours, their)
    assert len(list(tmp_path.rglob("*.keras"))) == 2  # and nothing that is half written


def test_a_resumed_run_knows_the_best_so_far(tmp_path: Path) -> None:
    files, again = KerasFiles(tmp_path), KerasFiles(tmp_path)
    train(make(small), files, max_epochs=1)
    again.load_state_dict(files.state_dict())
    written = (tmp_path / "checkpoints" / "best.keras").stat().st_mtime_ns
    untrained = make(lambda: small(optimizer=lambda p: torch.optim.SGD(p, lr=0.0)))
    train(untrained, again, max_epochs=1)
    assert (tmp_path / "checkpoints" / "best.keras").stat().st_mtime_ns == written
