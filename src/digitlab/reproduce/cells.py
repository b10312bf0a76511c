"""Numbers as cells of Markdown tables: in per cent, with a dash for what is not known."""

import math

from digitlab.reproduce.rows import Row
from digitlab.reproduce.statistics import Comparison, Interval, summarize

NONE = "—"


def table(head: list[str], lines: list[list[str]]) -> str:
    """Make a Markdown table."""
    all_lines = [head, ["---"] * len(head), *lines]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in all_lines)


def name(row: Row) -> str:
    """Name a row; a config's name is code."""
    return row.name if row.in_documents else f"`{row.name}`"


def measured(values: list[float]) -> tuple[str, str]:
    """Give mean ± standard deviation, and n; nothing where nothing was measured."""
    if not values:
        return "", ""
    summary = summarize(values)
    deviation = "" if math.isnan(summary.deviation) else f" ± {summary.deviation:.2f}"
    return f"{summary.mean:.2f}{deviation}", str(summary.n)


def mean(values: list[float]) -> str:
    """Give the mean, and n behind it."""
    return f"{summarize(values).mean:.2f} ({len(values)})"


def difference(found: Comparison) -> tuple[str, str]:
    """Give a difference and its interval, with their signs."""
    ends = [_signed(end) for end in found.interval]
    interval = f"[{', '.join(ends)}]" if is_known(found.interval) else NONE
    return _signed(found.difference), interval


def p_equivalence(found: Comparison) -> str:
    """Give the p-value of "the means differ by the margin or more"."""
    if not is_known(found.interval):
        return NONE
    return f"{found.p_equivalence:.3f}" if found.p_equivalence >= 0.001 else "< 0.001"


def interval(ends: Interval) -> str:
    """Give an interval of accuracies, as far as there are such accuracies."""
    low, high = max(ends[0], 0), min(ends[1], 100)
    return f"[{low:.2f}, {high:.2f}]" if is_known(ends) else NONE


def is_known(interval: Interval) -> bool:
    """Say whether an interval tells anything."""
    return all(math.isfinite(end) for end in interval)


def _signed(value: float) -> str:
    return f"{round(value, 2) + 0.0:+.2f}".replace("-", "−")  # + 0.0: no negative zero
