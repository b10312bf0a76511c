"""The comparison of any PyTorch module with any Keras model: `check`."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from dataclasses import replace
from itertools import chain, islice, product
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from digitlab.parity.backend import import_keras
from digitlab.parity.checks import (
    Loss,
    gradient_differences,
    gradients,
    logits,
    parameter_counts,
    round_trip,
    training_settings,
)
from digitlab.parity.copies import CopiedModel, CopyError, is_channels_first_on_cpu
from digitlab.parity.divergence import first_divergence, record_calls
from digitlab.parity.graph import Call, Graph, Orders
from digitlab.parity.layouts import TOLERANCES, relative_difference
from digitlab.parity.report import Check, Report
from digitlab.parity.sides import (
    Inputs,
    Sides,
    each,
    flat,
    keras_inputs,
    outputs,
    precision,
    read_batch,
    torch_output,
)
from digitlab.parity.weights import Matcher, in_copies, in_module

_TRIALS = 24  # ways to assign weights where several layers read the same
_NAMED = 32  # examples are enough to find a layer, and few enough to hold the outputs of all layers


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
    examples = (read_batch(batch, loss, graph) for batch in batches)
    examples = ((inputs, targets) for inputs, targets in examples if len(flat(inputs)[0]))
    if (first := next(examples, None)) is None:
        nothing = Check("logits", 0, 0.0, TOLERANCES["float32"], "there are no examples")
        return Report((nothing,))
    pair = _Pair(torch_module, graph, first[0], loss)
    worst: dict[str, Check] = {}
    suspect: tuple[Inputs, Tensor] | None = None
    for inputs, targets in chain([first], examples):
        for row in pair.compare(inputs, targets):
            _keep_worst(worst, row)
            suspect = suspect or (None if row.passed else (inputs, targets))
    # Added losses are known by now.
    settings = training_settings(pair.given)
    rows = (*pair.rows, *([settings] if settings else []), *worst.values(), *pair.rounded())
    name = pair.name_divergence(*suspect) if suspect else None
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
    precision(module, graph)
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


def _keep_worst(worst: dict[str, Check], row: Check) -> None:
    """Keep a batch's row if it is the worst of its name so far, and add up the counts."""
    before = worst.setdefault(row.name, replace(row, compared=0))
    # NaN is worse than any number, but compares as false.
    worse = not row.difference <= before.difference and not np.isnan(before.difference)
    compared = before.compared + row.compared
    worst[row.name] = replace(row if worse else before, compared=compared)


class _Pair:
    """A module, a Keras model that gets its weights, and float64 copies of both where possible.

    The layers are matched by the inputs of the first batch.
    """

    doubles: Sides | None = None
    copied: CopiedModel  # Keras's side of the doubles, if there are any
    reason = ""  # why there are none

    def __init__(self, module: nn.Module, graph: Graph, inputs: Inputs, loss: Loss | None) -> None:
        self.module, self.graph = _copy(module), graph  # running may change weights
        self.inputs, self.loss = inputs, loss
        _, in_torch_order = keras_inputs(graph, inputs)
        torch_output(_copy(module), inputs)  # refuses inputs before a weight is overwritten
        self.orders = Orders(graph, in_torch_order)
        matcher = self._match_in_double()
        if not matcher:  # without values, in the order of calls
            read = record_calls(_copy(self.module), inputs)
            matcher = Matcher(self.module, graph, self.orders, read)
        pairs = in_module(matcher.finish(), self.module)
        self.given = self.single = Sides(self.module, graph, pairs)
        counts = parameter_counts(self.given)
        note = f"{counts.note}, matched by {'name' if matcher.named else 'order of calls'}"
        if matcher.ambiguous:
            note += (
                f"; {', '.join(matcher.ambiguous)} could be exchanged with a layer that reads the "
                "same: give the Keras layers PyTorch's names"
            )
        rows = [
            replace(counts, note=note),
            round_trip(Sides(module, graph, in_module(pairs, module))),
        ]
        # Without weights, outputs alone are compared.
        self.rows = [replace(row, informational=not pairs) for row in rows]
        # Only now do the layers have the weights.
        if any(map(is_channels_first_on_cpu, graph.layers)):
            copied = CopiedModel(graph, "float32")
            self.single = Sides(self.module, copied, in_copies(pairs, copied))
        if self.doubles:
            try:
                self.copied.run(keras_inputs(self.copied, self.inputs)[0], watch=True)
            except CopyError as error:
                self.reason, self.doubles = str(error), None

    def _match_in_double(self) -> Matcher | None:
        """Make float64 copies of both sides, and match their layers by what they read."""
        kind = type(self.module).__name__
        try:
            ours = deepcopy(self.module).double().requires_grad_(True)
        except Exception as error:  # a user's module may raise anything when it is copied
            self.reason = f"{kind} cannot be copied ({type(error).__name__}): give a plain module"
            return None
        try:
            theirs = CopiedModel(self.graph)
            if torch_output(_copy(ours), _double(self.inputs)).dtype != torch.float64:
                raise CopyError(
                    f"{kind} returns another dtype than float64: do not convert to a fixed dtype "
                    "in it"
                )
            matcher = self._assign(ours, theirs)
        except CopyError as error:
            self.reason = str(error)
            return None
        self.doubles = Sides(ours, theirs, in_copies(matcher.finish(), theirs))
        self.copied = theirs
        return matcher

    def _assign(self, ours: nn.Module, theirs: CopiedModel) -> Matcher:
        """Match the layers, and give the copies the weights; where it is ambiguous, by trial."""
        read = record_calls(_copy(ours), _double(self.inputs))
        inputs, _ = keras_inputs(theirs, self.inputs)

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
                return best
            matcher = attempt(choices)
            if is_equal() or matcher.agreeing > best.agreeing:
                best, chosen = matcher, choices
        return best if is_equal() else attempt(chosen)

    def compare(self, inputs: Inputs, targets: Tensor) -> list[Check]:
        """Compare outputs, and gradients if there is a loss."""
        if not self.doubles:
            return self._rows(self.single, inputs, targets)
        model, doubled = self.copied, _double(inputs)
        with _ExactTorch() if model.is_exact else nullcontext():
            doubles = self._rows(self.doubles, doubled, targets)
        if not all(row.passed for row in doubles) and not model.is_exact:
            with _exact(model):
                exact = self._rows(self.doubles, doubled, targets)
            if all(row.passed for row in exact):
                model.is_exact, doubles = True, exact
        as_it_is = self._outputs(self.single, inputs)
        if precision(self.module, self.graph) == "float64":  # a row of the same name
            return doubles if model.is_exact else [as_it_is, *doubles[1:]]
        return [as_it_is, *doubles]

    def _rows(self, sides: Sides, inputs: Inputs, targets: Tensor) -> list[Check]:
        rows = [self._outputs(sides, inputs)]
        if self.loss:
            rows += gradients(sides, inputs, targets, self.loss)
        return rows

    def _outputs(self, sides: Sides, inputs: Inputs) -> Check:
        name = "logits" if self.loss == "cross_entropy" else "outputs"
        return logits(sides, inputs, name)

    def rounded(self) -> list[Check]:
        """Report constants that TensorFlow holds in float32, for information."""
        if not self.doubles or not self.copied.is_exact:
            return []
        note = (
            "TensorFlow holds its constants in float32, also in float64; both sides agree with all "
            "their digits. Round the constants in PyTorch, as float(numpy.float32(0.01)), for "
            "equal bits"
        )
        rounded = self.copied.rounded.items() or [("hard_sigmoid", 5e-9)]
        return [
            Check(f"constants of {name}", 1, difference, 0.0, note, informational=True)
            for name, difference in rounded
        ]

    def name_divergence(self, inputs: Inputs, targets: Tensor) -> str | None:
        """Find the first layer that differs, in its output or else in its gradients."""
        sides = self.doubles or self.single
        inputs = _double(inputs) if self.doubles else inputs
        named = [self._name_output(sides, inputs)]
        if self.doubles and self.copied.rounded:
            with _exact(self.copied):
                named.append(self._name_output(sides, inputs))
        if not any(named) and self.loss:
            tolerance = TOLERANCES[precision(sides.module, sides.graph)]
            _, differences, _ = gradient_differences(sides, inputs, targets, self.loss)
            named = [
                it.layer
                for it in sides.pairs
                if not differences.get(it.torch_name, 0.0) <= tolerance
            ]
        order = [call.name for call in self.graph.calls]
        # Constants in float32 are no fault: what differs with and without them counts. Gradients
        # are wrong from the last layer back.
        return max((name for name in named if name), key=order.index, default=None)

    def _name_output(self, sides: Sides, inputs: Inputs) -> str | None:
        """Find the first layer that differs, on the examples whose outputs differ most."""
        module, model, _ = sides
        ours, theirs = outputs(module, model, inputs)
        if ours.shape == theirs.shape:
            by_example = np.abs(ours - theirs).reshape(len(ours), -1).max(1)
            worst = np.argsort(-np.nan_to_num(by_example, nan=np.inf))[:_NAMED].copy()
            inputs = each(lambda tensor: tensor[torch.from_numpy(worst)], inputs)
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


def _double(inputs: Inputs) -> Inputs:
    """Convert floating-point inputs to float64, which a module without parameters would not do."""
    return each(lambda tensor: tensor.double() if tensor.is_floating_point() else tensor, inputs)


def _copy(module: nn.Module) -> nn.Module:
    """Copy a module, or return the module if that is not possible."""
    try:
        return deepcopy(module)
    except Exception:  # a user's module may raise anything when it is copied
        return module


class _ExactTorch(TorchFunctionMode):
    """Computes `hardsigmoid` exactly: PyTorch's own gradient in float64 is 1/6 in float32."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call a function of torch."""
        if func is nn.functional.hardsigmoid:
            return (args[0] + 3).clamp(0, 6) / 6
        return func(*args, **(kwargs or {}))
