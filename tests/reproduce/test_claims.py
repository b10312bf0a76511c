from dataclasses import replace

import pytest

from digitlab.reproduce.claims import judge
from digitlab.reproduce.evidence import Evidence, Judged, claims_table
from digitlab.reproduce.results import Result
from digitlab.runs import Framework

NOTHING = Result("", "mnist/x", "torch", 0, 0.9, 0.1, 0.9, 100, None, (), (), "cpu", "torch 2")


def runs(row: str, *accuracies: float, framework: Framework = "torch") -> list[Result]:
    """Results of a row, with the seeds 0, 1, … and these accuracies in per cent."""
    return [
        replace(NOTHING, row=row, framework=framework, seed=seed, test_accuracy=accuracy / 100)
        for seed, accuracy in enumerate(accuracies)
    ]


def curves(row: str, *first_steps: tuple[float, float]) -> list[Result]:
    """Results that reach 95% and 98% at these steps; 0 for never."""
    return [
        replace(
            NOTHING,
            row=row,
            seed=seed,
            val_curve=tuple(
                (step, 0.98 if to_98 and step >= to_98 else 0.95 if step >= to_95 else 0.9)
                for step in range(100, 1001, 100)
            ),
        )
        for seed, (to_95, to_98) in enumerate(first_steps)
    ]


def find(judged: list[Judged], words: str) -> Judged:
    (found,) = (it for it in judged if words in it.claim)
    return found


def test_without_results_only_what_needs_none_is_judged() -> None:
    (judged,) = judge(Evidence([], []))
    assert judged.measure.startswith("NN 128 101,770, LeNet-5 61,706, LeNet1 121,994")
    assert judged.verdict == "true of LeNet-5 alone"


@pytest.mark.parametrize(
    ("better", "verdict"),
    [((99.0, 99.1, 99.2), "true"), ((95, 96.9, 98.8), "not shown"), ((90.0, 90.1), "false")],
)
def test_a_difference_needs_an_interval_beyond_zero(
    better: tuple[float, ...], verdict: str
) -> None:
    other = runs("B1", 96.9, 97.0, 97.1) + runs("B5", 96.9, 97.0, 97.1)
    evidence = Evidence(other + runs("B3", *better) + runs("B6", *better), [])
    assert find(judge(evidence), "ends higher").verdict == verdict


def test_a_claim_that_holds_on_one_data_set_alone_holds_partly() -> None:
    results = runs("B3", 99.0, 99.1) + runs("B1", 97.0, 97.1)
    results += runs("B6", 87.0, 87.1) + runs("B5", 89.0, 89.1)
    assert find(judge(Evidence(results, [])), "ends higher").verdict == "partly"


def test_faster_means_that_the_slowest_run_is_ahead_of_the_other_s_fastest() -> None:
    fast = curves("B3", (100, 300), (200, 400))
    assert (
        find(judge(Evidence([], fast + curves("B1", (300, 500), (400, 0)))), "faster").verdict
        == "true"
    )
    overlapping = fast + curves("B1", (300, 400), (400, 0))
    assert find(judge(Evidence([], overlapping)), "faster").verdict == "partly"


def test_a_run_that_never_gets_there_is_counted_and_not_averaged() -> None:
    evidence = Evidence([], curves("B3", (100, 300), (200, 400)) + curves("B1", (300, 0), (400, 0)))
    measure = find(judge(evidence), "faster").measure
    assert "steps to 98%: LeNet-5 350 [0, 985] (n 2), NN 128 in 0 of 2 runs" in measure


def test_overfitting_is_judged_by_pairs_of_a_seed() -> None:
    # The gap grows by 2 points in each pair, while seeds differ by 10.
    before = [replace(run, train_accuracy=0.95) for run in runs("B10", 80.0, 90.0, 70.0)]
    gaps = [(0.96, 79.0), (0.96, 89.0), (0.96, 69.0)]
    after = [
        replace(run, train_accuracy=gap)
        for (gap, _), run in zip(gaps, runs("B11", *(test for _, test in gaps)), strict=True)
    ]
    judged = find(judge(Evidence(before + after, [])), "overfit")
    assert judged.verdict == "true"
    assert "train − test accuracy +2.00 pp [2.00, 2.00], test accuracy -1.00 pp" in judged.measure


def test_seconds_are_of_one_of_twenty_epochs() -> None:
    timed = [replace(run, train_seconds=40.0 + run.seed) for run in runs("A1", 98, 98, 98)]
    judged = find(judge(Evidence(timed, [])), "K520")
    assert "2.0 s" in judged.measure or "2.1 s" in judged.measure
    assert judged.verdict == "not testable without a K520"


def test_an_error_is_what_is_missing_to_the_whole() -> None:
    judged = find(judge(Evidence(runs("linear", 92.4, 92.5, 92.6), [])), "linear")
    assert "error 7.50% [7.25, 7.75] (n 3)" in judged.measure


def test_half_a_per_cent_counts_as_reached_where_the_interval_has_it() -> None:
    assert find(judge(Evidence(runs("B3", 99.3, 99.6), [])), "0.5%").verdict == "reached"
    missed = find(judge(Evidence(runs("B3", 98.8, 98.9), [])), "0.5%")
    assert missed.verdict == "not by any network of the documents"


def test_a_table_has_a_line_for_each_claim() -> None:
    table = claims_table([Judged("all is well", "A", "1.00", "true", "digitlab fit")])
    assert table.splitlines()[2] == "| A: all is well | 1.00 | **true** | `digitlab fit` |"
