"""The page: the settings and results of runs, rendered by `page.html.jinja`."""

import io
import json
from base64 import b64encode
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeGuard

import matplotlib as mpl
import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import NDArray
from PIL import Image

from digitlab import __version__
from digitlab.callbacks.logging import count_parameters
from digitlab.report.content import Run
from digitlab.report.predictions import Outcome, Predictions
from digitlab.run_folder import FRAMEWORKS

NOTHING = "—"
"""Shown in a table where a run has no value."""
SCORES = {"test": "Test", "val": "Validation", "train": "Training"}
PHASES = {"train": ("training", "--"), "val": ("validation", "-")}
"""The name and line style of each phase."""
MARKS = {"o": "●", "s": "■", "^": "▲", "D": "◆", "v": "▼", "P": "✚"}
"""matplotlib's markers, and the same as characters, for the legend."""
# For readers with any colour vision: Okabe and Ito's, and lighter ones for dark pages.
LIGHT = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b8860b", "#555555")
DARK = ("#56b4e9", "#ff8a4c", "#2bc49a", "#e39cc4", "#f2b632", "#b0b0b0")

Facts = list[tuple[str, tuple[str, ...]]]
"""The rows of a table: a name, and a value for each run."""


class Theme(NamedTuple):
    """How a run is drawn: its index among the colours, and its marker."""

    color: int
    marker: str

    @property
    def mark(self) -> str:
        """The marker as a character."""
        return MARKS[self.marker]


class Curves(NamedTuple):
    """A figure of curves for light and dark pages, with its alternative text."""

    light: str
    dark: str
    alt: str


class Shown(NamedTuple):
    """A run as the page shows it."""

    name: str  # the run's, or its folder's path if another run has the same
    run: Run
    outcome: Outcome
    theme: Theme

    @property
    def headline(self) -> str:
        """The network, the data and the accuracy, in a sentence."""
        network, data = (_named(self.run, *names) for names in (_NETWORK, _DATA))
        sentence = f"{network} on {data}, in {FRAMEWORKS[self.run.framework]}"
        for phase in ("test", "val"):
            if (score := format_score(self.run, phase)) != NOTHING:
                return f"{sentence}: {SCORES[phase].lower()} accuracy {score}."
        return f"{sentence}: no final figures."

    @property
    def phases(self) -> list[tuple[str, float, float]]:
        """The phases of the run, with their seconds and share of the time."""
        phases = entries(self.run.metrics, "phases")
        seconds = {name: value for name, value in phases.items() if is_number(value)}
        total = sum(seconds.values()) or 1
        return [(phase, value, value / total) for phase, value in seconds.items()]

    @property
    def disagreement(self) -> str:
        """A sentence if the predictions disagree with the score in metrics.json."""
        predictions = self.outcome.predictions
        if predictions is None:
            return ""
        phase = "test" if predictions.split == "test" else "val"
        counted = entries(self.run.metrics, phase).get("correct")
        if counted in (None, predictions.correct):
            return ""
        return (
            f"metrics.json counts {counted} right. For this page the images were classified again, "
            "on the CPU in float32; another precision, or dropout that stays on, gives other "
            "classes."
        )


def render(found: Sequence[tuple[Run, Outcome]]) -> str:
    """Render the page of one run or several as HTML."""
    runs = [run for run, _ in found]
    own = [run.name for run in runs]
    names = [str(run.folder) if own.count(run.name) > 1 else run.name for run in runs]
    environment = Environment(
        loader=PackageLoader("digitlab.report", "."),
        autoescape=True,  # names of runs and classes are text, whatever they contain
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters = {"percent": percent, "number": number, "png": png, "parameters": count_parameters}
    environment.filters |= filters
    curves = [render_curves(runs, names, quantity) for quantity in ("accuracy", "loss")]
    return environment.get_template("page.html.jinja").render(
        title=", ".join(names),
        runs=[
            Shown(name, run, outcome, theme(place))
            for place, (name, (run, outcome)) in enumerate(zip(names, found, strict=True))
        ],
        groups=fact_groups(runs),
        differences=differences(runs),
        curves=[figure for figure in curves if figure],
        colors=[*zip(LIGHT, DARK, strict=True)],
        confusion_rows=confusion_rows,
        version=__version__,
    )


def percent(value: object) -> str:
    """Write a fraction of 1.

    >>> percent(0.98765), percent(None)
    ('98.77%', '—')
    """
    return f"{value:.2%}" if is_number(value) else NOTHING


def number(value: object, decimals: int = 0, unit: str = "") -> str:
    """Write a number with separators of thousands.

    >>> number(61706), number(1234.567, 1, "s"), number("none")
    ('61,706', '1,234.6 s', '—')
    """
    return f"{value:,.{decimals}f} {unit}".rstrip() if is_number(value) else NOTHING


def is_number(value: object) -> TypeGuard[float]:
    """Return whether a value from a file is a number."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def png(image: NDArray[np.uint8]) -> str:
    """Write an image, uint8 `(28, 28)`, as a `data:` address."""
    content = io.BytesIO()
    Image.fromarray(image).save(content, "PNG")
    return _address("image/png", content)


def entries(metrics: dict[str, Any], name: str) -> dict[str, Any]:
    """Return a group of entries of metrics.json; empty if it is missing."""
    found = metrics.get(name)
    return found if isinstance(found, dict) else {}


def format_score(run: Run, phase: str) -> str:
    """Write an accuracy with its counts, and the checkpoint if that is not the last one."""
    score = entries(run.metrics, phase)
    if not is_number(score.get("accuracy")):
        return NOTHING
    counts = f"{percent(score['accuracy'])} ({score.get('correct')}/{score.get('n')})"
    if score.get("checkpoint") in ("last", None):
        return counts
    chosen = f", chosen on the {score['chosen_on']} images" if score.get("chosen_on") else ""
    return f"{counts}, checkpoint {score['checkpoint']}{chosen}"


def fact_groups(runs: Sequence[Run]) -> list[tuple[str, Facts]]:
    """Compare the runs' figures, circumstances and versions; rows without a value are left out."""
    packages = sorted({name for run in runs for name in entries(run.metrics, "versions")})
    groups: dict[str, list[tuple[str, Callable[[Run], str]]]] = {
        "Figures": [fact for phase in SCORES for fact in _score_facts(phase)],
        "Run": _RUN_FACTS,
        "Versions": [(name, _version(name)) for name in packages],
    }
    tables = []
    for title, rows in groups.items():
        facts = ((name, tuple(map(value, runs))) for name, value in rows)
        if shown := [fact for fact in facts if {*fact[1]} != {NOTHING}]:
            tables.append((title, shown))
    return tables


def _score_facts(phase: str) -> list[tuple[str, Callable[[Run], str]]]:
    return [
        (f"{SCORES[phase]} accuracy", lambda run: format_score(run, phase)),
        (f"{SCORES[phase]} loss", lambda run: number(entries(run.metrics, phase).get("loss"), 4)),
    ]


def _version(package: str) -> Callable[[Run], str]:
    return lambda run: str(entries(run.metrics, "versions").get(package, NOTHING))


def _count(name: str, decimals: int = 0, unit: str = "") -> Callable[[Run], str]:
    return lambda run: number(run.metrics.get(name), decimals, unit)


def _named(run: Run, entry: str, setting: str = "") -> str:
    """Write an entry of metrics.json, or before there is one, a setting, without its module."""
    value = run.config.get(setting, NOTHING)
    if isinstance(value, dict):
        value = str(value["class_path"]).rpartition(".")[2]
    return str(run.metrics.get(entry, value))


def _weights(run: Run) -> str:
    weights = entries(run.metrics, "weights")
    digest = str(weights.get("sha256", ""))[:12]
    return f"{weights['file']}, SHA-256 {digest}…" if weights.get("file") else NOTHING


_NETWORK, _DATA = ("model", "model"), ("dataset", "data")
_RUN_FACTS: list[tuple[str, Callable[[Run], str]]] = [
    ("Network", lambda run: _named(run, *_NETWORK)),
    ("Parameters", _count("parameters")),
    ("Data", lambda run: _named(run, *_DATA)),
    ("Framework", lambda run: FRAMEWORKS[run.framework]),
    ("Seed", lambda run: _named(run, "seed", "seed_everything")),
    ("Initial weights", _weights),
    ("Epochs", _count("epochs")),
    ("Optimizer steps", _count("optimizer_steps")),
    ("Time", _count("wall_time", 1, "s")),
    ("Training images a second", _count("images_per_second")),
    ("Machine", lambda run: _named(run, "device")),
    ("Precision", lambda run: _named(run, "precision")),
]


def differences(runs: Sequence[Run]) -> Facts:
    """List the settings in which the runs differ, leaf by leaf, by their names in config.yaml."""
    settings = [dict(_leaves(run.config)) for run in runs]
    names = sorted({name for own in settings for name in own})
    facts = [(name, tuple(own.get(name, NOTHING) for own in settings)) for name in names]
    return [fact for fact in facts if len({*fact[1]}) > 1]


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Flatten nested settings; a list of plain values is one setting."""
    items: list[tuple[Any, Any]] = []
    if isinstance(value, dict):
        items = [*value.items()]
    elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
        items = [*enumerate(value)]
    for key, item in items:
        yield from _leaves(item, f"{name}.{key}" if name else str(key))
    if not items:
        yield name, value if isinstance(value, str) else json.dumps(value, default=str)


def confusion_rows(predictions: Predictions) -> list[tuple[str, list[tuple[int, bool, float]]]]:
    """Return each class's name and cells.

    Returns:
        For each cell the count, whether it is correct, and its share of the largest mistake.
    """
    counts = predictions.confusion
    most = max(int((counts - np.diag(np.diag(counts))).max()), 1)
    return [
        (name, [(int(n), i == j, 0 if i == j else float(n) / most) for j, n in enumerate(row)])
        for i, (name, row) in enumerate(zip(predictions.names, counts, strict=True))
    ]


def theme(place: int) -> Theme:
    """Choose how a run is drawn; the first 36 differ."""
    markers = [*MARKS]
    return Theme(place % len(LIGHT), markers[(place + place // len(LIGHT)) % len(markers)])


def render_curves(runs: Sequence[Run], names: Sequence[str], quantity: str) -> Curves | None:
    """Draw a quantity over the epochs of all runs; None if no run has any.

    Args:
        runs: The runs.
        names: Their names.
        quantity: `accuracy` or `loss`.
    """
    lines = [
        (place, phase, points)
        for place, run in enumerate(runs)
        for phase in PHASES
        if len(run.history)
        and len(points := run.history[["epoch", f"{phase}_{quantity}"]].dropna().to_numpy())
    ]
    if not lines:
        return None
    form = percent if quantity == "accuracy" else lambda value: number(value, 4)
    words = [
        f"{names[place]}, {PHASES[phase][0]}: {form(points[0, 1])} after epoch "
        f"{points[0, 0]:.0f}, {form(points[-1, 1])} after epoch {points[-1, 0]:.0f}."
        for place, phase, points in lines
    ]
    alt = f"Curves of the {quantity} over the epochs. {' '.join(words)}"
    light, dark = _svg(lines, quantity, LIGHT, "#444444"), _svg(lines, quantity, DARK, "#bbbbbb")
    return Curves(light, dark, alt)


def _svg(
    lines: Sequence[tuple[int, str, NDArray[np.float64]]],
    quantity: str,
    colors: Sequence[str],
    ink: str,
) -> str:
    inked = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
    # With a salt and without a date, the same run gives the same page.
    settings: dict[Any, Any] = {**dict.fromkeys(inked, ink), "svg.hashsalt": "digitlab"}
    content = io.BytesIO()
    with mpl.rc_context(settings | {"font.size": 9}):
        figure = Figure(figsize=(4.6, 3.1), layout="constrained")
        axes = figure.subplots()
        for place, phase, points in lines:
            axes.plot(
                *points.T,
                color=colors[theme(place).color],
                marker=theme(place).marker,
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
