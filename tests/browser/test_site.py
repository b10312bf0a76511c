"""The documentation as a site, in which every internal link is followed."""

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urldefrag

import pytest

from tests.browser.conftest import SIZE, watch
from tests.browser.servers import serve

if TYPE_CHECKING:
    from playwright.sync_api import Browser

REPOSITORY = Path(__file__).parents[2]


@dataclass
class Visit:
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
def visits(chromium: "Browser", home: str) -> dict[str, Visit]:
    """All pages that links lead to from the home page, by address."""
    page = chromium.new_page(viewport=SIZE)
    faults = watch(page)
    found: dict[str, Visit] = {}
    waiting = [home]
    while waiting:
        address = waiting.pop(0)
        faults.clear()
        page.goto(address)
        links = page.evaluate("[...document.links].map((link) => link.href)")
        links = [link for link in links if link.startswith(home)]
        broken = "[...document.images].filter((image) => !(image.complete && image.naturalWidth))"
        faults += page.evaluate(f"{broken}.map((image) => image.src)")
        found[address] = Visit(links, [*faults])
        targets = {urldefrag(link).url for link in links}
        waiting += sorted(a for a in targets if a.endswith("/") and a not in {*found, *waiting})
    page.close()
    return found


def test_links_lead_from_the_home_page_to_every_page(
    visits: dict[str, Visit], site: Path, home: str
) -> None:
    built = {path.parent.relative_to(site) for path in site.rglob("index.html")}
    assert set(visits) == {home + "".join(f"{part}/" for part in path.parts) for path in built}
    assert len(visits) > 15


def test_no_page_has_a_broken_image_or_an_error_or_asks_another_machine(
    visits: dict[str, Visit],
) -> None:
    assert {a: visit.faults for a, visit in visits.items() if visit.faults} == {}
