"""The page: the settings and results of runs, rendered by `page.html.jinja`."""

import io
import json
import re
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeGuard

import matplotlib as mpl
import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from numpy.typing import NDArray
from PIL import Image

from digitlab import __version__
from digitlab.callbacks.logging import count_parameters
from digitlab.callbacks.pictures import (
    DARK,
    LIGHT,
    PHASES,
    Columns,
    curves,
    draw_curves,
    style,
    validation_label,
)
from digitlab.report.content import RunContent
from digitlab.report.predictions import Outcome, Predictions
from digitlab.run_folder import FRAMEWORKS

NOTHING = "—"
"""Shown in a table where a run has no value."""
SCORES = {"test": "Test", "val": "Validation", "train": "Training"}
MARKS = {"o": "●", "s": "■", "^": "▲", "D": "◆", "v": "▼", "P": "✚"}
"""matplotlib's markers, and the same as characters, for the legend."""

ORDER = ("Scores", "Training", "Other settings", "Circumstances", "Versions")
"""Of the groups of facts."""

Facts = list[tuple[str, tuple[str, ...]]]
"""The rows of a table: a name, and a value for each run."""


class Curves(NamedTuple):
    """A figure of curves for light and dark pages, with its alternative text."""

    light: str
    dark: str
    alt: str


class Shown(NamedTuple):
    """A run as the page shows it."""

    name: str  # the run's, or its folder's path if another run has the same
    run: RunContent
    outcome: Outcome
    color: int  # the index of its colour
    mark: str  # its marker as a character

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


def render(found: Sequence[tuple[RunContent, Outcome]]) -> str:
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
    histories: dict[str, Columns] = dict(zip(names, (run.history for run in runs), strict=True))
    groups, common = fact_groups(runs), list[tuple[str, str]]()
    if len(runs) > 1:
        groups, common = split_facts(runs, groups)
        above = {SETTINGS.get(name) for _, facts in groups for name, _ in facts}
        others = [fact for fact in differences(runs) if fact[0] not in above]
        groups.append(("Other settings", others))
        groups.sort(key=lambda group: ORDER.index(group[0]))
    shown = []
    for place, (name, (run, outcome)) in enumerate(zip(names, found, strict=True)):
        color, marker = style(place)
        shown.append(Shown(name, run, outcome, color, MARKS[marker]))
    return environment.get_template("page.html.jinja").render(
        title=", ".join(names),
        runs=shown,
        groups=[(title, facts) for title, facts in groups if facts],
        common=common,
        curves=render_curves(histories),
        validation=_validation(runs),
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


def png(image: NDArray[np.uint8] | Image.Image) -> str:
    """Write a picture, or an image, uint8 `(28, 28)`, as a `data:` address."""
    content = io.BytesIO()
    picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
    picture.save(content, "PNG")
    return _address("image/png", content)


def entries(metrics: dict[str, Any], name: str) -> dict[str, Any]:
    """Return a group of entries of metrics.json; empty if it is missing."""
    found = metrics.get(name)
    return found if isinstance(found, dict) else {}


def format_score(run: RunContent, phase: str) -> str:
    """Write an accuracy with its counts, and the checkpoint if that is not the last one."""
    score = entries(run.metrics, phase)
    if not is_number(score.get("accuracy")):
        return NOTHING
    counts = f"{percent(score['accuracy'])} ({score.get('correct')}/{score.get('n')})"
    if score.get("checkpoint") in ("last", None):
        return counts
    chosen = f", chosen on the {score['chosen_on']} images" if score.get("chosen_on") else ""
    return f"{counts}, checkpoint {score['checkpoint']}{chosen}"


def fact_groups(runs: Sequence[RunContent]) -> list[tuple[str, Facts]]:
    """Compare the runs' scores, training and circumstances; rows without a value are left out."""
    packages = sorted({name for run in runs for name in entries(run.metrics, "versions")})
    groups: dict[str, list[tuple[str, Callable[[RunContent], str]]]] = {
        "Scores": [fact for phase in SCORES for fact in _score_facts(phase)],
        "Training": _TRAINING_FACTS,
        "Circumstances": _CIRCUMSTANCES,
        "Versions": [(name, _version(name)) for name in packages],
    }
    tables = []
    for title, rows in groups.items():
        facts = ((name, tuple(map(value, runs))) for name, value in rows)
        if shown := [fact for fact in facts if {*fact[1]} != {NOTHING}]:
            tables.append((title, shown))
    return tables


def split_facts(
    runs: Sequence[RunContent], groups: Sequence[tuple[str, Facts]]
) -> tuple[list[tuple[str, Facts]], list[tuple[str, str]]]:
    """Separate the facts in which runs differ, and all scores, from those that they share.

    What an unfinished run has not recorded yet is no difference.
    """
    differ, shared = [], []
    for title, facts in groups:
        own = []
        for name, values in facts:
            pairs = zip(runs, values, strict=True)
            known = {value for run, value in pairs if run.metrics or value != NOTHING}
            if title == "Scores" or len(known) > 1:
                own.append((name, values))
            else:
                shared.append((name, known.pop()))
        differ.append((title, own))
    return differ, shared


def _score_facts(phase: str) -> list[tuple[str, Callable[[RunContent], str]]]:
    return [
        (f"{SCORES[phase]} accuracy", lambda run: format_score(run, phase)),
        (f"{SCORES[phase]} loss", lambda run: number(entries(run.metrics, phase).get("loss"), 4)),
    ]


def _version(package: str) -> Callable[[RunContent], str]:
    return lambda run: str(entries(run.metrics, "versions").get(package, NOTHING))


def _count(name: str, decimals: int = 0, unit: str = "") -> Callable[[RunContent], str]:
    return lambda run: number(run.metrics.get(name), decimals, unit)


def _named(run: RunContent, entry: str, setting: str = "") -> str:
    """Write an entry of metrics.json, or before there is one, a setting, without its module."""
    value = run.config.get(setting, NOTHING)
    if isinstance(value, dict):
        value = str(value["class_path"]).rpartition(".")[2]
    return str(run.metrics.get(entry, value))


def _weights(run: RunContent) -> str:
    weights = entries(run.metrics, "weights")
    digest = str(weights.get("sha256", ""))[:12]
    return f"{weights['file']}, SHA-256 {digest}…" if weights.get("file") else NOTHING


def setting(run: RunContent, *keys: str) -> Any:
    """Return a setting of config.yaml, or None."""
    value: Any = run.config
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _learning_rate(run: RunContent) -> str:
    rates = [rate for _, rate in curves(run.history, "learning_rate").get("train", ())]
    configured = setting(run, "model", "init_args", "optimizer", "init_args", "lr")
    ends = [rates[0], rates[-1]] if len(rates) else [configured]
    shown = [f"{rate:.4g}" for rate in ends if is_number(rate)]
    return " → ".join(dict.fromkeys(shown)) or NOTHING


def _optimizer(run: RunContent) -> str:
    path = setting(run, "model", "init_args", "optimizer", "class_path")
    return path.rpartition(".")[2] if isinstance(path, str) else NOTHING


def _batch_size(run: RunContent) -> str:
    return number(setting(run, "data", "init_args", "batch_size"))


_NETWORK, _DATA = ("model", "model"), ("dataset", "data")
_TRAINING_FACTS: list[tuple[str, Callable[[RunContent], str]]] = [
    ("Network", lambda run: _named(run, *_NETWORK)),
    ("Parameters", _count("parameters")),
    ("Data", lambda run: _named(run, *_DATA)),
    ("Optimizer", _optimizer),
    ("Learning rate", _learning_rate),
    ("Batch size", _batch_size),
    ("Epochs", _count("epochs")),
    ("Optimizer steps", _count("optimizer_steps")),
    ("Seed", lambda run: _named(run, "seed", "seed_everything")),
    ("Initial weights", _weights),
]
SETTINGS = {
    "Network": "model.class_path",
    "Data": "data.class_path",
    "Optimizer": "model.init_args.optimizer.class_path",
    "Learning rate": "model.init_args.optimizer.init_args.lr",
    "Batch size": "data.init_args.batch_size",
    "Seed": "seed_everything",
    "Framework": "framework",
    "Precision": "trainer.precision",
}
"""The settings that facts show."""
_CIRCUMSTANCES: list[tuple[str, Callable[[RunContent], str]]] = [
    ("Framework", lambda run: FRAMEWORKS[run.framework]),
    ("Machine", lambda run: _named(run, "device")),
    ("Precision", lambda run: _named(run, "precision")),
    ("Time", _count("wall_time", 1, "s")),
    ("Training throughput", _count("images_per_second", 0, "images/s")),
]


def differences(runs: Sequence[RunContent]) -> Facts:
    """List the settings in which the runs differ, leaf by leaf, by their names in config.yaml."""
    settings = [dict(_leaves(run.config)) for run in runs]
    names = sorted({name for own in settings for name in own})
    facts = [(name, tuple(own.get(name, NOTHING) for own in settings)) for name in names]
    return [(name, _rounded(values)) for name, values in facts if len({*values}) > 1]


def _rounded(values: tuple[str, ...]) -> tuple[str, ...]:
    """Round numbers to four digits, unless different ones would become the same.

    >>> _rounded(("0.005797658631826679", "0.01")), _rounded(("0.500001", "0.500002"))
    (('0.005798', '0.01'), ('0.500001', '0.500002'))
    """
    shown = tuple(f"{float(v):.4g}" if _FRACTION.fullmatch(v) else v for v in values)
    return shown if len({*shown}) == len({*values}) else values


_FRACTION = re.compile(r"-?\d+\.\d+(e[-+]?\d+)?")


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


def render_curves(histories: Mapping[str, Columns]) -> list[Curves]:
    """Draw accuracy, loss, and a learning rate that changes; what no run has is left out."""
    quantities = ["accuracy", "loss"]
    rates = [curves(history, "learning_rate").get("train") for history in histories.values()]
    if any(points is not None and np.ptp(points[:, 1]) > 0 for points in rates):
        quantities.append("learning_rate")
    found = [_render_quantity(histories, quantity) for quantity in quantities]
    return [figure for figure in found if figure]


def _render_quantity(histories: Mapping[str, Columns], quantity: str) -> Curves | None:
    form = percent if quantity == "accuracy" else lambda value: f"{value:.4g}"
    form = (lambda value: number(value, 4)) if quantity == "loss" else form
    words = [
        f"{name}, {PHASES[phase][0]}: {form(points[0, 1])} after epoch {points[0, 0]:.0f}, "
        f"{form(points[-1, 1])} after epoch {points[-1, 0]:.0f}."
        for name, history in histories.items()
        for phase, points in curves(history, quantity).items()
    ]
    if not words:
        return None
    alt = f"Curves of the {quantity.replace('_', ' ')} over the epochs. {' '.join(words)}"
    light, dark = (_svg(histories, quantity, is_dark) for is_dark in (False, True))
    return Curves(light, dark, alt)


def _svg(histories: Mapping[str, Columns], quantity: str, dark: bool) -> str:
    content = io.BytesIO()
    # With a salt and without a date, the same run gives the same page.
    with mpl.rc_context({"svg.hashsalt": "digitlab"}):
        figure = draw_curves(histories, [quantity], dark=dark, plain=True)
        figure.savefig(content, format="svg", transparent=True, metadata={"Date": None})
    return _address("image/svg+xml", content)


def _validation(runs: Sequence[RunContent]) -> str:
    """Name the validation of runs in the legend."""
    held_out = [bool(setting(run, "data", "init_args", "validation_size")) for run in runs]
    if any(held_out) and not all(held_out):
        return "validation (the test split where there is no hold-out)"
    return validation_label(not all(held_out))


def _address(kind: str, content: io.BytesIO) -> str:
    return f"data:{kind};base64,{b64encode(content.getvalue()).decode()}"
