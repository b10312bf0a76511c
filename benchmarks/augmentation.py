"""Random changes of training images: this library's against kornia's, in parts of a step.

    pip install kornia
    python -m benchmarks.augmentation [--rounds 100]

Both shift each image by up to 2 pixels, mirror every other one, and erase a rectangle in a quarter
of them. A step is LeNet-5's: forward, backward and fused Adam. All three are timed in turn, in CPU
time of one thread, so that other processes matter little; the figures are medians over the rounds.
"""

import argparse
import json
import time
from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from digitlab.data import Augmentation
from digitlab.models import LeNet5

IMAGES = 60_000
REPEATS = 5  # calls in a row of each contestant in a round


def contestants(batch_size: int) -> dict[str, Callable[[], object]]:
    """Return a step, and the same changes of a batch by either library."""
    import kornia.augmentation as kornia  # no dependency of this library

    pixels = torch.randint(0, 256, (batch_size, 1, 28, 28), dtype=torch.uint8)
    images, labels = pixels / 255, torch.randint(0, 10, (batch_size,))
    model = LeNet5()
    optimizer = model.optimizer(model.network.parameters())
    ours = Augmentation(shift=2, flip=True, erase=0.25)
    drawn = ours.draw(IMAGES, 28, seed=0, epoch=0)
    chosen = torch.randperm(IMAGES)[:batch_size]
    theirs = kornia.AugmentationSequential(
        kornia.RandomCrop((28, 28), padding=2),
        kornia.RandomHorizontalFlip(),
        kornia.RandomErasing((0.02, 0.25), p=0.25),
    )

    def step() -> None:
        optimizer.zero_grad()
        cross_entropy(model.network(images), labels).backward()
        optimizer.step()

    def changed() -> Tensor:
        return ours.apply(pixels, drawn.index_select(0, chosen))

    return {"step": step, "digitlab": changed, "kornia": lambda: theirs(images)}


def measure(batch_size: int, rounds: int) -> dict[str, float]:
    """Time the contestants in turn; microseconds of CPU time for a batch."""
    calls = contestants(batch_size)
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(rounds + 3):
        for name, call in calls.items():
            start = time.thread_time()
            for _ in range(REPEATS):
                call()
            if turn >= 3:  # the first rounds warm up
                times[name].append((time.thread_time() - start) / REPEATS)
    start = time.thread_time()
    Augmentation(2, True, 0.25).draw(IMAGES, 28, 0, 1)
    drawing = (time.thread_time() - start) * batch_size / IMAGES
    return {name: round(1e6 * median(values), 1) for name, values in times.items()} | {
        "drawing": round(1e6 * drawing, 1),
        "digitlab_in_steps": round(
            median(
                (own + drawing) / step
                for own, step in zip(times["digitlab"], times["step"], strict=True)
            ),
            3,
        ),
        "kornia_in_steps": round(
            median(own / step for own, step in zip(times["kornia"], times["step"], strict=True)), 3
        ),
    }


def main() -> None:
    """Measure batches of 32 and 128 images."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=100)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print(json.dumps({size: measure(size, rounds) for size in (32, 128)}, indent=2))


if __name__ == "__main__":
    main()
