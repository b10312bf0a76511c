"""Why document B's PyTorch program reads 95% on MNIST where its Keras program reads 97%.

    python -m benchmarks.explain                # draw the figures of docs/reproduction.md
    python -m benchmarks.explain --seeds 8      # train first what docs/results lacks

The programs differ in five settings of NN 128. All combinations are measured with the same seeds: a
full factorial experiment. `python -m benchmarks.pages` writes the table into the page.
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
from itertools import islice, product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

import digitlab
from digitlab import files
from digitlab.reproduce.figures import BLUE, ORANGE, make_figure
from digitlab.reproduce.statistics import summarize
from digitlab.reproduce.tables import markdown_table, signed

RECORD = Path("docs", "results")
FOLDERS = {
    RECORD / "explain-B1-B2": ("B1_as_published", "B2"),
    RECORD / "explain-B5-B8": ("B5_as_published", "B8"),
}
"""The measured accuracies of a row of the PyTorch program, and that of the Keras program."""


class Factor(NamedTuple):
    """A setting in which the programs differ."""

    name: (
        str  # its column in grid.csv: 0 for the PyTorch program's value, 1 for the Keras program's
    )
    torch: str
    keras: str
    option: str = ""  # of `digitlab fit`; without one it changes the evaluation alone


FACTORS = (
    Factor("dropout in evaluation", "on", "off"),
    Factor("normalization", "symmetric", "unit", "data.normalization"),
    Factor("initialization", "torch", "keras", "model.initialization"),
    Factor("optimizer.eps", "1e-08", "1e-07", "model.optimizer.eps"),
    Factor("images evaluated", "1,600", "10,000"),  # the first 50 batches of 32, or all
)
NAMES = [factor.name for factor in FACTORS]
TRAINED = [factor.name for factor in FACTORS if factor.option]
EVERYTHING = range(len(FACTORS))

Values = NDArray[np.float64]
"""A number for each seed."""


def main() -> None:
    """Train what is missing, and draw the figures."""
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m benchmarks.explain")
    parser.add_argument("--seeds", type=int, default=0, help="train the seeds below this")
    seeds = range(parser.parse_args().seeds)
    for folder, (ours, theirs) in FOLDERS.items():
        path = folder / "grid.csv"
        for seed, *levels in product(seeds, *[(0, 1)] * len(TRAINED)):
            grid = pd.read_csv(path)
            if not (grid[[*TRAINED, "seed"]] == [*levels, seed]).all(axis=1).any():
                lines = pd.DataFrame(measure(theirs, seed, levels))
                text = pd.concat([grid, lines]).to_csv(index=False, lineterminator="\n")
                files.write_text(path, text)
        files.write_figure(folder / "effects.png", draw(Effects(folder), ours, theirs))


def tables() -> dict[str, str]:
    """Make the pairs' tables of effects, as Markdown by their names."""
    return {f"{it.name}-effects": table(Effects(it), *names) for it, names in FOLDERS.items()}


def measure(
    row: str, seed: int, levels: Sequence[int], **settings: Any
) -> Iterator[dict[str, float]]:
    """Train a row with these levels of `TRAINED`, and yield a line for each way to evaluate it."""
    switched = dict(zip(TRAINED, levels, strict=True))
    changed = {it.option: it[1 + switched[it.name]] for it in FACTORS if it.option}
    run = digitlab.fit(row, changed | settings, seed=seed)
    assert run
    model, data = run.model, run.data
    size = data.eval_batch_size
    for dropout, images in product((0, 1), repeat=2):
        switched |= {NAMES[0]: dropout, NAMES[-1]: images}
        model.dropout_in_evaluation = not dropout
        data.eval_batch_size = size if images else 32
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)  # of dropout
            score = model.evaluate(islice(data.test_dataloader(), None if images else 50))
        line = {name: switched[name] for name in NAMES}
        yield {**line, "seed": seed, "accuracy": score["accuracy"], "n": score["n"]}


class Effects:
    """Effects of the factors in percentage points, of the lines in a folder's grid.csv."""

    def __init__(self, folder: Path) -> None:
        grid = pd.read_csv(folder / "grid.csv").sort_values(["seed", *NAMES])
        self.seeds = grid["seed"].nunique()
        # A dimension for the seeds, and one for each factor.
        shape = self.seeds, *(2,) * len(FACTORS)
        self.accuracies = 100 * grid["accuracy"].to_numpy(float).reshape(shape)

    def marginal(self, levels: dict[int, int]) -> Values:
        """Return the accuracies with some factors at 0 or 1, averaged over the others."""
        index: list[Any] = [levels.get(i, slice(None)) for i in EVERYTHING]
        return _mean(self.accuracies[(slice(None), *index)])

    def switched(self, *factors: int) -> Values:
        """Return the accuracies of the PyTorch program with these factors switched."""
        return self.marginal({i: int(i in factors) for i in EVERYTHING})

    def alone(self, *factors: int) -> Values:
        """Return the effect of switching only these."""
        return self.switched(*factors) - self.switched()

    def last(self, *factors: int) -> Values:
        """Return the effect of switching these after all others."""
        return self.switched(*EVERYTHING) - self.switched(*{*EVERYTHING} - {*factors})

    def average(self, factor: int) -> Values:
        """Return the effect of switching a factor, averaged over the others."""
        return _mean(np.diff(self.accuracies, axis=factor + 1))


def _mean(values: Values) -> Values:
    mean: Values = values.reshape(len(values), -1).mean(axis=1)
    return mean


def table(effects: Effects, ours: str, theirs: str) -> str:
    """Write each factor's effect, and that of the first two and of all, as Markdown."""

    def cells(*factors: int) -> list[str]:
        both = effects.alone(*factors), effects.last(*factors)
        return [_write(effects.switched(*factors), "{:.2f}".format), *map(_write, both)]

    lines = [[f"nothing: {ours}", "", cells()[0], "", "", ""]]
    for i, (name, first, second, _) in enumerate(FACTORS):
        lines.append([name, f"{first} → {second}", *cells(i), _write(effects.average(i))])
    lines.append([" and ".join(NAMES[:2]), "", *cells(0, 1), ""])
    lines.append([f"everything: {theirs}", "", *cells(*EVERYTHING), ""])
    head = ["switched", "from → to", "accuracy", "alone", "last", "on average"]
    return (
        f"{markdown_table(head, lines, aligned=True)}\n\n"
        f"Accuracy in per cent: {ours} with that switched. Effects in percentage points: alone, "
        f"from {ours}; last, to {theirs} with all others switched before; on average, over all "
        f"settings of the others. Means of {effects.seeds} seeds ± their 95% t intervals, of "
        "differences within seeds. The images evaluated are the same for all seeds, so that no "
        "interval tells how other images would do."
    )


def _write(values: Values, form: Callable[[float], str] = signed) -> str:
    mean, half = _mean_and_half(values)
    return f"{form(mean)} ± {half:.2f}"


def _mean_and_half(values: Values) -> tuple[float, float]:
    """Return the mean and half its 95% interval."""
    summary = summarize(values.tolist())
    return summary.mean, summary.mean_interval[1] - summary.mean


def draw(effects: Effects, ours: str, theirs: str) -> Figure:
    """Draw each factor's effect alone and on average, and how the first two interact."""
    total = len(FACTORS)
    figure = make_figure(10, 1.6 + 0.55 * (total + 1))
    bars, lines = figure.subplots(1, 2, width_ratios=(3, 2))
    for level, (fmt, color) in enumerate((("o-", BLUE), ("s-", ORANGE))):
        ends = [effects.marginal({0: i, 1: level}) for i in (0, 1)]
        look = {"fmt": fmt, "color": color, "label": FACTORS[1][1 + level]}
        _draw_points(lines, (0, 1), ends, "y", **look)
    lines.set_xticks((0, 1), FACTORS[0][1:3])
    lines.set_xlim(-0.3, 1.3)
    lines.set_xlabel(NAMES[0])
    lines.set_ylabel("accuracy, %, averaged over the others")
    lines.grid(alpha=0.3)
    lines.legend(title=NAMES[1], fontsize="small", title_fontsize="small")

    places, own = np.arange(total), f"alone, from {ours}"
    for shift, fmt, color, label, effect in (
        (-0.13, "o", BLUE, own, effects.alone),
        (0.13, "s", ORANGE, "averaged over the others", effects.average),
    ):
        look = {"fmt": fmt, "color": color, "label": label}
        _draw_points(bars, places + shift, [effect(i) for i in EVERYTHING], "x", **look)
    _draw_points(bars, [total], [effects.alone(*EVERYTHING)], "x", fmt="D", color="black")
    labels = [f"{name}\n{first} → {second}" for name, first, second, _ in FACTORS]
    bars.set_yticks(range(total + 1), [*labels, "all together"])
    bars.set_ylim(total + 0.5, -0.5)  # the first on top
    bars.axvline(0, color="grey", linewidth=0.8)
    bars.axhline(total - 0.5, color="grey", linewidth=0.5)
    bars.grid(axis="x", alpha=0.3)
    bars.set_xlabel("effect on accuracy, percentage points")
    bars.legend(fontsize="small")
    title = f"From {ours} to {theirs}: means of {effects.seeds} seeds, 95% intervals"
    figure.suptitle(title, fontsize="medium")
    return figure


def _draw_points(
    axes: Axes, places: Any, effects: Sequence[Values], along: str, **style: Any
) -> None:
    """Draw means with their 95% intervals, in the direction `x` or `y`."""
    means, halves = zip(*map(_mean_and_half, effects), strict=True)
    options = {"x": places, "y": places, along: means, f"{along}err": halves}
    axes.errorbar(capsize=3, **options, **style)


if __name__ == "__main__":
    main()
