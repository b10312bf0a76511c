"""Averaged weights: torch's average of a plain loop, in scores, files and resumed runs."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from digitlab.callbacks import ExactResume
from digitlab.checkpoints import load_weights
from digitlab.models import ResNet
from tests.fitting import assert_bitwise_equal, fit, plain_loop, trainer, weights, whole
from tests.tiny import TinyDataModule

DECAY = 0.8
Weights = dict[str, Tensor]
NORMALIZED: dict[str, Any] = {"width": 4, "growth": [1], "blocks": [1]}


def make(**others: Any) -> ResNet:
    """A small network with batch normalization, always with the same weights."""
    torch.manual_seed(1)
    settings = {"average_decay": DECAY, "optimizer": torch.optim.AdamW, **NORMALIZED}
    return ResNet(**{**settings, **others})


@pytest.fixture(scope="module")
def reference(tiny_for_module: None) -> tuple[Weights, Weights]:
    """The averaged weights, and the last ones, of two epochs of a plain loop."""
    model = make()
    average = AveragedModel(model.network, multi_avg_fn=get_ema_multi_avg_fn(DECAY))
    optimizer = torch.optim.AdamW(model.network.parameters())
    plain_loop(model, optimizer, 2, after_step=lambda: average.update_parameters(model.network))
    averaged, last = average.module.state_dict(), weights(model)
    return {f"network.{name}": value for name, value in averaged.items()}, last


@pytest.mark.usefixtures("tiny_for_module")
@pytest.mark.parametrize("steps", [1, 3])
def test_a_trained_model_has_the_average_of_a_plain_loop_for_any_steps_per_execution(
    reference: tuple[Weights, Weights], steps: int
) -> None:
    model = make(steps_per_execution=steps)
    fitted = fit(model, max_epochs=2)
    averaged, last = reference
    assert_bitwise_equal(weights(model), averaged)
    assert not torch.equal(averaged["network.fc.weight"], last["network.fc.weight"])
    statistics = "network.norm.running_var"
    assert torch.equal(averaged[statistics], last[statistics])
    images, labels = whole("test")
    with torch.no_grad():
        loss = cross_entropy(model.eval()(images), labels)
    torch.testing.assert_close(fitted.callback_metrics["val/loss"], loss)


class KilledError(Exception):
    """Ends a fit as nothing foreseen would."""


class KillAt(Callback):
    """Saves a checkpoint at a step, inside an epoch or at its end, and ends the fit."""

    def __init__(self, step: int, path: Path) -> None:
        self.step, self.path = step, path

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        if not trainer.is_last_batch:
            self.on_train_epoch_end(trainer)

    def on_train_epoch_end(self, trainer: Trainer, *args: Any) -> None:
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)
            raise KilledError


@pytest.mark.usefixtures("tiny_for_module")
@pytest.mark.parametrize(("steps", "killed_at"), [(1, 7), (1, 10), (4, 11)])
def test_a_checkpoint_has_the_average_and_a_run_resumed_from_it_ends_as_a_whole_one(
    reference: tuple[Weights, Weights], tmp_path: Path, steps: int, killed_at: int
) -> None:
    path = tmp_path / "last.ckpt"
    stopped = make(steps_per_execution=steps)
    fit(stopped, max_epochs=2, max_steps=killed_at)
    with pytest.raises(KilledError):
        fit(make(steps_per_execution=steps), ExactResume(), KillAt(killed_at, path), max_epochs=2)
    loaded = make(steps_per_execution=steps)
    load_weights(loaded, path)
    assert_bitwise_equal(weights(loaded), weights(stopped))
    seed_everything(3, verbose=False)  # the loader's; weights are the checkpoint's
    resumed = ResNet(**{**loaded.hparams, "optimizer": torch.optim.AdamW})
    again = trainer(max_epochs=2, callbacks=[ExactResume()])
    again.fit(resumed, TinyDataModule(), ckpt_path=path, weights_only=True)
    assert again.global_step == 14
    assert_bitwise_equal(weights(resumed), reference[0])


@pytest.mark.usefixtures("tiny_for_module")
def test_a_checkpoint_is_refused_by_a_fit_with_or_without_an_average_where_it_is_not(
    tmp_path: Path,
) -> None:
    path, fitted = tmp_path / "last.ckpt", make()
    with pytest.raises(KilledError):
        fit(fitted, ExactResume(), KillAt(3, path))
    with pytest.raises(
        ValueError, match=r"^average_decay is None, and the checkpoint has averaged"
    ):
        trainer().fit(make(average_decay=None), TinyDataModule(), ckpt_path=path, weights_only=True)
    loaded = make(average_decay=None)
    trainer().validate(loaded, TinyDataModule(), ckpt_path=path, weights_only=True, verbose=False)


@pytest.mark.parametrize("decay", [-0.1, 1, float("nan")])
def test_a_decay_that_is_none_is_refused(decay: float) -> None:
    with pytest.raises(ValueError, match=rf"^average_decay is {decay}: it must be at least 0 and"):
        make(average_decay=decay)


@pytest.mark.usefixtures("tiny_for_module")
def test_weight_decay_spares_what_has_one_dimension() -> None:
    model = make(decay_kernels_only=True)
    kernels, others = model.configure_optimizers().param_groups
    assert {it.ndim for it in kernels["params"]} == {2, 4}
    assert {it.ndim for it in others["params"]} == {1}
    assert (kernels["weight_decay"], others["weight_decay"]) == (0.01, 0)  # AdamW's default
    assert len(kernels["params"]) + len(others["params"]) == len([*model.parameters()])
