"""The page: what runs hold and gave, put into `page.html.jinja`."""

import io
import json
from base64 import b64encode
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

import matplotlib as mpl
import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import NDArray
from PIL import Image

from digitlab import __version__
from digitlab.report.content import Run
from digitlab.report.predictions import Outcome, Predictions

NOTHING = "—"
"""What stands where a run has no value."""
FRAMEWORKS = {"torch": "PyTorch", "keras": "Keras"}
SCORES = {"test": "Test", "val": "Validation", "train": "Training"}


@dataclass(frozen=True)
class Fact:
    """A row of a table: what it is of, and a value in words for each run."""

    name: str
    values: tuple[str, ...]


@dataclass(frozen=True)
class Group:
    """Rows of a table under a heading of their own."""

    title: str
    facts: tuple[Fact, ...]


def percent(value: object) -> str:
    """Write a part of 1.

    >>> percent(0.98765), percent(None)
    ('98.77%', '—')
    """
    return f"{value:.2%}" if is_number(value) else NOTHING


def number(value: object, decimals: int = 0, unit: str = "") -> str:
    """Write a number, with its thousands apart.

    >>> number(61706), number(1234.567, 1, "s"), number("none")
    ('61,706', '1,234.6 s', '—')
    """
    return f"{value:,.{decimals}f} {unit}".rstrip() if is_number(value) else NOTHING


def summarize(runs: Sequence[Run]) -> list[Group]:
    """Put the runs' figures and circumstances side by side; what no run has is left out."""
    packages = sorted({name for run in runs for name in entries(run.metrics, "versions")})
    groups = {
        "Figures": [fact for phase in SCORES for fact in _score_facts(phase)],
        "Run": _RUN_FACTS,
        "Versions": [(name, _version(name)) for name in packages],
    }
    tables = []
    for title, rows in groups.items():
        facts = (Fact(name, tuple(say(run) for run in runs)) for name, say in rows)
        if shown := tuple(fact for fact in facts if set(fact.values) != {NOTHING}):
            tables.append(Group(title, shown))
    return tables


def differences(runs: Sequence[Run]) -> list[Fact]:
    """List the settings in which the runs differ, leaf by leaf, by their names in config.yaml."""
    settings = [dict(_leaves(run.config)) for run in runs]
    names = sorted({name for own in settings for name in own})
    facts = (Fact(name, tuple(own.get(name, NOTHING) for own in settings)) for name in names)
    return [fact for fact in facts if len(set(fact.values)) > 1]


def class_name(settings: object) -> str:
    """Give the bare name of the class that a section of a config names."""
    path = settings.get("class_path") if isinstance(settings, dict) else None
    return str(path).rpartition(".")[2] if path else NOTHING


def entries(metrics: dict[str, Any], name: str) -> dict[str, Any]:
    """Give a group of entries of metrics.json; empty where it is not there."""
    found = metrics.get(name)
    return found if isinstance(found, dict) else {}


def score_in_words(run: Run, phase: str) -> str:
    """Write an accuracy with its counts, and whose it is where that is not the last weights'."""
    score = entries(run.metrics, phase)
    accuracy, correct, n = (score.get(key) for key in ("accuracy", "correct", "n"))
    if not is_number(accuracy):
        return NOTHING
    counts = f"{percent(accuracy)} ({correct}/{n})"
    if score.get("checkpoint") in ("last", None):
        return counts
    chosen = f", chosen on the {score['chosen_on']} images" if score.get("chosen_on") else ""
    return f"{counts}, checkpoint {score['checkpoint']}{chosen}"


def _score_facts(phase: str) -> list[tuple[str, Callable[[Run], str]]]:
    return [
        (f"{SCORES[phase]} accuracy", lambda run: score_in_words(run, phase)),
        (f"{SCORES[phase]} loss", lambda run: number(entries(run.metrics, phase).get("loss"), 4)),
    ]


def _plain(
    name: str, otherwise: Callable[[Run], str] = lambda run: NOTHING
) -> Callable[[Run], str]:
    return lambda run: str(run.metrics[name]) if name in run.metrics else otherwise(run)


def _count(name: str, decimals: int = 0, unit: str = "") -> Callable[[Run], str]:
    return lambda run: number(run.metrics.get(name), decimals, unit)


def _version(package: str) -> Callable[[Run], str]:
    return lambda run: str(entries(run.metrics, "versions").get(package, NOTHING))


def _weights(run: Run) -> str:
    weights = entries(run.metrics, "weights")
    digest = str(weights.get("sha256", ""))[:12]
    return f"{weights['file']}, SHA-256 {digest}…" if weights.get("file") else NOTHING


_RUN_FACTS: list[tuple[str, Callable[[Run], str]]] = [
    ("Network", _plain("model", lambda run: class_name(run.config["model"]))),
    ("Parameters", _count("parameters")),
    ("Data", _plain("dataset", lambda run: class_name(run.config["data"]))),
    ("Framework", lambda run: FRAMEWORKS[run.framework]),
    ("Seed", _plain("seed", lambda run: str(run.config.get("seed_everything", NOTHING)))),
    ("Initial weights", _weights),
    ("Epochs", _count("epochs")),
    ("Optimizer steps", _count("optimizer_steps")),
    ("Time", _count("wall_time", 1, "s")),
    ("Training images a second", _count("images_per_second")),
    ("Machine", _plain("device")),
    ("Precision", _plain("precision")),
]


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Give what is in nested settings; a list of plain values is one setting."""
    items: list[tuple[Any, Any]] = []
    if isinstance(value, dict):
        items = [*value.items()]
    elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
        items = [*enumerate(value)]
    if items:
        for key, item in items:
            yield from _leaves(item, f"{name}.{key}" if name else str(key))
    else:
        yield name, value if isinstance(value, str) else json.dumps(value, default=str)


def is_number(value: object) -> TypeGuard[float]:
    """Tell a number from what else a file may hold."""
    return isinstance(value, int | float) and not isinstance(value, bool)


PHASES = {"train": ("training", "--"), "val": ("validation", "-")}
"""How each phase is named and drawn."""
MARKS = {"o": "●", "s": "■", "^": "▲", "D": "◆", "v": "▼", "P": "✚"}
"""matplotlib's markers, and the same as characters, for the legend."""
# Told apart also by readers who do not see all colours: Okabe and Ito's, and lighter ones of them.
LIGHT = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b8860b", "#555555")
DARK = ("#56b4e9", "#ff8a4c", "#2bc49a", "#e39cc4", "#f2b632", "#b0b0b0")


@dataclass(frozen=True)
class Theme:
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


def theme(place: int) -> Theme:
    """Choose how the run at a place is drawn; the first 36 differ."""
    markers = [*MARKS]
    return Theme(place % len(LIGHT), markers[(place + place // len(LIGHT)) % len(markers)])


def draw_curves(runs: Sequence[Run], names: Sequence[str], quantity: str) -> Curves | None:
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


@dataclass(frozen=True)
class Shown:
    """A run as the page shows it.

    Args:
        name: The run's; its folder's path where another run has the same.
        run: The run.
        outcome: What its network says.
        look: How it is drawn.
    """

    name: str
    run: Run
    outcome: Outcome
    look: Theme

    @property
    def headline(self) -> str:
        """What was trained on what, and how well it does, in a sentence."""
        metrics, config = self.run.metrics, self.run.config
        network = metrics.get("model", class_name(config["model"]))
        data = metrics.get("dataset", class_name(config["data"]))
        sentence = f"{network} on {data}, in {FRAMEWORKS[self.run.framework]}"
        for phase in ("test", "val"):
            if (score := score_in_words(self.run, phase)) != NOTHING:
                return f"{sentence}: {SCORES[phase].lower()} accuracy {score}."
        return f"{sentence}: no final figures."

    @property
    def phases(self) -> list[tuple[str, float, float]]:
        """What took how many seconds, and which part of the time."""
        phases = entries(self.run.metrics, "phases")
        seconds = {name: value for name, value in phases.items() if is_number(value)}
        total = sum(seconds.values()) or 1
        return [(phase, value, value / total) for phase, value in seconds.items()]

    @property
    def disagreement(self) -> str:
        """Where the predictions are not those of the score in metrics.json, a sentence."""
        predictions = self.outcome.predictions
        if predictions is None:
            return ""
        phase = "test" if predictions.split == "test" else "val"
        counted = entries(self.run.metrics, phase).get("correct")
        if counted in (None, predictions.correct):
            return ""
        return (
            f"metrics.json counts {counted} right. For this page the images were classified anew, "
            "on the CPU in float32, and another precision, or dropout that stays on, gives other "
            "classes."
        )


def render(found: Sequence[tuple[Run, Outcome]]) -> str:
    """Write the page of one run or several as HTML."""
    every = [run for run, _ in found]
    own = [run.name for run in every]
    names = [str(run.folder) if own.count(run.name) > 1 else run.name for run in every]
    shown = [
        Shown(name, run, outcome, theme(place))
        for place, (name, (run, outcome)) in enumerate(zip(names, found, strict=True))
    ]
    environment = Environment(
        loader=PackageLoader("digitlab.report", "."),
        autoescape=True,  # names of runs and classes are text, whatever is in them
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": percent, "number": number, "png": png}
    curves = [draw_curves(every, names, quantity) for quantity in ("accuracy", "loss")]
    return environment.get_template("page.html.jinja").render(
        title=", ".join(names),
        runs=shown,
        groups=summarize(every),
        differences=differences(every),
        curves=[figure for figure in curves if figure],
        colors=[*zip(LIGHT, DARK, strict=True)],
        confusion_rows=confusion_rows,
        class_rows=class_rows,
        version=__version__,
    )


def confusion_rows(predictions: Predictions) -> list[tuple[str, list[tuple[int, bool, float]]]]:
    """Give each class's name and cells.

    Returns:
        Of each cell the count, whether it is right, and its part of the largest count of mistakes.
    """
    counts = predictions.confusion
    wrong = counts.copy()
    wrong[range(len(counts)), range(len(counts))] = 0
    most = max(int(wrong.max()), 1)
    return [
        (name, [(int(n), i == j, 0 if i == j else float(n) / most) for j, n in enumerate(row)])
        for i, (name, row) in enumerate(zip(predictions.names, counts, strict=True))
    ]


def class_rows(predictions: Predictions) -> list[dict[str, Any]]:
    """Give for each class its recall and precision, with the counts that they are made of."""
    counts = predictions.confusion
    return [
        {
            "name": name,
            "right": int(counts[i, i]),
            "images": int(counts[i].sum()),
            "taken": int(counts[:, i].sum()),
            "recall": predictions.recall[i],
            "precision": predictions.precision[i],
        }
        for i, name in enumerate(predictions.names)
    ]
