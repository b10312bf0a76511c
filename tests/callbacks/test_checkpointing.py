"""Checkpoints in a trainer of one's own; `tests/faults` kills whole runs."""

import math
import shutil
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from lightning import Callback, Trainer
from lightning.pytorch.callbacks import LambdaCallback
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor

from digitlab.callbacks import BestCheckpoint, ExactResume, FiniteLoss, History, LastCheckpoint
from digitlab.models import MLP
from tests.fitting import At, KilledError, assert_bitwise_equal, kill, small_mlp, trainer, weights
from tests.tiny import TinyDataModule

pytestmark = [
    pytest.mark.filterwarnings("ignore:The number of training batches .* is smaller"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists"),
]


def fit(
    model: MLP,
    *callbacks: Callback,
    path: Path | None = None,
    epochs: int = 1,
    batch_size: int = 32,
    **options: Any,
) -> Trainer:
    torch.manual_seed(3)
    options |= {"enable_checkpointing": True, "num_sanity_val_steps": 0}
    fitted = trainer(callbacks=[*callbacks], max_epochs=epochs, **options)
    data = TinyDataModule(batch_size=batch_size)
    fitted.fit(model, data, ckpt_path=path, weights_only=True)
    return fitted


def step_of(path: Path) -> int | None:
    return int(torch.load(path, weights_only=True)["global_step"]) if path.exists() else None


def three_epochs(
    folder: Path, *others: Callback, block: int = 1, every: int | None = None, **how: Any
) -> tuple[dict[str, Tensor], Any]:
    """The weights and history of a run with dropout that saves what it needs to be resumed."""
    model, history = small_mlp(dropout=0.5, steps_per_execution=block), History(folder / "csv")
    saving = LastCheckpoint(folder, every_n_steps=every, every_n_minutes=None)
    fit(model, history, ExactResume(), saving, *others, epochs=3, **how)
    return weights(model), [row | {"seconds": None} for row in history.rows]


@pytest.mark.parametrize(
    ("block", "every", "killed", "saved"),
    [
        (1, 2, 5, 4),  # inside the first epoch of 7 steps
        (1, None, 9, 7),  # after it
        (4, 3, 11, 11),  # blocks end at 4, 7, 11 and 14; each passes a multiple of 3
        (4, 10, 14, 14),
    ],
)
def test_a_killed_run_is_resumed_bit_for_bit(
    tmp_path: Path, block: int, every: int | None, killed: int, saved: int
) -> None:
    last, run = tmp_path / "last.ckpt", partial(three_epochs, tmp_path, block=block, every=every)
    whole, rows = run()
    last.unlink()
    with pytest.raises(KilledError):
        run(At(killed, kill))
    assert step_of(last) == saved
    torch.rand(5)  # other random numbers than at the start
    resumed, same_rows = run(path=last)
    assert_bitwise_equal(resumed, whole)
    assert same_rows == rows


def test_a_gradient_scaler_is_resumed_too(tmp_path: Path) -> None:
    def run(*others: Callback, **how: Any) -> tuple[dict[str, Tensor], Any]:
        scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=2)
        plugins = [MixedPrecision("16-mixed", "cpu", scaler)]
        trained, _ = three_epochs(tmp_path, *others, every=3, plugins=plugins, **how)
        return trained, torch.load(tmp_path / "last.ckpt", weights_only=True)["MixedPrecision"]

    whole, state = run()
    (tmp_path / "last.ckpt").unlink()
    with pytest.raises(KilledError):
        run(At(10, kill))
    resumed, same = run(path=tmp_path / "last.ckpt")
    assert_bitwise_equal(resumed, whole)
    assert (same, state["scale"]) == (state, 4.0 * 2**10)  # grown after each second of 21 steps


def test_the_checkpoint_before_the_last_is_kept(tmp_path: Path) -> None:
    last = LastCheckpoint(tmp_path, every_n_steps=3, every_n_minutes=None)
    fit(small_mlp(), last)
    assert [step_of(tmp_path / name) for name in ("previous.ckpt", "last.ckpt")] == [6, 7]
    assert last.saved_step == 7


@pytest.mark.parametrize(("minutes", "saved"), [(0, 5), (60, None), (None, None)])
def test_time_is_an_interval_too(tmp_path: Path, minutes: float | None, saved: int | None) -> None:
    with pytest.raises(KilledError):
        fit(small_mlp(), LastCheckpoint(tmp_path, every_n_minutes=minutes), At(5, kill))
    assert step_of(tmp_path / "last.ckpt") == saved


@pytest.mark.parametrize(
    ("option", "value", "least"), [("every_n_steps", 0, 1), ("every_n_minutes", math.nan, 0)]
)
def test_an_interval_out_of_range_is_refused(option: str, value: Any, least: int) -> None:
    with pytest.raises(ValueError, match=f"{option} is {value}: it must be at least {least}"):
        LastCheckpoint("anywhere", **{option: value})


def test_the_best_score_is_known_in_a_folder_that_was_moved(tmp_path: Path) -> None:
    def best(folder: str) -> BestCheckpoint:
        return BestCheckpoint(tmp_path / folder, "best", monitor="val/accuracy", mode="max")

    first, moved = best("here"), best("there")
    fit(small_mlp(), first, epochs=2).save_checkpoint(tmp_path / "here" / "last.ckpt")
    shutil.move(tmp_path / "here", tmp_path / "there")
    fit(small_mlp(), moved, path=tmp_path / "there" / "last.ckpt", epochs=2)
    assert first.best_model_score is not None
    assert moved.best_model_score == first.best_model_score


class Spoiled(MLP):
    """At a step, from 1, its loss is NaN, or a weight that this step leaves alone infinite."""

    def __init__(self, step: int, what: str, **options: Any) -> None:
        super().__init__([16], **options)
        self.step, self.what = step, what

    def batch_loss(self, batch: Any) -> Tensor:
        is_now = self.global_step + 1 == self.step
        if is_now and self.what == "loss":
            return super().batch_loss((batch[0] * math.nan, batch[1]))
        loss = super().batch_loss(batch)
        if is_now:
            with torch.no_grad():
                self.network.get_parameter("fc1.bias")[0] = math.inf
        return loss


@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("at", [1, 5, 7])
def test_a_loss_that_is_not_finite_ends_the_run_and_is_never_saved(
    tmp_path: Path, at: int, steps: int
) -> None:
    finite, model = FiniteLoss(), Spoiled(at, "loss", steps_per_execution=steps)
    with pytest.raises(FloatingPointError, match=f"the loss is nan at step {at}, .* rate 0.001"):
        fit(model, finite, LastCheckpoint(tmp_path, finite, every_n_steps=1))
    assert (step_of(tmp_path / "last.ckpt") or 0) < at


@pytest.mark.parametrize(("steps", "stopped"), [(1, 32), (4, 32), (20, 40), (64, 50)])
def test_losses_are_checked_every_32_steps(steps: int, stopped: int) -> None:
    model = Spoiled(5, "loss", steps_per_execution=steps)
    with pytest.raises(FloatingPointError, match="at step 5, "):
        fit(model, FiniteLoss(), batch_size=4)  # 50 batches
    assert model.global_step == stopped


def test_weights_that_are_not_finite_are_neither_validated_nor_saved(tmp_path: Path) -> None:
    finite, validate = FiniteLoss(), Mock()
    watch = LambdaCallback(on_validation_batch_start=validate)
    message = "network.fc1.bias is not finite after step 7, learning rate 0.001"
    with pytest.raises(FloatingPointError, match=message):
        fit(Spoiled(7, "weight"), finite, LastCheckpoint(tmp_path, finite), watch)
    validate.assert_not_called()
    assert step_of(tmp_path / "last.ckpt") is None


def test_a_module_may_list_weights_that_are_not_torch_s() -> None:
    class AnotherFramework(MLP):
        def named_weights(self) -> dict[str, Tensor]:
            return {"dense/kernel": torch.tensor([0.0, math.nan])}

    with pytest.raises(FloatingPointError, match="dense/kernel is not finite after step 7"):
        fit(AnotherFramework([16]), FiniteLoss())
