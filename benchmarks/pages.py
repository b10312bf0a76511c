"""Write all measured results into the pages of the documentation, and draw their figures.

    python -m benchmarks.pages

It measures nothing: it reads docs/results, the folder for each benchmark's `--out`.
"""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from benchmarks import (
    conclusions,
    executors,
    fast99,
    neighbours,
    report,
    reproduction,
    start_up,
    step_profile,
    tensorboard_price,
)
from benchmarks.endurance import report as endurance
from benchmarks.pairs import report as pairs
from digitlab import files

MARK = re.compile(r"<!-- table ([\w-]+) -->")
"""The mark above a table in a page; the table ends at `<!-- /table -->`."""

FOLDER = Path("docs", "results", "performance")


def main() -> None:
    """Fill the pages' tables and draw the figures."""
    recorded = reproduction.read_tables()
    filled = {page: fill(page.read_text("utf-8"), tables(), page) for page, tables in PAGES.items()}
    filled |= {page: fill(page.read_text("utf-8"), recorded, page) for page in RECORD_PAGES}
    for page, text in filled.items():
        files.write_text(page, text)
    files.write_figure(FOLDER / "step_time.png", report.draw(step_times()))
    print("Written:", *filled, FOLDER / "step_time.png", *reproduction.write_figures())


def fill(text: str, tables: Mapping[str, str], page: Path) -> str:
    """Put tables between their marks in a page's text.

    Raises:
        ValueError: The page asks for a table that does not exist, or lacks the mark of its end.
    """

    def replace(found: re.Match[str]) -> str:
        if found[1] not in tables:
            raise ValueError(f"{page} has a table {found[1]}: choose from {', '.join(tables)}")
        return f"<!-- table {found[1]} -->\n{tables[found[1]]}\n<!-- /table -->"

    pattern = f"{MARK.pattern}\n(?:(?!<!-- table ).)*?<!-- /table -->"
    text, count = re.subn(pattern, replace, text, flags=re.DOTALL)
    if count != len(MARK.findall(text)):
        raise ValueError(f"{page} has a table without an end: write <!-- /table --> below it")
    return text


def performance() -> dict[str, str]:
    """Make all tables of docs/performance.md by their names."""
    return {
        **{f"step-{name}": text for name, text in report.named_tables(step_times()).items()},
        **{
            name.replace("_", "-"): f"{table(_read(name))}\n\n{report.describe(_read(name))}."
            for name, table in ON_ONE_MACHINE.items()
            if (FOLDER / f"{name}.json").exists()  # it was measured
        },
    }


def tensorboard() -> dict[str, str]:
    """Make the table of docs/tensorboard.md."""
    return {"tensorboard-price": tensorboard_price.table(_read("tensorboard_price"))}


def parity() -> dict[str, str]:
    """Make the tables of docs/parity.md."""
    found = Path("docs", "results", "parity", "pairs.json")
    return pairs.tables(json.loads(found.read_text("utf-8")))


def step_times() -> dict[str, Any]:
    """Read what was measured on each CPU, by a letter."""
    paths = sorted((FOLDER / "step_time").glob("*.json"))
    measured = (json.loads(path.read_text("utf-8")) for path in paths)
    return dict(zip(ascii_uppercase, measured, strict=False))


def _read(name: str) -> Any:
    return json.loads((FOLDER / f"{name}.json").read_text("utf-8"))


ON_ONE_MACHINE: dict[str, Callable[[Any], str]] = {
    "step_profile": step_profile.table,
    "neighbours": neighbours.table,
    "executors": executors.table,
    "start_up": start_up.tables,
    "fast99": fast99.table,
}
"""The tables of docs/performance.md that are measured on one CPU, by their files."""

RECORD_PAGES = [
    *(Path("README.md"), Path("docs", "reproduction.md")),
    *sorted(Path("docs", "experiments").glob("*.md")),
]
"""The pages that show tables of the documents' rows."""

PAGES: dict[Path, Callable[[], dict[str, str]]] = {
    Path("docs", "compare.md"): reproduction.compare_tables,
    Path("docs", "conclusions.md"): lambda: {"claims": conclusions.claims_table()},
    Path("docs", "parity.md"): parity,
    Path("docs", "performance.md"): performance,
    Path("docs", "reliability.md"): endurance.tables,
    Path("docs", "tensorboard.md"): tensorboard,
}
"""The function that makes each page's tables."""


if __name__ == "__main__":
    main()
