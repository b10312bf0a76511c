"""Checkpoints inside an epoch, also where several steps are made at once."""

from datetime import timedelta
from time import monotonic
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint


class StepCheckpoint(ModelCheckpoint):
    """Lightning's `ModelCheckpoint` that also saves inside an epoch of several steps at once.

    Lightning's own looks whether the number of optimizer steps is a multiple of
    `every_n_train_steps`, which with `steps_per_execution` above 1 it may jump over. This one saves
    at the end of the first `training_step` that reaches or passes a multiple. Where no interval is
    given it saves after epochs, as Lightning's own does.

    Args:
        every_n_train_steps: Optimizer steps from one checkpoint to the next, at least 1.
        train_time_interval: Time from one checkpoint to the next, instead.
        **kwargs: Other arguments of `ModelCheckpoint`.

    Raises:
        ValueError: `monitor` is given beside an interval, although inside an epoch the metric is
            that of the weights at its start.
    """

    def __init__(
        self,
        every_n_train_steps: int | None = None,
        train_time_interval: timedelta | None = None,
        **kwargs: Any,
    ) -> None:
        inside = every_n_train_steps or train_time_interval is not None
        if inside and kwargs.get("monitor"):
            raise ValueError(
                f"monitor is {kwargs['monitor']}: a checkpoint inside an epoch knows no metric of "
                "its weights; leave monitor out, or the interval"
            )
        super().__init__(
            every_n_train_steps=every_n_train_steps,
            train_time_interval=train_time_interval,
            **kwargs,
        )
        self._seen_step = 0

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint, also in a folder that has moved since."""
        # Of another folder Lightning would forget which metric was the best so far.
        super().load_state_dict(state_dict | {"dirpath": self.dirpath})

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start to count, from the step that a run goes on from."""
        super().on_train_start(trainer, pl_module)
        self._seen_step = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save, if it is time."""
        seen, self._seen_step = self._seen_step, trainer.global_step
        if not self._is_time(seen, trainer) or self._should_skip_saving_checkpoint(trainer):
            return
        candidates = self._monitor_candidates(trainer)
        self._save_topk_checkpoint(trainer, candidates)
        self._save_last_checkpoint(trainer, candidates)
        self._last_time_checked = monotonic()

    def _is_time(self, seen: int, trainer: Trainer) -> bool:
        interval = self._train_time_interval
        if interval is not None:
            since = self._last_time_checked
            late = since is None or monotonic() - since >= interval.total_seconds()
            # Processes save together, when the first one's clock says so.
            return bool(trainer.strategy.broadcast(late))
        every = self._every_n_train_steps
        return every > 0 and trainer.global_step // every > seen // every
