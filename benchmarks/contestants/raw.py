"""The raw in-memory loop: images stay uint8 in memory, a batch is gathered and normalized at once.

Beside training, it only adds up the losses and the correct answers. With `--tuned` it is a bare
loop that knows all of digitlab's tricks: 32 batches are gathered and scored together, and the
optimizer's kernel is called directly.
"""

import sys
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from benchmarks.contestants.arguments import contestant_parser
from benchmarks.recipes import Recipe, read_recipe
from benchmarks.turns import Turns
from digitlab.optimizers import FusedRMSprop, fused_adam_step

BATCHES_AT_ONCE = 32


def main() -> None:
    """Train until there are no more turns."""
    parser = contestant_parser(__doc__)
    parser.add_argument("--fused", action="store_true", help="Fuse the optimizer if torch can.")
    parser.add_argument("--channels_last", action="store_true")
    parser.add_argument("--tuned", action="store_true", help="Both, and all tricks of digitlab.")
    args = parser.parse_args()
    torch.set_flush_denormal(args.tuned)
    recipe, at_once = read_recipe(args.config), BATCHES_AT_ONCE if args.tuned else 1
    is_last = args.channels_last or args.tuned
    layout = torch.channels_last if is_last else torch.contiguous_format
    network = recipe.network().to(args.device).to(memory_format=layout)
    parameters = [*network.parameters()]
    optimizer = recipe.optimizer(parameters, args.fused or args.tuned)
    if args.tuned and not recipe.can_fuse:
        optimizer = FusedRMSprop(parameters, **recipe.optimizer_settings)
    loss_sum = torch.zeros((), dtype=torch.float64, device=args.device)
    correct = torch.zeros((), dtype=torch.int64, device=args.device)
    turns, step = Turns(args.steps), 0
    turns.start()
    for batches in _blocks(recipe, args.device, layout, at_once):
        update = fused_adam_step(optimizer) if args.tuned else optimizer.step
        done = []
        for images, labels in batches:
            for parameter in parameters:
                parameter.grad = None
            logits = network(images)
            loss = cross_entropy(logits, labels)
            loss.backward()
            update()
            done.append((loss.detach(), logits.detach(), labels))
        for loss, _, labels in done:
            loss_sum += loss * len(labels)
        logits, labels = (torch.cat(tensors) for tensors in [*zip(*done, strict=True)][1:])
        correct += (logits.argmax(1) == labels).sum()
        step += len(done)
        assert "lightning" not in sys.modules
        turns.count(step)


def _blocks(
    recipe: Recipe, device: str, layout: torch.memory_format, at_once: int
) -> Iterator[Iterator[tuple[Tensor, Tensor]]]:
    """Yield the batches that are gathered at once, without an end."""
    split, normalize = recipe.training_split(), _normalization(recipe, device)
    images = split.data[recipe.train_images, None].to(device)
    labels = split.targets[recipe.train_images].to(device)
    size = recipe.batch_size
    while True:
        for indices in torch.randperm(len(labels), device=device).split(size * at_once):
            block = normalize(images.index_select(0, indices).float().div_(255))
            block = block.contiguous(memory_format=layout)
            yield zip(block.split(size), labels.index_select(0, indices).split(size), strict=True)


def _normalization(recipe: Recipe, device: str) -> Callable[[Tensor], Tensor]:
    if not recipe.mean_std:
        return lambda images: images
    mean, std = (torch.tensor(value, device=device) for value in recipe.mean_std)
    return lambda images: images.sub_(mean).div_(std)


if __name__ == "__main__":
    main()
