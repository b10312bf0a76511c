"""Denormal numbers, which `digitlab fit` takes for zeros."""

import os
import subprocess
import sys
from pathlib import Path

import torch

from tests.commands import SHORT


def test_denormal_numbers_are_zeros_in_every_thread_and_change_no_weight(tmp_path: Path) -> None:
    program = (
        "import torch; torch.set_num_threads(2)\n"
        "from digitlab.cli import main\n"
        f"assert main({['fit', '--model', 'LinearClassifier', *SHORT]!r}"
        f" + ['--trainer.default_root_dir', {str(tmp_path)!r}]) == 0\n"
        "print('left:', (torch.full((1 << 20,), 1e-40) * 1.5).count_nonzero().item())"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    ran = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    assert ran.stdout.endswith("left: 0\n")
    assert (torch.full((1 << 20,), 1e-40) * 1.5).count_nonzero().item() == 1 << 20  # not here

    # Dead units' moments become denormal after some hundred steps.
    ours, theirs = (train_a_dead_unit(flush=flush) for flush in (True, False))
    assert ours[1] == 0 < theirs[1]
    assert torch.equal(ours[0], theirs[0])


def train_a_dead_unit(flush: bool) -> tuple[torch.Tensor, int]:
    """Train a weight that has a gradient at first only; give it, and how much is denormal."""
    torch.set_flush_denormal(flush)
    weights = torch.nn.Parameter(torch.linspace(-1, 1, 64))
    adam = torch.optim.Adam([weights], lr=0.001, fused=True)
    for step in range(1000):
        weights.grad = torch.full((64,), 0.1 if step < 5 else 0.0)
        adam.step()
    moment = adam.state[weights]["exp_avg"]
    torch.set_flush_denormal(False)
    return weights.detach(), int(((moment != 0) & (moment.abs() < 1.18e-38)).sum())
