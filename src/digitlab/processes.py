"""What the processes of a run tell each other; a run of one process has nobody to ask."""

import os
import random
from typing import Any, TextIO

import numpy as np
import torch
from lightning.fabric.utilities.rank_zero import _get_rank
from lightning.pytorch import Trainer


def is_first_process() -> bool:
    """Say whether this process is the one that writes a run's files, before there is a trainer."""
    # Where a node starts its processes by itself, their ranks are those on the node.
    return not _get_rank() and int(os.environ.get("NODE_RANK", "0")) == 0


def say_once(sentence: str, file: TextIO | None = None) -> None:
    """Print what all processes know, in the first one."""
    if is_first_process():
        print(sentence, file=file)


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


def draw_apart(trainer: Trainer) -> None:
    """Seed the random numbers of each process but the first by its rank.

    Lightning seeds all alike, and then images of one step share dropout's masks.
    """
    if trainer.global_rank == 0:
        return
    seeds = np.random.SeedSequence([torch.initial_seed(), trainer.global_rank])
    seed = int(seeds.generate_state(1)[0])
    torch.manual_seed(seed)
    np.random.seed(seed)  # noqa: NPY002  # a user may draw from it
    random.seed(seed)
