import pytest

from digitlab.reproduce import tables
from digitlab.reproduce.results import Result
from digitlab.reproduce.rows import by_experiment, read_rows
from tests.reproduce.samples import runs

ROWS = read_rows()


def cells(table: str, line: int = 2) -> list[str]:
    """The cells of a line of a Markdown table; the first below the head is 2."""
    return [cell.strip() for cell in table.splitlines()[line].strip("|").split("|")]


def both(row: str, ours: list[float], theirs: list[float]) -> list[Result]:
    return runs(row, *ours) + runs(row, *theirs, framework="keras")


def test_the_results_stand_beside_what_was_published() -> None:
    table = tables.results_table(ROWS, both("B3", [98.0, 99.0], [98.5]))
    assert cells(table) == [
        *("B3", "`mnist/lenet5`", '"almost 99%"', "98.50 ± 0.71", "2", "98.50", "1")
    ]
    assert (
        len({*map(len, tables.results_table(ROWS, runs("B3", 98), aligned=True).split("\n"))}) == 1
    )


def test_rows_have_the_documents_order_others_come_last_and_those_without_a_result_never() -> None:
    results = runs("digits/lenet5", 97.0) + runs("B10", 91.0) + runs("B2", 97.5) + runs("A1", 98.4)
    lines = tables.results_table(ROWS, results).splitlines()[2:]
    assert [line.split("|")[1].strip() for line in lines] == ["A1", "B2", "B10", "—"]


def test_intervals_of_three_runs_are_four_and_a_half_times_their_standard_error() -> None:
    table = tables.intervals_table(ROWS, runs("B3", 97.0, 98.0, 99.0))
    # t of 2 degrees of freedom is 4.303; 4.303 / √3 = 2.48, 4.303 √(4/3) = 4.97, and no accuracy
    # is above 100.
    assert cells(table)[2:7] == ["3", "98.00", "1.00", "[95.52, 100.00]", "[93.03, 100.00]"]
    assert cells(tables.intervals_table(ROWS, runs("B3", 98.0)))[3:7] == ["98.00", "—", "—", "—"]


def test_an_experiment_shows_each_of_its_configs_the_verdict_and_the_command() -> None:
    results = both("B1", [96.0, 96.2], [96.1, 96.3]) + runs("B1_as_published", 95.0, 95.2)
    table = tables.experiment_table(by_experiment(ROWS)["B1"], results + runs("B2", 97.0))
    assert [cells(table, line)[:4] for line in (2, 3, 4)] == [
        ["B1", "PyTorch", "96.10 ± 0.14", "2"],
        ["B1", "Keras", "96.20 ± 0.14", "2"],
        ["B1_as_published", "PyTorch", "95.10 ± 0.14", "2"],
    ]
    same_recipe = cells(tables.same_recipe_table(ROWS, results))
    _, verdict, command = table.split("\n\n")
    assert f"{same_recipe[3]} points, 95% interval {same_recipe[4]}" in verdict
    assert f"**{same_recipe[7]}**, by a margin of 0.5 points" in verdict
    assert command == "Trained by `digitlab reproduce B1 B1_as_published --seeds 2`."

    table = tables.experiment_table(by_experiment(ROWS)["B1"], results[-1:])
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
def test_the_same_recipe_is_judged_by_the_margin_of_its_data_set(
    row: str, theirs: list[float], margin: str, verdict: str
) -> None:
    line = cells(tables.same_recipe_table(ROWS, both(row, [98.0, 98.1, 98.2], theirs)))
    assert (line[-3], line[-1]) == (margin, verdict)


def test_a_row_of_one_framework_is_not_compared() -> None:
    assert len(tables.same_recipe_table(ROWS, runs("B3", 98.0, 98.1)).splitlines()) == 2


def test_every_pair_of_the_document_is_shown_with_both_published_figures() -> None:
    pairs = {"B1_as_published": "B2", "B3": "B4", "B5_as_published": "B8", "B6": "B9", "B7": "B10"}
    results = [run for row in pairs for run in runs(row, 95.0, 95.1)]
    results += [run for row in pairs.values() for run in runs(row, 97.6, 97.7, framework="keras")]
    # These are no part of it: PyTorch with Keras's recipe, and without dropout in evaluation.
    results += runs("B1", 96.0, 96.1) + runs("B2", 97.0, 97.1)
    table = tables.as_published_table(ROWS, results)
    names = [cells(table, line)[0] for line in range(2, 7)]
    assert names == [f"{ours} : {theirs}" for ours, theirs in pairs.items()]
    assert "| 85% | about 87% |" in table.splitlines()[4]
    assert cells(table)[1:3] == ["NN 128", "mnist"]
    assert cells(table)[5:8] == ["95.05 (2)", "97.65 (2)", "−2.60"]
    assert cells(table)[-1] == "different"


@pytest.mark.parametrize(("accuracy", "verdict"), [(98.3, "inside"), (90.0, "outside")])
def test_a_new_run_is_judged_by_the_prediction_interval(accuracy: float, verdict: str) -> None:
    reference = runs("B3", 98.0, 98.2, 98.4, framework="keras")
    new = runs("B3", 0, 0, 0, accuracy, framework="keras")  # the seeds 0 to 2 are not new
    table = tables.prediction_table(ROWS, new, reference)
    assert cells(table)[:4] == ["B3", "Keras", "3", f"{accuracy:.2f}"]
    assert cells(table)[-1] == verdict
    assert f"{int(verdict == 'inside')} of 1 inside; 95% are expected." in table
    assert "has their seeds: 3; --first_seed 3 makes other runs." in table
