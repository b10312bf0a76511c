"""What the repository says was measured: `docs/results`, and the pages that show it."""

import runpy
import shutil
import statistics
from functools import cache
from pathlib import Path

import pytest
from benchmarks import pages

from digitlab.reproduce import results
from digitlab.reproduce.command import PAGE_TABLE, read_tables
from digitlab.reproduce.rows import read_rows

pytestmark = pytest.mark.docs

RECORD = Path("docs", "results")
CONCLUSIONS = Path("docs", "conclusions.py")
"""The script that fills the table of the page beside it."""
ELSEWHERE = pages.PAGES.keys() | {CONCLUSIONS.with_suffix(".md")}
"""Pages whose tables other programs write."""
PAGES = [Path("README.md"), *sorted({*Path("docs").rglob("*.md")} - ELSEWHERE)]
SHOWN = [
    (page, name) for page in PAGES for name in PAGE_TABLE.findall(page.read_text(encoding="utf-8"))
]

# Mean test accuracy in per cent, from the documents and independent runs. Too good is wrong too: it
# would mean that test images were trained on, or counted twice. A single run may lie outside: at a
# constant learning rate, a last epoch sometimes ends some tenths below the one before.
BANDS = {
    "linear": (91.5, 92.8),
    "A1": (98.0, 98.7),
    "A2": (98.0, 99.1),
    "A3": (96.5, 97.8),
    "B1": (96.0, 97.6),
    "B1_as_published": (94.5, 96.3),
    "B2": (97.3, 98.2),
    "B3": (98.4, 99.2),
    "B4": (98.4, 99.2),
    "B5": (85.0, 88.5),
    "B5_as_published": (84.0, 88.5),
    "B6": (87.0, 90.5),
    "B7": (90.0, 92.5),
    "B8": (85.0, 88.5),
    "B9": (87.0, 90.5),
    "B10": (90.0, 92.5),
    "B11": (90.0, 92.5),
}
MEASURED = results.read(RECORD / "results.csv")
GROUPS = sorted({result.key[:2] for result in MEASURED})


def test_every_config_was_measured_in_pytorch() -> None:
    assert {row for row, framework in GROUPS if framework == "torch"} == set(read_rows())


def test_every_row_of_the_documents_was_measured_in_keras_where_it_can_be() -> None:
    rows = {row.name for row in read_rows().values() if row.in_documents}
    measured = {row for row, framework in GROUPS if framework == "keras"}
    assert rows - measured == {"B1_as_published", "B5_as_published"}


@pytest.mark.parametrize(("row", "framework"), [group for group in GROUPS if group[0] in BANDS])
def test_a_measured_mean_lies_in_its_band(row: str, framework: str) -> None:
    low, high = BANDS[row]
    measured = [100 * it.test_accuracy for it in MEASURED if it.key[:2] == (row, framework)]
    assert low <= statistics.mean(measured) <= high


def test_no_run_was_counted_twice() -> None:
    keys = [result.key for result in MEASURED]
    assert len(keys) == len(set(keys))


@pytest.mark.parametrize(("page", "name"), SHOWN)
def test_a_table_of_a_page_is_the_generated_one(page: Path, name: str) -> None:
    text = page.read_text("utf-8")
    shown = text.partition(f"<!-- table {name} -->\n")[2].partition("\n<!-- /table -->")[0]
    assert shown == tables()[name]


def test_the_conclusions_are_the_table_that_the_script_beside_them_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = CONCLUSIONS.with_suffix(".md").read_text("utf-8")
    shutil.copytree(RECORD, tmp_path / RECORD)
    shutil.copy(CONCLUSIONS, tmp_path / CONCLUSIONS)
    monkeypatch.chdir(tmp_path)
    start, end = page.index("|---|"), page.index("\n<!-- /table -->")
    CONCLUSIONS.with_suffix(".md").write_text(page[:start] + page[end:], "utf-8")
    runpy.run_path(str(CONCLUSIONS), run_name="__main__")
    assert CONCLUSIONS.with_suffix(".md").read_text("utf-8") == page


def test_without_results_only_the_parameters_are_judged() -> None:
    program = runpy.run_path(str(CONCLUSIONS))
    (found,) = program["judge"](program["Evidence"]([], []))
    assert found.measure.startswith("NN 128 101,770, LeNet-5 61,706, LeNet1 121,994")
    assert found.verdict == "true of LeNet-5 alone"


@cache
def tables() -> dict[str, str]:
    return read_tables(RECORD, read_rows())
