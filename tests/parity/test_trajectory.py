import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from digitlab import models
from digitlab.parity import trajectory as of_trajectory
from digitlab.parity.backend import import_keras
from digitlab.parity.optimizers import KerasAdam, exact_optimizer, to_keras_optimizer
from digitlab.parity.report import Check
from digitlab.parity.trajectory import DropoutMasks, keras_with_masks, torch_with_masks, trajectory
from digitlab.parity.twins import to_keras
from tests.parity.nets import digit_batches, make, random_batches, sequential

RATE = 0.3
ONES = np.ones((200, 7, 6, 5), np.float32)  # (N, H, W, C)
IMAGES = np.random.default_rng(0).normal(size=ONES.shape).astype(np.float32)


def test_numbers_are_a_function_of_seed_layer_and_step() -> None:
    def draw(seed: int = 1, layer: int = 2, step: int = 3) -> list[float]:
        numbers: list[float] = DropoutMasks(seed, step).uniform(layer, (50,)).tolist()
        return numbers

    assert draw() == draw()
    variants = [draw(), draw(seed=2), draw(layer=3), draw(step=4), draw(seed=2, layer=1)]
    assert len({number for numbers in variants for number in numbers}) == 250


@pytest.mark.parametrize("of_channels", [False, True])
def test_both_frameworks_real_dropouts_do_what_the_masks_do(of_channels: bool) -> None:
    keras = import_keras()
    keras.utils.set_random_seed(0)
    layer = (keras.layers.SpatialDropout2D if of_channels else keras.layers.Dropout)(RATE)
    torch_layer = (nn.Dropout2d if of_channels else nn.Dropout)(RATE)
    first = torch.from_numpy(ONES).permute(0, 3, 1, 2)
    masked = torch_with_masks(nn.Sequential(torch_layer), DropoutMasks())
    masked_keras = keras_with_masks(sequential(ONES.shape[1:], layer), DropoutMasks())
    trained = {
        "torch": torch_layer(first).permute(0, 2, 3, 1).numpy(),
        "keras": layer(ONES, training=True).numpy(),
        "masked torch": masked(first).permute(0, 2, 3, 1).numpy(),
        "masked keras": masked_keras(ONES, training=True).numpy(),
    }
    for values in trained.values():
        assert set(np.unique(values)) == {np.float32(0), np.float32(1 / (1 - RATE))}
        kept = (values > 0)[:, :1, :1] if of_channels else values > 0
        # Four standard errors of a share.
        assert abs(kept.mean() - (1 - RATE)) < 4 * (RATE * (1 - RATE) / kept.size) ** 0.5
        constant = (values == values[:, :1, :1]).all((1, 2))
        assert constant.all() if of_channels else not constant.all()
    evaluated = {
        "torch": torch_layer.eval()(first).permute(0, 2, 3, 1).numpy(),
        "keras": layer(ONES, training=False).numpy(),
        "masked torch": masked.eval()(first).permute(0, 2, 3, 1).numpy(),
        "masked keras": masked_keras(ONES, training=False).numpy(),
    }
    for values in evaluated.values():
        np.testing.assert_array_equal(values, ONES)


def test_both_sides_drop_the_same_in_either_layout_and_behind_a_flattening() -> None:
    layers, masks = import_keras().layers, DropoutMasks(seed=4, step=9)
    stack = [nn.Dropout(RATE), nn.Dropout2d(0.6), nn.MaxPool2d(2), nn.Dropout(0.1)]
    ours = torch_with_masks(nn.Sequential(*stack, nn.Flatten(), nn.Dropout(RATE)), masks)
    of_keras = [layers.Dropout(RATE), layers.SpatialDropout2D(0.6), layers.MaxPooling2D(2)]
    of_keras += [layers.Dropout(0.1), layers.Flatten(), layers.Dropout(RATE)]
    theirs = keras_with_masks(sequential(ONES.shape[1:], *of_keras), masks)
    left = ours(torch.from_numpy(IMAGES).permute(0, 3, 1, 2)).reshape(-1, 5, 3, 3)
    right = theirs(IMAGES, training=True).numpy().reshape(-1, 3, 3, 5)
    np.testing.assert_array_equal(left.permute(0, 2, 3, 1).numpy(), right)
    assert 0.1 < (right == 0).mean() < 0.9


@pytest.mark.parametrize(("rate", "expected"), [(0.0, 1.0), (1.0, 0.0)])
def test_all_or_nothing_may_be_dropped(rate: float, expected: float) -> None:
    theirs = keras_with_masks(sequential((3,), import_keras().layers.Dropout(rate)), DropoutMasks())
    ours = torch_with_masks(nn.Sequential(nn.Dropout(rate)), DropoutMasks())
    assert (ours(torch.ones(5, 3)) == expected).all()
    assert (theirs(np.ones((5, 3)), training=True).numpy() == expected).all()


def test_other_kinds_of_dropout_are_refused_by_name() -> None:
    keras = import_keras()
    with pytest.raises(ValueError, match=r"^0 is a AlphaDropout, whose random numbers cannot"):
        torch_with_masks(nn.Sequential(nn.AlphaDropout()), DropoutMasks())
    alpha = keras.layers.GaussianDropout(0.5, name="noise")
    with pytest.raises(ValueError, match=r"^noise is a GaussianDropout, whose .*: use Dropout or"):
        keras_with_masks(sequential((3,), alpha), DropoutMasks())
    shaped = keras.layers.Dropout(0.5, noise_shape=(None, 1), name="shaped")
    with pytest.raises(ValueError, match=r"^shaped is a Dropout"):
        keras_with_masks(sequential((3,), shaped), DropoutMasks())


Make = Callable[..., torch.optim.Optimizer]


def settings_of(make_optimizer: Make) -> torch.optim.Optimizer:
    return make_optimizer([nn.Parameter(torch.zeros(1))])


def walk(
    module: nn.Module,
    twin: Any,
    make_optimizer: Make,
    steps: int = 5,
    batches: list | None = None,
    stock: bool = False,
) -> Check:
    optimizer = settings_of(make_optimizer)
    ours = make_optimizer if stock else partial(exact_optimizer, optimizer)
    theirs = partial(to_keras_optimizer, optimizer)
    batches = random_batches(steps) if batches is None else batches
    return trajectory(module, twin, batches, ours, theirs, steps)


# The formula of each is tested by itself in test_optimizers.
@pytest.mark.parametrize(
    "make_optimizer", [partial(torch.optim.SGD, lr=0.1, momentum=0.9), torch.optim.Adam]
)
def test_the_exact_class_follows_keras_and_pytorchs_own_does_not(make_optimizer: Make) -> None:
    module = make("mlp512", hidden_features=[16, 16]).double()
    twin = to_keras(module)
    check = walk(module, twin, make_optimizer)
    assert check.passed, check
    assert check.compared == 5 * (sum(it.numel() for it in module.parameters()) + 1)
    check = walk(module, twin, make_optimizer, stock=True)
    assert not check.passed
    assert check.note.startswith("exceeded first in fc")


def test_averages_and_the_decay_of_kernels_alone_follow_keras(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module = make("nn128", hidden_features=[8]).double()
    optimizer = settings_of(partial(torch.optim.AdamW, weight_decay=0.3))
    check = partial(
        trajectory,
        *(module, to_keras(module), random_batches(2)),
        *(partial(exact_optimizer, optimizer), partial(to_keras_optimizer, optimizer), 2),
        average_decay=0.8,
    )
    passed = check(kernels_only=True)
    assert passed.passed, passed
    weights = sum(it.numel() for it in module.parameters())
    assert passed.compared == 2 * (1 + 2 * weights)
    monkeypatch.setattr(of_trajectory, "decay_kernels_only", lambda *_: None)
    assert not check(kernels_only=True).passed
    monkeypatch.setattr(of_trajectory, "get_ema_multi_avg_fn", lambda _: get_ema_multi_avg_fn(0.7))
    failed = check()
    assert not failed.passed
    assert failed.note.startswith("exceeded first in average of")


class Forgetful(KerasAdam):
    """Leaves one weight as it is."""

    def step(self, closure: Any = None) -> Any:
        weight = self.param_groups[0]["params"][0].data.view(-1)
        kept = weight[406].clone()  # of the image's middle
        super().step(closure)
        weight[406] = kept


def regularized(model: Any) -> None:
    model.layers[-1].kernel_regularizer = import_keras().regularizers.L2(1e-6)


def with_other_dropout(model: Any) -> None:
    model.get_layer("dropout1").rate = 0.8


WEIGHT, LOSS = "fc1.weight at step 1", "the loss at step 1"
# What is wrong with PyTorch's optimizer, Keras's learning rate and Keras's model.
FAULTS: dict[str, tuple[Make, float, Callable[[Any], Any], str]] = {
    "a single weight that misses a step": (Forgetful, 0.001, str, WEIGHT),
    "another learning rate": (KerasAdam, 0.001 * (1 + 1e-9), str, WEIGHT),
    "a regularizer of one side": (KerasAdam, 0.001, regularized, LOSS),
    "a dropout rate replaced by its complement": (KerasAdam, 0.001, with_other_dropout, LOSS),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_fails_the_trajectory_at_its_first_step(fault: str) -> None:
    make_optimizer, rate, spoil, where = FAULTS[fault]
    module = make("mlp512", hidden_features=[16, 16]).double()
    twin, batches = to_keras(module), digit_batches(2)
    assert walk(module, twin, KerasAdam, 2, batches).passed
    spoil(twin)
    theirs = partial(to_keras_optimizer, settings_of(partial(KerasAdam, lr=rate)))
    check = trajectory(module, twin, batches, make_optimizer, theirs, 2)
    assert not check.passed
    assert check.note.startswith(f"exceeded first in {where},")


def test_weights_that_are_no_numbers_fail_the_trajectory() -> None:
    module = make("linear").double()
    with torch.no_grad():
        module.network.fc1.bias[3] = math.nan  # type: ignore[union-attr,operator]
    check = walk(module, to_keras(module), torch.optim.SGD)
    assert not check.passed
    assert check.difference == math.inf


def test_too_few_batches_and_none_are_refused() -> None:
    module = make("linear").double()
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
    module = make("mlp512", hidden_features=[16, 16]).double().eval()
    twin = to_keras(module)
    before, layers = [weight.numpy().copy() for weight in twin.weights], list(twin.layers)
    assert walk(module, twin, torch.optim.SGD).passed
    for weight, kept in zip(twin.weights, before, strict=True):
        np.testing.assert_array_equal(weight.numpy(), kept)
    assert twin.layers == layers
    assert not module.training
    assert isinstance(module.network.dropout1, nn.Dropout)


def test_another_number_of_dropouts_is_refused() -> None:
    twin = to_keras(models.LinearClassifier())
    with pytest.raises(ValueError, match=r"has 1 dropout layers and the Keras model 0: give both"):
        walk(make("nn128"), twin, torch.optim.SGD)


def test_each_step_has_its_own_dropout_and_the_seed_chooses_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    drawn: list[tuple[int, int, int]] = []

    class SpiedMasks(DropoutMasks):
        def uniform(self, layer: int, shape: tuple[int, ...]) -> Any:
            drawn.append((self.seed, layer, self.step))
            return super().uniform(layer, shape)

    monkeypatch.setattr("digitlab.parity.trajectory.DropoutMasks", SpiedMasks)
    module = make("mlp512", hidden_features=[8, 8])
    theirs = partial(to_keras_optimizer, settings_of(torch.optim.SGD))
    trajectory(module, to_keras(module), random_batches(3), torch.optim.SGD, theirs, 3, seed=7)
    expected = [(7, layer, step) for step in range(3) for layer in range(2)]
    assert sorted(drawn) == sorted(2 * expected)
