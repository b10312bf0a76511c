"""A run stops at NaN and infinity, and the same seed gives the same bits."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from digitlab.checkpoints import read_checkpoint
from digitlab.classifier import Classifier
from tests.faults.conftest import Alone
from tests.faults.runs_of_tiny import COMMAND, MLP, fit, folder_of, left_alone, log_of
from tests.faults.victims import differences, run


def spoil_step(step: int) -> None:
    """A fault: at a step the images, and so the loss, become NaN."""
    made, original = 0, Classifier._loss_and_logits

    def spoil(self: Classifier, images: torch.Tensor, labels: torch.Tensor) -> Any:
        nonlocal made
        made += self.training
        if made == step and self.training:
            images = images * float("nan")
        return original(self, images, labels)

    Classifier._loss_and_logits = spoil  # type: ignore[method-assign]


def stopped(command: list[str], place: Path, fault: Any) -> tuple[Path, str]:
    """Runs a command that fails, and gives its run folder and the last line that it says."""
    log = log_of(place)
    assert run(command, log, fault) == 1, log.read_text("utf-8")
    assert "Traceback" not in log.read_text("utf-8")
    folder = folder_of(place)
    assert not (folder / "metrics.json").exists()
    for path in folder.glob("checkpoints/*.ckpt"):
        assert all(
            tensor.isfinite().all() for tensor in read_checkpoint(path)["state_dict"].values()
        )
    return folder, log.read_text("utf-8").splitlines()[-1].removeprefix("digitlab: error: ")


slow = partial(pytest.param, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("model", "step", "saved"), [(MLP, 30, 28), slow(MLP, 1, None), slow(COMMAND, 31, 29)]
)
def test_a_loss_that_is_no_number_stops_the_run_and_names_step_rate_and_checkpoint(
    tmp_path: Path, model: str, step: int, saved: int | None
) -> None:
    folder, line = stopped(fit(model, tmp_path), tmp_path, partial(spoil_step, step))
    last = folder / "checkpoints" / "last.ckpt"
    left = f"{last} was saved at step {saved}" if saved else "nothing was saved"
    assert line == f"the loss is nan at step {step}, learning rate 0.001; {left}"
    assert last.exists() == bool(saved)


@pytest.mark.slow
def test_a_rate_that_is_too_large_is_named(tmp_path: Path) -> None:
    options = "--model.optimizer SGD --model.optimizer.lr 1e38"
    _, line = stopped(fit(f"LeNet5 {options}", tmp_path), tmp_path, None)
    assert "is nan at step 2, learning rate 1e+38; nothing was saved" in line


@pytest.mark.parametrize("seed", [0, slow(6)])
def test_the_same_seed_gives_the_same_bits_and_another_does_not(
    tmp_path: Path, alone: Alone, seed: int
) -> None:
    command = [*fit(COMMAND, tmp_path), "--seed_everything", str(seed)]
    parts = ["last", "best", "history.csv", "metrics.json", "events", "pictures"]
    assert differences(left_alone(command, tmp_path), alone(COMMAND)) == (parts if seed else [])
