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


def both(row: str, ours: list[float], theirs: list[float]) -> list[Result]:
    return runs(row, *ours) + runs(row, *theirs, framework="keras")


def test_an_experiment_of_some_runs_has_their_command_and_no_verdict() -> None:
    table = reproduction.experiment_table(by_experiment(ROWS)["B1"], runs("B1_as_published", 95.0))
    command = "digitlab reproduce B1_as_published --framework torch --seeds 1"
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
