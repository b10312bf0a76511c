"""What a Keras run shows in TensorBoard is looked at without a trace in the run."""

import re
from importlib.util import find_spec
from pathlib import Path
from pkgutil import resolve_name
from typing import Any
from zipfile import ZipFile

import numpy as np
import pytest
from digitlab.parity.validation_pictures import Validation
from numpy.typing import NDArray
from torch import Tensor

from digitlab.callbacks.tensorboard import FOLDER
from digitlab.parity import keras_files
from digitlab.parity.backend import import_keras
from digitlab.parity.keras_files import load_keras_model
from tests.parity.keras_runs import history_of, keras_fit, names_in, weights_of, whole

pytestmark = pytest.mark.skipif(not find_spec("tensorflow"), reason="needs the extra `parity`")


def test_the_logits_are_those_of_all_batches_in_their_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[NDArray[Any]] = []
    as_logits = keras_files.as_logits

    def spy(outputs: NDArray[Any], are_probabilities: bool) -> Tensor:
        kept.append(outputs)
        return as_logits(outputs, are_probabilities)

    monkeypatch.setattr("digitlab.parity.validation_pictures.as_logits", spy)
    several = ["--model.steps_per_execution", "3", "--data.eval_batch_size", "8"]
    folder = keras_fit(tmp_path, *several, "--trainer.max_epochs", "2")
    saved = load_keras_model(folder / "model.keras").predict(whole("test")[0], verbose=0)
    before, after = kept
    np.testing.assert_allclose(after, saved, rtol=1e-5, atol=1e-6)  # in batches of another size
    assert not np.allclose(before, saved, rtol=1e-2)


def contents_of(path: Path) -> tuple[list[str], str]:
    """The files in a saved Keras model, and its settings without addresses in memory."""
    with ZipFile(path) as archive:
        settings = archive.read("config.json").decode()
        return sorted(archive.namelist()), re.sub(r'_id": \d+', "", settings)


@pytest.mark.parametrize(
    "options",
    [
        ["--model.steps_per_execution", "4"],
        ["--trainer.precision", "bf16-mixed"],
        ["--trainer.precision", "64-true", "--output", "softmax"],
    ],
    ids=["several steps", "mixed precision", "softmax"],
)
def test_showing_changes_no_bit_of_what_is_trained(tmp_path: Path, options: list[str]) -> None:
    options = [*options, "--model.hidden_features", "[16]", "--trainer.max_epochs", "2"]
    import_keras().utils.clear_session()
    ours = keras_fit(tmp_path / "shown", *options, model="MLP")
    import_keras().utils.clear_session()  # which numbers names without end
    theirs = keras_fit(tmp_path / "not", *options, "--trainer.logger", "false", model="MLP")
    for left, right in zip(weights_of(ours), weights_of(theirs), strict=True):
        np.testing.assert_array_equal(left, right)
    assert contents_of(ours / "model.keras") == contents_of(theirs / "model.keras")
    histories = [history_of(folder) for folder in (ours, theirs)]
    for row in (row for history in histories for row in history):
        del row["seconds"]
    assert histories[0] == histories[1]


def test_without_a_logger_nothing_of_it_is_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []

    def spy(path: str) -> None:
        function = resolve_name(path)

        def noted(*args: Any, **kwargs: Any) -> Any:
            done.append(path)
            return function(*args, **kwargs)

        monkeypatch.setattr(path, noted)

    computed = [
        "digitlab.callbacks.tensorboard.draw_confusion_matrix",
        "digitlab.callbacks.tensorboard.draw_kernels",
        "digitlab.callbacks.tensorboard.draw_images",
        "digitlab.parity.model_pictures.projected",
        "digitlab.parity.model_pictures.write_projector",
        "digitlab.parity.validation_pictures.Validation",
        "digitlab.callbacks.tensorboard.show_graph",
    ]
    for path in computed:
        spy(path)
    slow = ["--model.optimizer", "SGD", "--model.optimizer.lr", "0.05"]  # that there be mistakes
    keras_fit(tmp_path / "shown", *slow, model="LeNet5")
    assert set(done) == set(computed)
    done.clear()
    folder = keras_fit(tmp_path / "not", *slow, "--trainer.logger", "false", model="LeNet5")
    assert done == []
    assert not {FOLDER, "projector_config.pbtxt"} & set(names_in(folder))


def test_a_model_that_validates_in_its_own_way_has_no_pictures_of_it() -> None:
    keras = import_keras()
    model = keras.Sequential([keras.Input((28, 28, 1)), keras.layers.Flatten()])
    model.test_step = lambda data: {"loss": 0.0}
    model.compile()
    validation = Validation(model, images=50)
    validation.start()
    model.evaluate(*whole("test"), verbose=0)
    assert validation.logits() is None
