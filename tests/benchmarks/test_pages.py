import json
from functools import cache
from pathlib import Path

import pytest
from benchmarks import pages, reproduction
from benchmarks.endurance import report
from benchmarks.pages import MARK, fill

IN_FILES_ONLY = {
    *("step-times", "step-multiples", "step-cpu", "checkpoint-price", "kills", "fits"),
    *("two-threads-machine", "two-threads-times", "two-threads-multiples", "two-threads-cpu"),
    *("two-threads-targets", "tensorboard-price"),
}
"""Tables that no page has room for; their figures are in docs/results."""


@pytest.mark.parametrize("page", pages.PAGES, ids=lambda page: page.stem)
def test_every_table_of_a_page_is_what_was_measured(page: Path) -> None:
    text = page.read_text("utf-8")
    assert fill(text, pages.PAGES[page](), page) == text


@pytest.mark.parametrize("page", pages.PAGES, ids=lambda page: page.stem)
def test_every_measurement_is_shown(page: Path) -> None:
    shown = MARK.findall(page.read_text("utf-8"))
    made = pages.PAGES[page]().keys()
    assert made
    assert sorted(shown) == sorted(made - IN_FILES_ONLY)
    assert (pages.FOLDER / "step_time.png").exists()


@pytest.mark.parametrize("page", pages.RECORD_PAGES, ids=lambda page: page.stem)
def test_every_table_of_the_documents_rows_is_what_was_measured(page: Path) -> None:
    text = page.read_text("utf-8")
    assert fill(text, recorded(), page) == text


def test_every_page_with_tables_is_filled_by_the_command() -> None:
    every = [Path("README.md"), *Path("docs").rglob("*.md")]
    with_tables = {page for page in every if MARK.search(page.read_text("utf-8"))}
    assert with_tables <= {*pages.PAGES, *pages.RECORD_PAGES}


def test_tables_go_between_their_marks_and_the_rest_of_a_page_stays() -> None:
    page = "# Before\n\n<!-- table results -->\nold\n<!-- /table -->\n\nafter\n"
    once = fill(page, {"results": "| new |"}, Path("page.md"))
    assert once == page.replace("old", "| new |")
    assert fill(once, {"results": "| new |"}, Path("page.md")) == once


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("<!-- table reslts -->\n<!-- /table -->\n", "page.md has a table reslts: choose from"),
        ("<!-- table results -->\n", "page.md has a table without an end"),
        ("<!-- table a -->\n<!-- table results -->\n<!-- /table -->", "without an end"),
    ],
)
def test_a_page_with_a_wrong_mark_is_refused(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        fill(text, {"results": "table"}, Path("page.md"))


@cache
def recorded() -> dict[str, str]:
    return reproduction.read_tables()


def test_every_test_of_a_fault_is_counted_under_a_promise() -> None:
    assert report.unnamed(json.loads(report.RESULTS.read_text("utf-8"))) == []
