"""A run whose loss is no number any more has nothing left to learn: it is stopped."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from digitlab.classifier import Classifier
from digitlab.processes import agree, gather
from digitlab.scores import AT_ONCE


class FiniteLoss(Callback):
    """Stops a run whose loss or weights are not finite.

    Losses are looked at 32 steps, or an execution of several steps, at once, for reading back a
    value stalls a GPU; weights before each validation, and whoever saves them asks for them too.

    Raises:
        FloatingPointError: A loss or weight is infinite or no number; it names the step, from 1,
            and the learning rate.
    """

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Look at the losses, if it is time."""
        assert isinstance(pl_module, Classifier)
        if pl_module.steps_per_execution > 1 or batch_idx % AT_ONCE == 0 or trainer.is_last_batch:
            self.check_losses(trainer, pl_module)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at losses and weights: what is validated may be saved as the best."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self.check(trainer, pl_module)

    def check(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at the losses up to now, and at the weights."""
        assert isinstance(pl_module, Classifier)
        self.check_losses(trainer, pl_module)
        for name, parameter in pl_module.named_parameters():
            if not parameter.isfinite().all():
                step = trainer.global_step
                raise FloatingPointError(
                    f"{name} is not finite after step {step}, learning rate {_rate(trainer)}"
                )

    def check_losses(self, trainer: Trainer, pl_module: Classifier) -> None:
        """Look at the losses since the last time."""
        found = pl_module.sums["train"].not_finite() if "train" in pl_module.sums else None
        # The sum of processes' losses is what is trained on: all stop with the one that saw it.
        if not agree(trainer, found is not None):
            return
        ago, loss = max(filter(None, gather(trainer, found)))
        batches: int = trainer.accumulate_grad_batches
        step = trainer.global_step - ago // batches
        raise FloatingPointError(
            f"the loss is {loss} at step {step}, learning rate {_rate(trainer)}"
        )


def _rate(trainer: Trainer) -> float:
    return float(trainer.optimizers[0].param_groups[0].get("lr", float("nan")))
