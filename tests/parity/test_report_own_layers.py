from importlib.util import find_spec
from typing import Any

import pytest
from torch import Tensor

from digitlab.parity.backend import import_keras, keras_dtype
from digitlab.parity.pair import check
from tests.parity.nets import BATCHES, REPORT_ROWS, DocumentStyle, keras_style, layer_of

pytestmark = pytest.mark.skipif(not find_spec("tensorflow"), reason="needs the extra `parity`")


def doubled(x: Any) -> Any:
    return 2 * x


class Doubling(DocumentStyle):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(2 * x)


def test_a_users_own_layer_is_compared_in_float64() -> None:
    conv = import_keras().layers.Conv2D(4, 3, padding="same", activation="relu")
    twin = keras_style(conv1=[layer_of(doubled), conv])
    report = check(Doubling(), twin, BATCHES)
    report.assert_passed()
    assert [row.name for row in report.checks] == REPORT_ROWS


def uncopyable(name: str) -> Any:
    """A layer that doubles what it reads, and of which no copy can be made, or no faithful one."""
    base = import_keras().layers.Layer

    def refuse(self: Any) -> Any:
        raise NotImplementedError

    def double(self: Any, x: Any) -> Any:
        return getattr(self, "factor", 3) * x

    members: dict[str, dict[str, Any]] = {
        "refuses": {"get_config": refuse, "call": double},
        "forgets": {"call": double},
    }
    layer: Any = type("Doubled", (base,), members[name])()
    layer.factor = 2  # nothing that a config knows
    return layer


@pytest.mark.parametrize("name", ["refuses", "forgets"])
def test_a_layer_that_cannot_be_copied_is_compared_as_it_is(name: str) -> None:
    layers = import_keras().layers
    conv = layers.Conv2D(4, 3, padding="same", activation="relu")
    report = check(Doubling(), keras_style(conv1=[uncopyable(name), conv]), BATCHES)
    report.assert_passed()
    names = [*REPORT_ROWS[:3], "loss, float32", "gradients, float32"]
    assert [row.name for row in report.checks] == names
    assert all("not in float64" in row.note for row in report.checks[2:])
    assert {row.tolerance for row in report.checks[2:]} == {1e-5}
    assert not check(DocumentStyle(), keras_style(conv1=[uncopyable(name), conv]), BATCHES).passed


@pytest.mark.parametrize("name", ["refuses", "forgets"])
def test_a_float64_pair_that_cannot_be_copied_is_compared_as_it_is(name: str) -> None:
    conv = {"padding": "same", "activation": "relu"}
    with keras_dtype("float64"):
        twin = keras_style(conv1=[uncopyable(name), import_keras().layers.Conv2D(4, 3, **conv)])
    report = check(Doubling().double(), twin, BATCHES)
    report.assert_passed()
    assert [row.name for row in report.checks] == [r for r in REPORT_ROWS if "float32" not in r]
    assert all("no unfrozen copy" in row.note for row in report.checks[2:])


def test_a_layer_that_rounds_to_single_precision_is_found_in_float64() -> None:
    conv = import_keras().layers.Conv2D(4, 3, padding="same", activation="relu")
    third = layer_of(lambda x: import_keras().ops.cast(x / 3, "float32"), "rounds")

    class Third(DocumentStyle):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x / 3)

    report = check(Third(), keras_style(conv1=[third, conv]), BATCHES)
    passed = {row.name: row.passed for row in report.checks}
    assert passed["logits, float32"]
    assert not passed["logits, float64"]
    assert report.first_divergence == "rounds"
