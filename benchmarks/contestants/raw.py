"""The raw in-memory loop: images stay uint8 in memory, a batch is gathered and normalized at once.

Beside training, it only adds up the losses and the correct answers.
"""

import sys
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from benchmarks.contestants.arguments import contestant_parser
from benchmarks.recipes import Recipe, read_recipe
from benchmarks.turns import Turns


def main() -> None:
    """Train until there are no more turns."""
    parser = contestant_parser(__doc__)
    parser.add_argument("--fused", action="store_true", help="Fuse the optimizer if it can be.")
    parser.add_argument("--channels_last", action="store_true")
    parser.add_argument("--flush_denormal", action="store_true", help="Take denormals for zeros.")
    parser.add_argument("--bf16", action="store_true", help="Compute in mixed precision.")
    args = parser.parse_args()
    torch.set_flush_denormal(args.flush_denormal)
    recipe = read_recipe(args.config)
    layout = torch.channels_last if args.channels_last else torch.contiguous_format
    network = recipe.network().to(args.device).to(memory_format=layout)
    optimizer = recipe.optimizer(network.parameters(), args.fused)
    loss_sum = torch.zeros((), dtype=torch.float64, device=args.device)
    correct = torch.zeros((), dtype=torch.int64, device=args.device)
    turns = Turns(args.steps)
    turns.start()
    for step, (images, labels) in enumerate(_batches(recipe, args.device, layout), start=1):
        optimizer.zero_grad()
        with torch.autocast(args.device, torch.bfloat16, enabled=args.bf16):
            logits = network(images)
        loss = cross_entropy(logits.float(), labels)
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            loss_sum += loss * len(labels)
            correct += (logits.argmax(1) == labels).sum()
        assert "lightning" not in sys.modules
        turns.count(step)


def _batches(
    recipe: Recipe, device: str, layout: torch.memory_format
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield shuffled batches without an end."""
    split, normalize = recipe.training_split(), _normalization(recipe, device)
    images = split.data[recipe.train_images, None].to(device)
    labels = split.targets[recipe.train_images].to(device)
    while True:
        for indices in torch.randperm(len(labels), device=device).split(recipe.batch_size):
            batch = normalize(images.index_select(0, indices).float().div_(255))
            yield batch.contiguous(memory_format=layout), labels.index_select(0, indices)


def _normalization(recipe: Recipe, device: str) -> Callable[[Tensor], Tensor]:
    if not recipe.mean_std:
        return lambda images: images
    mean, std = (torch.tensor(value, device=device) for value in recipe.mean_std)
    return lambda images: images.sub_(mean).div_(std)


if __name__ == "__main__":
    main()
