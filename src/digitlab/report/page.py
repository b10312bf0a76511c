"""The page: the settings and results of runs, rendered by `page.html.jinja`."""

import io
import json
import re
from base64 import b64encode
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.figure import Figure
from PIL import Image

from digitlab import __version__
from digitlab.callbacks.logging import count_parameters
from digitlab.callbacks.pictures import (
    COLORS,
    PHASES,
    curves,
    draw_quantity,
    style,
    validation_label,
)
from digitlab.report.content import Content

NOTHING = "—"
"""Shown where a run has no value."""
SCORES = {"test": "Test", "val": "Validation", "train": "Training"}
MARKS = {"o": "●", "s": "■", "^": "▲", "D": "◆", "v": "▼", "P": "✚"}
"""matplotlib's markers, and the same as characters, for the legend."""
FORMS = {"accuracy": ".2%", "loss": ",.4f", "learning_rate": ".4g"}
"""How the quantities of the curves are written."""
GROUPS = ("Scores", "Training", "Other settings", "Circumstances", "Versions")
SHOWN = {
    "model.class_path": "Network",
    "data.class_path": "Data",
    "framework": "Framework",
    "model.init_args.optimizer.class_path": "Optimizer",
    "model.init_args.optimizer.init_args.lr": "Learning rate",
    "data.init_args.batch_size": "Batch size",
    "trainer.precision": "Precision",
    "seed_everything": "Seed",
}
"""The facts that show settings."""

Facts = dict[tuple[str, str], str]
"""Values by group and name."""
Rows = list[tuple[str, list[str]]]
"""The rows of a table: a name, and a value for each run."""


def render(runs: Sequence[Content]) -> str:
    """Render the page of one run or several as HTML."""
    environment = Environment(
        loader=PackageLoader("digitlab.report", "."),
        autoescape=True,  # names of runs and classes are text, whatever they contain
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "png": png, "parameters": count_parameters}
    facts = [describe(run) for run in runs]
    groups, common = compare(runs, facts)
    styles = [style(place) for place in range(len(runs))]
    return environment.get_template("page.html.jinja").render(
        runs=runs,
        styles=[(color, MARKS[marker]) for color, marker in styles],
        headlines=[headline(own) for own in facts],
        groups=groups,
        common=common,
        curves=[*filter(None, (draw(runs, quantity) for quantity in FORMS))],
        validation=_validation(runs),
        version=__version__,
    )


def number(value: Any, form: str = ",.0f", unit: str = "") -> str:
    """Write a number of a file; a dash stands for anything else.

    >>> number(61706), number(1234.567, ",.1f", "s"), number("none")
    ('61,706', '1,234.6 s', '—')
    """
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return f"{value:{form}} {unit}".rstrip() if is_number else NOTHING


def png(image: Any) -> str:
    """Write a picture, or an image, uint8 `(28, 28)`, as a `data:` address."""
    content = io.BytesIO()
    picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
    picture.save(content, "PNG")
    return f"data:image/png;base64,{b64encode(content.getvalue()).decode()}"


def describe(run: Content) -> Facts:
    """Write all facts on a run."""
    (settings,) = pd.json_normalize(run.config).to_dict("records")
    metrics, weights = run.metrics, run.entries("weights")

    def named(setting: str, entry: str = "") -> str:
        """Write an entry of metrics.json, or before there is one, a setting without its module."""
        value = str(settings.get(setting, NOTHING))
        value = value.rpartition(".")[2] if setting.endswith("class_path") else value
        return str(metrics.get(entry, value))

    rates = [rate for _, rate in curves(run.history, "learning_rate").get("train", ())]
    rates = rates or [settings.get("model.init_args.optimizer.init_args.lr")]
    ends = dict.fromkeys(number(rate, FORMS["learning_rate"]) for rate in (rates[0], rates[-1]))
    digest = f"{weights.get('file')}, SHA-256 {str(weights.get('sha256', ''))[:12]}…"
    values = {
        "Scores": {
            name: value
            for phase, title in SCORES.items()
            for name, value in _describe_score(title, run.entries(phase))
        },
        "Training": {
            "Network": named("model.class_path", "model"),
            "Parameters": number(metrics.get("parameters")),
            "Data": named("data.class_path", "dataset"),
            "Framework": run.framework,
            "Optimizer": named("model.init_args.optimizer.class_path"),
            "Learning rate": " → ".join(ends),
            "Batch size": number(settings.get("data.init_args.batch_size")),
            "Epochs": number(metrics.get("epochs")),
            "Optimizer steps": number(metrics.get("optimizer_steps")),
            "Precision": named("trainer.precision", "precision"),
            "Seed": named("seed_everything", "seed"),
            "Initial weights": digest if weights.get("file") else NOTHING,
        },
        "Other settings": {
            name: value if isinstance(value, str) else json.dumps(value, default=str)
            for name, value in settings.items()
        },
        "Circumstances": {
            "Machine": str(metrics.get("device", NOTHING)),
            "Time": number(metrics.get("wall_time"), ",.1f", "s"),
            "Training throughput": number(metrics.get("images_per_second"), ",.0f", "images/s"),
        },
        "Versions": {name: str(it) for name, it in run.entries("versions").items()},
    }
    return {(group, name): values[group][name] for group in GROUPS for name in values[group]}


def _describe_score(title: str, score: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Write accuracy and loss, and the checkpoint if that is not the last one."""
    accuracy = number(score.get("accuracy"), FORMS["accuracy"])
    if accuracy != NOTHING:
        accuracy += f" ({score.get('correct')}/{score.get('n')})"
        if (checkpoint := score.get("checkpoint")) not in ("last", None):
            chosen = score.get("chosen_on")
            accuracy += f", checkpoint {checkpoint}"
            accuracy += f", chosen on the {chosen} images" if chosen else ""
    loss = number(score.get("loss"), FORMS["loss"])
    return [(f"{title} accuracy", accuracy), (f"{title} loss", loss)]


def headline(facts: Facts) -> str:
    """Write the network, the data and the accuracy in a sentence."""
    network, data, framework = (facts["Training", it] for it in ("Network", "Data", "Framework"))
    scores = {name: facts["Scores", name] for name in ("Test accuracy", "Validation accuracy")}
    shown = (f"{name.lower()} {score}" for name, score in scores.items() if score != NOTHING)
    return f"{network} on {data}, in {framework}: {next(shown, 'no final figures')}."


def compare(
    runs: Sequence[Content], described: Sequence[Facts]
) -> tuple[dict[str, Rows], list[tuple[str, str]]]:
    """Separate the facts in which runs differ, and all scores, from those that they share.

    What an unfinished run has not recorded yet is no difference. Of one run, nothing is shared.
    """
    groups: dict[str, Rows] = {group: [] for group in GROUPS}
    shared: list[tuple[str, str]] = []
    for group, name in dict.fromkeys(key for facts in described for key in facts):
        values = [facts.get((group, name), NOTHING) for facts in described]
        is_setting = group == "Other settings"
        pairs = zip(runs, values, strict=True)
        known = {it for run, it in pairs if it != NOTHING or run.metrics or is_setting}
        if is_setting:
            is_shown = len(known) > 1 and SHOWN.get(name) not in dict(groups["Training"])
        else:
            is_shown = len(known) > 1 or len(runs) == 1 or group == "Scores"
        if known <= {NOTHING}:
            continue
        if is_shown:
            groups[group].append((name, values))
        elif not is_setting:
            shared.append((name, known.pop()))
    groups["Other settings"].sort()
    return {group: rows for group, rows in groups.items() if rows}, shared


def draw(runs: Sequence[Content], quantity: str) -> tuple[str, str] | None:
    """Draw curves as SVG, and say in words what they show; None if there is nothing to show."""
    found = {run.name: curves(run.history, quantity) for run in runs}
    drawn = [points for phases in found.values() for points in phases.values()]
    if not drawn or (quantity == "learning_rate" and not any(np.ptp(it[:, 1]) for it in drawn)):
        return None
    form = FORMS[quantity]
    words = [
        f"{name}, {PHASES[phase][0]}: {points[0, 1]:{form}} after epoch {points[0, 0]:.0f}, "
        f"{points[-1, 1]:{form}} after epoch {points[-1, 0]:.0f}."
        for name, phases in found.items()
        for phase, points in phases.items()
    ]
    figure, content = Figure(figsize=(4.6, 3.1), layout="constrained"), io.StringIO()
    draw_quantity(figure.subplots(), [run.history for run in runs], quantity)
    # With a salt and without a date, the same run gives the same page.
    with mpl.rc_context({"svg.hashsalt": "digitlab"}):
        metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(content, format="svg", transparent=True, metadata=metadata)
    svg = content.getvalue()
    # Its colours are the page's, and its groups need no names, which another figure has, too.
    svg = re.sub('<g id="[^"]*">', "<g>", svg[svg.index("<svg") :])
    for place, color in enumerate(COLORS):
        svg = svg.replace(color, f"var(--run{place})")
    words = [f"Curves of the {quantity.replace('_', ' ')} over the epochs.", *words]
    return svg.replace("#000000", "currentColor"), " ".join(words)


def _validation(runs: Sequence[Content]) -> str:
    """Name the validation of runs in the legend."""
    held_out = [bool(run.config["data"]["init_args"].get("validation_size")) for run in runs]
    if any(held_out) and not all(held_out):
        return "validation (the test split where there is no hold-out)"
    return validation_label(not all(held_out))
