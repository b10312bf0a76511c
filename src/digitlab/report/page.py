"""The page: what runs hold and gave, put into `page.html.jinja`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from digitlab import __version__
from digitlab.report import facts, figures
from digitlab.report.content import Run
from digitlab.report.predictions import Outcome, Predictions


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
    look: figures.Look

    @property
    def headline(self) -> str:
        """What was trained on what, and how well it does, in a sentence."""
        metrics, config = self.run.metrics, self.run.config
        network = metrics.get("model", facts.class_name(config["model"]))
        data = metrics.get("dataset", facts.class_name(config["data"]))
        sentence = f"{network} on {data}, in {facts.FRAMEWORKS[self.run.framework]}"
        for phase in ("test", "val"):
            if (score := facts.score_in_words(self.run, phase)) != facts.NOTHING:
                return f"{sentence}: {facts.SCORES[phase].lower()} accuracy {score}."
        return f"{sentence}: no final figures."

    @property
    def phases(self) -> list[tuple[str, float, float]]:
        """What took how many seconds, and which part of the time."""
        phases = facts.entries(self.run.metrics, "phases")
        seconds = {name: value for name, value in phases.items() if facts.is_number(value)}
        total = sum(seconds.values()) or 1
        return [(phase, value, value / total) for phase, value in seconds.items()]

    @property
    def disagreement(self) -> str:
        """Where the predictions are not those of the score in metrics.json, a sentence."""
        predictions = self.outcome.predictions
        if predictions is None:
            return ""
        phase = "test" if predictions.split == "test" else "val"
        counted = facts.entries(self.run.metrics, phase).get("correct")
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
        Shown(name, run, outcome, figures.look(place))
        for place, (name, (run, outcome)) in enumerate(zip(names, found, strict=True))
    ]
    environment = Environment(
        loader=PackageLoader("digitlab.report", "."),
        autoescape=True,  # names of runs and classes are text, whatever is in them
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": facts.percent, "number": facts.number, "png": figures.png}
    curves = [figures.draw(every, names, quantity) for quantity in ("accuracy", "loss")]
    return environment.get_template("page.html.jinja").render(
        title=", ".join(names),
        runs=shown,
        groups=facts.summarize(every),
        differences=facts.differences(every),
        curves=[figure for figure in curves if figure],
        colors=[*zip(figures.LIGHT, figures.DARK, strict=True)],
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
