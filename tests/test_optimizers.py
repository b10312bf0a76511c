"""The fused Adam step against torch's own, bit for bit."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import Adam, Optimizer
from torch.optim.lr_scheduler import ExponentialLR

from digitlab.optimizers import fused_adam_step


def network() -> nn.Sequential:
    torch.manual_seed(0)
    layers = nn.Conv2d(1, 3, 3), nn.Flatten(), nn.Linear(3 * 26 * 26, 10), nn.Linear(10, 2)
    return nn.Sequential(*layers).to(memory_format=torch.channels_last)


def train(
    make: Callable[[Any], Optimizer], fused: bool, steps: int = 7, skip: int | None = None
) -> dict[str, Any]:
    """Train a network, and give its weights and the optimizer's state; `skip` has no gradient."""
    model = network()
    optimizer = make(model)
    generator = torch.Generator().manual_seed(1)
    for step in range(steps):
        optimizer.zero_grad()
        model(torch.rand(4, 1, 28, 28, generator=generator)).square().sum().backward()
        if step == skip:
            model[3].bias.grad = None
        (fused_adam_step(optimizer) if fused else optimizer.step)()
    state = optimizer.state_dict()["state"]
    return {f"{i}.{name}": value for i, own in state.items() for name, value in own.items()} | {
        name: value.detach() for name, value in model.state_dict().items()
    }


def assert_equal(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


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
    assert_equal(train(PLAIN[optimizer], fused=True, skip=skip), theirs)
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
    assert_equal(ours, theirs)
    model = network()
    made = OTHERS[optimizer](model)
    model(torch.rand(1, 1, 28, 28)).sum().backward()
    made.step()
    assert fused_adam_step(made) == made.step
