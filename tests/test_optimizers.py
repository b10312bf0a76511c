"""The fused Adam step against torch's own, bit for bit; the fused RMSprop against torch's."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import Adam, Optimizer, RMSprop
from torch.optim.lr_scheduler import ExponentialLR

from digitlab.optimizers import FusedRMSprop, fused_adam_step
from tests.fitting import assert_bitwise_equal


def network() -> nn.Sequential:
    torch.manual_seed(0)
    layers = nn.Conv2d(1, 3, 3), nn.Flatten(), nn.Linear(3 * 26 * 26, 10), nn.Linear(10, 2)
    return nn.Sequential(*layers).to(memory_format=torch.channels_last)


def train(
    make: Callable[[Any], Optimizer],
    fused: bool,
    steps: int = 7,
    skip: int | None = None,
    dtype: torch.dtype = torch.float32,
) -> dict[str, Any]:
    """Train a network, and give its weights and the optimizer's state; `skip` has no gradient."""
    model = network().to(dtype)
    optimizer = make(model)
    generator = torch.Generator().manual_seed(1)
    for step in range(steps):
        optimizer.zero_grad()
        images = torch.rand(4, 1, 28, 28, generator=generator).to(dtype)
        model(images).square().sum().backward()
        if step == skip:
            model[3].bias.grad = None
        (fused_adam_step(optimizer) if fused else optimizer.step)()
    state = optimizer.state_dict()["state"]
    return {f"{i}.{name}": value for i, own in state.items() for name, value in own.items()} | {
        name: value.detach() for name, value in model.state_dict().items()
    }


def two_groups(model: nn.Module) -> Optimizer:
    first, *others = model.parameters()
    groups: list[dict[str, Any]] = [{"params": [first], "lr": 0.1}, {"params": others}]
    return Adam(groups, lr=0.01, fused=True)


PLAIN: dict[str, Callable[[Any], Optimizer]] = {
    "default": lambda model: Adam(model.parameters(), fused=True),
    "own": lambda model: Adam(
        model.parameters(), 0.01, (0.7, 0.9), 1e-5, weight_decay=0.1, maximize=True, fused=True
    ),
    "groups": two_groups,
}


@pytest.mark.parametrize("skip", [None, 3])
@pytest.mark.parametrize("optimizer", PLAIN)
def test_a_fused_adam_step_is_torchs_own(
    optimizer: str, skip: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = train(PLAIN[optimizer], fused=False, skip=skip)
    called: list[Optimizer] = []
    own = Adam.step

    def step(self: Adam) -> Any:
        called.append(self)
        return own(self)

    monkeypatch.setattr(Adam, "step", step)
    assert_bitwise_equal(train(PLAIN[optimizer], fused=True, skip=skip), theirs)
    assert len(called) == (1 if skip is None else 2)  # the first step, and the incomplete one


def scheduled(model: nn.Module) -> Optimizer:
    optimizer = Adam(model.parameters(), fused=True)
    ExponentialLR(optimizer, 0.5)
    return optimizer


def hooked(model: nn.Module) -> Optimizer:
    optimizer = Adam(model.parameters(), fused=True)
    optimizer.register_step_pre_hook(lambda *_: None)
    return optimizer


class OwnAdam(Adam):
    """A class of somebody's own."""


OTHERS: dict[str, Callable[[Any], Optimizer]] = {
    "scheduled": scheduled,
    "hooked": hooked,
    "own class": lambda model: OwnAdam(model.parameters(), fused=True),
    "not fused": lambda model: Adam(model.parameters()),
    "amsgrad": lambda model: Adam(model.parameters(), amsgrad=True, fused=True),
    "sgd": lambda model: torch.optim.SGD(model.parameters(), 1e-6, fused=True),
    "tensor rate": lambda model: Adam(model.parameters(), torch.tensor(0.1), fused=True),
}


@pytest.mark.parametrize("optimizer", OTHERS)
def test_any_other_optimizer_makes_its_own_step(optimizer: str) -> None:
    ours, theirs = (train(OTHERS[optimizer], fused=fused) for fused in (True, False))
    assert_bitwise_equal(ours, theirs)
    model = network()
    made = OTHERS[optimizer](model)
    model(torch.rand(1, 1, 28, 28)).sum().backward()
    made.step()
    assert fused_adam_step(made) == made.step


RMSPROPS: dict[str, dict[str, float]] = {
    "default": {},
    "of Keras": {"lr": 0.001, "alpha": 0.9, "eps": 1e-7},
    "all": {"lr": 0.02, "alpha": 0.5, "eps": 1e-3, "weight_decay": 0.1},
    "no average": {"lr": 1e-4, "alpha": 0.0},
}


@pytest.mark.parametrize("skip", [None, 3])
@pytest.mark.parametrize("settings", RMSPROPS)
def test_the_fused_rmsprop_is_torchs_except_for_rounding(settings: str, skip: int | None) -> None:
    options: dict[str, Any] = RMSPROPS[settings]
    ours, theirs = (
        train(lambda model: kind(model.parameters(), **options), False, 30, skip, torch.float64)  # noqa: B023
        for kind in (FusedRMSprop, RMSprop)
    )
    assert ours.keys() == theirs.keys()
    for name in theirs:
        torch.testing.assert_close(ours[name], theirs[name], msg=name)


def test_a_state_of_torchs_rmsprop_loads_into_the_fused_one_and_back() -> None:
    made = []
    for first, second in ((FusedRMSprop, RMSprop), (RMSprop, FusedRMSprop)):
        model = network().double()
        images = torch.ones(4, 1, 28, 28, dtype=torch.float64)
        optimizer: Optimizer = first(model.parameters(), lr=0.01)
        for step in range(4):
            if step == 2:
                state = optimizer.state_dict()
                optimizer = second(model.parameters(), lr=0.5)
                optimizer.load_state_dict(state)
            optimizer.zero_grad()
            model(images).square().sum().backward()
            optimizer.step()
        made.append([parameter.detach() for parameter in model.parameters()])
    torch.testing.assert_close(*made)


def test_a_step_of_the_fused_rmsprop_computes_and_returns_the_loss_of_its_closure() -> None:
    model = nn.Linear(3, 2)
    optimizer = FusedRMSprop(model.parameters())

    def closure() -> torch.Tensor:
        loss: torch.Tensor = model(torch.ones(2, 3)).square().sum()
        loss.backward()
        return loss

    before = model.bias.clone()
    assert optimizer.step(closure).requires_grad
    assert not torch.equal(model.bias, before)


@pytest.mark.parametrize("alpha", [1.0, 1.5, -0.1])
def test_a_smoothing_constant_out_of_its_range_is_refused(alpha: float) -> None:
    with pytest.raises(ValueError, match=f"alpha is {alpha}: it must be at least 0 and below 1"):
        FusedRMSprop(network().parameters(), alpha=alpha)
