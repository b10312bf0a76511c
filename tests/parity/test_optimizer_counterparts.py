from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from torch import nn

from digitlab.parity.optimizers import exact_optimizer, to_keras_optimizer
from tests.parity.pairs import optimizer_of

pytestmark = pytest.mark.skipif(not find_spec("tensorflow"), reason="needs the extra `parity`")


def test_keras_gets_the_settings_under_its_own_names() -> None:
    first, second = (nn.Parameter(torch.zeros(1)) for _ in range(2))
    groups = [{"params": [first]}, {"params": [second]}]
    adamw = torch.optim.AdamW(groups, 0.01, (0.8, 0.9), 1e-5, weight_decay=0.2, foreach=False)
    torch.optim.lr_scheduler.StepLR(adamw, 5)  # which notes the initial learning rate
    theirs = to_keras_optimizer(adamw)
    config = theirs.get_config()
    expected = {"beta_1": 0.8, "beta_2": 0.9, "epsilon": 1e-5, "weight_decay": 0.2}
    assert expected.items() <= config.items()
    assert type(theirs).__name__ == "AdamW"
    assert config["learning_rate"] == pytest.approx(0.01, abs=1e-9)  # Keras keeps it as float32
    integers = torch.optim.SGD([first], lr=torch.tensor(1), momentum=0)
    assert to_keras_optimizer(integers).get_config()["learning_rate"] == 1.0


@pytest.mark.parametrize(
    ("make_optimizer", "message"),
    [
        (
            torch.optim.Adagrad,
            "optimizer is Adagrad, which has no counterpart in Keras: use one of",
        ),
        (torch.optim.NAdam, "optimizer is NAdam, which has"),
        (partial(torch.optim.Adam, weight_decay=0.1), r"weight_decay is 0\.1: Adam adds .* AdamW$"),
        (partial(torch.optim.RMSprop, weight_decay=0.1), "RMSprop adds .* use KerasRMSprop$"),
        (partial(torch.optim.SGD, weight_decay=0.1), "SGD adds it to the gradient.* set it to 0$"),
        (
            partial(torch.optim.SGD, momentum=0.9, dampening=0.5),
            r"dampening is 0\.5: Keras's count",
        ),
        (partial(torch.optim.SGD, momentum=1.5), r"momentum is 1\.5: Keras's SGD takes 0 to 1"),
        (partial(torch.optim.Adam, maximize=True), "maximize is True: Keras's counterpart of Adam"),
    ],
)
def test_what_has_no_counterpart_in_keras_is_refused_in_a_line(
    make_optimizer: Callable[..., torch.optim.Optimizer], message: str
) -> None:
    optimizer = optimizer_of(make_optimizer)
    with pytest.raises(ValueError, match=message) as ours:
        to_keras_optimizer(optimizer)
    assert "\n" not in str(ours.value)
    with pytest.raises(ValueError, match=message):
        exact_optimizer(optimizer, [nn.Parameter(torch.zeros(1))])


def test_a_subclass_is_refused_for_it_may_compute_anything() -> None:
    class Own(torch.optim.SGD):
        pass

    with pytest.raises(ValueError, match=r"^optimizer is Own, which has no counterpart"):
        to_keras_optimizer(optimizer_of(Own))


def test_parameter_groups_with_different_settings_are_refused() -> None:
    first, second = (nn.Parameter(torch.zeros(1)) for _ in range(2))
    groups: list[dict[str, Any]] = [{"params": [first]}, {"params": [second], "lr": 0.5}]
    optimizer = torch.optim.SGD(groups, lr=0.25)
    message = (
        r"^lr is 0\.25 in a parameter group of SGD and 0\.5 in another: .* all groups the same"
    )
    with pytest.raises(ValueError, match=message):
        to_keras_optimizer(optimizer)
