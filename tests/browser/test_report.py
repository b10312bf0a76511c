"""The page of `digitlab report`, as it is opened from its file."""

from pathlib import Path
from typing import Literal

import pytest

from digitlab.cli import main
from tests.browser.chromium import Browser
from tests.commands import fit
from tests.report.pages import SLOW

CURVES_AND_MISTAKES = """
const heading = (text) =>
  [...document.querySelectorAll("h2, h3")].find((it) => it.innerText === text);
heading("Figures").parentElement.remove();
while (!heading("Predictions").nextElementSibling.innerText.startsWith("Worst"))
  heading("Predictions").nextElementSibling.remove();
heading("Predictions").remove();
document.body.style.padding = "1rem 2rem";
window.scrollTo(0, 0);"""
"""Leaves the parts of the page that are pictures, for the documentation's first page."""
PHONE = 360  # the narrowest that is common, in CSS pixels


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
def page(request: pytest.FixtureRequest) -> str:
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
    browser: Browser, page: str, scheme: Literal["light", "dark"]
) -> None:
    browser.look(scheme)
    browser.open(page)
    assert len(browser.read("img")) > 2
    assert all(browser.read("img", "element.complete && element.naturalWidth > 0"))
    (source,) = set(browser.read("picture img", "element.currentSrc === element.src"))
    assert source == (scheme == "light")
    (ground,) = browser.read("body", "getComputedStyle(element).backgroundColor.match(/\\d+/g)")
    assert all((int(value) > 128) == (scheme == "light") for value in ground)


def test_it_is_as_narrow_as_a_phone(browser: Browser, page: str) -> None:
    browser.look(width=PHONE, phone=True)
    browser.open(page)
    assert browser.read("html", "element.scrollWidth") == [PHONE]


def test_its_settings_unfold(browser: Browser, page: str) -> None:
    browser.open(page)
    assert browser.read("details pre") == []
    summaries = browser.read("summary")
    assert summaries
    browser.run("document.querySelectorAll('summary').forEach((summary) => summary.click())")
    settings = browser.read("details pre")
    assert len(settings) == len(summaries)
    assert all("seed_everything: 0" in text for text in settings)


def test_it_begins_with_the_run_s_name(browser: Browser, page_of_one: Path, run: Path) -> None:
    browser.look(width=1000, height=1000)
    browser.open(page_of_one.as_uri())
    assert browser.read("h1") == ["/".join(run.parts[-2:])]
    browser.picture("report", height=900, width=1000)
    browser.run("document.querySelector('article').scrollIntoView()")
    browser.picture("report_confusion", height=1000, width=1000)
    browser.run(CURVES_AND_MISTAKES)
    browser.picture("home", height=815, width=1000)
