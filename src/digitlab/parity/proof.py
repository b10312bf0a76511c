"""The proof that a network and its Keras twin compute the same: all checks, in their order."""

from collections.abc import Callable, Iterable, Iterator
from copy import deepcopy
from dataclasses import replace
from functools import partial
from itertools import islice

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
from digitlab.parity.optimizers import exact_optimizer, to_keras_optimizer
from digitlab.parity.report import Check
from digitlab.parity.sides import Sides
from digitlab.parity.trajectory import Batch, is_batch_norm, trajectory
from digitlab.parity.twins import to_keras
from digitlab.parity.weights import match

# Rounding errors accumulate, so a longer trajectory in float32 would tell less.
STEPS_IN_FLOAT32 = 5
# Rounding can switch a ReLU on in one framework only, and Adam turns the unit's tiny gradient into
# a full step: 3e-3 of a layer, in 1 of 50 trajectories of 5 steps (over all architectures).
# A real fault shows in float64 too, where there is no second start.
_STARTS_IN_FLOAT32 = 3
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
    and logits and five training steps in float32 too. If PyTorch's own optimizer has another
    formula than Keras's, the exact one replaces it, and batch normalizations update their running
    variance as Keras's do; the result of PyTorch's own is a check for information.

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
    sides = Sides(double, twin, match(double, twin))
    yield parameter_counts(sides)
    yield round_trip(sides)
    if row := training_settings(sides):
        yield row
    yield logits(sides, images)
    yield logits(Sides(single, single_twin, []), images)
    yield from gradients(sides, images[:_GRADIENT_IMAGES], labels[:_GRADIENT_IMAGES])

    optimizer = double.optimizer(double.parameters())
    make, substitution = partial(exact_optimizer, optimizer), _substitution(optimizer)
    stock = [type(optimizer).__name__] if substitution else []
    if norms := sorted({type(it).__name__ for it in double.modules() if is_batch_norm(it)}):
        substitution += f"; Keras's running variance in {' and '.join(norms)}"
        stock += norms
    note = substitution.lstrip("; ")
    train: Callable[..., Check] = partial(
        trajectory, make_keras_optimizer=partial(to_keras_optimizer, optimizer), seed=seed
    )
    shown = progress(batches, "Trajectory in float64", steps)
    yield _annotate(train(double, twin, shown, make, steps=steps), note)
    train_single = partial(train, single, single_twin, make_optimizer=make)
    yield _annotate(_in_float32(train_single, batches, steps), note)
    if note:
        names = f"stock {' and '.join(stock)}"
        shown = progress(batches, names, steps)
        check = train(double, twin, shown, model.optimizer, steps=steps, biased_variances=False)
        yield replace(check, name=f"{check.name}, {names}", informational=True)


def _in_float32(train: Callable[..., Check], batches: Iterable[Batch], steps: int) -> Check:
    """Compare a short trajectory, and start again from the next batch if rounding spoils it."""
    length = min(steps, STEPS_IN_FLOAT32)
    starts = min(_STARTS_IN_FLOAT32, steps - length + 1)
    few = list(islice(batches, length + starts - 1))
    note = ""
    for start in range(starts):
        check = _annotate(train(batches=few[start:], steps=length), note)
        if check.passed:
            break
        note += f"from batch {start + 1} on {check.difference:.1e}; "
    return check


def _annotate(check: Check, note: str) -> Check:
    return replace(check, note="; ".join(part for part in (note.rstrip("; "), check.note) if part))


def _substitution(stock: torch.optim.Optimizer) -> str:
    """Name the replacement of a config's optimizer; empty if that is exact itself."""
    exact = exact_optimizer(stock, [nn.Parameter(torch.zeros(1))])
    if type(exact) is not type(stock):
        return f"{type(exact).__name__} in place of {type(stock).__name__}"
    ours, theirs = (group.param_groups[0].get("momentum") for group in (stock, exact))
    return "" if ours == theirs else f"momentum {ours} rounded to float32, as Keras does"
