"""What the repository says was measured: `docs/results`."""

import statistics
from pathlib import Path

import pytest
from benchmarks import conclusions

from digitlab.reproduce import results
from digitlab.reproduce.rows import read_rows

pytestmark = pytest.mark.docs

RECORD = Path("docs", "results")

# Mean test accuracy in per cent, from the documents and independent runs. Too good is wrong too: it
# would mean that test images were trained on, or counted twice. A single run may lie outside: at a
# constant learning rate, a last epoch sometimes ends some tenths below the one before.
BANDS = {
    "linear": (91.5, 92.8),
    "A1": (98.0, 98.7),
    "A2": (98.0, 99.1),
    "A3": (96.5, 97.8),
    "B1": (96.0, 97.6),
    "B1_as_published": (94.5, 96.3),
    "B2": (97.3, 98.2),
    "B3": (98.4, 99.2),
    "B4": (98.4, 99.2),
    "B5": (85.0, 88.5),
    "B5_as_published": (84.0, 88.5),
    "B6": (87.0, 90.5),
    "B7": (90.0, 92.5),
    "B8": (85.0, 88.5),
    "B9": (87.0, 90.5),
    "B10": (90.0, 92.5),
    "B11": (90.0, 92.5),
}
MEASURED = results.read(RECORD / "results.csv")
GROUPS = sorted({result.key[:2] for result in MEASURED})


def test_every_config_was_measured_in_pytorch() -> None:
    assert {row for row, framework in GROUPS if framework == "torch"} == set(read_rows())


def test_every_row_of_the_documents_was_measured_in_keras_where_it_can_be() -> None:
    rows = {row.name for row in read_rows().values() if row.in_documents}
    measured = {row for row, framework in GROUPS if framework == "keras"}
    assert rows - measured == {"B1_as_published", "B5_as_published"}


@pytest.mark.parametrize(("row", "framework"), [group for group in GROUPS if group[0] in BANDS])
def test_a_measured_mean_lies_in_its_band(row: str, framework: str) -> None:
    low, high = BANDS[row]
    measured = [100 * it.test_accuracy for it in MEASURED if it.key[:2] == (row, framework)]
    assert low <= statistics.mean(measured) <= high


def test_no_run_was_counted_twice() -> None:
    keys = [result.key for result in MEASURED]
    assert len(keys) == len(set(keys))


def test_without_results_only_the_parameters_are_judged() -> None:
    (found,) = conclusions.judge(conclusions.Evidence([], []))
    assert found.measure.startswith("NN 128 101,770, LeNet-5 61,706, LeNet1 121,994")
    assert found.verdict == "true of LeNet-5 alone"
