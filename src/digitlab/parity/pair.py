"""The comparison of any PyTorch module with any Keras model: `check`.

`first_divergence` finds the first layer whose output differs.
"""

import math
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from digitlab.parity.backend import import_keras
from digitlab.parity.checks import (
    HEADING,
    TOLERANCES,
    Check,
    channels_first,
    copy_in,
    evaluation_mode,
    format_check,
    gradients,
    keras_images,
    logits,
    outputs,
    parameter_counts,
    precision,
    relative_difference,
    round_trip,
    sole_input,
    sole_output,
    torch_images,
)
from digitlab.parity.weights import Array, copy_weights, flattened_in, inputs_within

Batch = tuple[Tensor, Tensor]
Pair = tuple[nn.Module, Any]
_Given = dict[int, tuple[Any, int | None]]  # by `id` of an input: its value, the step that made it

_IMAGES = 32  # enough to find a layer, and few enough to hold the outputs of all layers


@dataclass(frozen=True)
class Report:
    """The result of comparing a pair; as a string, a table.

    Args:
        checks: The rows of the table.
        first_divergence: Name of the first Keras layer whose output differs; None if none does.
    """

    checks: tuple[Check, ...]
    first_divergence: str | None = None

    @property
    def passed(self) -> bool:
        """Whether there is a check that is not for information, and all of them passed."""
        required = [check for check in self.checks if not check.informational]
        return bool(required) and all(check.passed for check in required)

    def assert_passed(self) -> None:
        """Fail a test if the comparison failed.

        Raises:
            AssertionError: It failed; the message is the table.
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

    The module's weights are copied into the Keras model, which then must compute the same: logits
    of the two as they are, and logits, loss and gradients of float64 copies of both, in which
    rounding hides nothing and nothing is frozen. Dropout is off.

    Args:
        torch_module: Maps images to logits. It is not changed.
        keras_model: Functional or sequential, with one input, which reads `(N, H, W, C)` or another
            layout that `digitlab.parity.checks.keras_images` can make. Its weights are overwritten.
        batches: Images, float32 `(N, C, H, W)` as normalized for the network, and labels, int64
            `(N,)`, as tensors or arrays. Without images the report fails: nothing was compared.

    Raises:
        ValueError: The weights cannot be matched, a side or a batch has another type, a side
            computes in neither float32 nor float64, or the Keras model cannot read the images.
        ImportError: The extra `parity` is not installed.
    """
    classes = _classes(torch_module, keras_model)  # refuses before a weight is overwritten
    checks = [parameter_counts(torch_module, keras_model), round_trip(torch_module, keras_model)]
    worst: dict[str, Check] = {}
    by_logits: list[Pair] = []
    suspect: tuple[nn.Module, Any, Tensor] | None = None
    for images, labels in (_tensors(batch, classes) for batch in batches):
        if not len(images):
            continue
        if not by_logits:
            by_logits, by_gradients, note = _pairs(torch_module, keras_model, images)
        rows = [logits(*pair, images) for pair in by_logits]
        for pair, row in zip(by_logits, rows, strict=True):
            if not row.passed:
                suspect = (*pair, images)  # the last pair is float64, which shows more
        for row in (*rows, *gradients(*by_gradients, images, labels)):
            notes = "; ".join(part for part in (row.note, note) if part)
            _keep_worst(worst, replace(row, note=notes))
    if not worst:
        worst["logits"] = Check("logits", 0, 0.0, TOLERANCES["float32"], "there are no images")
    return Report((*checks, *worst.values()), suspect and _name_divergence(*suspect))


def _classes(module: nn.Module, keras_model: Any) -> float:
    """Return the number of classes of a pair, or refuse one that cannot be compared."""
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
    """Return a batch's images and labels as tensors, or refuse it."""
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


def _pairs(module: nn.Module, keras_model: Any, images: Tensor) -> tuple[list[Pair], Pair, str]:
    """Return the pairs whose logits, and the pair whose gradients are compared, and a note.

    These are the pair as it is and an unfrozen copy in float64; the note says if there is none.
    """
    pair, is_double = (module, keras_model), precision(module, keras_model) == "float64"
    note = "no unfrozen copy" if is_double else "not in float64"
    try:
        ours = deepcopy(module).double().requires_grad_(True)
        theirs = copy_in(keras_model, "float64")
        copy_weights(ours, theirs)
        before = channels_first(keras_model(keras_images(keras_model, images), training=False))
        our_logits, after = outputs(ours, theirs, images)
    # A user's layer may raise anything when it is copied or run in float64.
    except Exception as error:
        return [pair], pair, f"{note}: {type(error).__name__}"
    in_double = our_logits.dtype == after.dtype == np.float64
    # A copy lacks what a layer's config does not contain; rounding alone causes far less than 1e-3.
    largest = TOLERANCES["float64"] if is_double else 1e-3
    if not in_double or not relative_difference(before, after) < largest:
        return [pair], pair, f"{note}: the copy of a side is not the same"
    return [pair] if is_double else [pair, (ours, theirs)], (ours, theirs), ""


def _keep_worst(worst: dict[str, Check], row: Check) -> None:
    """Keep a batch's row if it is the worst of its name so far, and add up the counts."""
    before = worst.setdefault(row.name, replace(row, compared=0))
    # NaN is worse than any number, but compares as false.
    worse = not row.difference <= before.difference and not np.isnan(before.difference)
    compared = before.compared + row.compared
    worst[row.name] = replace(row if worse else before, compared=compared)


def _name_divergence(module: nn.Module, keras_model: Any, images: Tensor) -> str | None:
    """Find the first layer that differs, on the images whose logits differ most."""
    ours, theirs = outputs(module, keras_model, images)
    if ours.shape == theirs.shape:
        by_image = np.abs(ours - theirs).reshape(len(images), -1).max(1)
        images = images[np.argsort(-np.nan_to_num(by_image, nan=np.inf))[:_IMAGES].copy()]
    return first_divergence(module, keras_model, images[:_IMAGES])


def first_divergence(module: nn.Module, keras_model: Any, images: Tensor) -> str | None:
    """Name the first Keras layer whose output differs from the module's.

    A layer agrees if PyTorch computes its output anywhere: in a layer, or by a function within a
    `forward`. One that does not agree is excused if everything that depends on it agrees again, as
    where one side pools before the ReLU and the other after. The model's last layer must agree with
    the module's output.

    A layer that changes nothing, or returns a constant, could agree by chance: it is also compared
    with the PyTorch layer of its name, if there is one.

    Args:
        module: The PyTorch side; its mode and its weights stay as they are.
        keras_model: The Keras side, functional or sequential, with the same weights.
        images: Float32 `(N, C, H, W)`, a few dozen: the outputs of all layers are kept in memory.

    Returns:
        The layer's name, or None if both outputs agree.

    Raises:
        ValueError: The Keras model reads no such images, or a side returns more than one array.
    """
    tolerance = TOLERANCES[precision(module, keras_model)]
    record = _record(module, images)
    steps, last = _keras_steps(keras_model, images)
    agrees = [_agrees(step, steps, record, tolerance) for step in steps]
    agrees[last] = _close(channels_first(steps[last].value), record.result, tolerance)
    guilty = set() if agrees[last] else {last}
    for i in reversed(range(len(steps))):
        if i in guilty:
            guilty |= {source for source in steps[i].sources if not agrees[source]}
    return steps[min(guilty)].name if guilty else None


@dataclass
class _Step:
    """The output of a call of a Keras layer, and the steps that it reads."""

    name: str
    value: Array
    sources: tuple[int, ...]
    flattened: tuple[int, ...] | None


class _Record(TorchFunctionMode):
    """Keeps everything that torch computes in its `with` block."""

    result: Array

    def __init__(self) -> None:
        super().__init__()
        self.computed: list[Array] = []
        self.of_layers: dict[str, list[Array]] = {}
        self._copying = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call a function of torch, and keep the tensors that it returns."""
        result = func(*args, **(kwargs or {}))
        if not self._copying:
            self.keep(result)
        return result

    def keep(self, result: Any) -> list[Array]:
        """Copy the tensors that a function returned, since the next one may overwrite them."""
        parts = result if isinstance(result, list | tuple) else [result]
        self._copying = True
        arrays = [
            part.detach().cpu().numpy().copy()
            for part in parts
            if isinstance(part, Tensor) and part.is_floating_point() and part.ndim > 1
        ]
        self._copying = False
        self.computed += arrays
        return arrays


def _record(module: nn.Module, images: Tensor) -> _Record:
    record, given = _Record(), torch_images(module, images)
    with ExitStack() as stack:
        stack.enter_context(evaluation_mode(module))
        stack.enter_context(torch.no_grad())
        for name, layer in module.named_modules():

            def keep(_: nn.Module, __: Any, result: Any, name: str = name) -> None:
                arrays = record.keep(result)
                for known in {name, name.rpartition(".")[2], name.replace(".", "_")}:
                    record.of_layers.setdefault(known, []).extend(arrays)

            stack.enter_context(layer.register_forward_hook(keep))
        stack.enter_context(record)
        output = sole_output(module(given))
    record.result = output.cpu().numpy()
    record.computed.append(given.cpu().numpy())
    return record


def _keras_steps(keras_model: Any, images: Tensor) -> tuple[list[_Step], int]:
    """Evaluate all layers of a Keras model and of those nested in it, in order.

    Returns:
        The steps, and the index of the one with the model's output.
    """
    steps: list[_Step] = []
    read = keras_images(keras_model, images)
    inputs: _Given = {id(keras_model.inputs[0]): (read, None)}
    made = _add_steps(steps, keras_model, inputs, inputs_within(keras_model))
    last = made[id(keras_model.outputs[0])]
    if last is None:
        raise ValueError(f"{keras_model.name} returns its input: it must have a layer")
    return steps, last


def _add_steps(
    steps: list[_Step], model: Any, given: _Given, within: dict[int, Any]
) -> dict[int, int | None]:
    """Add the steps of a model, or a model nested in it, to a list.

    Returns:
        By the `id` of a symbolic tensor, the step that made it; None for an input.
    """
    graph = import_keras().Model(model.inputs, model.outputs)
    by_depth = graph._nodes_by_depth  # a call of a layer is deeper than those that read it
    nodes = [node for depth in sorted(by_depth, reverse=True) for node in by_depth[depth]]
    nodes = [node for node in nodes if not node.is_input]
    tensors = {str(id(tensor)): tensor for node in nodes for tensor in node.output_tensors}
    values = {str(id(tensor)): given[id(tensor)][0] for tensor in graph.inputs}
    if tensors:
        # As a dict, since Keras returns a list of one as the tensor itself.
        extractor = import_keras().Model(graph.inputs, tensors)
        values |= extractor(list(values.values()), training=False)
    made = {id(tensor): given[id(tensor)][1] for tensor in graph.inputs}
    for node in nodes:
        operation, read = node.operation, [id(tensor) for tensor in node.input_tensors]
        if hasattr(operation, "layers"):
            inner = {
                id(tensor): (values[str(key)], made[key])
                for tensor, key in zip(operation.inputs, read, strict=True)
            }
            made_inside = _add_steps(steps, operation, inner, within)
            pairs = zip(node.output_tensors, operation.outputs, strict=True)
            made |= {id(ours): made_inside[id(theirs)] for ours, theirs in pairs}
            continue
        sources = tuple(source for key in read if (source := made[key]) is not None)
        for tensor in node.output_tensors:
            made[id(tensor)] = len(steps)
            value = import_keras().ops.convert_to_numpy(values[str(id(tensor))])
            steps.append(_Step(operation.name, value, sources, flattened_in(tensor, within)))
    return made


def _agrees(step: _Step, steps: list[_Step], record: _Record, tolerance: float) -> bool:
    layouts = list(_layouts(step))

    def among(arrays: list[Array]) -> bool:
        return any(_close(layout, array, tolerance) for layout in layouts for array in arrays)

    if not among(record.computed):
        return False
    value = step.value
    unchanged = any(np.array_equal(value, steps[source].value) for source in step.sources)
    if unchanged or np.ptp(value) == 0:
        return step.name not in record.of_layers or among(record.of_layers[step.name])
    return True


def _layouts(step: _Step) -> Iterator[Array]:
    """Yield an output in each layout that PyTorch may have: channels last, first, or flattened."""
    yield step.value
    if step.flattened:
        yield np.moveaxis(step.value.reshape(-1, *step.flattened), -1, 1)
    elif step.value.ndim > 2:
        yield channels_first(step.value)


def _close(ours: Array, theirs: Array, tolerance: float) -> bool:
    """Return whether two arrays agree, image by image and value by value, whatever their shapes."""
    if ours.size != theirs.size or len(ours) != len(theirs):
        return False
    left, right = ours.reshape(len(ours), -1), theirs.reshape(len(ours), -1)
    return relative_difference(left, right) <= tolerance
