"""The proof that a network and its Keras twin compute the same: all checks, in their order."""

from collections.abc import Callable, Iterable, Iterator
from copy import deepcopy
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from digitlab.classifier import Classifier
from digitlab.parity.backend import keras_dtype
from digitlab.parity.checks import (
    gradients,
    logits,
    parameter_counts,
    round_trip,
    training_settings,
)
from digitlab.parity.graph import Graph
from digitlab.parity.optimizers import exact_optimizer, to_keras_optimizer
from digitlab.parity.report import Check
from digitlab.parity.sides import Sides
from digitlab.parity.trajectory import Batch, is_batch_norm, trajectory
from digitlab.parity.twins import to_keras
from digitlab.parity.weights import match

# Enough to have all classes; in float64 the gradients of the largest network take seconds.
_GRADIENT_IMAGES = 100

Progress = Callable[[Iterable[Batch], str, int], Iterable[Batch]]


def run_checks(
    model: Classifier,
    batches: Iterable[Batch],
    images: Tensor,
    labels: Tensor,
    steps: int = 50,
    seed: int = 0,
    progress: Progress = lambda batches, description, steps: batches,
) -> Iterator[Check]:
    """Compare a model with its Keras twin, and yield each check as soon as it is made.

    Parameters, round trip of the weights, logits, loss and gradients, and a trajectory: in float64,
    and logits in float32 too. If PyTorch's own optimizer has another formula than Keras's, the
    exact one replaces it, and batch normalizations update their running variance as Keras's do; the
    result of PyTorch's own is a check for information.

    Args:
        model: One of `digitlab.models`, or a class that names its twin; copies are compared. Its
            optimizer is used, at the first learning rate of a scheduler; gradients are not clipped.
        batches: Training batches, at least `steps`: a list, or another iterable that can be
            iterated several times.
        images: Normalized, float32 `(N, C, H, W)`; gradients are compared on the first 100.
        labels: Int64 `(N,)`.
        steps: Length of the trajectory, at least 1.
        seed: Seed of the dropout masks.
        progress: Called with the batches of a trajectory, a description and its length; yields the
            batches.

    Yields:
        The checks.

    Raises:
        ValueError: The class has no twin, or its optimizer no counterpart in Keras; there are fewer
            batches than steps, they can be iterated only once, or there are no images.
        ImportError: The extra `parity` is not installed.
    """
    if iter(batches) is batches:
        raise ValueError("batches are an iterator, and are iterated several times: give a list")
    if not len(images):
        raise ValueError("images are empty, so nothing would be compared: give at least one")
    single, double = deepcopy(model).float(), deepcopy(model).double()
    with keras_dtype("float32"):
        single_twin = to_keras(single)
    twin = to_keras(double)
    graph = Graph(twin)
    sides = Sides(double, graph, match(double, graph))
    yield parameter_counts(sides)
    yield round_trip(sides)
    if row := training_settings(sides):
        yield row
    yield logits(sides, images)
    yield logits(Sides(single, Graph(single_twin), []), images)
    yield from gradients(sides, images[:_GRADIENT_IMAGES], labels[:_GRADIENT_IMAGES])

    optimizer = double.optimizer(double.parameters())
    replaced = _replaced(optimizer, double)
    exact = partial(exact_optimizer, optimizer)
    make_keras = partial(to_keras_optimizer, optimizer)
    shown = progress(batches, "Trajectory in float64", steps)
    train = partial(
        trajectory, average_decay=model.average_decay, kernels_only=model.decay_kernels_only
    )
    check = train(double, twin, shown, exact, make_keras, steps, seed)
    notes = [*replaced.values(), check.note]
    yield replace(check, note="; ".join(filter(None, notes)))
    if replaced:
        names = f"stock {' and '.join(replaced)}"
        shown = progress(batches, names, steps)
        check = train(
            double, twin, shown, model.optimizer, make_keras, steps, seed, biased_variances=False
        )
        yield replace(check, name=f"{check.name}, {names}", informational=True)


def _replaced(optimizer: torch.optim.Optimizer, module: nn.Module) -> dict[str, str]:
    """Name the classes of PyTorch that differ from Keras's, and what takes their place."""
    kind, exact = type(optimizer).__name__, exact_optimizer(optimizer, [nn.Parameter()])
    momenta = [it.param_groups[0].get("momentum") for it in (optimizer, exact)]
    found: dict[str, str] = {}
    if type(exact) is not type(optimizer):
        found[kind] = f"{type(exact).__name__} in place of {kind}"
    elif momenta[0] != momenta[1]:
        found[kind] = f"momentum {momenta[0]} rounded to float32, as Keras does"
    norms = sorted({type(it).__name__ for it in module.modules() if is_batch_norm(it)})
    return found | {norm: f"Keras's running variance in {norm}" for norm in norms}
