import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from digitlab.classifier import Classifier
from digitlab.cli import convert, main
from digitlab.models import LeNet1
from digitlab.parity import twins
from digitlab.parity.backend import Policy, import_keras, keras_dtype
from digitlab.parity.keras_files import save_keras_model
from digitlab.parity.twins import build_twin, to_keras
from tests.commands import config_of, fit, refusal
from tests.fitting import assert_bitwise_equal, checkpoint_of
from tests.parity.nets import sequential

TINY = ("--data", "tests.tiny.TinyDataModule")
SLOW = pytest.mark.slow
LINEAR = ("--model", "LinearClassifier", *TINY)


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_root: Path) -> Path:
    """A finished run of LeNet1 with padding 2, to be copied; its best weights are not its last."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DIGITLAB_DATA", str(tiny_root))
        folder = fit(tmp_path_factory.mktemp("runs"), model="LeNet1")
    torch.manual_seed(5)
    checkpoint_of(LeNet1(), folder / "checkpoints" / "best.ckpt")
    return folder


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A finished run of a test's own."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


def weights_of(folder: Path, checkpoint: str = "last") -> dict[str, torch.Tensor]:
    path = folder / "checkpoints" / f"{checkpoint}.ckpt"
    weights: dict[str, torch.Tensor] = torch.load(path, weights_only=True)["state_dict"]
    return weights


@pytest.mark.parametrize(
    ("name", "checkpoint"), [("file.keras", "last"), pytest.param("file.h5", "best", marks=SLOW)]
)
def test_a_run_becomes_a_file_and_the_file_a_run_of_the_same_bits(
    run: Path, tmp_path: Path, name: str, checkpoint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file, new, of_run = tmp_path / name, tmp_path / "new", ["--checkpoint", checkpoint]
    assert main(["convert", str(run), str(file), *of_run]) == 0
    assert main(["convert", str(file), str(new), "--config", str(run / "config.yaml")]) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    assert shown.out.count("50 of 50 test images get the same class") == 2
    assert_bitwise_equal(weights_of(new), weights_of(run, checkpoint))
    assert names_in(tmp_path) == [name, "new", "run"]
    assert names_in(new) == ["checkpoints", "config.yaml", "metrics.json"]
    assert new.stat().st_mode == run.stat().st_mode
    assert main(["predict", "--run", str(run), *of_run]) == 0
    assert main(["predict", "--run", str(new)]) == 0
    ours, theirs = ((folder / "predictions.csv").read_bytes() for folder in (run, new))
    assert ours == theirs
    before = json.loads((new / "metrics.json").read_text())
    assert main(["test", "--run", str(new)]) == 0
    assert json.loads((new / "metrics.json").read_text()) == before
    assert before["weights"]["file"] == str(file)


@pytest.mark.parametrize("policy", ["mixed_float16", "float64"])
def test_a_model_of_any_precision_becomes_a_run_with_its_weights(
    policy: Policy, tmp_path: Path
) -> None:
    model = LeNet1()
    with keras_dtype(policy):
        save_keras_model(to_keras(model), tmp_path / "model.keras")
    target = tmp_path / "new"
    args = ("--model", "LeNet1", *TINY)
    assert main(["convert", str(tmp_path / "model.keras"), str(target), *args]) == 0
    assert_bitwise_equal(weights_of(target), model.state_dict())


def test_what_only_a_fit_has_is_read_from_its_config_and_lost(run: Path, tmp_path: Path) -> None:
    file, new = tmp_path / "file.keras", tmp_path / "new"
    save_keras_model(twins.lenet1(), file)
    config = run / "config.yaml"
    text = re.sub("^weights: .*$", "weights: no/such.ckpt", config.read_text(), flags=re.M)
    text = re.sub("^(framework|output): .*\n", "", text, flags=re.M)
    config.write_text(f"{text}framework: keras\noutput: softmax\n")  # as of a Keras run
    assert main(["convert", str(file), str(new), "--config", str(config)]) == 0
    expected, of_fit = config_of(run), {"name", "weights", "framework", "output"}
    expected["from_configs"] = [str(config)]
    assert config_of(new) == {key: expected[key] for key in expected.keys() - of_fit}


@pytest.mark.parametrize(
    "shape",
    [(784,), (1, 28, 28), *(pytest.param(it, marks=SLOW) for it in [(28, 28), (28, 28, 1)])],
)
def test_a_foreign_model_may_read_images_in_any_usual_shape(
    shape: tuple[int, ...], tmp_path: Path
) -> None:
    layers = import_keras().layers
    flat = [] if len(shape) == 1 else [layers.Flatten()]
    hidden = [layers.Dense(16, "relu"), layers.Dropout(0.2), layers.Dense(10, "softmax")]
    file, new = tmp_path / "foreign.keras", tmp_path / "new"
    save_keras_model(sequential(shape, *flat, *hidden), file)
    command = ["convert", str(file), str(new), "--model", "MLP", *TINY]
    assert main([*command, "--model.hidden_features", "[16]"]) == 0
    if len(shape) == 1:  # the weights are the same in all cases
        assert main(["test", "--run", str(new)]) == 0


@pytest.mark.parametrize(
    "shape",
    [(28, 28, 3), (785,), *(pytest.param(it, marks=SLOW) for it in [(3, 28, 28), (14, 14)])],
)
def test_a_model_of_images_of_another_shape_is_refused_in_one_short_line(
    shape: tuple[int, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    layers = import_keras().layers
    file = tmp_path / "foreign.keras"
    save_keras_model(sequential(shape, layers.Flatten(), layers.Dense(10)), file)
    said = refusal(capsys, "convert", str(file), str(tmp_path / "new"), *LINEAR)
    assert said.startswith(f"{file} is of another architecture than LinearClassifier: ")
    taken = "(28, 28, 1), (784,), (1, 28, 28), (28, 28)"
    given = f"reads {shape}, and the images are (C, H, W) = (1, 28, 28): it must read {taken}"
    assert said.endswith(given)


def foreign_lenet5(layers: Any, pooling: str = "MaxPooling2D", last: int = 10) -> list[Any]:
    """As many write it: activations fused, but its layers have the twin's names."""
    conv1 = layers.Conv2D(6, 5, padding="same", activation="relu", name="conv1")
    conv2 = layers.Conv2D(16, 5, activation="relu", name="conv2")
    pools = [getattr(layers, pooling)(2) for _ in range(2)]
    dense = [layers.Dense(n, "relu", name=f"fc{i}") for i, n in ((1, 120), (2, 84))]
    ending = [layers.Flatten(), *dense, layers.Dense(last, name="fc3")]
    return [conv1, pools[0], conv2, pools[1], *ending]


@pytest.mark.parametrize(
    ("changes", "code", "reason"),
    [
        ({}, 0, ""),
        ({"pooling": "AveragePooling2D"}, 1, "test images get the same class"),
        ({"last": 11}, 2, "network.fc3.weight is (10, 84) and fc3/kernel is (84, 11)"),
    ],
)
def test_a_foreign_model_of_a_twins_name_is_judged_by_what_it_computes(
    changes: dict[str, Any],
    code: int,
    reason: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    keras = import_keras()
    stack = foreign_lenet5(keras.layers, **changes)
    file, new = tmp_path / "foreign.keras", tmp_path / "new"
    save_keras_model(keras.Sequential([keras.Input((28, 28, 1)), *stack], name="lenet5"), file)
    assert main(["convert", str(file), str(new), "--model", "LeNet5", *TINY]) == code
    assert reason in capsys.readouterr().err
    assert new.exists() is (code == 0)


def test_a_model_that_tensorflow_cannot_compute_is_refused_in_one_short_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*args: object) -> None:  # as for channels first, where oneDNN is off
        raise RuntimeError("\x1b[1mException\x1b[0m: only NHWC on the CPU\n" + 2000 * "pixels")

    save_keras_model(twins.lenet1(), file := tmp_path / "foreign.keras")
    monkeypatch.setattr("digitlab.parity.keras_files.outputs", fail)
    said = refusal(capsys, "convert", str(file), str(tmp_path / "new"), "--model", "LeNet1", *TINY)
    assert said == f"{file} cannot be computed here: Exception: only NHWC on the CPU"


def of_nan(model: Classifier) -> Any:
    twin = build_twin(model)
    twin.set_weights([np.full_like(weight, np.nan) for weight in twin.get_weights()])
    return twin


@pytest.mark.parametrize("make", [build_twin, of_nan])
def test_a_twin_that_predicts_otherwise_is_not_kept(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Classifier], Any]
) -> None:
    monkeypatch.setattr(convert, "to_keras", make)
    assert main(["convert", str(run), str(tmp_path / "file.keras")]) == 1
    assert names_in(tmp_path) == ["run"]


def test_a_save_that_fails_leaves_nothing(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*given: object) -> None:
        if isinstance(given[-1], Path):
            given[-1].write_bytes(b"half of it")
        raise OSError("no space left on device")

    file = tmp_path / "file.keras"
    save_keras_model(twins.lenet1(), file)
    monkeypatch.setattr(convert, "save_keras_model", fail)
    monkeypatch.setattr("digitlab.run_folder.update_metrics", fail)  # nearly the last of a run
    to_run = [str(file), str(tmp_path / "new"), "--config", str(run / "config.yaml")]
    for options in ([str(run), str(tmp_path / "new.keras")], to_run):
        assert main(["convert", *options]) == 1
        assert capsys.readouterr().err == "digitlab: error: no space left on device\n"
        assert names_in(tmp_path) == ["file.keras", "run"]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["{run}"], "convert needs two paths before its options: digitlab convert RUN"),
        (["--checkpoint", "best", "{run}", "{new}.keras"], "convert needs two paths before"),
        (["{run}", "{new}.pt"], "{run} cannot become {new}.pt: a run becomes a file that ends in"),
        (["{new}.h5", "{new}.keras"], "{new}.h5 cannot become {new}.keras: a run becomes a file"),
        (["{run}", "{new}/file.keras"], "there is no folder {new}: make it first"),
        (
            ["{new}", "{new}.keras"],
            "there is no folder {new}: give the folder that digitlab fit printed",
        ),
        (["{run}", "{new}.keras", "--checkpoint", "worst"], "there is no checkpoint worst"),
        (["{run}", "{new}.keras", "--checkpiont", "best"], "checkpiont"),
        (["{new}.keras", "{new}", "--model", "LeNet1", *TINY], "there is no Keras model {new}.k"),
    ],
)
def test_bad_input_is_refused_in_one_line_and_nothing_written(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], reason: str
) -> None:
    places = {"run": run, "new": tmp_path / "new"}
    said = refusal(capsys, "convert", *(option.format(**places) for option in options))
    assert reason.format(**places) in said
    assert names_in(tmp_path) == ["run"]


def test_an_existing_target_is_refused_and_untouched(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "file.keras"
    file.write_bytes(b"somebody's")
    assert "file.keras exists: nothing is" in refusal(capsys, "convert", str(run), str(file))
    assert file.read_bytes() == b"somebody's"
    assert "run exists: nothing is over" in refusal(capsys, "convert", str(file), str(run))


@pytest.mark.parametrize("said", [True, False])
def test_a_keras_run_is_refused_as_it_has_the_file(
    said: bool, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = run / "config.yaml"
    text = re.sub("^framework: .*\n", "", config.read_text(), flags=re.M)
    config.write_text(text + "framework: keras\n" * said)
    if not said:  # a run of version 0.1, which has no such setting
        (run / "model.keras").touch()
    answer = refusal(capsys, "convert", str(run), str(tmp_path / "file.keras"))
    assert answer.startswith(f"{run} is a Keras run: its model.keras is a Keras file already")
    assert names_in(tmp_path) == ["run"]
