"""The checks of one forward and backward pass: parameters, weights, logits and gradients.

`Check` is a row of the parity table. The functions that run both sides on the same images and
return PyTorch's layout are here too.
"""

from copy import deepcopy
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from digitlab.parity.backend import import_keras, import_tensorflow
from digitlab.parity.differences import TOLERANCES, relative_difference
from digitlab.parity.graph import keras_layers
from digitlab.parity.layouts import Array
from digitlab.parity.matching import Match, in_module, match
from digitlab.parity.parts import is_parameter, tensor_of
from digitlab.parity.sides import (
    Inputs,
    keras_inputs,
    keras_output,
    outputs,
    precision,
    torch_output,
)
from digitlab.parity.weights import load_matched

Loss = Literal["cross_entropy", "binary", "mse"]


@dataclass(frozen=True)
class Check:
    """A row of a parity table.

    Args:
        name: The quantity compared, such as `logits, float64`.
        compared: Number of values compared; a check that compared nothing fails.
        difference: Largest absolute difference, relative to the largest absolute value, unless the
            function that makes the check says otherwise.
        tolerance: Largest difference that passes.
        note: Details for the reader, such as the parameter that differs most.
        informational: Whether the row is for information only and cannot fail.
    """

    name: str
    compared: int
    difference: float
    tolerance: float
    note: str = ""
    informational: bool = False

    @property
    def passed(self) -> bool:
        """Whether something was compared and agreed; NaN agrees with nothing."""
        return self.compared > 0 and self.difference <= self.tolerance


HEADING = f"{'check':43}  {'compared':>13}  difference  tolerance  verdict"
"""The line above a table of checks."""


def format_check(check: Check) -> str:
    """Format a check as a row below `HEADING`.

    Examples:
        >>> print(format_check(Check("loss, float64", 1, 2e-15, 1e-12)).replace("  " * 15, "..."))
        loss, float64...          1     2.0e-15    1.0e-12  passed
    """
    verdict = "info" if check.informational else "passed" if check.passed else "FAILED"
    difference, tolerance = (
        f"{number:.1e}" if number % 1 else f"{number:g}"
        for number in (check.difference, check.tolerance)
    )
    row = (
        f"{check.name:43}  {check.compared:>13,}  {difference:>10}  {tolerance:>9}  "
        f"{verdict:7}  {check.note}"
    )
    return row.rstrip()


Verdict = Literal["passed", "passed_float32", "failed"]


@dataclass(frozen=True)
class Report:
    """The result of comparing a pair; as a string, a table.

    Args:
        checks: The rows of the table.
        first_divergence: Name of the first Keras layer that differs; None if none does.
        only_float32: Why nothing was compared in float64, with the layer and the remedy; empty if
            it was.
    """

    checks: tuple[Check, ...]
    first_divergence: str | None = None
    only_float32: str = ""

    @property
    def verdict(self) -> Verdict:
        """`passed`, in float64; `passed_float32`, which hides differences below 1e-5; `failed`."""
        required = [check for check in self.checks if not check.informational]
        if not required or not all(check.passed for check in required):
            return "failed"
        return "passed_float32" if self.only_float32 else "passed"

    @property
    def passed(self) -> bool:
        """Whether the pair passed in float64."""
        return self.verdict == "passed"

    def assert_passed(self, allow_float32: bool = False) -> None:
        """Fail a test if the comparison failed.

        Args:
            allow_float32: Whether a pair may pass that was compared in float32 alone.

        Raises:
            AssertionError: It failed; the message is the table.
        """
        if not self.passed and not (allow_float32 and self.verdict == "passed_float32"):
            is_weak = self.verdict == "passed_float32"
            reason = "were compared in float32 alone" if is_weak else "do not compute the same"
            raise AssertionError(f"the two {reason}\n{self}")

    def __str__(self) -> str:
        lines = [HEADING, *map(format_check, self.checks)]
        if self.only_float32:
            lines.append(f"compared in float32 alone: {self.only_float32}")
        if self.first_divergence is not None:
            lines.append(f"the first Keras layer that differs: {self.first_divergence}")
        return "\n".join(lines)


def parameter_counts(
    module: nn.Module, keras_model: Any, pairs: list[Match] | None = None
) -> Check:
    """Match all tensors by layer and shape (`match` refuses a pair), and compare the total counts.

    The totals are the frameworks' own, which do not depend on how layers are matched here.
    """
    pairs = match(module, keras_model) if pairs is None else pairs
    matched = {name.partition("[")[0] for pair in pairs for name in pair.torch_names}
    parameters = {name for name, _ in module.named_parameters(remove_duplicate=False)}
    # Buffers without a counterpart, such as a mean to subtract, are constants and no weights.
    counted = [it for name, it in tensors(module).items() if name in matched | parameters]
    ours = sum(tensor.numel() for tensor in counted)
    theirs = keras_model.count_params()
    # PyTorch's recurrent layers add up two biases where Keras has one.
    twice = sum(pair.tensors[1].numel() for pair in pairs if pair.is_sum)
    equal, unequal = f"{theirs:,} parameters", f"parameters: {ours:,} torch, {theirs:,} keras"
    note = equal if ours - twice == theirs else unequal
    if twice:
        note += f"; {twice:,} second biases of torch are added to the first"
    return Check("parameters", len(pairs), float(ours - twice != theirs), 0.0, note)


def round_trip(module: nn.Module, keras_model: Any, pairs: list[Match] | None = None) -> Check:
    """Copy the weights into the Keras model, which keeps them, and back, and compare their bits.

    Of two biases that Keras adds up, the sum is compared.
    """
    pairs = match(module, keras_model) if pairs is None else pairs
    for pair in pairs:
        pair.variable.assign(pair.to_keras())
    back = deepcopy(module)
    with torch.no_grad():
        for tensor in tensors(back).values():
            tensor.fill_(float("nan") if tensor.is_floating_point() else -1)  # no weight's value
    returned = in_module(pairs, back)
    load_matched(returned)
    changed: dict[str, int] = {}
    for before, after in zip(pairs, returned, strict=True):
        arrays = [[it.detach().cpu().numpy() for it in pair.tensors] for pair in (before, after)]
        if before.is_sum:
            arrays = [[before.to_keras()], [after.to_keras()]]
        changed[before.torch_name] = sum(
            int((_bits(ours) != _bits(theirs)).any(-1).sum())
            for ours, theirs in zip(*arrays, strict=True)
        )
    first = next((name for name, count in changed.items() if count), None)
    return Check(
        "round trip of the weights",
        compared=sum(tensor.numel() for pair in pairs for tensor in pair.tensors),
        difference=float(sum(changed.values())),
        tolerance=0.0,
        note=f"{first} comes back changed" if first else "bit for bit",
    )


def training_settings(keras_model: Any, pairs: list[Match]) -> Check | None:
    """Find what changes the training of one side alone; None if there is nothing.

    That is Keras's regularizers, constraints and added losses, which PyTorch's layers do not have,
    and weights that are frozen in one framework.
    """
    found = [
        f"{layer.name} has {name}={type(value).__name__}"
        for top in keras_layers(keras_model)
        for layer in top._flatten_layers()
        for name, value in sorted(vars(layer).items())
        if name.endswith(("regularizer", "constraint")) and value is not None
    ]
    if not found and keras_model.losses:
        found.append(f"{keras_model.name} has added losses")
    for pair in pairs:
        named = zip(pair.tensors, pair.torch_names, strict=True)
        trained = [tensor.requires_grad for tensor, path in named if is_parameter(tensor, path)]
        ours = any(trained)
        if trained and ours != bool(pair.variable.trainable):
            found.append(f"{pair.torch_name} is frozen in {'keras' if ours else 'torch'} alone")
    if not found:
        return None
    more = f" and {len(found) - 1} more" if len(found) > 1 else ""
    note = f"{found[0]}{more}: remove it, or give both sides the same"
    return Check("settings of the training", len(pairs), float(len(found)), 0.0, note)


def logits(module: nn.Module, keras_model: Any, inputs: Inputs, name: str = "logits") -> Check:
    """Compare both sides' outputs, usually logits.

    Both sides must have the same weights; the module's mode stays as it is.

    Args:
        module: The PyTorch side.
        keras_model: The Keras side, a `keras.Model` or a `CopiedModel`.
        inputs: What both read, in PyTorch's layout.
        name: The name of the row.

    Raises:
        ValueError: A side cannot read the inputs, returns more than one array, or is neither
            float32 nor float64.
    """
    dtype = precision(module, keras_model)
    ours, theirs = outputs(module, keras_model, inputs)
    note = ""
    if ours.shape != theirs.shape:
        note = f"torch gives {ours.shape}, keras {theirs.shape}"
    elif _probabilities(ours) != _probabilities(theirs):
        note = f"only {'torch' if _probabilities(ours) else 'keras'} gives probabilities"
    difference = relative_difference(ours, theirs)
    return Check(f"{name}, {dtype}", ours.size, difference, TOLERANCES[dtype], note)


def gradients(
    module: nn.Module,
    keras_model: Any,
    inputs: Inputs,
    targets: Tensor,
    loss: Loss = "cross_entropy",
    pairs: list[Match] | None = None,
) -> list[Check]:
    """Compare a mean loss, and its gradient by every parameter.

    Each framework's own functions compute them, without dropout. A parameter's difference is
    relative to its own largest gradient, or to a thousandth of the largest of all parameters if
    that is more: gradients that are zero but for rounding have no size of their own. The module's
    `grad` stays as it is.

    Args:
        module: The PyTorch side.
        keras_model: The Keras side, a `keras.Model`, or a `CopiedModel` with `pairs`.
        inputs: As for `logits`.
        targets: Labels, int64 `(N,)`, for the cross-entropy of logits; else floats in the shape of
            the output, for the binary cross-entropy of logits or the mean squared error.
        loss: The loss.
        pairs: The matched weights.

    Returns:
        The check of the loss and that of the gradients, whose note names the parameter that differs
        most.
    """
    dtype = precision(module, keras_model)
    pairs = match(module, keras_model) if pairs is None else pairs
    of_loss, differences, count = gradient_differences(
        module, keras_model, inputs, targets, loss, pairs
    )
    # `max` may pass over NaN, which is worse than any number.
    worst = max(
        differences, key=lambda name: np.nan_to_num(differences[name], nan=np.inf), default=""
    )
    note = f"most in {worst.removeprefix('network.')}" if worst else "no parameter has a gradient"
    tolerance, difference = TOLERANCES[dtype], differences.get(worst, 0.0)
    return [
        Check(f"loss, {dtype}", 1, of_loss, tolerance),
        Check(f"gradients, {dtype}", count, difference, tolerance, note, informational=not pairs),
    ]


def gradient_differences(
    module: nn.Module,
    keras_model: Any,
    inputs: Inputs,
    targets: Tensor,
    loss: Loss,
    pairs: list[Match],
) -> tuple[float, dict[str, float], int]:
    """Compare a loss and its gradients; the arguments are those of `gradients`.

    Returns:
        The difference of the loss, those of the gradients by the names of each pair's tensors, and
        the number of values compared.
    """
    our_loss, ours = _torch_gradients(module, pairs, inputs, targets, loss)
    their_loss, theirs = _keras_gradients(keras_model, pairs, inputs, targets, loss)
    known = [array for arrays in (*ours, *theirs) for array in arrays if array is not None]
    floor = 1e-3 * max((float(np.abs(array).max(initial=0)) for array in known), default=0.0)
    differences = {
        pair.torch_name: max(
            _difference(left, right, floor)
            for left, right in zip(lefts, rights, strict=True)
            if left is not None or right is not None
        )
        for pair, lefts, rights in zip(pairs, ours, theirs, strict=True)
        if any(array is not None for array in (*lefts, *rights))
    }
    count = sum(array.size for arrays in ours for array in arrays if array is not None)
    return relative_difference(our_loss, their_loss), differences, count


def tensors(module: nn.Module) -> dict[str, Tensor]:
    """Return a module's parameters and buffers by name, without BatchNorm's count of batches."""
    named = chain(module.named_parameters(), module.named_buffers())
    return {name: tensor for name, tensor in named if not name.endswith("num_batches_tracked")}


def _probabilities(array: Array) -> bool:
    return bool((array >= 0).all()) and np.allclose(array.sum(-1), 1, atol=1e-4)


def _bits(array: Array) -> Array:
    """Return an array's bytes, one row for each value."""
    return np.ascontiguousarray(array).reshape(-1, 1).view(np.uint8)


Gradients = list[tuple[Array | None, ...]]
"""For each pair, the gradients by its tensors."""


def _torch_gradients(
    module: nn.Module, pairs: list[Match], inputs: Inputs, targets: Tensor, loss: Loss
) -> tuple[Array, Gradients]:
    named = dict(module.named_parameters(remove_duplicate=False))
    named = {name: parameter for name, parameter in named.items() if parameter.requires_grad}
    with torch.enable_grad():
        output = torch_output(module, inputs)
        value = _torch_loss(output, targets.to(output.device), loss)
        # Unlike `backward`, this does not touch the parameters' `grad`.
        found = torch.autograd.grad(value, list(named.values()), allow_unused=True) if named else ()
    by_name = {
        name: None if gradient is None else gradient.cpu().numpy()
        for name, gradient in zip(named, found, strict=True)
    }

    arrays = [tuple(tensor_of(by_name, path) for path in pair.torch_names) for pair in pairs]
    return value.detach().cpu().numpy(), arrays


def _torch_loss(output: Tensor, targets: Tensor, loss: Loss) -> Tensor:
    if loss == "cross_entropy":
        return functional.cross_entropy(output, targets)
    if targets.numel() != output.numel():
        raise ValueError(
            f"targets are {tuple(targets.shape)} and the output is {tuple(output.shape)}: for "
            f"loss={loss} give targets of the output's shape"
        )
    targets = targets.reshape(output.shape).to(output.dtype)
    if loss == "binary":
        return functional.binary_cross_entropy_with_logits(output, targets)
    return functional.mse_loss(output, targets)


def _keras_gradients(
    keras_model: Any, pairs: list[Match], inputs: Inputs, targets: Tensor, loss: Loss
) -> tuple[Array, Gradients]:
    keras, tensorflow = import_keras(), import_tensorflow()
    variables = [pair.variable.value for pair in pairs if pair.variable.trainable]
    read, _ = keras_inputs(keras_model, inputs)
    with tensorflow.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(variables)
        # From the output of a softmax, Keras would silently take the softmax's input instead.
        output = tensorflow.identity(
            keras_output(keras_model, [tensorflow.constant(x) for x in read])
        )
        # By default a loss computes in `floatx`, not in the precision of the logits.
        dtype = keras.backend.standardize_dtype(output.dtype)
        wanted = targets.cpu().numpy()
        if loss == "cross_entropy":
            function = keras.losses.SparseCategoricalCrossentropy(from_logits=True, dtype=dtype)
        else:
            if wanted.ndim > 2 and wanted.shape != output.shape:
                wanted = np.moveaxis(wanted, 1, -1)
            wanted = wanted.reshape(output.shape)
            kinds = {
                "binary": keras.losses.BinaryCrossentropy,
                "mse": keras.losses.MeanSquaredError,
            }
            options = {"from_logits": True} if loss == "binary" else {}
            function = kinds[loss](dtype=dtype, **options)
        value = function(wanted, output)
    found = iter(tape.gradient(value, variables))
    arrays: Gradients = []
    for pair in pairs:
        gradient = next(found) if pair.variable.trainable else None
        if gradient is None:
            arrays.append((None,) * len(pair.torch_names))
        else:
            dense = keras.ops.convert_to_numpy(gradient)  # an embedding's may be sparse
            arrays.append(pair.to_torch(dense, is_gradient=True))
    return keras.ops.convert_to_numpy(value), arrays


def _difference(ours: Array | None, theirs: Array | None, floor: float) -> float:
    if ours is None or theirs is None:
        return float("inf")
    largest = float(max(np.abs(ours).max(initial=0), np.abs(theirs).max(initial=0)))
    return relative_difference(ours, theirs) * (largest / max(largest, floor) if largest else 1.0)
