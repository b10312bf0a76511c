"""Several optimizer steps per `training_step` give what one gives, bit for bit."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, seed_everything
from lightning.pytorch.callbacks import (
    DeviceStatsMonitor,
    EMAWeightAveraging,
    GradientAccumulationScheduler,
    LambdaCallback,
    LearningRateMonitor,
    ModelCheckpoint,
    StochasticWeightAveraging,
)
from torch.optim import Optimizer
from torch.utils.data import DataLoader, TensorDataset

from digitlab import models
from digitlab.classifier import Classifier
from digitlab.models import MLP
from tests.fitting import (
    BATCHES,
    Recording,
    assert_bitwise_equal,
    fit,
    small_mlp,
    trainer,
    weights,
    whole,
)
from tests.tiny import TinyDataModule

# Lightning counts blocks here; the log is by the step still.
pytestmark = pytest.mark.filterwarnings("ignore:The number of training batches .* is smaller")

BLOCKS = [(steps, "32-true") for steps in (2, 4, 7, 32)]  # only 7 divides the tiny data's 7 batches


def train(steps: int, model: str = "MLP", **how: Any) -> Any:
    """Train a model from the same weights, and return what can be compared."""
    torch.manual_seed(1)
    made: Classifier = getattr(models, model)(steps_per_execution=steps)
    logger = Recording()
    fitted = fit(made, logger=logger, **{"max_epochs": 2, "log_every_n_steps": 3, **how})
    optimizer = fitted.optimizers[0].state_dict()["state"]
    state = {f"{i}.{name}": value for i, own in optimizer.items() for name, value in own.items()}
    return weights(made) | state, logger.records, fitted


@pytest.mark.parametrize(("steps", "precision"), [*BLOCKS, (4, "bf16-mixed")])
def test_weights_optimizer_and_log_are_those_of_single_steps(steps: int, precision: str) -> None:
    check_bits(steps, precision=precision)


def check_bits(steps: int, **options: Any) -> None:
    ours, our_log, fitted = train(steps, **options)  # with dropout
    theirs, their_log, _ = train(1, **options)
    assert_bitwise_equal(ours, theirs)
    assert our_log == their_log
    assert fitted.global_step == 2 * BATCHES
    assert not fitted.lightning_module.automatic_optimization


@pytest.mark.parametrize("model", models.__all__)
def test_every_architecture_gives_the_same_bits(model: str) -> None:
    ours, theirs = (train(steps, model, max_epochs=1)[0] for steps in (4, 1))
    assert_bitwise_equal(ours, theirs)


@pytest.mark.parametrize("limit", [1, 3, 4, 5, 100])
def test_limits_of_steps_and_batches_mean_optimizer_steps(limit: int) -> None:
    ends: list[tuple[dict[str, Any], int]] = [
        ({"max_epochs": -1, "max_steps": min(limit, 9)}, min(limit, 9)),
        ({"limit_train_batches": limit}, 2 * min(limit, BATCHES)),
    ]
    for options, steps in ends:
        ours, _, fitted = train(4, **options)
        assert fitted.global_step == steps
        assert_bitwise_equal(ours, train(1, **options)[0])


def test_steps_are_counted_on_every_axis() -> None:
    seen: list[tuple[int, int]] = []

    def look(trainer: Any, *_: Any) -> None:
        seen.append((trainer.global_step, trainer.fit_loop.epoch_loop._batches_that_stepped))

    logger, watching = Recording(), LambdaCallback(on_train_batch_end=look)
    fit(small_mlp(steps_per_execution=4), watching, logger=logger, max_epochs=2)
    assert seen == [(4, 3), (7, 6), (11, 10), (14, 13)]
    assert sorted({(step, values["epoch"]) for step, values in logger.records}) == [
        (step, epoch) for epoch, step in enumerate((6, 13))
    ]


@pytest.mark.filterwarnings("ignore:You requested to overfit")
def test_overfitting_and_a_fast_run_take_steps_too() -> None:
    ours, _, fitted = train(4, overfit_batches=3, limit_val_batches=0)
    theirs, _, _ = train(1, overfit_batches=3, limit_val_batches=0)
    assert fitted.global_step == 6
    assert_bitwise_equal(ours, theirs)
    fast = trainer(fast_dev_run=2)
    fast.fit(small_mlp(steps_per_execution=4), TinyDataModule())
    assert fast.global_step == 2


def test_a_scheduler_that_monitors_what_was_not_logged_is_refused() -> None:
    model = small_mlp(
        steps_per_execution=4, lr_scheduler=torch.optim.lr_scheduler.ReduceLROnPlateau
    )
    with pytest.raises(ValueError, match="monitors val/loss, which this epoch did not log"):
        fit(model, check_val_every_n_epoch=2)


def test_the_optimizer_computes_outside_of_a_mixed_precision() -> None:
    inside: list[bool] = []

    class Watching(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            loss = closure() if closure else None
            inside.append(torch.is_autocast_enabled("cpu"))
            return super().step() if closure is None else loss

    for steps in (1, 4):
        model = small_mlp(steps_per_execution=steps, optimizer=partial(Watching, lr=0.01))
        fit(model, precision="bf16-mixed")
    assert inside == [False] * (2 * BATCHES)


@pytest.mark.filterwarnings("ignore:.*does not have many workers")  # on machines of many cores
def test_single_batches_of_any_loader_are_trained_on_one_by_one() -> None:
    def on(steps: int) -> Classifier:
        model = small_mlp(steps_per_execution=steps, dropout=0.0)
        loader = DataLoader(TensorDataset(*(tensor[:40] for tensor in whole("train"))), 16)
        seed_everything(0, verbose=False)
        run = trainer(max_epochs=2)
        run.fit(model, loader, loader)
        assert run.global_step == 6
        return model

    assert_bitwise_equal(weights(on(8)), weights(on(1)))


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
def test_a_gpu_gives_the_bits_of_single_steps_too(precision: str) -> None:
    check_bits(4, precision=precision, accelerator="gpu", devices=1)


class Listening(MLP):
    """Notes the calls of hooks, its own and a callback's."""

    def __init__(self, **options: Any) -> None:
        super().__init__([16], **options)
        self.called: list[str] = []

    def on_after_backward(self) -> None:
        self.called.append("own after")

    def on_before_zero_grad(self, optimizer: Optimizer) -> None:
        self.called.append("own zero")


@pytest.mark.parametrize("steps", [1, 4])
def test_hooks_that_somebody_listens_to_are_called_at_every_step(steps: int) -> None:
    called: list[str] = []
    hooks = ["on_before_zero_grad", "on_before_backward", "on_after_backward"]
    hooks.append("on_before_optimizer_step")
    listening = LambdaCallback(
        **{hook: lambda *_, name=hook, **__: called.append(name) for hook in hooks}
    )
    model, silent = (small_mlp(steps_per_execution=steps) for _ in range(2))
    fit(model, listening)
    assert called == hooks * BATCHES
    fit(silent)
    assert_bitwise_equal(weights(model), weights(silent))
    fit(own := Listening(steps_per_execution=steps))
    assert own.called == ["own zero", "own after"] * BATCHES


@pytest.mark.parametrize("hook", ["on_before_optimizer_step", "log_step"])
def test_a_models_own_hook_before_steps_is_called_at_every_step(hook: str) -> None:
    called: list[int] = []

    def own(self: MLP, optimizer: Optimizer) -> None:
        called.append(self.global_step)
        getattr(MLP, hook)(self, optimizer)

    fit(type("Own", (MLP,), {hook: own})([16], steps_per_execution=4))
    assert called == [*range(BATCHES)]


@pytest.mark.filterwarnings("ignore:You have overridden `on_after_batch_transfer`")
def test_a_hook_that_makes_a_batch_of_a_block_is_refused() -> None:
    class Augmenting(MLP):
        def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            return batch[0].flip(3), batch[1]

    with pytest.raises(TypeError, match=r"a hook returned tuple for a Block .*_replace"):
        fit(Augmenting([16], steps_per_execution=4), limit_val_batches=0)


class OwnCheckpoint(ModelCheckpoint):
    """Saves when Lightning's own does."""


def callback(one: Callback, **options: Any) -> dict[str, Any]:
    return {"callbacks": [one], "logger": True, **options}


SAVING = {"enable_checkpointing": True}
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"limit_train_batches": 0.5}, "limit_train_batches 0.5 .* number of optimizer steps"),
    ({"overfit_batches": 0.5}, "overfit_batches 0.5 .* a number of optimizer steps"),
    ({"val_check_interval": 3}, "val_check_interval 3 .* validate after whole"),
    ({"val_check_interval": "00:00:01:00"}, "val_check_interval as a time .* validate"),
    ({"gradient_clip_val": 1.0}, "gradient_clip_val 1.0 .* model's gradient_clip_norm"),
    ({"accumulate_grad_batches": 2}, "accumulate_grad_batches 2 .* larger batch_size"),
    (callback(StochasticWeightAveraging(0.1)), "StochasticWeightAveraging .* leave"),
    (callback(EMAWeightAveraging()), "EMAWeightAveraging .* leave the callback out"),
    (callback(DeviceStatsMonitor()), "DeviceStatsMonitor is not"),
    (callback(GradientAccumulationScheduler({1: 2})), "larger batch_size"),
    (callback(LearningRateMonitor()), "LearningRateMonitor .* logging_interval to epoch"),
    (callback(ModelCheckpoint(every_n_train_steps=3), **SAVING), "ModelCheckpoint .*LastCheck"),
    (callback(OwnCheckpoint(every_n_train_steps=3), **SAVING), "OwnCheckpoint is not .* use digit"),
]


@pytest.mark.parametrize(("options", "message"), REFUSED, ids=[said for _, said in REFUSED])
def test_what_cannot_be_honoured_is_refused_by_name(
    options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    run = trainer(**{**options, "default_root_dir": tmp_path})
    with pytest.raises(ValueError, match=message):
        small_mlp(steps_per_execution=4).check_supported(run)
    small_mlp(steps_per_execution=1).check_supported(run)


class Clipping(MLP):
    """Clips gradients by a hook that blocks do not call."""

    def configure_gradient_clipping(self, *args: Any, **kwargs: Any) -> None:
        raise AssertionError


def test_a_fit_itself_refuses_settings_hooks_and_optimizers() -> None:
    with pytest.raises(ValueError, match="set steps_per_execution to 1"):
        fit(small_mlp(steps_per_execution=4), val_check_interval=3)
    with pytest.raises(ValueError, match=r"Clipping.configure_gradient_clipping is not supported"):
        fit(Clipping([16], steps_per_execution=4))
    with pytest.raises(ValueError, match=r"LBFGS is not supported .* takes one gradient per step"):
        fit(small_mlp(steps_per_execution=4, optimizer=torch.optim.LBFGS))
