"""The page of `digitlab report`, as it is opened from its file."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import pytest

from digitlab.cli import main
from tests.browser.conftest import read
from tests.commands import fit
from tests.report.pages import SLOW

if TYPE_CHECKING:
    from playwright.sync_api import Page

CURVES_AND_MISTAKES = """() => {
const heading = (text) =>
  [...document.querySelectorAll("h2, h3")].find((it) => it.innerText === text);
heading("Figures").parentElement.remove();
while (!heading("Predictions").nextElementSibling.innerText.startsWith("Worst"))
  heading("Predictions").nextElementSibling.remove();
heading("Predictions").remove();
document.body.style.padding = "1rem 2rem";
window.scrollTo(0, 0);
}"""
"""Leaves the parts of the page that are pictures, for the documentation's first page."""
PHONE = 360  # the narrowest that is common, in CSS pixels
BLUE = {"light": "rgb(0, 114, 178)", "dark": "rgb(86, 180, 233)"}


@pytest.fixture(scope="module")
def page_of_one(run: Path, data_of_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return report(data_of_run, tmp_path_factory.mktemp("one"), run)


@pytest.fixture(scope="module")
def page_of_two(tiny_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DIGITLAB_DATA", str(tiny_root))
        runs = [fit(folder / model, *SLOW[2:], model=model) for model in ("LeNet5", "MLP")]
    return report(tiny_root, folder, *runs)


@pytest.fixture(params=["page_of_one", "page_of_two"])
def address(request: pytest.FixtureRequest) -> str:
    path: Path = request.getfixturevalue(request.param)
    return path.as_uri()


def report(data: Path, folder: Path, *runs: Path) -> Path:
    out = folder / "report.html"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DIGITLAB_DATA", str(data))
        assert main(["report", *map(str, runs), "--out", str(out)]) == 0
    return out


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_curves_and_ground_are_of_the_reader_s_scheme(
    page: "Page", address: str, scheme: Literal["light", "dark"]
) -> None:
    page.emulate_media(color_scheme=scheme)
    page.goto(address)
    assert read(page, "img")
    assert all(read(page, "img", "element.complete && element.naturalWidth > 0"))
    strokes = read(page, ".curves path", "getComputedStyle(element).stroke")
    assert BLUE[scheme] in strokes
    (ground,) = read(page, "body", "getComputedStyle(element).backgroundColor.match(/\\d+/g)")
    assert all((int(value) > 128) == (scheme == "light") for value in ground)


def test_it_is_as_narrow_as_a_phone(page: "Page", address: str) -> None:
    page.set_viewport_size({"width": PHONE, "height": 800})
    page.goto(address)
    assert read(page, "html", "element.scrollWidth") == [PHONE]


def test_its_settings_unfold(page: "Page", address: str) -> None:
    page.goto(address)
    assert read(page, "details pre") == []
    summaries = page.locator("summary").all()
    assert summaries
    for summary in summaries:
        summary.click()
    settings = read(page, "details pre")
    assert len(settings) == len(summaries)
    assert all("seed_everything: 0" in text for text in settings)


def test_it_begins_with_the_run_s_name(
    page: "Page", picture: Callable[..., None], page_of_one: Path, run: Path
) -> None:
    page.set_viewport_size({"width": 1000, "height": 1000})
    page.goto(page_of_one.as_uri())
    assert read(page, "h1") == ["/".join(run.parts[-2:])]
    picture("report", height=900)
    page.evaluate("document.querySelector('article').scrollIntoView()")
    picture("report_confusion", height=1000)
    page.evaluate(CURVES_AND_MISTAKES)
    picture("home", height=815)
