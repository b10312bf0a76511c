"""Write the benchmarks' results into the pages of the documentation, and draw the plot.

    python -m benchmarks.pages

It measures nothing: it reads docs/results, the folder for each benchmark's `--out`.
"""

import json
from pathlib import Path
from typing import Any

from benchmarks import fast99, report, start_up, step_profile, tensorboard_price
from benchmarks.endurance import report as endurance
from benchmarks.pairs import report as pairs
from digitlab import files
from digitlab.reproduce.command import fill

FOLDER = Path("docs", "results", "performance")


def main() -> None:
    """Fill the pages' tables and draw the plot."""
    for page, tables in PAGES.items():
        files.write_text(page, fill(page.read_text("utf-8"), tables(), page))
    files.write_figure(FOLDER / "step_time.png", report.draw(step_times()))
    print("Written:", *PAGES, FOLDER / "step_time.png")


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


PAGES = {
    Path("docs", "parity.md"): parity,
    Path("docs", "performance.md"): performance,
    Path("docs", "reliability.md"): endurance.tables,
    Path("docs", "tensorboard.md"): tensorboard,
}
"""The function that makes each page's tables."""


if __name__ == "__main__":
    main()
