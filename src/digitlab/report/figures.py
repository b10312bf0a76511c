"""Curves and images, as `data:` addresses, which hold what they show."""

import io
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import NDArray
from PIL import Image

from digitlab.report.content import Run
from digitlab.report.facts import number, percent

PHASES = {"train": ("training", "--"), "val": ("validation", "-")}
"""How each phase is named and drawn."""
MARKS = {"o": "●", "s": "■", "^": "▲", "D": "◆", "v": "▼", "P": "✚"}
"""matplotlib's markers, and the same as characters, for the legend."""
# Told apart also by readers who do not see all colours: Okabe and Ito's, and lighter ones of them.
LIGHT = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b8860b", "#555555")
DARK = ("#56b4e9", "#ff8a4c", "#2bc49a", "#e39cc4", "#f2b632", "#b0b0b0")


@dataclass(frozen=True)
class Look:
    """How a run is drawn: its place among the colours, and its marker."""

    color: int
    marker: str

    @property
    def mark(self) -> str:
        """The marker as a character."""
        return MARKS[self.marker]


@dataclass(frozen=True)
class Curves:
    """A figure of curves, in light and in dark, and what it shows in words."""

    light: str
    dark: str
    alt: str


def look(place: int) -> Look:
    """Choose how the run at a place is drawn; the first 36 differ."""
    markers = [*MARKS]
    return Look(place % len(LIGHT), markers[(place + place // len(LIGHT)) % len(markers)])


def draw(runs: Sequence[Run], names: Sequence[str], quantity: str) -> Curves | None:
    """Draw a quantity over the epochs of all runs; None where no run has any.

    Args:
        runs: The runs.
        names: What to call them.
        quantity: `accuracy` or `loss`.
    """
    lines = [
        (place, phase, points)
        for place, run in enumerate(runs)
        for phase in PHASES
        if (points := _points(run, f"{phase}_{quantity}"))
    ]
    if not lines:
        return None
    say = percent if quantity == "accuracy" else lambda value: number(value, 4)
    words = [
        f"{names[place]}, {PHASES[phase][0]}: {say(points[0][1])} after epoch "
        f"{points[0][0]:.0f}, {say(points[-1][1])} after epoch {points[-1][0]:.0f}."
        for place, phase, points in lines
    ]
    alt = f"Curves of the {quantity} over the epochs. {' '.join(words)}"
    return Curves(_svg(lines, quantity, LIGHT), _svg(lines, quantity, DARK), alt)


def png(image: NDArray[np.uint8]) -> str:
    """Give an image, uint8 `(28, 28)`, as an address."""
    content = io.BytesIO()
    Image.fromarray(image).save(content, "PNG")
    return _address("image/png", content)


def _points(run: Run, column: str) -> list[tuple[float, float]]:
    rows = ((row["epoch"], row[column]) for row in run.history)
    return [(epoch, value) for epoch, value in rows if epoch is not None and value is not None]


def _svg(
    lines: Sequence[tuple[int, str, list[tuple[float, float]]]],
    quantity: str,
    colors: Sequence[str],
) -> str:
    ink = "#444444" if colors is LIGHT else "#bbbbbb"
    inked = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
    # With a salt and without a date, the same run gives the same page.
    settings: dict[Any, Any] = {
        **dict.fromkeys(inked, ink),
        "svg.hashsalt": "digitlab",
        "font.size": 9,
    }
    content = io.BytesIO()
    with mpl.rc_context(settings):
        figure = Figure(figsize=(4.6, 3.1), layout="constrained")
        axes = figure.subplots()
        for place, phase, points in lines:
            axes.plot(
                *zip(*points, strict=True),
                color=colors[look(place).color],
                marker=look(place).marker,
                linestyle=PHASES[phase][1],
                linewidth=1.4,
                markersize=3.5,
                markevery=max(1, len(points) // 12),
            )
        axes.set(xlabel="epoch", ylabel=quantity)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if quantity == "accuracy":
            axes.yaxis.set_major_formatter(PercentFormatter(1))
        axes.grid(color=ink, alpha=0.2, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        figure.savefig(content, format="svg", transparent=True, metadata={"Date": None})
    return _address("image/svg+xml", content)


def _address(kind: str, content: io.BytesIO) -> str:
    return f"data:{kind};base64,{b64encode(content.getvalue()).decode()}"
