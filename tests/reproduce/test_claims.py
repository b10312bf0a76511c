from dataclasses import replace

import pytest

from digitlab.reproduce.claims import judge
from digitlab.reproduce.evidence import Evidence, Judged, claims_table
from digitlab.reproduce.results import Result
from digitlab.run_folder import Framework

NOTHING = Result("", "mnist/x", "", "torch", 0, 0.9, 0.1, 0.9, 100, None, (), (), "cpu", "torch 2")


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


QUICK = ((100, 300), (200, 400), (100, 400), (200, 300))
SLOW = ((300, 500), (400, 0), (300, 0), (400, 600))


def test_faster_is_judged_by_the_ranks_of_four_runs_and_more() -> None:
    cases = {
        "true": (QUICK, SLOW),
        "false": (SLOW, QUICK),
        "not shown": (QUICK, QUICK),
        "partly": (QUICK, ((300, 300), (400, 400), (300, 400), (400, 300))),
    }
    for verdict, (ours, theirs) in cases.items():
        evidence = Evidence([], curves("B3", *ours) + curves("B1", *theirs))
        assert find(judge(evidence), "faster").verdict == verdict
    few = Evidence([], curves("B3", *QUICK[:2]) + curves("B1", *SLOW[:2]))
    assert find(judge(few), "faster").verdict == "not shown"


def test_adam_is_compared_with_sgd_and_keras_runs_are_no_part_of_it() -> None:
    keras = [replace(run, framework="keras") for run in curves("mnist/lenet5_sgd", *QUICK)]
    evidence = Evidence([], curves("B3", *QUICK) + curves("mnist/lenet5_sgd", *SLOW) + keras)
    judged = find(judge(evidence), "Adam")
    assert judged.verdict == "true"
    assert "SGD, 0.001, momentum 0.9 350 [258, 442] (n 4)" in judged.measure


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
    fitted_less = [replace(run, train_accuracy=run.train_accuracy - 0.05) for run in after]
    assert find(judge(Evidence(before + fitted_less, [])), "overfit").verdict == "false"
    without = Evidence(before[:1] + after, [])  # one pair alone
    assert not [it for it in judge(without) if "overfit" in it.claim]
    assert "train − test accuracy +2.00 pp [2.00, 2.00], test accuracy -1.00 pp" in judged.measure


def test_seconds_are_of_one_of_twenty_epochs() -> None:
    timed = [replace(run, train_seconds=40.0 + 2 * run.seed) for run in runs("A1", 98, 98, 98)]
    gpu = [replace(run, train_seconds=8.0, device="gpu") for run in runs("A1", 98, 98)]
    judged = find(judge(Evidence(timed + gpu, [])), "K520")
    # t of 2 degrees of freedom is 4.303; the deviation is 0.1 s.
    assert judged.measure.startswith(
        "PyTorch on cpu: 2.1 s [1.9, 2.3] (n 3); PyTorch on gpu: 0.4 s"
    )
    assert judged.verdict == "not testable without a K520"


def test_an_error_is_what_is_missing_to_the_whole() -> None:
    judged = find(judge(Evidence(runs("linear", 92.4, 92.5, 92.6), [])), "linear")
    assert "error 7.50% [7.25, 7.75] (n 3)" in judged.measure


@pytest.mark.parametrize(
    ("accuracies", "verdict"),
    [
        ((99.6, 99.61), "reached"),
        ((98.0, 99.3), "inconclusive"),
        ((98.8, 98.9, 98.85), "not by these networks"),
    ],
)
def test_half_a_per_cent_is_reached_by_the_whole_interval(
    accuracies: tuple[float, ...], verdict: str
) -> None:
    assert find(judge(Evidence(runs("B3", *accuracies), [])), "0.5%").verdict == verdict


def test_the_lowest_error_is_of_the_best_row() -> None:
    results = runs("B3", 98.8, 98.9) + runs("B1", 97.0, 97.1) + runs("B4", 99.0, 99.1)
    assert "of 3 rows is B4's: 0.95%" in find(judge(Evidence(results, [])), "0.5%").measure


@pytest.mark.parametrize(
    ("lenet5", "verdict"), [((99.1, 99.2, 98.9), "true of LeNet-5"), ((98.9, 98.8), "exaggerated")]
)
def test_mnist_is_as_easy_as_the_share_of_runs_at_99(
    lenet5: tuple[float, ...], verdict: str
) -> None:
    results = runs("linear", 92, 92.1) + runs("B2", 97.6, 97.7) + runs("B4", *lenet5)
    judged = find(judge(Evidence(results + runs("B9", 89.0, 89.1), [])), "too easy")
    assert judged.verdict == verdict
    assert f"LeNet-5 {sum(it >= 99 for it in lenet5)} of {len(lenet5)}" in judged.measure
    assert "errs 9." in judged.measure or "errs 10.0" in judged.measure


@pytest.mark.parametrize(
    ("b11", "verdict"),
    [((91.5, 91.6, 91.7), "false: the same network passes it"), ((90.5, 91.6), "not refuted")],
)
def test_the_same_network_passes_91_with_its_whole_interval_or_not_at_all(
    b11: tuple[float, ...], verdict: str
) -> None:
    results = runs("B10", 90.0, 90.1) + runs("B11", *b11)
    assert find(judge(Evidence(results, [])), "new architecture").verdict == verdict


def test_deeper_is_lenet1_s_gain_over_lenet5() -> None:
    results = runs("B7", 91.0, 91.1) + runs("B6", 89.0, 89.1)
    results += runs("B10", 91.0, 91.1) + runs("B9", 89.0, 89.1)
    judged = find(judge(Evidence(results, [])), "deeper")
    assert judged.verdict == "true"
    assert "LeNet1 − LeNet-5, PyTorch's recipe: +2.00 pp" in judged.measure


@pytest.mark.parametrize(("accuracy", "verdict"), [(92.5, "another method"), (87.5, "not refuted")])
def test_softmax_regression_may_err_less_than_12_per_cent(accuracy: float, verdict: str) -> None:
    results = runs("linear", accuracy, accuracy + 0.1)
    assert find(judge(Evidence(results, [])), "1998").verdict.startswith(verdict)


def test_a_table_has_a_line_for_each_claim() -> None:
    table = claims_table([Judged("all is well", "A", "1.00", "true", "digitlab fit")])
    assert table.splitlines()[2] == "| A: all is well | 1.00 | **true** | `digitlab fit` |"
