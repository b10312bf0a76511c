import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from digitlab.data.download import Split
from tests import commands, tiny

REAL_DATA = os.environ.get("DIGITLAB_DATA")

# Workers share the cores, and sums in one thread have one order. Subprocesses inherit the variable.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        folder = item.path.parent.name
        if folder == "browser":
            item.add_marker(pytest.mark.browser)
        if folder == "parity":  # TensorFlow takes seconds to import: one worker does it
            item.add_marker(pytest.mark.xdist_group("keras"))
        groups = [mark.args for mark in item.iter_markers("xdist_group")]
        if ("keras",) in groups and not find_spec("tensorflow"):
            item.add_marker(pytest.mark.skip(reason="needs the extra `parity`"))
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(scope="session")
def tiny_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tiny data set's archives; tests that spoil files write their own."""
    root = tmp_path_factory.mktemp("data")
    tiny.write(root)
    return root


@pytest.fixture(scope="module")
def tiny_for_module(tiny_root: Path) -> Iterator[None]:
    """For a module's own fixtures, which are set up before a test's."""
    with _tiny(tiny_root):
        yield


@contextmanager
def _tiny(root: Path) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DIGITLAB_DATA", str(root))
        patch.chdir(Path(__file__).parents[1])
        yield


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory, tiny_root: Path) -> Path:
    """A run folder of an MLP after 3 epochs; tests copy it to change it."""
    return _finish(tmp_path_factory.mktemp("run"), tiny_root)


@pytest.fixture(scope="session")
def finished_blocks_run(tmp_path_factory: pytest.TempPathFactory, tiny_root: Path) -> Path:
    """The same with 8 steps per execution: epochs of 13 steps are blocks of 8 and 5."""
    blocks = ["--model.steps_per_execution", "8", "--data.batch_size", "16"]
    return _finish(tmp_path_factory.mktemp("blocks"), tiny_root, *blocks)


@pytest.fixture
def copied_run(finished_run: Path, tmp_path: Path) -> Path:
    """A finished run of a test's own, in a folder of all runs."""
    return Path(shutil.copytree(finished_run, tmp_path / "runs" / "tiny-mlp" / "version_0"))


def _finish(place: Path, data: Path, *options: str) -> Path:
    settings = ["--model.hidden_features", "[16]", "--trainer.max_epochs", "3"]
    with _tiny(data):
        folder = commands.fit(place, *settings, *options, model="MLP")
    torch.set_flush_denormal(False)
    return folder


@pytest.fixture(autouse=True)
def _tiny_data(tiny_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads a real data set unless it asks for `real_data`; paths are the repository's."""
    monkeypatch.chdir(Path(__file__).parents[1])
    monkeypatch.setenv("DIGITLAB_DATA", str(tiny_root))


@pytest.fixture
def real_data(monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder with the real MNIST and Fashion-MNIST, as the environment names it."""
    if not REAL_DATA:
        pytest.skip("needs the real data sets: set DIGITLAB_DATA to the folder that holds them")
    monkeypatch.setenv("DIGITLAB_DATA", REAL_DATA)
    return Path(REAL_DATA)


@pytest.fixture
def read_splits() -> list[Split]:
    """The splits that `tiny.SpiedDataModule` reads from here on."""
    tiny.SpiedDataModule.read_splits.clear()
    return tiny.SpiedDataModule.read_splits


@pytest.fixture(autouse=True)
def _denormals() -> Iterator[None]:
    """Undo what `digitlab fit` sets for its process, which here is every test's."""
    yield
    torch.set_flush_denormal(False)


@pytest.fixture(autouse=True)
def _own_seed() -> Iterator[None]:
    """`seed_everything` leaves its seed in the environment: no test hands it to the next."""
    before = {name: os.environ.pop(name, None) for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS")}
    yield
    for name, value in before.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value
