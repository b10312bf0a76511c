"""The documentation as a site, in which every internal link is followed."""

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urldefrag

import pytest

from tests.browser.chromium import Browser
from tests.browser.servers import serve

REPOSITORY = Path(__file__).parents[2]


TOO_WIDE = """
const article = document.querySelector("article");
const right = article.getBoundingClientRect().right + 17;  // blocks may reach into the margin
const elements = [...article.querySelectorAll("*")];
const boxes = elements.filter((it) => /auto|scroll/.test(getComputedStyle(it).overflowX));
const inside = new Set(boxes.flatMap((it) => [...it.querySelectorAll("*")]));
const shown = (found) => found.map((it) => `${it.tagName} ${it.textContent.trim().slice(0, 60)}`);
return [
  document.documentElement.scrollWidth,
  shown(elements.filter((it) => !inside.has(it) && it.getBoundingClientRect().right > right)),
  shown(boxes.filter((it) => it.scrollWidth > it.clientWidth + 1)),
]"""
"""The page's width, what sticks out of the article, and boxes that a reader must move sideways."""


@dataclass
class Page:
    """What a page has, and what happened when it was opened."""

    links: list[str]
    faults: list[str]
    """Images without pixels, the console's errors, and addresses on other machines."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet"]
    subprocess.run([*command, "--site-dir", str(folder)], cwd=REPOSITORY, check=True, timeout=300)
    return folder


@pytest.fixture(scope="module")
def home(site: Path) -> Iterator[str]:
    with serve(site) as address:
        yield address


@pytest.fixture(scope="module")
def pages(program: Browser, home: str) -> dict[str, Page]:
    """All pages that links lead to from the home page, by address."""
    program.reset()
    found: dict[str, Page] = {}
    waiting = [home]
    while waiting:
        address = waiting.pop(0)
        found[address] = visit(program, address)
        targets = {urldefrag(link).url for link in found[address].links}
        waiting += sorted(a for a in targets if a.endswith("/") and a not in {*found, *waiting})
    return found


def visit(program: Browser, address: str) -> Page:
    program.driver.get(address)
    origin = program.run("return location.origin")
    links = program.run("return [...document.links].map((link) => link.href)")
    broken = "[...document.images].filter((image) => !(image.complete && image.naturalWidth))"
    images = program.run(f"return {broken}.map((image) => image.src)")
    return Page(
        links=[link for link in links if link.startswith(f"{origin}/")],
        faults=[*images, *program.errors(), *program.strangers()],
    )


def test_links_lead_from_the_home_page_to_every_page(
    pages: dict[str, Page], site: Path, home: str
) -> None:
    built = {path.parent.relative_to(site) for path in site.rglob("index.html")}
    assert set(pages) == {home + "".join(f"{part}/" for part in path.parts) for path in built}
    assert len(pages) > 15


def test_no_page_has_a_broken_image_or_an_error_or_asks_another_machine(
    pages: dict[str, Page],
) -> None:
    assert {a: page.faults for a, page in pages.items() if page.faults} == {}


@pytest.mark.parametrize(("width", "phone"), [(1280, False), (390, True)])
def test_nothing_is_wider_than_its_column(
    browser: Browser, pages: dict[str, Page], width: int, phone: bool
) -> None:
    browser.look(width=width, height=900, phone=phone)
    wide = {}
    for address in pages:
        browser.driver.get(address)
        page, outside, scrolled = browser.run(TOO_WIDE)
        # A phone's reader moves a table or a program sideways, nobody the page.
        if page > width or outside or (scrolled and not phone):
            wide[address] = (page, outside, scrolled)
    assert wide == {}


def test_every_page_has_a_table_of_contents_and_a_way_on(
    browser: Browser, pages: dict[str, Page], home: str
) -> None:
    for address in pages:
        browser.driver.get(address)
        if address != home:  # which is one screen
            assert browser.read(".md-nav--secondary .md-nav__link"), f"{address}: contents"
        assert browser.read(".md-footer__link"), f"{address}: previous and next"


def test_the_search_finds_a_word(browser: Browser, home: str) -> None:
    browser.open(home)
    browser.driver.find_element("css selector", ".md-search__input").send_keys("pre-emption")
    found = browser.wait_for(lambda: browser.read(".md-search-result__link", "element.href"), bool)
    browser.driver.get(found[0])
    assert "pre-emption" in browser.read("article")[0]


def test_home_shows_a_run(browser: Browser, home: str) -> None:
    browser.open(home)
    shown = browser.read("article img", "element.naturalWidth > 0")
    assert shown
    assert all(shown)
