import math

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy
from torchmetrics.classification import MulticlassAccuracy

from digitlab.scores import RunningScore, Score
from tests.fitting import batches, trainer

CPU = torch.device("cpu")
LOGITS = torch.randn(50, 10, generator=torch.Generator().manual_seed(0))
LABELS = torch.randint(10, (50,), generator=torch.Generator().manual_seed(1))


def summed(batch_size: int) -> RunningScore:
    sums = RunningScore(CPU)
    for logits, labels in batches(batch_size, LOGITS, LABELS):
        sums.add(cross_entropy(logits, labels), logits, labels)
    return sums


@pytest.mark.parametrize("batch_size", [1, 7, 32, 49, 50])
def test_a_score_is_that_of_the_whole_whatever_the_batches(batch_size: int) -> None:
    score = summed(batch_size).score()
    # Reference: the definition of cross-entropy in NumPy's float64.
    exponentials = np.exp(LOGITS.double().numpy())
    probabilities = exponentials[range(50), LABELS] / exponentials.sum(1)
    loss = torch.tensor(score["loss"], dtype=torch.float32)  # each batch's loss is float32
    torch.testing.assert_close(loss, torch.tensor(-np.log(probabilities).mean()).float())
    # Reference: torchmetrics, averaging over images as the documents do.
    accuracy = MulticlassAccuracy(num_classes=10, average="micro")
    assert score["correct"] == round(float(accuracy(LOGITS, LABELS)) * 50)
    assert (score["n"], score["accuracy"]) == (50, score["correct"] / 50)


def test_sums_stay_exact_over_more_images_than_float32_can_count() -> None:
    sums = RunningScore(CPU)
    sums.add_counts(2.0**24, correct=0, n=1)  # where float32 has no odd numbers
    for _ in range(3):
        sums.add(torch.tensor(1.0), torch.eye(2)[:1], torch.tensor([0]))
    assert sums.loss.item() == 2**24 + 3


def test_a_window_is_what_was_added_since_the_last() -> None:
    sums = RunningScore(CPU)
    windows = []
    for loss, label in ((1.0, 0), (3.0, 1), (7.0, 0)):
        sums.add(torch.tensor(loss), torch.eye(2)[:1], torch.tensor([label]))
        if loss != 1.0:
            windows.append([value.item() for value in sums.window()])
    assert windows == [[2.0, 0.5], [7.0, 1.0]]
    assert sums.score() == Score(loss=11 / 3, accuracy=2 / 3, correct=2, n=3)


def test_adding_keeps_no_graph_and_changes_no_argument() -> None:
    loss = torch.tensor(1.0, requires_grad=True)
    sums = RunningScore(CPU)
    sums.add(loss, torch.eye(2), torch.tensor([0, 1]))
    assert not sums.loss.requires_grad
    assert loss.item() == 1.0


def test_without_images_the_means_are_not_numbers() -> None:
    score = RunningScore(CPU).score()
    assert math.isnan(score["loss"])
    assert math.isnan(score["accuracy"])
    assert (score["correct"], score["n"]) == (0, 0)


def test_reducing_adds_up_all_processes() -> None:
    class ThreeProcesses:
        """Stands for a strategy whose processes all have the same sums."""

        def reduce(self, tensor: torch.Tensor, reduce_op: str) -> torch.Tensor:
            assert reduce_op == "sum"
            return 3 * tensor

    assert summed(7).reduce(trainer().strategy).score() == summed(7).score()
    one, three = summed(7).score(), summed(7).reduce(ThreeProcesses()).score()  # type: ignore[arg-type]
    assert (three["n"], three["correct"]) == (150, 3 * one["correct"])
    assert three["loss"] == pytest.approx(one["loss"], rel=1e-15)  # rounding of the tripled sum
