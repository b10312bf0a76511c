from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest

from digitlab.parity import twins
from digitlab.parity.backend import import_keras
from tests.commands import refusal
from tests.parity.keras_runs import TINY, names_in, save

pytestmark = pytest.mark.skipif(not find_spec("tensorflow"), reason="needs the extra `parity`")

Maker = Callable[[Path], object]


def damaged(path: Path) -> None:
    save(twins.lenet1(), path)
    path.write_bytes(path.read_bytes()[:-1000])


def with_code(path: Path) -> None:
    """A model with a function of its own, which would say so if it ran."""
    keras = import_keras()
    harm = keras.layers.Lambda(lambda x: __import__("sys").stderr.write("harmed") and x)
    save(keras.Sequential([keras.Input((28, 28, 1)), harm, *twins.lenet1().layers]), path)


OTHER = "{file} is of another architecture than LeNet1: "


@pytest.mark.parametrize(
    ("make", "name", "reason"),
    [
        (Path, "no.keras", "there is no Keras model {file}: train one with"),
        (damaged, "cut.keras", "{file} is damaged"),
        (damaged, "cut.h5", "{file} is damaged"),
        (with_code, "code.keras", "needs code of its own to be loaded (Requested the"),
        (with_code, "code.h5", "needs code of its own to be loaded (Requested the"),
        (lambda path: save(twins.lenet5(), path), "lenet5.keras", OTHER + "network.conv1.weight"),
        (lambda path: save(twins.mlp(), path), "mlp.h5", OTHER + "5 PyTorch layers have weights"),
        (lambda path: save(twins.lenet1("same"), path), "s.h5", OTHER + "they differ in padding1;"),
        (lambda path: save(twins.lenet1(in_channels=3), path), "rgb.keras", OTHER + "network.conv"),
    ],
)
def test_a_file_that_does_not_do_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], make: Maker, name: str, reason: str
) -> None:
    make(file := tmp_path / name)
    before = names_in(tmp_path)
    capsys.readouterr()
    said = refusal(capsys, "convert", str(file), str(tmp_path / "new"), "--model", "LeNet1", *TINY)
    assert reason.format(file=file) in said
    assert names_in(tmp_path) == before
