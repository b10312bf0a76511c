"""The comparison of a user's own pair: steps 1 to 4, and the layer at which the two part."""

import math
from collections.abc import Iterable
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from digitlab.parity.backend import import_keras
from digitlab.parity.compare import (
    HEADING,
    TOLERANCES,
    Check,
    format_check,
    relative_difference,
)
from digitlab.parity.divergence import first_divergence
from digitlab.parity.forward import gradients, logits, parameter_counts, round_trip
from digitlab.parity.sides import (
    channels_first,
    copy_in,
    keras_images,
    outputs,
    precision,
    sole_input,
)
from digitlab.parity.weights import copy_weights

Batch = tuple[Tensor, Tensor]
Pair = tuple[nn.Module, Any]
Suspect = tuple[nn.Module, Any, Tensor]

_IMAGES = 32  # enough to find the layer, and few enough to hold all layers' outputs


@dataclass(frozen=True)
class Report:
    """What the comparison of a pair came to; as text, a table.

    Args:
        checks: The rows of the table.
        first_divergence: Name of the first Keras layer whose output differs; None if none does.
    """

    checks: tuple[Check, ...]
    first_divergence: str | None = None

    @property
    def passed(self) -> bool:
        """Whether all checks passed but those for information, and there is one."""
        required = [check for check in self.checks if not check.informational]
        return bool(required) and all(check.passed for check in required)

    def assert_passed(self) -> None:
        """Fail a test unless the comparison passed.

        Raises:
            AssertionError: It did not; the message is the table.
        """
        if not self.passed:
            raise AssertionError(f"the two do not compute the same\n{self}")

    def __str__(self) -> str:
        table = "\n".join([HEADING, *map(format_check, self.checks)])
        if self.first_divergence is None:
            return table
        return f"{table}\nthe first Keras layer whose output differs: {self.first_divergence}"


def check(torch_module: nn.Module, keras_model: Any, batches: Iterable[Batch]) -> Report:
    """Compare any PyTorch module with any Keras model: parameters, weights, logits and gradients.

    The Keras model gets the module's weights, and then must compute the same: logits as the two
    are, and logits, loss and gradients in float64 copies of both, where rounding hides nothing and
    nothing is frozen. Dropout is off.

    Args:
        torch_module: Maps images to logits. Nothing of it changes.
        keras_model: Functional or sequential, with one input; it reads `(N, H, W, C)`, or what
            else `digitlab.parity.sides.keras_images` can make. Its weights are overwritten.
        batches: Images, float32 `(N, C, H, W)` as normalized for the network, and labels, int64
            `(N,)`, as tensors or arrays. Without any the report fails: nothing was compared.

    Raises:
        ValueError: The weights cannot be matched, a side or a batch is none, a side computes in
            another precision than float32 or float64, or the Keras model cannot read the images.
        ImportError: The extra `parity` is not installed.
    """
    classes = _classes(torch_module, keras_model)  # refuses before a weight is overwritten
    checks = [parameter_counts(torch_module, keras_model), round_trip(torch_module, keras_model)]
    given = (_tensors(batch, classes) for batch in batches)
    worst, suspect = _compare((torch_module, keras_model), given)
    if not worst:
        nothing = Check("logits", 0, 0.0, TOLERANCES["float32"], "there are no images")
        return Report((*checks, nothing))
    return Report((*checks, *worst.values()), suspect and _name_divergence(*suspect))


def _classes(module: nn.Module, keras_model: Any) -> float:
    """Count the classes of a pair; refuse one that cannot be compared."""
    if not isinstance(module, nn.Module) or not isinstance(keras_model, import_keras().Model):
        raise ValueError(
            f"the pair is a {type(module).__name__} and a {type(keras_model).__name__}: "
            "give a torch.nn.Module and a keras.Model, in this order"
        )
    precision(module, keras_model)
    sole_input(keras_model)
    shapes = [tuple(output.shape) for output in keras_model.outputs]
    if len(shapes) != 1 or len(shapes[0]) != 2:
        given = " and ".join(map(str, shapes))
        raise ValueError(f"{keras_model.name} gives {given}: it must give logits, (N, classes)")
    return shapes[0][1] or math.inf


def _tensors(batch: Any, classes: float) -> Batch:
    """Give a batch's images and labels as tensors; refuse what a comparison cannot read."""
    kinds = [type(p).__name__ for p in (batch if isinstance(batch, list | tuple) else [batch])]
    if len(kinds) != 2 or not all(isinstance(part, Tensor | np.ndarray) for part in batch):
        raise ValueError(
            f"a batch is {', '.join(kinds[:3])}: it must be two tensors, images and labels, "
            "as in `[(images, labels)]`"
        )
    images, labels = (torch.as_tensor(part) for part in batch)
    if images.dtype not in (torch.float32, torch.float64) or images.ndim != 4:
        raise ValueError(
            f"images are {images.dtype} {tuple(images.shape)}: they must be float32 (N, C, H, W), "
            "as `images.float()` and `images.reshape(N, C, H, W)` make them"
        )
    integers = labels.dtype == torch.int64 and labels.shape == images.shape[:1]
    if not integers or not ((labels >= 0) & (labels < classes)).all():
        span = f", from {labels.min()} to {labels.max()}" if integers else ""
        raise ValueError(
            f"labels are {labels.dtype} {tuple(labels.shape)}{span}: they must be int64 "
            f"({len(images)},), from 0 to {classes - 1}, as `labels.long()` or, of one-hot "
            "labels, `labels.argmax(1)` makes them"
        )
    return images, labels


def _compare(pair: Pair, batches: Iterable[Batch]) -> tuple[dict[str, Check], Suspect | None]:
    """Compare a pair with the same weights on all batches.

    Returns:
        The worst row of each check by its name, and a pair whose logits differ, with the images.
    """
    worst: dict[str, Check] = {}
    by_logits: list[Pair] = []
    suspect: Suspect | None = None
    for images, labels in batches:
        if not len(images):
            continue
        if not by_logits:
            by_logits, by_gradients, note = _pairs(*pair, images)
        for sides in by_logits:
            of_logits = logits(*sides, images)
            if not of_logits.passed:
                suspect = (*sides, images)  # the last is in float64, which sees more
            _keep_worst(worst, replace(of_logits, note=_join(of_logits.note, note)))
        for row in gradients(*by_gradients, images, labels):
            _keep_worst(worst, replace(row, note=_join(row.note, note)))
    return worst, suspect


def _pairs(module: nn.Module, keras_model: Any, images: Tensor) -> tuple[list[Pair], Pair, str]:
    """Give the pairs whose logits, and the one whose gradients are compared.

    These are the pair as it is and a copy in float64, in which nothing is frozen; a note tells
    where that cannot be made.
    """
    pair, is_double = (module, keras_model), precision(module, keras_model) == "float64"
    note = "no unfrozen copy" if is_double else "not in float64"
    try:
        ours, theirs = (
            deepcopy(module).double().requires_grad_(True),
            copy_in(keras_model, "float64"),
        )
        copy_weights(ours, theirs)
        before = channels_first(keras_model(keras_images(keras_model, images), training=False))
        our_logits, after = outputs(ours, theirs, images)
    # A layer of the user's can refuse in any way to be copied or to compute in float64.
    except Exception as error:
        return [pair], pair, f"{note}: {type(error).__name__}"
    in_double = our_logits.dtype == after.dtype == np.float64
    # A layer may keep what its config does not tell; rounding alone leaves far less than this.
    largest = TOLERANCES["float64"] if is_double else 1e-3
    if not in_double or not relative_difference(before, after) < largest:
        return [pair], pair, f"{note}: the copy of a side is not the same"
    return [pair] if is_double else [pair, (ours, theirs)], (ours, theirs), ""


def _keep_worst(worst: dict[str, Check], row: Check) -> None:
    """Let a batch's row stand for all batches so far, if it is the worst of them."""
    before = worst.setdefault(row.name, replace(row, compared=0))
    # NaN agrees with nothing, and is larger than nothing.
    worse = not row.difference <= before.difference and not np.isnan(before.difference)
    compared = before.compared + row.compared
    worst[row.name] = replace(row if worse else before, compared=compared)


def _name_divergence(module: nn.Module, keras_model: Any, images: Tensor) -> str | None:
    """Find where two part, by the images of which they differ most."""
    ours, theirs = outputs(module, keras_model, images)
    if ours.shape == theirs.shape:
        by_image = np.abs(ours - theirs).reshape(len(images), -1).max(1)
        images = images[np.argsort(-np.nan_to_num(by_image, nan=np.inf))[:_IMAGES].copy()]
    return first_divergence(module, keras_model, images[:_IMAGES])


def _join(*notes: str) -> str:
    return "; ".join(note for note in notes if note)
