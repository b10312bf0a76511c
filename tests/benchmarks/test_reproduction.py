"""The tables and figures of the documents' rows."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from benchmarks import reproduction
from benchmarks.reproduction import by_experiment

from digitlab.reproduce import figures
from digitlab.reproduce.results import Result
from digitlab.reproduce.rows import read_rows
from tests.reproduce.samples import runs, runs_with_curves

ROWS = read_rows()
DOCUMENTS = {name: row for name, row in ROWS.items() if row.in_documents}


def cells(table: str, line: int = 2) -> list[str]:
    """The cells of a line of a Markdown table; the first below the head is 2."""
    return [cell.strip() for cell in table.splitlines()[line].strip("|").split("|")]


def both(row: str, ours: list[float], theirs: list[float]) -> list[Result]:
    return runs(row, *ours) + runs(row, *theirs, framework="keras")


def test_the_results_stand_beside_what_was_published() -> None:
    table = reproduction.results_table(ROWS, both("B3", [98.0, 99.0], [98.5]))
    assert cells(table) == [
        *("B3", "`mnist/lenet5`", '"almost 99%"', "98.50 ± 0.71", "2", "98.50", "1")
    ]


def test_rows_have_the_documents_order_others_come_last_and_those_without_a_result_never() -> None:
    results = runs("digits/lenet5", 97.0) + runs("B10", 91.0) + runs("B2", 97.5) + runs("A1", 98.4)
    lines = reproduction.results_table(ROWS, results).splitlines()[2:]
    assert [line.split("|")[1].strip() for line in lines] == ["A1", "B2", "B10", "—"]


def test_an_experiment_shows_each_of_its_configs_the_verdict_and_the_command() -> None:
    results = both("B1", [96.0, 96.2], [96.1, 96.3]) + runs("B1_as_published", 95.0, 95.2)
    table = reproduction.experiment_table(by_experiment(ROWS)["B1"], results + runs("B2", 97.0))
    assert [cells(table, line)[:4] for line in (2, 3, 4)] == [
        ["B1", "PyTorch", "96.10 ± 0.14", "2"],
        ["B1", "Keras", "96.20 ± 0.14", "2"],
        ["B1_as_published", "PyTorch", "95.10 ± 0.14", "2"],
    ]
    _, verdict, command = table.split("\n\n")
    assert verdict.startswith("B1, PyTorch − Keras: −0.10 points, 95% interval [")
    assert verdict.endswith("**inconclusive**, by a margin of 0.5 points.")
    assert command == "Trained by `digitlab reproduce B1 B1_as_published --seeds 2`."

    table = reproduction.experiment_table(by_experiment(ROWS)["B1"], results[-1:])
    command = "digitlab reproduce B1_as_published --framework torch --seeds 1 --first_seed 1"
    assert table.splitlines()[-1] == f"Trained by `{command}`."
    assert "points" not in table


@pytest.mark.parametrize(
    ("row", "theirs", "margin", "verdict"),
    [
        ("B3", [98.0, 98.1, 98.2], "0.5", "equivalent"),
        ("B3", [98.6, 98.7, 98.8], "0.5", "different"),
        ("B6", [98.6, 98.7, 98.8], "1.0", "equivalent"),  # Fashion-MNIST's is twice as wide
        ("B3", [95.0, 99.0], "0.5", "inconclusive"),
    ],
)
def test_the_frameworks_are_judged_by_the_margin_of_the_data_set(
    row: str, theirs: list[float], margin: str, verdict: str
) -> None:
    results = both(row, [98.0, 98.1, 98.2], theirs)
    table = reproduction.experiment_table({row: ROWS[row]}, results)
    assert f"**{verdict}**, by a margin of {margin} points" in table


def test_every_pair_of_the_document_is_shown_with_both_published_figures() -> None:
    pairs = {"B1_as_published": "B2", "B3": "B4", "B5_as_published": "B8", "B6": "B9", "B7": "B10"}
    results = [run for row in pairs for run in runs(row, 95.0, 95.1)]
    results += [run for row in pairs.values() for run in runs(row, 97.6, 97.7, framework="keras")]
    # These are no part of it: PyTorch with Keras's recipe, and without dropout in evaluation.
    results += runs("B1", 96.0, 96.1) + runs("B2", 97.0, 97.1)
    table = reproduction.as_published_table(ROWS, results)
    names = [cells(table, line)[0] for line in range(2, 7)]
    assert names == [f"{ours} : {theirs}" for ours, theirs in pairs.items()]
    assert "| 85% | about 87% |" in table.splitlines()[4]
    assert cells(table)[1:3] == ["NN 128", "mnist"]
    assert cells(table)[5:8] == ["95.05 (2)", "97.65 (2)", "−2.60"]
    assert cells(table)[-1] == "different"


def test_each_data_set_has_axes_with_its_rows_from_the_top() -> None:
    linear = runs_with_curves("linear", 92.4, 92.5, 92.6)
    measured = [*runs_with_curves("B7", 91.0, 91.2), *linear, *runs_with_curves("B1", 96, 96.2)]
    axes = figures.draw_accuracies(DOCUMENTS, measured).axes
    assert [it.get_title(loc="left") for it in axes] == ["MNIST", "Fashion-MNIST"]
    assert [label.get_text() for label in axes[0].get_yticklabels()] == ["linear", "B1 nn128"]
    assert axes[0].get_ylim()[0] > axes[0].get_ylim()[1]


def test_the_overview_has_means_by_epoch_of_the_runs_that_have_a_curve() -> None:
    other = [
        replace(it, val_curve=((1875, 0.93), (3750, 0.98))) for it in runs_with_curves("B3", 99)
    ]
    measured = [*runs_with_curves("B3", 98), *other, *runs("B3", 98.8)]
    axes = reproduction.draw_validation_curves(DOCUMENTS, measured).axes[0]
    (line,) = axes.lines
    assert list(line.get_xdata()) == [1, 2]  # type: ignore[arg-type]
    assert list(line.get_ydata()) == pytest.approx([94.0, 97.5])  # type: ignore[arg-type]
    assert line.get_label() == "PyTorch, n = 2"
    assert np.isfinite(axes.get_ylim()).all()


def test_an_experiment_is_a_run_of_the_documents_or_a_config_or_all_of_the_digits() -> None:
    experiments = {name: [*rows] for name, rows in by_experiment(ROWS).items()}
    assert experiments["B3"] == ["B3"]
    assert experiments["B5"] == ["B5", "B5_as_published"]
    assert experiments["fast99"] == ["mnist/fast99"]
    assert len(experiments["digits"]) == len(list(Path("configs", "digits").glob("*.yaml")))
