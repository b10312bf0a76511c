"""Write all measured results into the pages of the documentation, and draw their figures.

    python -m benchmarks.pages

It measures nothing: it reads docs/results, the folder for each benchmark's `--out`.
"""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks import (
    conclusions,
    fast99,
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
    one, two = step_times(), _read("step_time_2_threads")
    return {
        **{f"step-{name}": text for name, text in report.named_tables(one).items()},
        **{f"two-threads-{name}": text for name, text in report.named_tables(two).items()},
        "step-profile": step_profile.table(_read("step_profile")),
        "start-up": start_up.tables(_read("start_up")),
        "fast99": fast99.table(_read("fast99")),
    }


def tensorboard() -> dict[str, str]:
    """Make the table of docs/tensorboard.md."""
    return {"tensorboard-price": tensorboard_price.table(_read("tensorboard_price"))}


def parity() -> dict[str, str]:
    """Make the tables of docs/parity.md."""
    found = Path("docs", "results", "parity", "pairs.json")
    return pairs.tables(json.loads(found.read_text("utf-8")))


def step_times() -> dict[str, Any]:
    """Read the times of all models; the large ones were measured separately."""
    small, large = _read("step_time"), _read("step_time_large")
    both: dict[str, Any] = small | {"models": small["models"] | large["models"]}
    return both


def _read(name: str) -> Any:
    return json.loads((FOLDER / f"{name}.json").read_text("utf-8"))


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
