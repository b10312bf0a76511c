"""Where a fit reads a value back from the device, which makes a GPU wait, and how often.

The fit runs on the CPU: what matters is who asks for a value, not where it is.
"""

import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tests import commands

# Operations whose result the host needs at once: a number, or a size.
READS = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "_unique", "bincount")
HOOKS = (
    *("training_step", "on_before_optimizer_step", "on_train_batch_start", "on_train_batch_end"),
    *("validation_step", "on_validation_batch_start", "on_validation_batch_end"),
    *("on_train_start", "on_train_epoch_start", "on_validation_start", "on_train_epoch_end"),
)
# These read the sums, pictures and values of a whole epoch, or of a checkpoint.
OTHERS = (
    *("on_validation_epoch_end", "on_validation_end", "on_train_end"),
    *("on_save_checkpoint", "on_load_checkpoint"),
)
EXPECTED = {  # of two epochs of 50 batches
    ("on_before_optimizer_step", "classifier.step_scores"): 5,  # both values, once per interval
    ("on_train_batch_end", "scores.not_finite"): 4,  # losses: after 32 batches, after the last
    ("on_train_batch_end", "scores.reduce"): 2,  # the epoch's score
    ("on_train_batch_end", "scores.score"): 2,
    ("on_validation_start", "checkpointing.check"): 2,  # all weights
    ("on_train_epoch_end", "checkpointing.check"): 2,
}


class Reads(TorchDispatchMode):
    """Counts reads by the innermost hook, and the innermost function outside torch."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[tuple[str, str]] = Counter()

    def note(self) -> None:
        frames = [it for it in traceback.extract_stack() if "/torch/" not in it.filename][:-2]
        hooks = [it.name for it in frames if it.name in (*HOOKS, *OTHERS)]
        last = frames[-1]
        self.found[hooks[-1] if hooks else "", f"{Path(last.filename).stem}.{last.name}"] += 1

    def noting(self, read: Callable[..., Any]) -> Callable[..., Any]:
        def noted(*args: Any, **options: Any) -> Any:
            self.note()
            return read(*args, **options)

        return noted

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(word in str(func) for word in READS):
            self.note()
        return func(*args, **(kwargs or {}))


@contextmanager
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[Reads]:
    """Counts the reads of the `with` block."""
    with Reads() as reads, monkeypatch.context() as patch:
        for name in ("tolist", "numpy", "cpu"):  # no operations, where a tensor is on the CPU
            patch.setattr(Tensor, name, reads.noting(getattr(Tensor, name)))
        yield reads


@pytest.mark.parametrize("steps", [1, 4])
def test_a_step_reads_nothing_but_what_is_logged_once_per_interval(
    steps: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ["--model.steps_per_execution", str(steps), "--trainer.log_every_n_steps", "20"]
    with counted(monkeypatch) as reads:
        commands.fit(tmp_path, *options, "--data.batch_size", "4", "--trainer.max_epochs", "2")
    assert {it: count for it, count in reads.found.items() if it[0] in HOOKS} == EXPECTED
