"""What the processes of a run tell each other; a run of one process has nobody to ask."""

import os
from typing import Any

import torch
from lightning.fabric.utilities.rank_zero import _get_rank
from lightning.pytorch import Trainer


def is_first_process() -> bool:
    """Say whether this process is the one that writes a run's files, before there is a trainer."""
    # Where a node starts its processes by itself, their ranks are those on the node.
    return not _get_rank() and int(os.environ.get("NODE_RANK", "0")) == 0


def agree(trainer: Trainer, number: int) -> int:
    """Give the largest of all processes' numbers, at least 0, to each of them.

    To be called by all processes or none.
    """
    if trainer.world_size == 1:
        return number
    tensor = torch.tensor(number, device=trainer.strategy.root_device)
    torch.distributed.all_reduce(tensor, torch.distributed.ReduceOp.MAX)
    return int(tensor.item())


def gather(trainer: Trainer, state: Any) -> list[Any]:
    """Give each process what all have, in the order of their ranks; it must pickle.

    To be called by all processes or none.
    """
    if trainer.world_size == 1:
        return [state]
    states = [None] * trainer.world_size
    torch.distributed.all_gather_object(states, state)
    return states
