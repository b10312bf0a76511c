"""Runs side by side: figures, circumstances, and the settings that differ."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

from digitlab.report.content import Run

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
