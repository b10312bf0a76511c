import codecs
import json
import marshal
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np
import pytest
import torch
from lightning import Callback

from digitlab.models import LeNet1, LeNet5
from digitlab.parity import twins
from digitlab.parity.backend import import_keras
from digitlab.parity.keras_files import (
    SUFFIXES,
    KerasFiles,
    KerasNetwork,
    load_classifier,
    load_from_keras,
    load_initial_weights,
    load_keras_model,
    save_keras_model,
)
from digitlab.parity.twins import to_keras
from tests.fitting import assert_bitwise_equal, checkpoint_of
from tests.parity.test_keras_module import Curves, make, small, train

Maker = Callable[[Path], object]


def saved(make: Callable[[], object]) -> Maker:
    return lambda path: save_keras_model(make(), path)


def damaged(path: Path) -> None:
    save_keras_model(twins.lenet1(), path)
    path.write_bytes(path.read_bytes()[:-1000])


OTHER = "{file} is of another architecture than LeNet1: "


@pytest.mark.parametrize(
    ("make", "name", "reason"),
    [
        (Path, "no.keras", "there is no Keras model {file}: train one with digitlab fit --fra"),
        (Path, "model.pt", "{file} is not a Keras model file: give one that ends in .keras"),
        (damaged, "cut.keras", "{file} is damaged"),
        (damaged, "cut.h5", "{file} is damaged"),
        (saved(twins.lenet5), "lenet5.keras", OTHER + "network.conv1.weight"),
        (saved(twins.mlp), "mlp.h5", OTHER + "5 PyTorch layers have weights"),
        (saved(lambda: twins.lenet1("same")), "s.h5", "and they differ in padding1; give"),
        (saved(lambda: twins.lenet1(in_channels=3)), "rgb.keras", OTHER + "lenet1 reads (28"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_by_name(
    tmp_path: Path, make: Maker, name: str, reason: str
) -> None:
    make(file := tmp_path / name)
    model = LeNet1()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match=re.escape(reason.format(file=file))) as refused:
        load_from_keras(model, file)
    assert "\n" not in str(refused.value)
    assert_bitwise_equal(model.state_dict(), before)


def harm(*args: object, **others: object) -> None:
    __import__("pathlib").Path("harmed").touch()


def named(module: str, name: str) -> dict[str, Any]:
    """A function, as Keras writes it into a config."""
    return {"module": module, "class_name": "function", "config": name, "registered_name": name}


def layer(name: str, module: str, **settings: Any) -> dict[str, Any]:
    return {"module": module, "class_name": name, "config": settings, "registered_name": name}


CODE = codecs.encode(marshal.dumps(harm.__code__), "base64").decode()
PICKLE = codecs.encode(b"cposix\nsystem\n(S'touch harmed'\ntR.", "base64").decode()
PARTS = {"code": CODE, "defaults": None, "closure": None, "value": [CODE, None, None]}
LAMBDA = {"class_name": "__lambda__", "config": PARTS}
GADGETS: dict[str, dict[str, Any]] = {
    "Lambda": layer("Lambda", "keras.layers", function=LAMBDA),
    "Popen": layer("Popen", "subprocess", args=["touch", "harmed"]),
    "os.system": layer("system", "os", command="touch harmed"),
    "imports a module": layer("Popen", "own_module"),
    "own function": layer("Activation", "keras.layers", activation=named(__name__, "harm")),
    "builtin": layer("Activation", "keras.layers", activation=named("builtins", "exec")),
    "a lambda's code": layer("Dense", "keras.layers", units=10, kernel_initializer=LAMBDA),
    "get_file": layer("Activation", "keras.layers", activation=named("keras.utils", "get_file")),
    "load_model": layer("load_model", "keras.models", filepath="other.keras", safe_mode=False),
    "TFSMLayer": layer("TFSMLayer", "keras.layers", filepath="."),
    "pickle": layer("TorchModuleWrapper", "keras.layers") | {"config": {"module": PICKLE}},
}


def plant(config: str, gadget: dict[str, Any]) -> str:
    """Replace the first layer behind the input of a sequential model's config."""
    settings = json.loads(config)
    settings["config"]["layers"][1] = gadget
    return json.dumps(settings)


def write_gadget(path: Path, gadget: dict[str, Any]) -> None:
    save_keras_model(twins.linear_classifier(), path)
    if path.suffix == ".h5":
        import h5py  # type: ignore[import-untyped]  # which Keras has installed

        with h5py.File(path, "a") as file:
            file.attrs["model_config"] = plant(file.attrs["model_config"], gadget)
        return
    with ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with ZipFile(path, "w") as archive:
        for name, content in parts.items():
            text = plant(content.decode(), gadget) if name == "config.json" else content
            archive.writestr(name, text)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("gadget", GADGETS)
def test_a_file_runs_no_code_even_where_keras_s_safe_mode_is_off(
    gadget: str, suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from keras.src.saving.serialization_lib import SafeModeScope

    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    Path("own_module.py").write_text("from subprocess import Popen\nopen('harmed', 'w').close()\n")
    write_gadget(file := tmp_path / f"model{suffix}", GADGETS[gadget])
    files = {path.name for path in tmp_path.iterdir()}
    # As `keras.config.enable_unsafe_deserialization()` leaves it, but for this block alone.
    with SafeModeScope(False), pytest.raises(ValueError, match="needs code of its own") as refused:
        load_keras_model(file)
    assert "\n" not in str(refused.value)
    # Before Keras sees them; it knows these two itself.
    assert gadget in ("builtin", "load_model") or "(it names " in str(refused.value)
    assert {path.name for path in tmp_path.iterdir()} == files


def test_a_registered_layer_of_one_s_own_is_loaded(tmp_path: Path) -> None:
    keras = import_keras()
    own = type("OwnLayer", (keras.layers.Layer,), {"call": lambda self, images: images * 2})
    keras.saving.register_keras_serializable("tests")(own)
    model = keras.Sequential([keras.Input((28, 28, 1)), own(), keras.layers.Flatten()])
    save_keras_model(model, tmp_path / "own.keras")
    assert type(load_keras_model(tmp_path / "own.keras").layers[0]) is own


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
