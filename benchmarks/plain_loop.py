"""Document B's LeNet-5 on MNIST in a plain PyTorch loop, without digitlab and without Lightning.

    DIGITLAB_DATA=data python -m benchmarks.plain_loop [--seeds 100 101 ...]

It prints the test accuracy after each epoch. The recipe is that of `configs/mnist/lenet5.yaml`, but
the code and the order of images are independent, so that the spreads over seeds can be compared.
"""

import os
from argparse import ArgumentParser

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torchvision import datasets


def main() -> None:
    """Train once for each seed."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", nargs="+", type=int, default=range(100, 108))
    torch.set_num_threads(1)
    train, test = (read(train) for train in (True, False))
    for seed in parser.parse_args().seeds:
        torch.manual_seed(seed)
        print(seed, [f"{accuracy:.2%}" for accuracy in fit(lenet(), train, test)], flush=True)


def read(train: bool) -> tuple[Tensor, Tensor]:
    """Read a split: images float32 `(N, 1, 28, 28)` in [-1, 1], labels int64 `(N,)`."""
    split = datasets.MNIST(os.environ.get("DIGITLAB_DATA", "data"), train=train, download=True)
    return ((split.data.float() / 255 - 0.5) / 0.5)[:, None], split.targets


def lenet() -> nn.Module:
    """Make the network."""
    return nn.Sequential(
        *(nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
        *(nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10)),
    )


def fit(
    network: nn.Module, train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor]
) -> list[float]:
    """Train for five epochs; give the test accuracy after each."""
    optimizer = torch.optim.Adam(network.parameters(), lr=0.001)
    accuracies = []
    for _ in range(5):
        for indices in torch.randperm(len(train[1])).split(32):
            optimizer.zero_grad()
            cross_entropy(network(train[0][indices]), train[1][indices]).backward()
            optimizer.step()
        with torch.no_grad():
            batches = zip(test[0].split(1000), test[1].split(1000), strict=True)
            correct = sum((network(x).argmax(1) == y).sum().item() for x, y in batches)
        accuracies.append(correct / len(test[1]))
    return accuracies


if __name__ == "__main__":
    main()
