"""Measure a training step whose backward pass is written out, without autograd.

    python -m benchmarks.direct_backward [--rounds 15]

For the networks that are a `Sequential` of known layers, `loss_of` calls the kernels that autograd
would, without a graph. The library does not use it: docs/performance.md has the figures. Images are
random, because their values change no time. CPU time of one thread, interleaved.
"""

from argparse import ArgumentParser
from collections.abc import Callable, Iterable
from statistics import median
from time import process_time
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.functional import cross_entropy

from benchmarks.machine import describe_machine
from digitlab import models
from digitlab.optimizers import FusedRMSprop, fused_adam_step

Backward = Callable[[Tensor, bool], Tensor]
"""Maps the gradient of a layer's output to that of its input, if the flag asks for it."""

aten: Any = torch.ops.aten

# By name: the model, its batch size, and the steps of a round.
NETWORKS: dict[str, tuple[Callable[[], nn.Module], int, int]] = {
    "NN 128": (lambda: models.MLP(hidden_features=[128]), 32, 300),
    "MLP 512-512": (lambda: models.MLP(hidden_features=[512, 512], dropout=0.2), 128, 40),
    "LeNet-5": (lambda: models.LeNet5(channels_last=True), 32, 60),
    "LeNet1": (lambda: models.LeNet1(channels_last=True), 100, 30),
    "example net": (lambda: models.PyTorchExampleNet(channels_last=True), 64, 40),
    "tutorial CNN": (lambda: models.TensorFlowTutorialCNN(channels_last=True), 100, 4),
}


@torch.no_grad()
def loss_of(network: nn.Sequential, images: Tensor, labels: Tensor) -> Tensor:
    """Compute the mean cross-entropy of a batch, and put the gradients into `grad`."""
    passes: list[Backward] = []
    values = images
    for layer in network:
        values, backward = FORWARD[type(layer)](layer, values)
        passes.append(backward)
    first = next(i for i, layer in enumerate(network) if [*layer.parameters()])
    log_probabilities = values.log_softmax(1)
    gradient = log_probabilities.exp()
    n = len(labels)
    gradient.scatter_add_(1, labels[:, None], gradient.new_full((n, 1), -1.0))
    gradient /= n
    for i in reversed(range(first, len(passes))):
        gradient = passes[i](gradient, i > first)
    return functional.nll_loss(log_probabilities, labels)


def _linear(layer: nn.Linear, inputs: Tensor) -> tuple[Tensor, Backward]:
    def backward(gradient: Tensor, further: bool) -> Tensor:
        layer.weight.grad = gradient.t().mm(inputs)
        layer.bias.grad = gradient.sum(0)
        return gradient.mm(layer.weight) if further else gradient

    return functional.linear(inputs, layer.weight, layer.bias), backward


def _conv2d(layer: nn.Conv2d, inputs: Tensor) -> tuple[Tensor, Backward]:
    settings: Any = layer.stride, layer.padding, layer.dilation

    def backward(gradient: Tensor, further: bool) -> Tensor:
        made = aten.convolution_backward(
            *(gradient, inputs, layer.weight, [layer.out_channels], *settings),
            *(False, [0, 0], layer.groups, [further, True, True]),
        )
        layer.weight.grad = made[1]
        if layer.bias is not None:
            layer.bias.grad = made[2]
        return made[0] if further else gradient

    return layer(inputs), backward


def _relu(layer: nn.ReLU, inputs: Tensor) -> tuple[Tensor, Backward]:
    outputs = inputs.relu()
    return outputs, lambda gradient, _: aten.threshold_backward(gradient, outputs, 0)


def _max_pool2d(layer: nn.MaxPool2d, inputs: Tensor) -> tuple[Tensor, Backward]:
    settings = *map(_pair, (layer.kernel_size, layer.stride, layer.padding, layer.dilation)), False
    outputs, indices = aten.max_pool2d_with_indices(inputs, *settings)
    backward = aten.max_pool2d_with_indices_backward
    return outputs, lambda gradient, _: backward(gradient, inputs, *settings, indices)


def _flatten(layer: nn.Flatten, inputs: Tensor) -> tuple[Tensor, Backward]:
    return inputs.flatten(1), lambda gradient, _: gradient.reshape(inputs.shape)


def _dropout(layer: nn.Dropout | nn.Dropout2d, inputs: Tensor) -> tuple[Tensor, Backward]:
    by_channel = isinstance(layer, nn.Dropout2d)
    kept = inputs.new_empty((*inputs.shape[:2], 1, 1)) if by_channel else torch.empty_like(inputs)
    kept.bernoulli_(1 - layer.p).div_(1 - layer.p)  # the random numbers of torch's own
    return inputs * kept, lambda gradient, _: gradient * kept


FORWARD: dict[type[nn.Module], Callable[..., tuple[Tensor, Backward]]] = {
    nn.Conv2d: _conv2d,
    nn.Linear: _linear,
    nn.ReLU: _relu,
    nn.MaxPool2d: _max_pool2d,
    nn.Flatten: _flatten,
    nn.Dropout: _dropout,
    nn.Dropout2d: _dropout,
}


def _pair(value: int | Iterable[int]) -> list[int]:
    return [value, value] if isinstance(value, int) else [*value]


def gradient_difference(make: Callable[[], nn.Module]) -> float:
    """Compare the gradients of one step in float64: largest difference over largest gradient."""
    torch.manual_seed(0)
    network: Any = make().double().network
    images, labels = torch.rand(8, 1, 28, 28, dtype=torch.float64), torch.randint(10, (8,))
    both = []
    for is_direct in (False, True):
        network.zero_grad()
        torch.manual_seed(1)  # the same dropout
        if is_direct:
            loss_of(network, images, labels)
        else:
            cross_entropy(network(images), labels).backward()
        both.append([parameter.grad for parameter in network.parameters()])
    pairs = zip(*both, strict=True)
    return max(float((ours - theirs).abs().max() / ours.abs().max()) for ours, theirs in pairs)


def measure(make: Callable[[], nn.Module], batch: int, steps: int, rounds: int) -> list[float]:
    """Measure CPU time of the written-out pass over that of autograd, round by round."""
    images, labels = torch.rand(steps, batch, 1, 28, 28), torch.randint(10, (steps, batch))
    trained = []
    for is_direct in (False, True):
        network: Any = make().network
        parameters = [*network.parameters()]
        optimizer: torch.optim.Optimizer = torch.optim.Adam(parameters, fused=True)
        if any(isinstance(layer, nn.Dropout) for layer in network) and len(network) < 9:
            optimizer = FusedRMSprop(parameters, lr=0.001)  # the MLP's, as in document A
        trained.append((is_direct, network, parameters, optimizer))

    def train(is_direct: bool, network: Any, parameters: Any, optimizer: Any) -> float:
        start, step = process_time(), fused_adam_step(optimizer)
        for i in range(steps):
            if is_direct:
                loss_of(network, images[i], labels[i])
            else:
                for parameter in parameters:
                    parameter.grad = None
                cross_entropy(network(images[i]), labels[i]).backward()
            step()
        return process_time() - start

    measured = [[train(*one) for one in trained] for _ in range(rounds + 2)]
    return sorted(direct / eager for eager, direct in measured[2:])  # two rounds of warm-up


def main() -> None:
    """Run the command line."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    print(describe_machine(1, "cpu"))
    for name, (make, batch, steps) in NETWORKS.items():
        ratios = measure(make, batch, steps, rounds)
        spread = f"{median(ratios):.2f} ({ratios[0]:.2f}-{ratios[-1]:.2f})"
        print(f"{name}: {spread}; gradients differ by {gradient_difference(make):.0e}", flush=True)


if __name__ == "__main__":
    main()
