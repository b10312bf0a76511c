"""Tables and figures of what the documents published and what was measured, for the pages.

It reads docs/results: results.csv, `rerun` with the results of other seeds, and the folders of
`benchmarks.explain`.
"""

from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path

from matplotlib.figure import Figure
from PIL import Image

from benchmarks import explain
from digitlab import files
from digitlab.reproduce import figures, results
from digitlab.reproduce.command import make_tables
from digitlab.reproduce.results import Result
from digitlab.reproduce.rows import Row, read_rows
from digitlab.reproduce.statistics import compare, summarize
from digitlab.reproduce.tables import (
    MARGINS,
    NONE,
    compare_frameworks,
    difference_cells,
    group,
    group_accuracies,
    interval_cell,
    markdown_table,
    name_cell,
    ordered,
    prediction_table,
    rows_of,
)
from digitlab.run_folder import FRAMEWORKS
from digitlab.terminal import command

RECORD = Path("docs", "results")

AS_PUBLISHED = (
    ("NN 128", "B1_as_published", "B2"),
    ("LeNet-5", "B3", "B4"),
    ("NN 128", "B5_as_published", "B8"),
    ("LeNet-5", "B6", "B9"),
    ("LeNet1", "B7", "B10"),
)
"""Document B's comparisons: a network, its row in PyTorch, and its row in Keras."""

_INTERVALS = ("95% interval of the mean", "95% prediction interval for one more run")


def read_tables(record: Path = RECORD) -> dict[str, str]:
    """Make all tables of the recorded results, as Markdown by their names."""
    rows, measured = read_rows(), results.read(record / "results.csv")
    named = {
        # Without the small data set, which is for trying things out.
        "results": results_table(rows, [it for it in measured if not it.row.startswith("digits/")]),
        "as-published": as_published_table(rows, measured),
        "rerun": prediction_table(rows, results.read(record / "rerun" / "results.csv"), measured),
    }
    for name, its_rows in by_experiment(rows).items():
        named[f"row-{name}"] = experiment_table(its_rows, measured)
    return named | explain.tables()


def compare_tables(record: Path = RECORD) -> dict[str, str]:
    """Make the tables of docs/compare.md: those of `digitlab reproduce --report`."""
    measured = results.read(record / "rates" / "results.csv")
    tables = make_tables(rows_of(measured, {}), measured)
    return {f"rates-{name}": table for name, table in tables.items()}


def write_figures(record: Path = RECORD) -> list[Path]:
    """Draw all figures of the recorded results, and return their files."""
    rows, measured = read_rows(), results.read(record / "results.csv")
    documents = {name: row for name, row in rows.items() if row.in_documents}
    # With axes of its own, as it would stretch those of its data set.
    linear = rows["linear"]._replace(config=Path("MNIST, linear", "linear.yaml"))
    own = results.read(record / "rates" / "results.csv")
    gaps = group(measured, lambda result: 100 * (result.train_accuracy - result.test_accuracy))
    label = "accuracy on training split − test split, percentage points"
    drawn = {
        "published": figures.draw_accuracies(documents | {"linear": linear}, measured),
        "validation": draw_validation_curves(documents, measured),
        "gap": figures.draw_lines(documents, gaps, label, whole=False),
        "rates/accuracies": figures.draw_accuracies(rows_of(own, {}), own),
    }
    for name, its_rows in by_experiment(rows).items():
        if any(result.row in its_rows and result.val_curve for result in measured):
            drawn[f"curves/{name}"] = figures.draw_curves(
                its_rows, measured, columns=len(its_rows) * 2
            )
    paths = {record / f"{name}.png": figure for name, figure in drawn.items()}
    for path, figure in paths.items():
        path.parent.mkdir(exist_ok=True)
        _write_figure(path, figure)
    return [*paths]


def _write_figure(path: Path, figure: Figure) -> None:
    """Write a figure in 64 colours: a third of the size, and it looks the same."""
    with files.atomic_write(path) as beside:
        figure.savefig(beside)
        with Image.open(beside) as image:
            small = image.convert("RGB").quantize(64, dither=Image.Dither.NONE)
        small.save(beside, optimize=True)


def by_experiment(rows: Mapping[str, Row]) -> dict[str, dict[str, Row]]:
    """Collect the rows of each experiment: B1 and B1_as_published, all digits, a config."""
    experiments: dict[str, dict[str, Row]] = {}
    for name, row in rows.items():
        experiment = row.dataset if row.dataset == "digits" else row.config.stem
        if row.in_documents:
            experiment = name.removesuffix("_as_published")
        experiments.setdefault(experiment, {})[name] = row
    return experiments


def results_table(rows: Mapping[str, Row], measured: Sequence[Result]) -> str:
    """Show the measured accuracies of both frameworks beside the published figure."""
    groups = group_accuracies(measured)
    lines = []
    for row in rows.values():
        values = [groups.get((row.name, framework), []) for framework in FRAMEWORKS]
        if any(values):
            config = f"`{row.dataset}/{row.config.stem}`"
            start = [row.name if row.in_documents else NONE, config, row.published or NONE]
            lines.append([*start, *chain.from_iterable(map(_measured_cells, values))])
    head = ["row", "config", "published", "PyTorch, %", "n", "Keras, %", "n"]
    return markdown_table(head, lines)


def experiment_table(rows: Mapping[str, Row], measured: Sequence[Result]) -> str:
    """Show the runs of an experiment's rows, whether the frameworks agree, and their command."""
    runs = [result for result in measured if result.row in rows]
    if not runs:
        return "No run is recorded yet."
    lines = []
    for row, framework, values in ordered(rows, group_accuracies(runs)):
        cells = (*_measured_cells(values), *map(interval_cell, summarize(values)[3:]))
        lines.append([name_cell(row), FRAMEWORKS[framework], *cells])
    head = ["row", "framework", "test accuracy, %", "n", *_INTERVALS]
    parts = [markdown_table(head, lines)]
    for pair in compare_frameworks(rows, runs).values():
        difference, interval = difference_cells(pair.found)
        shown = "" if interval == NONE else f", 95% interval {interval}"
        parts.append(
            f"{pair.name}: {difference} points{shown}; **{pair.found.verdict}**, by a margin of "
            f"{pair.margin} points."
        )
    return "\n\n".join([*parts, f"Trained by `{_command(rows, runs)}`."])


def _measured_cells(values: list[float]) -> tuple[str, str]:
    """Return mean ± standard deviation, and n; empty cells if nothing was measured."""
    if not values:
        return "", ""
    summary = summarize(values)
    deviation = "" if summary.n == 1 else f" ± {summary.deviation:.2f}"
    return f"{summary.mean:.2f}{deviation}", str(summary.n)


def as_published_table(rows: Mapping[str, Row], measured: Sequence[Result]) -> str:
    """Compare the frameworks as document B does, each with the document's own recipe for it.

    Here "different" is the document's finding, not a failure: initial values, scaling and epsilon
    differ, and dropout stays on where the PyTorch program evaluates NN 128.
    """
    groups = group_accuracies(measured)
    lines = []
    for network, *names in AS_PUBLISHED:
        ours, theirs = (groups.get(key, []) for key in zip(names, FRAMEWORKS, strict=True))
        if ours and theirs:
            dataset = rows[names[0]].dataset
            found = compare(ours, theirs, MARGINS[dataset])
            published = [rows[name].published or NONE for name in names]
            means = [f"{summarize(them).mean:.2f} ({len(them)})" for them in (ours, theirs)]
            start = [" : ".join(names), network, dataset, *published, *means]
            lines.append([*start, *difference_cells(found), found.verdict])
    head = ["rows", "network", "data set", "PyTorch, published", "Keras, published"]
    head += ["PyTorch, % (n)", "Keras, % (n)", "difference, points", "95% interval"]
    return markdown_table([*head, 'verdict ("different": so are the recipes)'], lines)


def _command(rows: Mapping[str, Row], runs: Sequence[Result]) -> str:
    """Return the command that trains an experiment's runs."""
    seeds, frameworks = {run.seed for run in runs}, {run.framework for run in runs}
    words = [name for name in rows if any(run.row == name for run in runs)]
    words += [] if len(frameworks) > 1 else ["--framework", *frameworks]
    words += ["--seeds", f"{max(seeds) - min(seeds) + 1}"]
    words += ["--first_seed", f"{min(seeds)}"] if min(seeds) else []
    return command("digitlab", "reproduce", *words)


def draw_validation_curves(rows: Mapping[str, Row], measured: Sequence[Result]) -> Figure:
    """Draw the accuracy on the validated split over the epochs, axes for each row.

    Lines are means over runs, and bands one standard deviation to each side, which unlike the
    lowest and highest run does not grow with the number of runs. Runs without a curve are left out.
    """
    groups = figures.group_curves(measured)
    shown = figures.measured_rows(rows, groups)
    lines = -(-len(shown) // 4)
    figure = figures.make_figure(2.7 * 4, 0.5 + 2.1 * lines)
    grid = [*figure.subplots(lines, 4, squeeze=False).flat]
    for axes in grid[len(shown) :]:
        axes.set_visible(False)
    for axes, row in zip(grid, shown, strict=False):
        for framework, name in FRAMEWORKS.items():
            curves = [validation for _, validation in groups.get((row.name, framework), [])]
            label = f"{name}, n = {len(curves)}"
            figures.draw_mean_curve(axes, curves, framework, extremes=False, label=label)
        title = figures.DATASETS.get(row.dataset, row.dataset)
        figures.finish_axes(axes, f"{figures.label_row(row)}\n{title}")
        axes.legend(fontsize=7, loc="lower right")
    figure.supxlabel("epoch", fontsize=10)
    figure.supylabel("accuracy on the validated split, %", fontsize=10)
    return figure
