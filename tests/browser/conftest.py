import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

import pytest

from tests.commands import fit
from tests.conftest import REAL_DATA

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page, Request, ViewportSize

Seen = TypeVar("Seen")
SECONDS = 60.0
"""After these a wait is given up, so that no test hangs."""
SIZE: "ViewportSize" = {"width": 1460, "height": 1320}
"""In CSS pixels; TensorBoard's cards of a run's ten curves all fit."""
FLAGS = (
    "--no-proxy-server",
    "--enable-unsafe-swiftshader",  # TensorBoard's projector draws by WebGL, also without a GPU
    # A request to another host fails at once, and is still noted.
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("pictures for the documentation, with `pytest tests/browser`")
    of_screenshots = "store pictures of the pages in this folder"
    group.addoption("--screenshots", metavar="DIR", help=of_screenshots)
    of_run = "show this finished run of a convolutional network in place of a tiny one"
    group.addoption("--shown-run", metavar="RUN_DIR", help=of_run)


@pytest.fixture(scope="module")  # the event loop of a longer one would disturb other tests
def chromium() -> Iterator["Browser"]:
    """The system's Chromium, without a window."""
    playwright = pytest.importorskip("playwright.sync_api")
    if not (path := shutil.which("chromium")):
        pytest.skip("needs chromium: on Debian, apt-get install chromium")
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def page(chromium: "Browser") -> Iterator["Page"]:
    """An empty page, in which the test's pages must work without a network."""
    page = chromium.new_page(viewport=SIZE)
    page.set_default_timeout(1000 * SECONDS)
    faults = watch(page)
    yield page
    page.close()
    assert faults == []


def watch(page: "Page") -> list[str]:
    """A list to which the page's errors, and addresses on other machines, are added."""
    faults: list[str] = []

    def ask(request: "Request") -> None:
        if urlsplit(request.url).hostname not in (None, "", "127.0.0.1"):
            faults.append(request.url)

    page.on("request", ask)
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda said: faults.append(said.text) if said.type == "error" else None)
    return faults


def read(page: Any, selector: str, expression: str = "element.innerText") -> list[Any]:
    """Read something of each `element` that is shown, inside components too."""
    every = page.locator(f"{selector} >> visible=true")
    return list(every.evaluate_all(f"all => all.map((element) => {expression})"))


def wait_for(look: Callable[[], Seen], wanted: Callable[[Seen], bool]) -> Seen:
    """Look until it is as wanted, and return what was seen."""
    end = monotonic() + SECONDS
    while not wanted(seen := look()):
        assert monotonic() < end, f"after {SECONDS:.0f} s it is still {seen!r}"
        sleep(0.1)
    return seen


@pytest.fixture
def picture(request: pytest.FixtureRequest, page: "Page") -> Callable[..., None]:
    """Keeps a picture of what is shown, down to this height, if pictures are asked for."""
    folder = _folder(request.config, "--screenshots")

    def take(name: str, height: int = SIZE["height"]) -> None:
        if folder:
            page.wait_for_timeout(3000)  # until what moves has come to rest
            shown = {"x": 0, "y": 0, "width": page.viewport_size["width"], "height": height}  # type: ignore[index]
            page.screenshot(path=folder / f"{name}.png", clip=shown)  # type: ignore[arg-type]

    return take


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
