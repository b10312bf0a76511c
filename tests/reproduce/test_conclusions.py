"""docs/conclusions.py, the script that writes the table of docs/conclusions.md."""

import runpy
import shutil
from pathlib import Path

import pytest

pytestmark = pytest.mark.docs
PROGRAM = Path("docs", "conclusions.py")


def test_the_page_has_the_table_that_the_script_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = PROGRAM.with_suffix(".md").read_text("utf-8")
    shutil.copytree("docs/results", tmp_path / "docs" / "results")
    shutil.copy(PROGRAM, tmp_path / PROGRAM)
    monkeypatch.chdir(tmp_path)
    start, end = page.index("|---|"), page.index("\n<!-- /table -->")
    PROGRAM.with_suffix(".md").write_text(page[:start] + page[end:], "utf-8")
    runpy.run_path(str(PROGRAM), run_name="__main__")
    assert PROGRAM.with_suffix(".md").read_text("utf-8") == page


def test_without_results_only_the_parameters_are_judged() -> None:
    program = runpy.run_path(str(PROGRAM))
    (found,) = program["judge"](program["Evidence"]([], []))
    assert found.measure.startswith("NN 128 101,770, LeNet-5 61,706, LeNet1 121,994")
    assert found.verdict == "true of LeNet-5 alone"
