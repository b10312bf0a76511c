"""`digitlab report` in this process, and its page read back as XML."""

import base64
import io
import itertools
import xml.etree.ElementTree as ET
from pathlib import Path
from xml.etree.ElementTree import Element

from PIL import Image

from digitlab.cli import main

# A short training with a low rate leaves mistakes to show.
SLOW = [
    *("--model.hidden_features", "[16]", "--trainer.max_epochs", "3"),
    *("--model.optimizer", "SGD", "--model.optimizer.lr", "0.01"),
]


def text(element: Element) -> str:
    """All text in an element, with single spaces."""
    return " ".join(" ".join(element.itertext()).split())


def texts(page: Element, tag: str) -> list[str]:
    return [text(element) for element in page.iter(tag)]


def parse(html: str) -> Element:
    """Read a page, and check what holds for each: well-formed, self-contained and accessible."""
    page = ET.fromstring(html)
    for element in page.iter():
        assert element.tag not in ("script", "link", "iframe", "object", "a")
        for name, value in element.items():
            assert not name.startswith("on")
            if name.rpartition("}")[2] in ("src", "srcset", "href"):
                assert value.startswith(("data:", "#"))
            assert name != "style" or "url(" not in value
    for style in texts(page, "style"):
        assert "url(" not in style
        assert "@import" not in style
    assert all(image.get("alt") for image in page.iter("img"))
    assert all(drawing.get("aria-label") for drawing in curves_of(page))
    assert all(header.get("scope") in ("col", "row", "rowgroup") for header in page.iter("th"))
    assert all(table.find(".//th") is not None for table in page.iter("table"))
    levels = [int(it.tag[1]) for it in page.iter() if it.tag in ("h1", "h2", "h3", "h4")]
    assert levels[0] == 1
    assert levels.count(1) == 1
    steps = itertools.pairwise(levels)
    assert all(below <= above + 1 for above, below in steps), "a level of headings is left out"
    return page


def page_of(*folders: Path, out: Path | None = None) -> Element:
    """Write a report of runs, and read it back."""
    options = ["--out", str(out)] if out else []
    assert main(["report", *map(str, folders), *options]) == 0
    return parse((out or folders[0] / "report.html").read_text("utf-8"))


def curves_of(page: Element) -> list[Element]:
    return [element for element in page.iter("div") if element.get("role") == "img"]


def picture(image: Element) -> Image.Image:
    """Decode a `data:` address."""
    content = str(image.get("src")).partition(";base64,")[2]
    return Image.open(io.BytesIO(base64.b64decode(content, validate=True)))


def rows(table: Element) -> list[list[str]]:
    return [[text(cell) for cell in row] for row in table.iter("tr")]


def table_with(page: Element, header: str) -> list[list[str]]:
    """The rows of the one table that has this text in its first row."""
    (found,) = [rows(table) for table in page.iter("table") if header in rows(table)[0]]
    return found


def facts_of(page: Element) -> dict[str, list[str]]:
    """Each fact's name, and its value of each run, or the one that all share."""
    tables = [table for table in page.iter("table") if "facts" in str(table.get("class"))]
    return {row[0]: row[1:] for table in tables for row in rows(table) if len(row) > 1}
