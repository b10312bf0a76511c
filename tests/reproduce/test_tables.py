from dataclasses import replace

import pytest

from digitlab.reproduce import tables
from digitlab.reproduce.results import Result
from digitlab.reproduce.rows import read_rows
from digitlab.reproduce.tables import compare_frameworks, compare_rows, differences_table, rows_of
from tests.reproduce.samples import runs

ROWS = read_rows()


def cells(table: str, line: int = 2) -> list[str]:
    """The cells of a line of a Markdown table; the first below the head is 2."""
    return [cell.strip() for cell in table.splitlines()[line].strip("|").split("|")]


def own(name: str, *accuracies: float, data: str = "digits") -> list[Result]:
    """Runs of a config of one's own."""
    return runs(name, *accuracies, config=f"{data}/{name.rpartition('/')[2]}")


def differences(*groups: list[Result], margin: float | None = None) -> str:
    results = [run for group in groups for run in group]
    return differences_table(compare_rows(rows_of(results, ROWS), results, margin))


def test_known_rows_come_first_in_their_order_and_keep_their_published_figure() -> None:
    results = own("my/b", 97.0) + runs("B10", 91.0) + own("my/a", 97.0) + runs("B2", 97.5)
    rows = rows_of(results, ROWS)
    assert [*rows] == ["B2", "B10", "my/b", "my/a"]
    assert rows["B2"].published == ROWS["B2"].published
    assert (rows["my/b"].dataset, rows["my/b"].published) == ("digits", "")


def test_intervals_of_three_runs_are_four_and_a_half_times_their_standard_error() -> None:
    table = tables.intervals_table(ROWS, runs("B3", 97.0, 98.0, 99.0))
    # t of 2 degrees of freedom is 4.303; 4.303 / √3 = 2.48, 4.303 √(4/3) = 4.97, and no accuracy
    # is above 100.
    assert cells(table)[1:6] == ["3", "98.00", "1.00", "[95.52, 100.00]", "[93.03, 100.00]"]


def test_a_bar_in_a_name_ends_no_cell() -> None:
    results = own("my|a/b", 96.0, 97.0)
    table = tables.intervals_table(rows_of(results, ROWS), results)
    assert table.splitlines()[2].startswith(r"| `my\|a/b` | 2 | 96.50")


def test_one_run_has_no_interval_and_the_table_says_so() -> None:
    results = own("my/a", 96.0)
    table = tables.intervals_table(rows_of(results, ROWS), results)
    assert cells(table, 0) == ["row", "n", "mean, %"]
    assert table.endswith("One run has no interval.")


def test_a_seed_that_failed_in_one_row_is_named() -> None:
    results = own("my/a", 96.0, 97.0, 98.0) + own("my/b", 95.0, 95.5, 96.0)[:2]
    table = tables.intervals_table(rows_of(results, ROWS), results)
    assert "these lack: `my/b` 2. A run that failed is in no mean." in table
    line = cells(differences(results))
    assert line[:2] == ["`my/a` − `my/b`", "+1.25"]  # of the seeds 0 and 1, not of the means
    assert "runs: 2 pairs" in differences(results)


def test_rows_are_compared_seed_by_seed() -> None:
    # Seeds differ by points, and the rows within each seed by 1.0 ± 0.1.
    table = differences(own("my/a", 90.0, 95.0, 92.5), own("my/b", 91.0, 95.9, 93.6))
    assert cells(table) == ["`my/b` − `my/a`", "+1.00", "[+0.75, +1.25]", "equivalent"]
    assert "Percentage points; data: digits, PyTorch; runs: 3 pairs; margin: 1.5." in table
    assert "paired t-tests" in table
    assert "Welch" not in table
    assert "Holm" not in table


@pytest.mark.parametrize("shift", [2, 100])
def test_rows_with_fewer_than_two_common_seeds_are_compared_as_samples(shift: int) -> None:
    later = [replace(run, seed=run.seed + shift) for run in own("my/b", 91.0, 95.9, 93.6)]
    table = differences(own("my/a", 90.0, 95.0, 92.5), later)
    assert cells(table)[-1] == "inconclusive"
    assert "runs: 3 and 3" in table
    assert "Welch" in table
    assert "paired" not in table


@pytest.mark.parametrize(
    ("margin", "verdict"), [(0.5, "different"), (2.0, "equivalent"), (None, "equivalent")]
)
def test_the_margin_is_the_given_one_or_the_data_set_s(margin: float | None, verdict: str) -> None:
    rows = own("my/a", 90.0, 95.0, 92.5), own("my/b", 91.0, 95.9, 93.6)
    assert cells(differences(*rows, margin=margin))[-1] == verdict


def test_without_a_margin_a_difference_can_be_shown_but_no_equivalence() -> None:
    rows = [own(f"my/{it}", 90.0 + i, 95.0 + i, 92.6, data="faces") for i, it in enumerate("ab")]
    table = differences(*rows)
    assert cells(table)[-1] == "inconclusive"
    assert "--margin gives one" in table


@pytest.mark.parametrize(
    "rows",
    [(own("my/a", 96.0), own("my/b", 95.0)), (own("my/a", 96.0, 97.0), own("my/b", 96.0, 97.0))],
    ids=["one seed", "equal values"],
)
def test_rows_without_any_spread_have_no_verdict_and_the_table_says_why(
    rows: tuple[list[Result], list[Result]],
) -> None:
    table = differences(*rows)
    assert "interval" not in table.splitlines()[0]
    assert cells(table)[-1] == "inconclusive"
    assert "No interval: it needs two runs" in table
    assert "paired" not in table


def test_rows_of_different_data_sets_or_frameworks_are_not_compared() -> None:
    results = own("my/a", 96.0, 97.0) + own("my/b", 80.0, 81.0, data="faces")
    results += runs("my/a", 96.1, 97.3, framework="keras", config="digits/a")
    rows = rows_of(results, ROWS)
    assert compare_rows(rows, results) == []
    (pair,) = compare_frameworks(rows, results).values()
    assert (pair.name, pair.runs) == ("`my/a`, PyTorch − Keras", "2 and 2")


def test_the_45_pairs_of_ten_rows_fit_a_screen_s_lines_the_best_row_first() -> None:
    groups = [own(f"my/lr_{i}", 90 + 0.5 * i, 90.2 + 0.5 * i, 89.9 + 0.55 * i) for i in range(10)]
    table = differences(*groups)
    lines = table.splitlines()[2:47]
    assert {*map(len, lines)} == {len(lines[0])}
    assert len(lines[0]) <= 80
    assert [line.split("`")[1] for line in lines[:9]] == ["my/lr_9"] * 9
    assert not any("+" not in line and "0.00" not in line for line in lines)
    assert "adjusted for 45 pairs by Holm's method" in table


def test_many_pairs_need_clearer_differences_than_one() -> None:
    first, second = own("my/a", 90.0, 95.0, 92.5), own("my/b", 91.0, 95.9, 93.9)
    assert cells(differences(first, second, margin=0.5))[-1] == "different"
    others = [own(f"my/{it}", 80.0 + i, 85.0, 83.0 - i) for i, it in enumerate("cdefgh")]
    table = differences(first, second, *others, margin=0.5)
    assert cells(table)[:2] == ["`my/b` − `my/a`", "+1.10"]
    assert cells(table)[2].startswith("[+0.")
    assert cells(table)[-1] == "inconclusive"


@pytest.mark.parametrize(("accuracy", "verdict"), [(98.3, "inside"), (90.0, "outside")])
def test_a_new_run_is_judged_by_the_prediction_interval(accuracy: float, verdict: str) -> None:
    reference = runs("B3", 98.0, 98.2, 98.4, framework="keras")
    new = runs("B3", 0, 0, 0, accuracy, framework="keras")  # the seeds 0 to 2 are not new
    table = tables.prediction_table(ROWS, new, reference)
    assert cells(table)[:4] == ["B3", "Keras", "3", f"{accuracy:.2f}"]
    assert cells(table)[-1] == verdict
    assert f"{int(verdict == 'inside')} of 1 inside; 95% are expected." in table
    assert "has their seeds: 3; --first_seed 3 makes other runs." in table
