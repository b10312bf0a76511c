"""Hooks are called at every optimizer step, whatever the number of steps per `training_step`."""

from typing import Any

import pytest
from lightning.pytorch.callbacks import LambdaCallback
from torch.optim import Optimizer

from digitlab.models import MLP
from tests.fitting import BATCHES, assert_bitwise_equal, fit, small_mlp, weights

# Lightning counts blocks here; the log is by the step still.
pytestmark = pytest.mark.filterwarnings("ignore:The number of training batches .* is smaller")


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


def test_a_models_own_hooks_are_called_at_every_step() -> None:
    class Listening(MLP):
        after = 0
        zeroed = 0

        def on_after_backward(self) -> None:
            self.after += 1

        def on_before_zero_grad(self, optimizer: Optimizer) -> None:
            self.zeroed += 1

    model = Listening([16], steps_per_execution=4)
    fit(model)
    assert model.after == model.zeroed == BATCHES


@pytest.mark.filterwarnings("ignore:You have overridden `on_after_batch_transfer`")
def test_a_hook_that_makes_a_batch_of_a_block_is_refused() -> None:
    class Augmenting(MLP):
        def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            return batch[0].flip(3), batch[1]

    with pytest.raises(TypeError, match=r"a hook returned tuple for a Block .*_replace"):
        fit(Augmenting([16], steps_per_execution=4), limit_val_batches=0)
