from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch

from digitlab.callbacks import StepCheckpoint
from tests.fitting import fit, small_mlp

# Lightning counts blocks here.
pytestmark = pytest.mark.filterwarnings("ignore:The number of training batches .* is smaller")


def saved(folder: Path) -> list[int]:
    """The optimizer steps at which a checkpoint was written."""
    return sorted(
        torch.load(path, weights_only=True)["global_step"] for path in folder.glob("*.ckpt")
    )


def run(folder: Path, steps: int, **options: Any) -> None:
    checkpoint = StepCheckpoint(dirpath=folder, save_top_k=-1, **options)
    fit(small_mlp(steps_per_execution=steps), checkpoint, enable_checkpointing=True, max_epochs=3)


@pytest.mark.parametrize(
    ("steps", "every", "expected"),
    [
        (1, 3, [3, 6, 9, 12, 15, 18, 21]),
        (4, 3, [4, 7, 11, 14, 18, 21]),  # blocks end at 4, 7, 11, 14, 18 and 21
        (4, 5, [7, 11, 18, 21]),
        (4, 10, [11, 21]),
        (7, 7, [7, 14, 21]),
        (32, 2, [7, 14, 21]),
    ],
)
def test_each_multiple_is_saved_at_the_end_of_its_block(
    tmp_path: Path, steps: int, every: int, expected: list[int]
) -> None:
    run(tmp_path, steps, every_n_train_steps=every)
    assert saved(tmp_path) == expected


@pytest.mark.parametrize(("seconds", "expected"), [(0, [4, 7, 11, 14, 18, 21]), (3600, [])])
def test_time_is_an_interval_too(tmp_path: Path, seconds: int, expected: list[int]) -> None:
    run(tmp_path, 4, train_time_interval=timedelta(seconds=seconds))
    assert saved(tmp_path) == expected


def test_a_metric_inside_an_epoch_is_refused() -> None:
    with pytest.raises(ValueError, match=r"monitor is val/loss: .* leave monitor out"):
        StepCheckpoint(every_n_train_steps=3, monitor="val/loss")
