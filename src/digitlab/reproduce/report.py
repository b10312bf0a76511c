"""`digitlab reproduce --report`: tables and plots of what has been measured."""

import re
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure
from PIL import Image

from digitlab import runs
from digitlab.reproduce import curves, plots, results, tables
from digitlab.reproduce.claims import judge
from digitlab.reproduce.evidence import Evidence, claims_table
from digitlab.reproduce.explain import read_explain
from digitlab.reproduce.results import Result
from digitlab.reproduce.rows import Row, by_experiment

PAGE_TABLE = re.compile(r"<!-- table ([\w-]+) -->")
"""The mark in a page above a table, which ends at `<!-- /table -->`."""


def write_report(
    out: Path, rows: dict[str, Row], pages: Sequence[Path] = (), against: Path | None = None
) -> None:
    """Write tables.md and the figures beside the results, and the tables into pages.

    Args:
        out: The folder of results.csv; what it has besides is that of `read_tables`.
        rows: The rows by their names.
        pages: Markdown files, in which what is between the marks of a table is replaced.
        against: A results.csv whose prediction intervals judge the runs in `out`.

    Raises:
        ValueError, OSError: There are no results, or a page asks for a table that is not there.
    """
    measured = results.read(out / "results.csv")
    if not measured:
        raise ValueError(f"there are no results in {out}: name the --out of digitlab reproduce")
    named = read_tables(out, rows)
    if against:
        reference = results.read(against)
        if not reference:
            raise ValueError(f"there are no results in {against}: give another results.csv")
        named["against"] = tables.prediction_table(rows, measured, reference)
        print(named["against"])
    filled = {page: fill(page.read_text("utf-8"), named, page) for page in pages}

    text = "\n\n".join(f"## {name}\n\n{table}" for name, table in named.items())
    runs.write_text(out / "tables.md", text + "\n")
    figures = draw_figures(rows, measured)
    (out / "curves").mkdir(exist_ok=True)
    for name, figure in figures.items():
        _write_figure(out / f"{name}.png", figure)
    for page, page_text in filled.items():
        runs.write_text(page, page_text)
    written = [out / "tables.md", *(out / f"{name}.png" for name in figures), *pages]
    print(f"{len(measured)} runs; written: {', '.join(map(str, written))}")


def draw_figures(rows: dict[str, Row], measured: Sequence[Result]) -> dict[str, Figure]:
    """Draw all figures, by their names; those of experiments are `curves/B3` and such."""
    figures = {
        "published": plots.draw_published(rows, measured),
        "curves": curves.draw_curves(rows, measured),
        "gap": plots.draw_gap(rows, measured),
    }
    for name, its_rows in by_experiment(rows).items():
        if figure := curves.draw_experiment(its_rows, measured):
            figures[f"curves/{name}"] = figure
    return figures


def read_tables(out: Path, rows: dict[str, Row]) -> dict[str, str]:
    """Make all tables that a folder's results allow, as Markdown by their names.

    Args:
        out: The folder with results.csv; it may have `rerun` and `convergence`, folders with the
            results of other seeds and of finer curves, and folders of `--explain`.
        rows: The rows by their names.
    """
    measured = results.read(out / "results.csv")
    named = {
        "results": tables.results_table(rows, measured),
        "intervals": tables.intervals_table(rows, measured),
        "same-recipe": tables.same_recipe_table(rows, measured),
        "as-published": tables.as_published_table(rows, measured),
    }
    for name, its_rows in by_experiment(rows).items():
        if any(result.row in its_rows for result in measured):
            named[f"row-{name}"] = tables.experiment_table(its_rows, measured)
    convergence = results.read(out / "convergence" / "results.csv")
    named["claims"] = claims_table(judge(Evidence(measured, convergence)))
    if rerun := results.read(out / "rerun" / "results.csv"):
        named["rerun"] = tables.prediction_table(rows, rerun, measured)
    for grid in sorted(out.glob("explain-*/grid.csv")):
        try:
            named |= read_explain(grid.parent)
        except ValueError as error:  # it is still under way
            print(error)
    return named


def fill(text: str, named: dict[str, str], page: Path) -> str:
    """Put tables between their marks in a page's text.

    Raises:
        ValueError: The page asks for a table that there is not, or does not end it.
    """

    def replace(found: re.Match[str]) -> str:
        if found[1] not in named:
            raise ValueError(f"{page} has a table {found[1]}: choose from {', '.join(named)}")
        return f"<!-- table {found[1]} -->\n{named[found[1]]}\n<!-- /table -->"

    pattern = f"{PAGE_TABLE.pattern}\n(?:(?!<!-- table ).)*?<!-- /table -->"
    text, count = re.subn(pattern, replace, text, flags=re.DOTALL)
    if count != len(PAGE_TABLE.findall(text)):
        raise ValueError(f"{page} has a table without an end: write <!-- /table --> below it")
    return text


def _write_figure(path: Path, figure: Figure) -> None:
    """Write a figure, whole or not at all, in 64 colours: a third of the size, the same look."""
    with runs.whole(path) as beside:
        figure.savefig(beside)
        with Image.open(beside) as image:
            small = image.convert("RGB").quantize(64, dither=Image.Dither.NONE)
        small.save(beside, optimize=True)
