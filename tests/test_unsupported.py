"""What several optimizer steps per `training_step` cannot honour is refused by name."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import (
    DeviceStatsMonitor,
    EMAWeightAveraging,
    GradientAccumulationScheduler,
    LearningRateMonitor,
    ModelCheckpoint,
    StochasticWeightAveraging,
)

from digitlab import execution
from digitlab.models import MLP
from tests.fitting import fit, small_mlp, trainer
from tests.tiny import TinyDataModule


class OwnCheckpoint(ModelCheckpoint):
    """Saves when Lightning's own does."""


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "limit": ({"limit_train_batches": 0.5}, "limit_train_batches 0.5 .* number of optimizer steps"),
    "validation": ({"val_check_interval": 3}, "val_check_interval 3 .* validate after whole"),
    "fraction": ({"val_check_interval": 0.5}, "val_check_interval 0.5 .* validate after whole"),
    "averaging": ({"callbacks": [StochasticWeightAveraging(0.1)]}, "StochasticWeightAveraging"),
    "ema": ({"callbacks": [EMAWeightAveraging()]}, "EMAWeightAveraging .* leave the callback out"),
    "accumulation": ({"callbacks": [GradientAccumulationScheduler({1: 2})]}, "larger batch_size"),
    "checkpoint": (
        {"callbacks": [ModelCheckpoint(every_n_train_steps=3)], "enable_checkpointing": True},
        "ModelCheckpoint inside an epoch .* use digitlab.callbacks.StepCheckpoint",
    ),
    "time": ({"val_check_interval": "00:00:01:00"}, "val_check_interval as a time .* validate"),
    "overfit": ({"overfit_batches": 0.5}, "overfit_batches 0.5 .* a number of optimizer steps"),
    "rate": ({"callbacks": [LearningRateMonitor()], "logger": True}, "LearningRateMonitor by the"),
    "device": ({"callbacks": [DeviceStatsMonitor()], "logger": True}, "DeviceStatsMonitor cannot"),
    "own checkpoint": (
        {"callbacks": [OwnCheckpoint(every_n_train_steps=3)], "enable_checkpointing": True},
        "OwnCheckpoint inside an epoch .* use digitlab.callbacks.StepCheckpoint",
    ),
    "clipping": ({"gradient_clip_val": 1.0}, "gradient_clip_val 1.0 .* model's gradient_clip_norm"),
    "batches": ({"accumulate_grad_batches": 2}, "accumulate_grad_batches 2 .* larger batch_size"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_honoured_is_refused_by_name(case: str, tmp_path: Path) -> None:
    options, message = REFUSED[case]
    run = trainer(**{**options, "default_root_dir": tmp_path})
    with pytest.raises(ValueError, match=message):
        execution.check_supported(small_mlp(steps_per_execution=4), run)
    execution.check_supported(small_mlp(steps_per_execution=1), run)


def test_a_refusal_comes_from_the_fit_itself() -> None:
    with pytest.raises(ValueError, match="set steps_per_execution to 1"):
        trainer(val_check_interval=3).fit(small_mlp(steps_per_execution=4), TinyDataModule())


def test_a_models_hook_that_would_not_be_called_is_refused() -> None:
    class Clipping(MLP):
        def configure_gradient_clipping(self, *args: Any, **kwargs: Any) -> None:
            raise AssertionError

    with pytest.raises(
        ValueError, match=r"Clipping.configure_gradient_clipping cannot be honoured"
    ):
        fit(Clipping([16], steps_per_execution=4))


def test_an_optimizer_that_needs_several_gradients_a_step_is_refused() -> None:
    with pytest.raises(ValueError, match=r"LBFGS cannot be honoured .* takes one gradient a step"):
        fit(small_mlp(steps_per_execution=4, optimizer=torch.optim.LBFGS))
