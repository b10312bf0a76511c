"""`digitlab report` in this process, and its page read back by the standard library's parser."""

import base64
import itertools
import json
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from digitlab.cli import main

# A short training with a low rate leaves mistakes to show.
SLOW = [
    *("--model.hidden_features", "[16]", "--trainer.max_epochs", "3"),
    *("--model.optimizer", "SGD", "--model.optimizer.lr", "0.01"),
]
VOID = ("meta", "img", "br", "source")
"""Elements that have no end."""


@dataclass
class Element:
    """An element with what is in it."""

    tag: str
    attributes: dict[str, str | None]
    children: list["Element | str"] = field(default_factory=list)

    @property
    def text(self) -> str:
        """All text in it, with single spaces."""
        parts = (c if isinstance(c, str) else c.text for c in self.children)
        return " ".join(" ".join(parts).split())

    def every(self, *tags: str) -> list["Element"]:
        """All elements of these kinds in it, in the page's order."""
        found = []
        for child in self.children:
            if isinstance(child, Element):
                found += [child] if child.tag in tags else []
                found += child.every(*tags)
        return found

    @property
    def rows(self) -> list[list[str]]:
        """Of a table, the texts of its cells."""
        return [[cell.text for cell in row.every("th", "td")] for row in self.every("tr")]


class Parser(HTMLParser):
    """Builds the tree, and fails where an element is not closed, or one that is not open is."""

    def __init__(self) -> None:
        super().__init__()
        self.root = Element("", {})
        self.open = [self.root]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = Element(tag, dict(attrs))
        assert len(element.attributes) == len(attrs), f"an attribute of {tag} is there twice"
        self.open[-1].children.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop().tag == tag

    def handle_data(self, data: str) -> None:
        self.open[-1].children.append(data)


def parse(html: str) -> Element:
    """Read a page, and check what holds for each: well-formed, self-contained and accessible."""
    parser = Parser()
    parser.feed(html)
    parser.close()
    page = parser.root
    assert parser.open == [page], "something is not closed"
    assert page.every("script", "link", "iframe", "object", "a") == []
    every = page.every(*{element.tag for element in _all(page)})
    for element in every:
        assert not [name for name in element.attributes if name.startswith("on")]
        for name in ("src", "srcset", "href"):
            assert (element.attributes.get(name) or "data:").startswith("data:")
        assert "url(" not in (element.attributes.get("style") or "")
    (style,) = page.every("style")
    assert "url(" not in style.text
    assert "@import" not in style.text
    for image in page.every("img"):
        assert image.attributes["alt"]
    for header in page.every("th"):
        assert header.attributes["scope"] in ("col", "row", "rowgroup")
    for table in page.every("table"):
        assert table.every("th"), "a table without headers"
    levels = [int(heading.tag[1]) for heading in page.every("h1", "h2", "h3", "h4")]
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


def metrics_of(folder: Path) -> dict[str, Any]:
    metrics: dict[str, Any] = json.loads((folder / "metrics.json").read_text("utf-8"))
    return metrics


def _all(element: Element) -> list[Element]:
    inner = [child for child in element.children if isinstance(child, Element)]
    return inner + [deep for child in inner for deep in _all(child)]


def content(address: str | None) -> bytes:
    """Decode a `data:` address."""
    assert address
    return base64.b64decode(address.partition(";base64,")[2], validate=True)


def table_with(page: Element, header: str) -> list[list[str]]:
    """The rows of the one table that has this text in its first row."""
    (found,) = [table.rows for table in page.every("table") if header in table.rows[0]]
    return found


def facts_of(page: Element) -> dict[str, list[str]]:
    """Each fact's name, and its value of each run, or the one that all share."""
    tables = [table for table in page.every("table") if "facts" in str(table.attributes["class"])]
    return {row[0]: row[1:] for table in tables for row in table.rows if len(row) > 1}
