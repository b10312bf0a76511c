"""The documents' loader: one image at a time, through torchvision's transforms."""

from typing import Any

from torch.utils.data import DataLoader, Subset
from torchvision import transforms

from benchmarks.recipes import Recipe


def make_loader(recipe: Recipe) -> DataLoader[Any]:
    """Make a loader that transforms each sample, in the process that trains."""
    steps: list[Any] = [transforms.ToTensor()]
    if recipe.mean_std:
        mean, std = recipe.mean_std
        steps.append(transforms.Normalize((mean,), (std,)))
    split = recipe.training_split(transforms.Compose(steps))
    chosen = range(len(split))[recipe.train_images]
    if len(chosen) < len(split):
        split = Subset(split, chosen)
    return DataLoader(split, batch_size=recipe.batch_size, shuffle=True)
