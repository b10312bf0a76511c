import shutil
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.browser import chromium
from tests.browser.chromium import Browser
from tests.commands import fit
from tests.conftest import REAL_DATA


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("pictures for the documentation, with `pytest tests/browser`")
    of_screenshots = "store pictures of the pages in this folder"
    group.addoption("--screenshots", metavar="DIR", help=of_screenshots)
    of_run = "show this finished run of a convolutional network in place of a tiny one"
    group.addoption("--shown-run", metavar="RUN_DIR", help=of_run)


@pytest.fixture(scope="session")
def program(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Browser]:
    """The browser that all tests share."""
    if not find_spec("selenium"):
        pytest.skip('needs selenium: pip install -e ".[dev]"')
    paths = {name: shutil.which(name) for name in ("chromium", "chromedriver")}
    for name, path in paths.items():
        if not path:
            pytest.skip(f"needs {name}: on Debian, apt-get install chromium chromium-driver")
    pictures = _folder(request.config, "--screenshots")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("no_proxy", "*")  # all that is asked for is on this machine
        profile = tmp_path_factory.mktemp("profile")
        started = chromium.start(
            str(paths["chromium"]), str(paths["chromedriver"]), profile, pictures
        )
        yield started
        started.driver.quit()


@pytest.fixture
def browser(program: Browser) -> Iterator[Browser]:
    """A browser with no page, in which the test's pages must work without a network."""
    program.reset()
    yield program
    assert program.errors() == []
    assert program.strangers() == []


@pytest.fixture(scope="session")
def run(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tiny_root: Path
) -> Path:
    """A finished run of a convolutional network."""
    if shown := _folder(request.config, "--shown-run"):
        return shown
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DIGITLAB_DATA", str(tiny_root))
        return fit(tmp_path_factory.mktemp("runs"), "--trainer.max_epochs", "3", model="LeNet5")


@pytest.fixture(scope="session")
def data_of_run(request: pytest.FixtureRequest, tiny_root: Path) -> Path:
    """The folder of the data that `run` was trained on."""
    shown = _folder(request.config, "--shown-run")
    return Path(REAL_DATA or "data").absolute() if shown else tiny_root


def _folder(config: pytest.Config, option: str) -> Path | None:
    # With `pytest tests`, options of this folder are not known on the command line.
    given = config.getoption(option, None)
    if given is None:
        return None
    folder: Path = config.invocation_params.dir / given
    if not folder.is_dir():
        raise pytest.UsageError(f"{option} is {given}: there is no such folder")
    return folder
