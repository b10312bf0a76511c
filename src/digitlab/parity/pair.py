"""The comparison of any PyTorch module with any Keras model: `check`."""

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from dataclasses import dataclass, field, replace
from itertools import chain, islice, product
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from digitlab.parity.backend import import_keras, import_tensorflow, only_errors_of
from digitlab.parity.checks import (
    HEADING,
    Check,
    Loss,
    format_check,
    gradients,
    logits,
    parameter_counts,
    round_trip,
    training_settings,
    wrong_gradients,
)
from digitlab.parity.divergence import first_divergence, record_calls
from digitlab.parity.flattening import feature_orders
from digitlab.parity.graph import Call, CopiedModel, CopyError, Graph, is_channels_first_on_cpu
from digitlab.parity.sides import (
    TOLERANCES,
    Inputs,
    keras_inputs,
    outputs,
    precision,
    relative_difference,
    torch_output,
)
from digitlab.parity.weights import Match, Matcher, Matches, in_copies, in_module

Verdict = Literal["passed", "passed_float32", "failed"]

_TRIALS = 24  # ways to assign weights where several layers read the same
_NAMED = 32  # examples are enough to find a layer, and few enough to hold the outputs of all layers


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


@only_errors_of("tensorflow")  # it warns of each trace of a layer's float64 copy
def check(
    torch_module: nn.Module,
    keras_model: Any,
    batches: Iterable[Any],
    loss: Loss | None = "cross_entropy",
) -> Report:
    """Compare any PyTorch module with any Keras model: parameters, weights, outputs and gradients.

    The module's weights are copied into the Keras model, which then must compute the same: outputs
    of the two as they are, and outputs, loss and gradients of float64 copies of both, in which
    rounding hides nothing and nothing is frozen. Dropout is off.

    Args:
        torch_module: It is not changed.
        keras_model: Functional or sequential. Its weights are overwritten.
        batches: Inputs and targets, as tensors or arrays. Inputs are one tensor, a tuple (arguments
            by position) or a dict (by the names of `forward`'s arguments and of Keras's inputs):
            images, float32 `(N, C, H, W)` as normalized for the network; other floats as PyTorch
            reads them; or integers. Without a loss, each batch is the inputs alone. Without
            examples the report fails: nothing was compared.
        loss: `cross_entropy` of logits `(N, classes)` and labels, int64 `(N,)`; `binary`
            cross-entropy of logits, or `mse`, with floats in the shape of the output; or None, to
            compare outputs alone.

    Raises:
        ValueError: The weights cannot be matched, a side or a batch has another type, a side
            computes in neither float32 nor float64, or cannot read the inputs.
        ImportError: The extra `parity` is not installed.
    """
    if loss not in ("cross_entropy", "binary", "mse", None):
        raise ValueError(f"loss is {loss}: it must be cross_entropy, binary, mse or None")
    if not isinstance(batches, Iterable):
        raise ValueError(f"batches are a {type(batches).__name__}: give a list or a DataLoader")
    graph = _graph(torch_module, keras_model, loss)
    examples = (_read(batch, loss, graph) for batch in batches)
    examples = ((inputs, targets) for inputs, targets in examples if len(_first(inputs)))
    if (first := next(examples, None)) is None:
        nothing = Check("logits", 0, 0.0, TOLERANCES["float32"], "there are no examples")
        return Report((nothing,))
    pair = _Pair(torch_module, keras_model, graph, first[0])
    worst: dict[str, Check] = {}
    suspect: tuple[Inputs, Tensor] | None = None
    for inputs, targets in chain([first], examples):
        for row in pair.compare(inputs, targets, loss):
            _keep_worst(worst, row)
            suspect = suspect or (None if row.passed else (inputs, targets))
    settings = training_settings(keras_model, pair.pairs)  # added losses are known by now
    rows = (*pair.rows, *([settings] if settings else []), *worst.values(), *pair.rounded())
    name = pair.name_divergence(*suspect, loss) if suspect else None
    return Report(rows, name, pair.reason)


def _graph(module: nn.Module, keras_model: Any, loss: Loss | None) -> Graph:
    """Return a Keras model's graph, or refuse a pair that cannot be compared."""
    if not isinstance(module, nn.Module) or not isinstance(keras_model, import_keras().Model):
        raise ValueError(
            f"the pair is a {type(module).__name__} and a {type(keras_model).__name__}: "
            "give a torch.nn.Module and a keras.Model, in this order"
        )
    lazy = [
        name for name, it in module.named_parameters() if isinstance(it, nn.UninitializedParameter)
    ]
    if lazy:
        raise ValueError(
            f"{lazy[0]} has no shape yet: call the module once, as lazy layers need it, before it "
            "is compared"
        )
    graph = Graph(keras_model)
    precision(module, keras_model)
    shapes = [tuple(graph.symbolic[i].shape) for i in graph.outputs]
    if len(shapes) != 1:
        given = " and ".join(map(str, shapes))
        raise ValueError(f"{keras_model.name} gives {given}: it must have one output")
    if loss == "cross_entropy" and len(shapes[0]) != 2:
        raise ValueError(
            f"{keras_model.name} gives {shapes[0]}: it must give logits, (N, classes); for another "
            "output, give loss='mse' or None"
        )
    return graph


def _read(batch: Any, loss: Loss | None, graph: Graph) -> tuple[Inputs, Tensor]:
    """Return a batch's inputs and targets as tensors, or refuse it."""
    parts: list[Any] = list(batch) if isinstance(batch, list | tuple) else [batch]
    if loss is None:
        inputs = _tensors(batch)
        return inputs, torch.empty(0)
    if len(parts) != 2 or not isinstance(parts[1], Tensor | np.ndarray):
        kinds = ", ".join(type(part).__name__ for part in parts[:3])
        raise ValueError(
            f"a batch is {kinds}: it must be inputs and targets, such as two tensors, images and "
            "labels, as in `[(images, labels)]`"
        )
    inputs, targets = _tensors(parts[0]), torch.as_tensor(parts[1])
    if loss == "cross_entropy":
        _check_labels(targets, len(_first(inputs)), graph.symbolic[graph.outputs[0]].shape[1])
    elif not targets.is_floating_point():
        raise ValueError(f"targets are {targets.dtype}: for loss={loss} they must be floats")
    return inputs, targets


def _tensors(given: Any) -> Inputs:
    if isinstance(given, dict):
        return {name: _tensor(value) for name, value in given.items()}
    if isinstance(given, list | tuple):
        return tuple(map(_tensor, given))
    return _tensor(given)


def _tensor(given: Any) -> Tensor:
    if not isinstance(given, Tensor | np.ndarray):
        raise ValueError(
            f"an input is a {type(given).__name__}: it must be a tensor or an array, as in "
            "`[(images, labels)]`"
        )
    try:
        tensor = torch.as_tensor(given)
    except TypeError as error:
        raise ValueError(f"an input is an array of {given.dtype}: it must be numbers") from error
    is_image = tensor.ndim == 4
    if tensor.dtype in (torch.float32, torch.float64) or (
        not is_image and tensor.dtype in (torch.int32, torch.int64)
    ):
        return tensor
    kind, rule = "images", "float32 (N, C, H, W), as `images.float()` makes them"
    if not is_image:
        kind, rule = "inputs", "float32, float64, int32 or int64"
    raise ValueError(f"{kind} are {tensor.dtype} {tuple(tensor.shape)}: they must be {rule}")


def _first(inputs: Inputs) -> Tensor:
    if isinstance(inputs, dict):
        return next(iter(inputs.values()))
    return inputs[0] if isinstance(inputs, tuple) else inputs


def _check_labels(labels: Tensor, examples: int, classes: int | None) -> None:
    most = classes or math.inf
    integers = labels.dtype == torch.int64 and labels.shape == (examples,)
    if not integers or not ((labels >= 0) & (labels < most)).all():
        span = f", from {labels.min()} to {labels.max()}" if integers else ""
        raise ValueError(
            f"labels are {labels.dtype} {tuple(labels.shape)}{span}: they must be int64 "
            f"({examples},), from 0 to {most - 1}, as `labels.long()` or, of one-hot labels, "
            "`labels.argmax(1)` makes them"
        )


def _keep_worst(worst: dict[str, Check], row: Check) -> None:
    """Keep a batch's row if it is the worst of its name so far, and add up the counts."""
    before = worst.setdefault(row.name, replace(row, compared=0))
    # NaN is worse than any number, but compares as false.
    worse = not row.difference <= before.difference and not np.isnan(before.difference)
    compared = before.compared + row.compared
    worst[row.name] = replace(row if worse else before, compared=compared)


@dataclass
class _Pair:
    """A module and a Keras model with its weights, and float64 copies of both, if there can be any.

    Args:
        module: The PyTorch side.
        keras_model: The Keras side, which gets the module's weights.
        graph: The Keras side's graph.
        inputs: The first batch's, by which the layers are matched.
    """

    module: nn.Module
    keras_model: Any
    graph: Graph
    inputs: Inputs
    rows: list[Check] = field(init=False)
    reason: str = field(default="", init=False)
    doubles: tuple[nn.Module, CopiedModel, list[Match]] | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        _, in_torch_order = keras_inputs(self.keras_model, self.inputs)
        original, self.module = self.module, _copy(self.module)  # running may change weights
        torch_output(_copy(original), self.inputs)  # refuses inputs before a weight is overwritten
        self.orders = feature_orders(
            self.graph, frozenset(self.graph.inputs[i] for i in in_torch_order)
        )
        matches = self._match_in_double() or self._match_in_order()
        self.pairs = in_module(matches.pairs, self.module)
        counts = parameter_counts(self.module, self.keras_model, self.pairs)
        note = f"{counts.note}, matched {matches.how}"
        if matches.ambiguous:
            note += (
                f"; {', '.join(matches.ambiguous)} could be exchanged with a layer that reads the "
                "same: give the Keras layers PyTorch's names"
            )
        rows = [
            replace(counts, note=note),
            round_trip(original, self.keras_model, in_module(matches.pairs, original)),
        ]
        # Without weights, outputs alone are compared.
        self.rows = [replace(row, informational=not matches.pairs) for row in rows]
        self.single: Any = self.keras_model
        if any(map(is_channels_first_on_cpu, self.graph.layers)):
            self.single = CopiedModel(self.graph, "float32")  # with the weights just copied
        if self.doubles:
            # Only now do the copies have the same weights as the layers.
            self._watch(self.doubles[1])

    def _match_in_double(self) -> Matches | None:
        """Make float64 copies of both sides, and match their layers by what they read."""
        try:
            ours = deepcopy(self.module).double().requires_grad_(True)
        except Exception as error:  # a user's module may raise anything when it is copied
            kind = type(self.module).__name__
            self.reason = f"{kind} cannot be copied ({type(error).__name__}): give a plain module"
            return None
        try:
            theirs = CopiedModel(self.graph)
            if torch_output(_copy(ours), _double(self.inputs)).dtype != torch.float64:
                raise CopyError(
                    f"{type(self.module).__name__} returns another dtype than float64: do not "
                    "convert to a fixed dtype in it"
                )
            matches = self._assign(ours, theirs)
        except CopyError as error:
            self.reason = str(error)
            return None
        self.doubles = ours, theirs, in_copies(matches.pairs, theirs)
        return matches

    def _assign(self, ours: nn.Module, theirs: CopiedModel) -> Matches:
        """Match the layers, and give the copies the weights; where it is ambiguous, by trial."""
        read = record_calls(_copy(ours), _double(self.inputs))
        inputs = _constants(theirs, self.inputs)

        def attempt(choices: tuple[int, ...]) -> Matcher:
            matcher = Matcher(ours, self.graph, self.orders, read, choices)

            def give_weights(call: Call, args: tuple[Any, ...]) -> None:
                value = np.asarray(args[0]) if args and hasattr(args[0], "shape") else None
                for pair in in_copies(matcher.add(call, value), theirs):
                    pair.variable.assign(pair.to_keras())

            theirs.run(inputs, give_weights)
            return matcher

        def is_equal() -> bool:  # but for constants in float32
            return relative_difference(*outputs(_copy(ours), theirs, _double(self.inputs))) < 1e-6

        chosen: tuple[int, ...] = ()
        best = attempt(chosen)
        for choices in islice(product(*map(range, best.options)), 1, _TRIALS):
            if is_equal():
                return best.finish()
            matcher = attempt(choices)
            if is_equal() or matcher.agreeing > best.agreeing:
                best, chosen = matcher, choices
        return best.finish() if is_equal() else attempt(chosen).finish()

    def _match_in_order(self) -> Matches:
        read = record_calls(_copy(self.module), self.inputs)
        matcher = Matcher(self.module, self.graph, self.orders, read)
        for call in self.graph.calls:
            matcher.add(call)
        return matcher.finish()

    def _watch(self, theirs: CopiedModel) -> None:
        try:
            theirs.run(_constants(theirs, self.inputs), watch=True)
        except CopyError as error:
            self.reason, self.doubles = str(error), None

    def compare(self, inputs: Inputs, targets: Tensor, loss: Loss | None) -> list[Check]:
        """Compare outputs, and gradients if there is a loss."""
        name = "logits" if loss == "cross_entropy" else "outputs"
        rows = [logits(self.module, self.single, inputs, name)]
        if not self.doubles:
            pairs = self.pairs
            if isinstance(self.single, CopiedModel):
                pairs = in_copies(pairs, self.single)
            if loss:
                rows += gradients(self.module, self.single, inputs, targets, loss, pairs)
            return rows
        module, model, pairs = self.doubles
        doubled = _double(inputs)

        def in_double() -> list[Check]:
            made = [logits(module, model, doubled, name)]
            return made + (gradients(module, model, doubled, targets, loss, pairs) if loss else [])

        with _ExactTorch() if model.is_exact else nullcontext():
            doubles = in_double()
        if not all(row.passed for row in doubles) and not model.is_exact:
            with _exact(model):
                exact = in_double()
            if all(row.passed for row in exact):
                model.is_exact, doubles = True, exact
        if precision(self.module, self.keras_model) == "float64":  # a row of the same name
            return doubles if model.is_exact else rows + doubles[1:]
        return rows + doubles

    def rounded(self) -> list[Check]:
        """Return rows for information about constants that TensorFlow holds in float32."""
        if not self.doubles or not self.doubles[1].is_exact:
            return []
        note = (
            "TensorFlow holds its constants in float32, also in float64; both sides agree with all "
            "their digits. Round the constants in PyTorch, as float(numpy.float32(0.01)), for "
            "equal bits"
        )
        rounded = self.doubles[1].rounded.items() or [("hard_sigmoid", 5e-9)]
        return [
            Check(f"constants of {name}", 1, difference, 0.0, note, informational=True)
            for name, difference in rounded
        ]

    def name_divergence(self, inputs: Inputs, targets: Tensor, loss: Loss | None) -> str | None:
        """Find the first layer that differs, in its output or else in its gradients."""
        name = self._name_output(inputs)
        return name or (self._name_gradient(inputs, targets, loss) if loss else None)

    def _name_output(self, inputs: Inputs) -> str | None:
        """Find the first layer that differs, on the examples whose outputs differ most."""
        module, model = self.doubles[:2] if self.doubles else (self.module, self.single)
        inputs = _double(inputs) if self.doubles else inputs
        ours, theirs = outputs(module, model, inputs)
        if ours.shape == theirs.shape:
            by_example = np.abs(ours - theirs).reshape(len(ours), -1).max(1)
            worst = np.argsort(-np.nan_to_num(by_example, nan=np.inf))[:_NAMED].copy()
            inputs = _take(inputs, torch.from_numpy(worst))
        named = [self._first(module, model, inputs)]
        if self.doubles and model.rounded:
            with _exact(model):
                named.append(self._first(module, model, inputs))
        order = [call.name for call in self.graph.calls]
        # Constants in float32 are no fault: what differs with and without them counts.
        return max((name for name in named if name), key=order.index, default=None)

    def _name_gradient(self, inputs: Inputs, targets: Tensor, loss: Loss) -> str | None:
        """Find the layer whose weights' gradients differ first on the way back."""
        module, model, pairs = self.doubles or (self.module, self.single, self.pairs)
        if not self.doubles and isinstance(model, CopiedModel):
            pairs = in_copies(pairs, model)
        inputs = _double(inputs) if self.doubles else inputs
        tolerance = TOLERANCES[precision(module, model)]
        wrong = wrong_gradients(module, model, inputs, targets, loss, pairs, tolerance)
        order = [call.name for call in self.graph.calls]
        return max((pair.layer for pair in wrong), key=order.index, default=None)

    def _first(self, module: nn.Module, model: Any, inputs: Inputs) -> str | None:
        return first_divergence(module, model, inputs) or first_divergence(
            module, model, inputs, strict=True
        )


@contextmanager
def _exact(model: CopiedModel) -> Iterator[None]:
    """Compute both sides with all digits of their constants in the `with` block."""
    model.is_exact = True
    try:
        with _ExactTorch():
            yield
    finally:
        model.is_exact = False


def _constants(model: CopiedModel, inputs: Inputs) -> list[Any]:
    return [import_tensorflow().constant(array) for array in keras_inputs(model, inputs)[0]]


def _double(inputs: Inputs) -> Inputs:
    """Convert floating-point inputs to float64, which a module without parameters would not do."""

    def convert(tensor: Tensor) -> Tensor:
        return tensor.double() if tensor.is_floating_point() else tensor

    if isinstance(inputs, dict):
        return {name: convert(tensor) for name, tensor in inputs.items()}
    return tuple(map(convert, inputs)) if isinstance(inputs, tuple) else convert(inputs)


def _copy(module: nn.Module) -> nn.Module:
    """Copy a module, or return the module if that is not possible."""
    try:
        return deepcopy(module)
    except Exception:  # a user's module may raise anything when it is copied
        return module


def _take(inputs: Inputs, indices: Tensor) -> Inputs:
    if isinstance(inputs, dict):
        return {name: tensor[indices] for name, tensor in inputs.items()}
    return tuple(it[indices] for it in inputs) if isinstance(inputs, tuple) else inputs[indices]


class _ExactTorch(TorchFunctionMode):
    """Computes `hardsigmoid` exactly: PyTorch's own gradient in float64 is 1/6 in float32."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call a function of torch."""
        if func is nn.functional.hardsigmoid:
            return (args[0] + 3).clamp(0, 6) / 6
        return func(*args, **(kwargs or {}))
