import json
from pathlib import Path

import pytest
from benchmarks import pages
from benchmarks.endurance import report

from digitlab.reproduce.command import PAGE_TABLE, fill

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
    shown = PAGE_TABLE.findall(page.read_text("utf-8"))
    made = pages.PAGES[page]().keys()
    assert made
    assert sorted(shown) == sorted(made - IN_FILES_ONLY)
    assert (pages.FOLDER / "step_time.png").exists()


def test_every_test_of_a_fault_is_counted_under_a_promise() -> None:
    assert report.unnamed(json.loads(report.RESULTS.read_text("utf-8"))) == []
