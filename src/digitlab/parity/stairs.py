"""The whole proof that a network and its Keras twin compute the same, step by step."""

from collections.abc import Callable, Iterable, Iterator
from copy import deepcopy
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from digitlab.classifier import Classifier
from digitlab.parity.backend import keras_dtype
from digitlab.parity.compare import Check
from digitlab.parity.documents import documented
from digitlab.parity.forward import gradients, logits, parameter_counts, round_trip
from digitlab.parity.recipe import exact_optimizer, to_keras_optimizer
from digitlab.parity.training import Batch, MakeOptimizer, optimizer_steps, trajectory
from digitlab.parity.weights import to_keras

# Rounding adds up: in float32 a longer trajectory tells less with every step.
STEPS_IN_FLOAT32 = 5
# And it may turn a rectifier on on one side only. A unit that was off for all images gets its first
# gradient so, which Adam makes a whole step: 3e-3 of a layer, at 1 in 50 trajectories of 5 steps
# (measured over all architectures). A fault shows in float64, which gets no second start.
_STARTS_IN_FLOAT32 = 3
# As many as differ in every class; their gradients in float64 take seconds in the largest network.
_GRADIENT_IMAGES = 100

Progress = Callable[[Iterable[Batch], str, int], Iterable[Batch]]


def staircase(
    model: Classifier,
    batches: Iterable[Batch],
    images: Tensor,
    labels: Tensor,
    steps: int = 50,
    seed: int = 0,
    progress: Progress = lambda batches, description, steps: batches,
) -> Iterator[Check]:
    """Compare a model with its Keras twin, and yield each check as soon as it is made.

    Parameters, round trip of the weights, logits, loss and gradients, single optimizer steps, and
    a trajectory: in float64, and what float32 can tell in float32 too. Where PyTorch's own
    optimizer steps otherwise than Keras's, the exact one is put in its place, and what its own
    comes to is a check for information.

    Args:
        model: One of `digitlab.models`; it stays as it is, copies are compared. Its optimizer is
            used, at the first learning rate of a scheduler; gradients are not clipped.
        batches: What to train on, at least `steps`: a list, or what else can be iterated anew.
        images: Normalized, float32 `(N, C, H, W)`; the gradients are those of the first 100.
        labels: Int64 `(N,)`.
        steps: Length of the trajectory, at least 1.
        seed: Of dropout and of the weights and gradients of the single steps.
        progress: Is given the batches of a trajectory, what it is and its length, and yields the
            batches on.

    Yields:
        The checks.

    Raises:
        ValueError: There is no twin for this class, or its optimizer has no counterpart in Keras;
            there are fewer batches than steps, they can be iterated only once, or no images.
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
    yield parameter_counts(double, twin, documented(model))
    yield round_trip(double, twin)
    yield logits(double, twin, images)
    yield logits(single, single_twin, images)
    yield from gradients(double, twin, images[:_GRADIENT_IMAGES], labels[:_GRADIENT_IMAGES])
    optimizer = double.optimizer(double.parameters())
    yield from optimizer_steps(optimizer, seed=seed)

    make, substitution = partial(exact_optimizer, optimizer), _substitution(optimizer)
    make_keras = partial(to_keras_optimizer, optimizer)
    walk = partial(
        trajectory, double, twin, make_keras_optimizer=make_keras, steps=steps, seed=seed
    )
    check = walk(progress(batches, "Trajectory in float64", steps), make)
    yield _annotate(check, substitution)
    check = _in_float32(single, single_twin, batches, make, make_keras, steps, seed)
    yield _annotate(check, substitution)
    if substitution:
        stock = f"stock {type(optimizer).__name__}"
        check = walk(progress(batches, stock, steps), model.optimizer)
        yield replace(check, name=f"{check.name}, {stock}", informational=True)


def _in_float32(
    single: Classifier,
    twin: Any,
    batches: Iterable[Batch],
    make: MakeOptimizer,
    make_keras: Callable[[], Any],
    steps: int,
    seed: int,
) -> Check:
    """Walk a short trajectory, from another batch on if rounding spoils the first."""
    length = min(steps, STEPS_IN_FLOAT32)
    starts = min(_STARTS_IN_FLOAT32, steps - length + 1)
    few = list(islice(batches, length + starts - 1))
    note = ""
    for start in range(starts):
        check = _annotate(
            trajectory(single, twin, few[start:], make, make_keras, length, seed), note
        )
        if check.passed:
            break
        note += f"from batch {start + 1} on {check.difference:.1e}; "
    return check


def _annotate(check: Check, note: str) -> Check:
    return replace(check, note="; ".join(part for part in (note.rstrip("; "), check.note) if part))


def _substitution(stock: torch.optim.Optimizer) -> str:
    """Say what stands in place of a config's own optimizer; nothing where it is itself exact."""
    exact = exact_optimizer(stock, [nn.Parameter(torch.zeros(1))])
    if type(exact) is not type(stock):
        return f"{type(exact).__name__} in place of {type(stock).__name__}"
    ours, theirs = (group.param_groups[0].get("momentum") for group in (stock, exact))
    return "" if ours == theirs else f"momentum {ours} rounded to float32, as Keras does"
