import shutil
from pathlib import Path

import pytest

from tests.commands import fit
from tests.report.pages import SLOW


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_root: Path) -> Path:
    """A finished run of one's own config, to be copied."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "mine.yaml").write_text("trainer: {max_epochs: 3}\n", "utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DIGITLAB_DATA", str(tiny_root))
        return fit(folder / "all", "--config", str(folder / "mine.yaml"), *SLOW, model="MLP")


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A finished run of a test's own."""
    return Path(shutil.copytree(trained, tmp_path / "runs" / "tiny-mlp" / "version_0"))
