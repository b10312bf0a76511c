"""Write what the benchmarks measured into docs/performance.md, and draw it.

    python -m benchmarks.pages

It measures nothing: it reads docs/results/performance, where each benchmark's `--out` belongs.
"""

import json
from pathlib import Path
from typing import Any

from benchmarks import fast99, report, start_up, step_profile
from digitlab import runs
from digitlab.reproduce.report import fill

FOLDER = Path("docs", "results", "performance")
PAGE = Path("docs", "performance.md")


def main() -> None:
    """Fill the page's tables and draw the plot."""
    runs.write_text(PAGE, fill(PAGE.read_text("utf-8"), tables(), PAGE))
    runs.write_figure(FOLDER / "step_time.png", report.draw(step_times()))
    print(f"Written: {PAGE}, {FOLDER / 'step_time.png'}")


def tables() -> dict[str, str]:
    """Make all tables of the page by their names."""
    one, two = step_times(), _read("step_time_2_threads")
    return {
        **{f"step-{name}": text for name, text in report.named_tables(one).items()},
        **{f"two-threads-{name}": text for name, text in report.named_tables(two).items()},
        "step-profile": step_profile.table(_read("step_profile")),
        "start-up": start_up.tables(_read("start_up")),
        "fast99": fast99.table(_read("fast99")),
    }


def step_times() -> dict[str, Any]:
    """Read the times of all models, of which the large ones were measured by themselves."""
    small, large = _read("step_time"), _read("step_time_large")
    both: dict[str, Any] = small | {"models": small["models"] | large["models"]}
    return both


def _read(name: str) -> Any:
    return json.loads((FOLDER / f"{name}.json").read_text("utf-8"))


if __name__ == "__main__":
    main()
