"""The comparison of a user's own pair: steps 1 to 4, and the layer at which the two part."""

import random
from collections.abc import Iterable
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import Tensor, nn

from digitlab.parity.backend import import_keras, keras_dtype
from digitlab.parity.compare import (
    HEADING,
    TOLERANCES,
    Check,
    format_check,
    relative_difference,
)
from digitlab.parity.divergence import first_divergence
from digitlab.parity.forward import gradients, logits, parameter_counts, round_trip
from digitlab.parity.sides import channels_first, keras_images, outputs, precision
from digitlab.parity.weights import copy_weights

Batch = tuple[Tensor, Tensor]
Pair = tuple[nn.Module, Any]

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
    are, and logits, loss and gradients in float64 copies of both, where rounding hides nothing.
    Dropout is off.

    Args:
        torch_module: Maps images to logits. Nothing of it changes.
        keras_model: Functional or sequential, with one input; it reads `(N, H, W, C)`, or what
            else `digitlab.parity.sides.keras_images` can make. Its weights are overwritten.
        batches: Images, float32 `(N, C, H, W)` as normalized for the network, and labels, int64
            `(N,)`. Without any the report fails: nothing was compared.

    Raises:
        ValueError: The weights cannot be matched, or the Keras model cannot read the images.
        ImportError: The extra `parity` is not installed.
    """
    checks = [parameter_counts(torch_module, keras_model), round_trip(torch_module, keras_model)]
    worst: dict[str, Check] = {}
    pairs: list[Pair] = []
    suspect: tuple[nn.Module, Any, Tensor] | None = None
    for images, labels in batches:
        if not len(images):
            continue
        if not pairs:
            pairs, note = _pairs(torch_module, keras_model, images)
        for pair in pairs:
            of_logits = logits(*pair, images)
            if not of_logits.passed:
                suspect = (*pair, images)  # the last is in float64, which sees more
            _keep_worst(worst, replace(of_logits, note=_join(of_logits.note, note)))
        for row in gradients(*pairs[-1], images, labels):
            _keep_worst(worst, replace(row, note=_join(row.note, note)))
    if not worst:
        nothing = Check("logits", 0, 0.0, TOLERANCES["float32"], "there are no images")
        return Report((*checks, nothing))
    return Report((*checks, *worst.values()), suspect and _name_divergence(*suspect))


def _pairs(module: nn.Module, keras_model: Any, images: Tensor) -> tuple[list[Pair], str]:
    """Give the pair as it is and, last, in float64, with a note where that cannot be made."""
    if precision(module, keras_model) == "float64":
        return [(module, keras_model)], ""
    try:
        ours, theirs = deepcopy(module).double().requires_grad_(True), _double(keras_model)
        copy_weights(ours, theirs)
        before = channels_first(keras_model(keras_images(keras_model, images), training=False))
        our_logits, after = outputs(ours, theirs, images)
    # A layer of the user's can refuse in any way to be copied or to compute in float64.
    except Exception as error:
        return [(module, keras_model)], f"not in float64: {type(error).__name__}"
    in_double = our_logits.dtype == after.dtype == np.float64
    # A layer may keep what its config does not tell; rounding alone leaves far less than this.
    if not in_double or not relative_difference(before, after) < 1e-3:
        return [(module, keras_model)], "not in float64: the copy of a side is not the same"
    return [(module, keras_model), (ours, theirs)], ""


def _double(keras_model: Any) -> Any:
    """Copy a Keras model in float64, with weights of its own that all are trainable."""
    keras = import_keras()

    def copy(layer: Any) -> Any:
        if hasattr(layer, "layers"):
            return keras.models.clone_model(layer, clone_function=copy)
        config = layer.get_config()
        config.pop("dtype", None)  # the policy sets it; not every user's layer takes it
        return type(layer).from_config(config)

    state = random.getstate()  # Keras draws the seeds of initial weights from it
    try:
        with keras_dtype("float64"):
            double = copy(keras_model)
    finally:
        random.setstate(state)
    double.trainable = True
    return double


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
