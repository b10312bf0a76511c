import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from digitlab.data.download import Split
from tests import commands, tiny

REAL_DATA = os.environ.get("DIGITLAB_DATA")
MLP = ("--model.hidden_features", "[16]", "--trainer.max_epochs", "3")

Trained = Callable[..., Path]
"""Gives a finished run: `trained("MLP", "--seed_everything", "5")`."""

# Workers share the cores, and sums in one thread have one order. Subprocesses inherit the variable.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        folder = item.path.parent.name
        if folder == "browser":
            item.add_marker(pytest.mark.browser)
        # TensorFlow takes seconds to import: one worker does it, except for what takes minutes.
        if folder == "parity" and not item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.xdist_group("keras"))
        groups = [mark.args for mark in item.iter_markers("xdist_group")]
        if (folder == "parity" or ("keras",) in groups) and not find_spec("tensorflow"):
            item.add_marker(pytest.mark.skip(reason="needs the extra `parity`"))
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(scope="session")
def tiny_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tiny data set's archives; tests that spoil files write their own."""
    root = tmp_path_factory.mktemp("data")
    tiny.write(root)
    return root


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_root: Path) -> Trained:
    """Trains a model with options on the tiny data, once a session; tests only read the run."""

    @cache
    def train(model: str = "LinearClassifier", *options: str) -> Path:
        with _tiny(tiny_root):
            return commands.fit(tmp_path_factory.mktemp("trained"), *options, model=model)

    return train


@pytest.fixture(scope="session")
def finished_run(trained: Trained) -> Path:
    """The run folder of an MLP after 3 epochs; tests copy it to change it."""
    return trained("MLP", *MLP)


@pytest.fixture(scope="session")
def finished_blocks_run(trained: Trained) -> Path:
    """The same with 8 steps per execution: epochs of 13 steps are blocks of 8 and 5."""
    return trained("MLP", *MLP, "--model.steps_per_execution", "8", "--data.batch_size", "16")


@pytest.fixture
def copied(tmp_path: Path) -> Callable[[Path], Path]:
    """Copies a finished run, for a test that changes it, to a folder of all runs."""
    return lambda run: shutil.copytree(run, tmp_path / "runs" / run.parent.name / run.name)


@pytest.fixture
def copied_run(finished_run: Path, copied: Callable[[Path], Path]) -> Path:
    """A finished run of a test's own."""
    return copied(finished_run)


@pytest.fixture(scope="module")
def tiny_for_module(tiny_root: Path) -> Iterator[None]:
    """For a module's own fixtures, which are set up before a test's."""
    with _tiny(tiny_root):
        yield


@contextmanager
def _tiny(root: Path) -> Iterator[None]:
    """Set the environment and the current folder; afterwards undo what `fit` sets."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(Path(__file__).parents[1])
        patch.setenv("DIGITLAB_DATA", str(root))
        for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS"):
            patch.setenv(name, "")  # so that what is set meanwhile is removed
            patch.delenv(name)
        yield
    torch.set_flush_denormal(False)


@pytest.fixture(autouse=True)
def _tiny_data(tiny_root: Path) -> Iterator[None]:
    """No test reads a real data set unless it asks for `real_data`; none hands on a seed."""
    with _tiny(tiny_root):
        yield


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
