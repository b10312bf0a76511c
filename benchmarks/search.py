"""Search the recipe of `configs/fashion_mnist/resnet.yaml` on held-out training images.

    DIGITLAB_DATA=data python -m benchmarks.search [--out DIR] [--csv FILE] [--until QUESTION]

10,000 of Fashion-MNIST's 60,000 training images are held out; the test split is never read. The
questions are asked in their order, each from the answers to those before. All options of a question
are trained for a few epochs with one seed (its first rung); the better ones again, for more epochs
or with another seed (the next rungs). The answer is the option with the highest mean accuracy on
the held-out images in the last rung. `QUESTIONS` is the whole budget: what is not in it was not
tried. `python -m benchmarks.search --budget` counts its runs and epochs.

Each finished run is a line of the CSV file, and is not made again. A run that was stopped resumes
exactly. One thread is used, and nothing else of a process but the CSV is shared.
"""

import csv
import json
import os
import time
from argparse import ArgumentParser
from collections.abc import Iterator, Mapping
from math import ceil
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

from digitlab import Run, fit, models
from digitlab.data import FashionMNISTDataModule

LIMIT = 121_994  # parameters, as LeNet1
IMAGES, HELD_OUT = 50_000, 10_000
COLUMNS = (
    *("question", "option", "rung", "epochs", "seed", "accuracy", "loss", "train_accuracy"),
    *("parameters", "cpu_seconds", "settings"),
)
Settings = dict[str, Any]


class Rung(NamedTuple):
    """One round of a question.

    Args:
        options: How many options take part, the best of the round before; all in the first.
        epochs: Length of a run, over which the learning rate makes its one cycle.
        seeds: The seeds; runs of an earlier round with the same length and seed count again.
    """

    options: int
    epochs: int
    seeds: tuple[int, ...]


SHORT = (Rung(99, 10, (0,)), Rung(2, 10, (1,)))
LONG = (Rung(99, 10, (0,)), Rung(2, 30, (0,)))

BASE: Settings = {
    "width": 16,
    "growth": [1, 2, 3],
    "blocks": [2, 2, 2],
    "optimizer": "AdamW",
    "rate": 0.005,
    "weight_decay": 0.05,
    "batch_size": 128,
    "average_decay": 0.99,
    "label_smoothing": 0.0,
    "shift": 2,
    "flip": True,
    "erase": 0.0,
    "warm_up": 0.2,
    "epochs": 30,
}
"""The recipe before the first question; an option replaces some of it."""

QUESTIONS: dict[str, tuple[list[Settings], tuple[Rung, ...]]] = {
    "structure": (
        [
            {"width": 16, "growth": [1, 2, 3], "blocks": [2, 2, 2]},  # 120,986 parameters
            {"width": 16, "growth": [1, 2, 4], "blocks": [2, 3, 1]},  # 119,354
            {"width": 16, "growth": [1, 2, 2], "blocks": [2, 3, 3]},  # 117,114
            {"width": 24, "growth": [1, 1, 2], "blocks": [2, 2, 2]},  # 116,722
            {"width": 16, "growth": [1, 2, 4], "blocks": [1, 1, 1]},  # 77,562, for the time
        ],
        SHORT,
    ),
    "optimizer": (
        [
            {"optimizer": "AdamW", "rate": 0.0025},
            {"optimizer": "AdamW", "rate": 0.005},
            {"optimizer": "AdamW", "rate": 0.01},
            {"optimizer": "AdamW", "rate": 0.02},
            {"optimizer": "SGD", "rate": 0.05, "weight_decay": 5e-4},
            {"optimizer": "SGD", "rate": 0.15, "weight_decay": 5e-4},
            {"optimizer": "SGD", "rate": 0.15, "weight_decay": 1e-4},
        ],
        SHORT,
    ),
    "augmentation": (
        [
            {"shift": 0, "flip": True, "erase": 0.0},
            {"shift": 1, "flip": True, "erase": 0.0},
            {"shift": 2, "flip": True, "erase": 0.0},
            {"shift": 2, "flip": False, "erase": 0.0},
            {"shift": 1, "flip": True, "erase": 0.25},
            {"shift": 2, "flip": True, "erase": 0.5},
        ],
        LONG,
    ),
    "weight_decay": ([{"weight_decay": it} for it in ("÷5", "×1", "×3", "×10")], LONG),
    "label_smoothing": ([{"label_smoothing": it} for it in (0.0, 0.05, 0.1)], LONG),
    "average": ([{"average_decay": it} for it in (None, 0.99, 0.998)], SHORT),
    "batch_size": (
        [
            {"batch_size": 64, "rate": "÷1.4"},
            {"batch_size": 128},
            {"batch_size": 256, "rate": "×1.4"},
        ],
        SHORT,
    ),
    "epochs": ([{"epochs": 30}, {"epochs": 45}, {"epochs": 60}], (Rung(99, 0, (0,)),)),
}
"""By name of a question, its options and rounds. Length 0 is that of the option itself."""


class Trial(NamedTuple):
    """A run of the search."""

    question: str
    option: Settings
    rung: int
    seed: int
    settings: Settings  # the whole recipe

    @property
    def key(self) -> tuple[str, int]:
        """What tells runs apart: the recipe and the seed."""
        return json.dumps(self.settings, sort_keys=True), self.seed


def main() -> None:
    """Make the runs that the CSV file lacks, or count them."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs", "search"), help="run folders")
    parser.add_argument("--csv", type=Path, default=Path("docs", "results", "search.csv"))
    parser.add_argument("--until", choices=QUESTIONS, help="the last question to ask")
    parser.add_argument("--budget", action="store_true", help="count runs and epochs, and end")
    args = parser.parse_args()
    if args.budget:
        print(budget())
        return
    recipe = BASE
    for question in QUESTIONS:
        recipe = answer(question, recipe, args.csv, args.out)
        print(f"{question}: {json.dumps(recipe)}", flush=True)
        if question == args.until:
            return


def answer(question: str, recipe: Settings, table: Path, out: Path) -> Settings:
    """Make a question's runs, and return the recipe with the best option."""
    options, rungs = QUESTIONS[question]
    resolved = [resolve(option, recipe) for option in options]
    for number, rung in enumerate(rungs):
        resolved = resolved[: rung.options]
        accuracies = {}
        for place, option in enumerate(resolved):
            epochs = rung.epochs or option["epochs"]
            settings = {**recipe, **option, "epochs": epochs}
            earlier = [it for it in rungs[:number] if it.epochs == rung.epochs]
            seeds = [seed for it in (*earlier, rung) for seed in it.seeds]
            trials = [Trial(question, option, number, seed, settings) for seed in seeds]
            accuracies[place] = mean(measure(trial, table, out) for trial in trials)
        order = sorted(accuracies, key=lambda place: -accuracies[place])
        resolved = [resolved[place] for place in order]
    return {**recipe, **resolved[0]}


def resolve(option: Settings, recipe: Settings) -> Settings:
    """Compute the values of an option that are given as multiples of the recipe's.

    >>> resolve({"rate": "×1.4"}, {"rate": 0.5})
    {'rate': 0.7}
    """

    def value(name: str, given: Any) -> Any:
        if isinstance(given, str) and given[0] in "×÷":
            factor = float(given[1:])
            return float(f"{recipe[name] * (factor if given[0] == '×' else 1 / factor):.3g}")
        return given

    return {name: value(name, given) for name, given in option.items()}


def measure(trial: Trial, table: Path, out: Path) -> float:
    """Return the accuracy of a run on the held-out images in per cent, after making it if needed.

    Raises:
        ValueError: The network has more parameters than the limit.
    """
    for row in read_rows(table):
        if (row["settings"], int(row["seed"])) == trial.key:
            return float(row["accuracy"])
    parts = {name: trial.settings[name] for name in ("width", "growth", "blocks")}
    count = sum(weight.numel() for weight in models.ResNet(**parts).parameters())
    if count > LIMIT:
        raise ValueError(f"{parts} has {count} parameters, more than {LIMIT}")
    number = len(list(read_rows(table))) + 1
    folder = out / f"{number:03}"
    started = time.process_time()
    versions = sorted(folder.glob("*/version_*"))
    run = fit(run=versions[-1], quiet=True) if versions else train(trial, folder)
    assert isinstance(run, Run)
    metrics = run.metrics
    result: dict[str, Any] = {
        "question": trial.question,
        "option": json.dumps(trial.option),
        "rung": trial.rung,
        "epochs": trial.settings["epochs"],
        "seed": trial.seed,
        "accuracy": round(100 * metrics["val"]["accuracy"], 2),
        "loss": round(metrics["val"]["loss"], 5),
        "train_accuracy": round(100 * metrics["train"]["accuracy"], 2),
        "parameters": metrics["parameters"],
        # Not known of a run that several processes made.
        "cpu_seconds": "" if versions else round(time.process_time() - started),
        "settings": trial.key[0],
    }
    is_new = not table.exists()
    with table.open("a", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        if is_new:
            writer.writeheader()
        writer.writerow(result)
        file.flush()
        os.fsync(file.fileno())
    print(f"{result['accuracy']:.2f}% {json.dumps(trial.option)} seed {trial.seed}", flush=True)
    return float(result["accuracy"])


def read_rows(table: Path) -> Iterator[Mapping[str, str]]:
    """Yield the finished runs."""
    if table.exists():
        with table.open(encoding="utf-8", newline="") as file:
            yield from csv.DictReader(file)


def train(trial: Trial, folder: Path) -> Run | None:
    """Train for a run from its beginning."""
    return fit(
        config_of(trial.settings),
        {"trainer.default_root_dir": str(folder), "threads": 1},
        seed=trial.seed,
        quiet=True,
    )


def config_of(recipe: Settings) -> Settings:
    """Write a recipe as a config for the 50,000 images that are left to train on."""
    steps = ceil(IMAGES / recipe["batch_size"])
    rate, decay = recipe["rate"], recipe["weight_decay"]
    options = {"lr": rate, "weight_decay": decay, "fused": True}
    if recipe["optimizer"] == "SGD":
        options |= {"momentum": 0.9, "nesterov": True}
    cycle = {
        "max_lr": rate,
        "epochs": recipe["epochs"],
        "steps_per_epoch": steps,
        "pct_start": recipe["warm_up"],
        "cycle_momentum": False,  # Keras's optimizers keep their momentum
    }
    model = {name: recipe[name] for name in ("width", "growth", "blocks")}
    model |= {name: recipe[name] for name in ("average_decay", "label_smoothing")}
    model |= {
        "decay_kernels_only": True,
        "optimizer": {"class_path": recipe["optimizer"], "init_args": options},
        "lr_scheduler": {"class_path": "OneCycleLR", "init_args": cycle},
        "lr_scheduler_interval": "step",
        "steps_per_execution": 8,
        "channels_last": True,
    }
    data = {
        "batch_size": recipe["batch_size"],
        "normalization": "standard",
        "validation_size": HELD_OUT,
        "augmentation": {name: recipe[name] for name in ("shift", "flip", "erase")},
    }
    return {
        "model": {"class_path": "ResNet", "init_args": model},
        "data": {"class_path": FashionMNISTDataModule.__name__, "init_args": data},
        "trainer": {
            "max_epochs": recipe["epochs"],
            "precision": "bf16-mixed",
            "check_val_every_n_epoch": recipe["epochs"],
            "logger": False,
        },
    }


def budget() -> str:
    """Count the runs and epochs of all questions, at most."""
    lines = ["| question | options | runs | epochs |", "| --- | --- | --- | --- |"]
    total = [0, 0]
    for question, (options, rungs) in QUESTIONS.items():
        runs = epochs = 0
        for rung in rungs:
            count = min(len(options), rung.options)
            runs += count * len(rung.seeds)
            lengths = [rung.epochs or option.get("epochs", 0) for option in options[:count]]
            epochs += sum(lengths) * len(rung.seeds)
        total = [total[0] + runs, total[1] + epochs]
        lines.append(f"| {question} | {len(options)} | {runs} | {epochs} |")
    return "\n".join([*lines, f"| all | | {total[0]} | {total[1]} |"])


if __name__ == "__main__":
    main()
