import math
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import digitlab.parity.trajectory as room
from digitlab import models
from digitlab.parity.backend import import_keras, keras_dtype
from digitlab.parity.checks import Check, logits, parameter_counts
from digitlab.parity.optimizers import KerasAdam, KerasRMSprop, exact_optimizer, to_keras_optimizer
from digitlab.parity.trajectory import Masks, optimizer_steps, trajectory
from digitlab.parity.twins import lenet1, mlp
from digitlab.parity.weights import copy_weights, match, to_keras
from tests.parity.pairs import make, optimizer_of, random_batches, real_batches, real_images

pytestmark = pytest.mark.skipif(not find_spec("tensorflow"), reason="needs the extra `parity`")

Make = Callable[..., torch.optim.Optimizer]
OPTIMIZERS: dict[str, Make] = {
    "SGD": torch.optim.SGD,
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "Nesterov": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    "Adam": torch.optim.Adam,
    "betas": lambda p: torch.optim.Adam(p, lr=0.01, betas=(0.8, 0.95), eps=1e-4),
    "AMSGrad": lambda p: torch.optim.Adam(p, betas=(0.9, 0.5), amsgrad=True),
    "AdamW": lambda p: torch.optim.AdamW(p, weight_decay=0.3),
    "KerasAdam": lambda p: KerasAdam(p, weight_decay=0.3, amsgrad=True),
    "RMSprop": torch.optim.RMSprop,
    "centered": lambda p: torch.optim.RMSprop(p, alpha=0.7, centered=True, momentum=0.6),
    "KerasRMSprop": lambda p: KerasRMSprop(p, weight_decay=0.3, momentum=0.9),
}


def walk(
    module: nn.Module,
    twin: Any,
    make_optimizer: Make,
    steps: int = 5,
    batches: list | None = None,
    stock: bool = False,
) -> Check:
    optimizer = optimizer_of(make_optimizer)
    ours = make_optimizer if stock else partial(exact_optimizer, optimizer)
    theirs = partial(to_keras_optimizer, optimizer)
    batches = random_batches(steps) if batches is None else batches
    return trajectory(module, twin, batches, ours, theirs, steps)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_single_steps_of_both_frameworks_follow_the_formula(name: str) -> None:
    ours, theirs = optimizer_steps(optimizer_of(OPTIMIZERS[name]))
    assert (ours.compared, theirs.compared) == (5000, 5000)
    assert ours.passed, ours
    assert theirs.passed, theirs


@pytest.mark.parametrize("name", ["Adam", "AdamW", "RMSprop", "momentum", "centered"])
def test_single_steps_of_pytorchs_own_class_do_not_follow_kerass_formula(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_optimizer = OPTIMIZERS[name]
    monkeypatch.setattr(room, "exact_optimizer", lambda optimizer, params: make_optimizer(params))
    ours, theirs = optimizer_steps(optimizer_of(make_optimizer))
    assert not ours.passed
    assert theirs.passed


@pytest.mark.parametrize("setting", ["epsilon", "beta_2", "learning_rate", "weight_decay"])
def test_a_setting_that_keras_gets_wrong_fails_the_single_steps(
    setting: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = {"epsilon": 1.1e-8, "beta_2": 0.99, "learning_rate": 0.00101, "weight_decay": 0.0099}
    right = {"epsilon": 1e-8, "beta_2": 0.999, "learning_rate": 0.001, "weight_decay": 0.01}
    settings = {**right, setting: wrong[setting]}
    adamw = import_keras().optimizers.AdamW
    monkeypatch.setattr(room, "to_keras_optimizer", lambda optimizer: adamw(**settings))
    ours, theirs = optimizer_steps(optimizer_of(torch.optim.AdamW))
    assert ours.passed
    assert not theirs.passed


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_trajectories_with_the_exact_class_agree(name: str) -> None:
    module = make("nn128").double()
    check = walk(module, to_keras(module), OPTIMIZERS[name])
    assert check.passed, check
    assert check.compared == 5 * (101_770 + 1)


@pytest.mark.parametrize("name", ["Adam", "RMSprop", "AMSGrad", "AdamW", "momentum"])
def test_pytorchs_own_class_fails_the_trajectory_within_five_steps(name: str) -> None:
    module = make("nn128").double()
    check = walk(module, to_keras(module), OPTIMIZERS[name], stock=True)
    assert not check.passed
    assert check.note.startswith("exceeded first in fc")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_dropout_rate_replaced_by_its_complement_fails_the_trajectory(dtype: torch.dtype) -> None:
    module = make("nn128", dropout=0.2).to(dtype)
    check = walk(module, to_keras(module), torch.optim.Adam)
    assert check.passed, check
    with keras_dtype("float32" if dtype == torch.float32 else "float64"):
        twin = mlp([128], dropout=0.8)
    copy_weights(module, twin)
    check = walk(module, twin, torch.optim.Adam)
    assert not check.passed
    assert check.note.startswith("exceeded first in the loss at step 1,")


@pytest.mark.usefixtures("real_data")
def test_lenet1_of_one_padding_fails_at_the_logits_of_the_others_twin() -> None:
    module, (images, labels) = make("lenet1").double(), real_images(100)
    with keras_dtype("float64"):
        right, wrong = lenet1(padding=2), lenet1(padding="same")
    for twin in (right, wrong):
        copy_weights(module, twin)
        assert parameter_counts(module, twin).passed  # all shapes are the same
    assert logits(module, right, images).passed
    assert not logits(module, wrong, images).passed
    check = walk(module, wrong, torch.optim.Adam, 1, [(images, labels)])
    assert check.note.startswith("exceeded first in the loss at step 1,")


@pytest.mark.usefixtures("real_data")
def test_a_flattening_that_is_not_permuted_fails_at_the_logits() -> None:
    module, (images, _) = make("lenet5").double(), real_images(100)
    twin = to_keras(module)
    assert logits(module, twin, images).passed
    (pair,) = [pair for pair in match(module, twin) if pair.keras_name == "fc1/kernel"]
    assert pair.flattened == (5, 5, 16)
    pair.variable.assign(pair.layout.to_keras(pair.tensor.detach().numpy(), flattened=None))
    assert not logits(module, twin, images).passed


@pytest.mark.usefixtures("real_data")
def test_a_single_weight_that_misses_a_step_fails_the_trajectory() -> None:
    class Forgetful(KerasAdam):
        def step(self, closure: Any = None) -> Any:
            weight = self.param_groups[0]["params"][0].data.view(-1)
            kept = weight[406].clone()  # of the image's middle
            super().step(closure)
            weight[406] = kept

    for dtype in (torch.float32, torch.float64):
        module = make("nn128").to(dtype)
        twin = to_keras(module)
        theirs = partial(to_keras_optimizer, optimizer_of(KerasAdam))
        batches = real_batches(5)
        assert trajectory(module, twin, batches, KerasAdam, theirs, 5).passed
        check = trajectory(module, twin, batches, Forgetful, theirs, 5)
        assert not check.passed
        assert check.note.startswith("exceeded first in fc1.weight at step 1,")


def test_a_learning_rate_that_differs_fails_the_trajectory_at_its_first_step() -> None:
    module = make("linear").double()
    theirs = partial(to_keras_optimizer, optimizer_of(partial(KerasAdam, lr=0.001 * (1 + 1e-9))))
    check = trajectory(module, to_keras(module), random_batches(2), KerasAdam, theirs, 2)
    assert not check.passed
    assert check.note.startswith("exceeded first in fc1.weight at step 1,")


def test_weights_that_are_no_numbers_fail_the_trajectory() -> None:
    module = make("linear").double()
    with torch.no_grad():
        module.network.fc1.bias[3] = math.nan  # type: ignore[union-attr,operator]
    check = walk(module, to_keras(module), torch.optim.SGD)
    assert not check.passed
    assert check.difference == math.inf


def test_too_few_batches_and_none_are_refused() -> None:
    module = make("linear")
    twin = to_keras(module)
    with pytest.raises(ValueError, match=r"^steps is 3, but there are only 2 batches: take fewer"):
        walk(module, twin, torch.optim.SGD, 3, random_batches(2))
    with pytest.raises(ValueError, match="only 0 batches"):
        walk(module, twin, torch.optim.SGD, 1, [])


def test_batches_of_another_size_may_follow() -> None:
    module = make("linear").double()
    batches = random_batches(2, batch_size=8) + random_batches(1, batch_size=3)
    assert walk(module, to_keras(module), torch.optim.Adam, 3, batches).passed


def test_the_trajectory_changes_neither_side() -> None:
    module = make("nn128").double().eval()
    twin = to_keras(module)
    before = [weight.numpy().copy() for weight in twin.weights]
    assert walk(module, twin, torch.optim.SGD).passed
    for weight, kept in zip(twin.weights, before, strict=True):
        np.testing.assert_array_equal(weight.numpy(), kept)
    assert not module.training
    assert isinstance(module.network.dropout1, nn.Dropout)


def test_a_pair_that_does_not_match_is_refused() -> None:
    with pytest.raises(ValueError, match="dropout layers"):
        walk(make("nn128"), to_keras(models.LinearClassifier()), torch.optim.SGD)


def test_each_step_has_its_own_dropout_and_the_seed_chooses_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    drawn: list[tuple[int, int, int]] = []

    class SpiedMasks(Masks):
        def uniform(self, layer: int, shape: tuple[int, ...]) -> Any:
            drawn.append((self.seed, layer, self.step))
            return super().uniform(layer, shape)

    monkeypatch.setattr(room, "Masks", SpiedMasks)
    module = make("mlp512", hidden_features=[8, 8])
    theirs = partial(to_keras_optimizer, optimizer_of(torch.optim.SGD))
    trajectory(module, to_keras(module), random_batches(3), torch.optim.SGD, theirs, 3, seed=7)
    expected = [(7, layer, step) for step in range(3) for layer in range(2)]
    assert sorted(drawn) == sorted(2 * expected)
