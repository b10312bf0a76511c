"""The twin that a user's own class names."""

import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from digitlab import parity
from digitlab.classifier import Classifier
from digitlab.cli import main
from digitlab.parity.command import run_checks
from tests.commands import SHORT
from tests.parity.keras_runs import TINY, metrics_of
from tests.parity.pairs import random_batches

pytestmark = pytest.mark.skipif(not find_spec("tensorflow"), reason="needs the extra `parity`")


class Own(Classifier):
    """A user's network, with a setting that no architecture of ours has."""

    keras_twin = f"{__name__}.own_twin"

    def __init__(self, width: int = 5, **kwargs: Any) -> None:
        layers = [nn.Flatten(), nn.Linear(784, width), nn.Tanh(), nn.Linear(width, 10)]
        super().__init__(network=nn.Sequential(*layers), **kwargs)


class Trained(Own):
    """The same network, to be trained otherwise."""


class Widened(Own):
    """Another network than its parent's."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.network = nn.Sequential(self.network, nn.Tanh())


class WithSoftmax(Own):
    """A user's network whose twin may give probabilities."""

    keras_twin = f"{__name__}.own_twin_or_probabilities"


def own_twin(width: int = 5) -> Any:
    keras = parity.import_keras()
    dense = keras.layers.Dense
    layers = [keras.layers.Flatten(), dense(width, activation="tanh"), dense(10)]
    return keras.Sequential([keras.Input((28, 28, 1)), *layers], name="own")


def own_twin_or_probabilities(width: int = 5, softmax: bool = False) -> Any:
    keras, model = parity.import_keras(), own_twin(width)
    if softmax:
        model.add(keras.layers.Softmax(name="softmax"))
    return model


@pytest.mark.parametrize("kind", [Own, Trained])
def test_a_class_s_own_twin_is_built_with_the_model_s_settings(kind: type[Own]) -> None:
    model = kind(width=7, label_smoothing=0.1)
    parity.check(model, parity.to_keras(model), random_batches(1)).assert_passed()


def test_a_subclass_with_another_network_has_no_twin_until_it_names_one() -> None:
    with pytest.raises(ValueError, match=r'^Widened has no Keras twin: .* keras_twin = "my_module'):
        parity.to_keras(Widened())


def test_the_whole_proof_is_made_of_a_class_and_its_own_twin() -> None:
    batches = random_batches(6)
    checks = list(run_checks(Own(), batches, *batches[0], steps=5))
    assert len(checks) > 6
    assert [check.name for check in checks if not (check.passed or check.informational)] == []


def test_a_class_s_own_twin_is_trained_in_keras(tmp_path: Path) -> None:
    place = ["--trainer.default_root_dir", str(tmp_path), "--model", f"{__name__}.Own"]
    assert main(["keras", "fit", *place, *TINY, "--model.width", "6", *SHORT]) == 0
    (folder,) = tmp_path.glob("tiny-own-keras/version_0")
    assert metrics_of(folder)["parameters"] == 784 * 6 + 6 + 6 * 10 + 10
    assert main(["keras", "test", "--run", str(folder)]) == 0


def test_a_twin_gives_probabilities_if_it_has_the_argument_and_is_refused_otherwise() -> None:
    assert parity.to_keras(WithSoftmax(), softmax=True).layers[-1].name == "softmax"
    assert parity.to_keras(WithSoftmax()).layers[-1].name != "softmax"
    with pytest.raises(ValueError, match=r"^the Keras twin of Own can only give logits: leave so"):
        parity.to_keras(Own(), softmax=True)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("no_such_module.twin", "'no_such_module.twin', which cannot be imported (No module named"),
        (f"{__name__}.no_such_twin", "no_such_twin', which cannot be imported (module"),
        (own_twin, "which cannot be imported (expected string"),
        ("tests.parity", "'tests.parity': it must name a function"),
    ],
)
def test_a_path_that_names_no_function_is_refused(
    path: Any, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Own, "keras_twin", path)
    with pytest.raises(ValueError, match=rf"^Own\.keras_twin is .*{re.escape(message)}"):
        parity.to_keras(Own())
