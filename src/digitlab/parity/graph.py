"""A Keras model as a list of the calls of its layers, and the order of features at each value.

PyTorch flattens an image channels first, Keras channels last. A dense layer behind the flattening
has its weights in that order. So has one whose output is added to such features, or reshaped to an
image.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from inspect import signature
from itertools import product
from math import prod
from typing import Any, NamedTuple

from digitlab.parity.backend import Policy, import_keras
from digitlab.parity.layouts import Order, Shape


@dataclass(frozen=True)
class Call:
    """One call of a Keras layer or operation."""

    operation: Any
    arguments: Any  # Keras's `SymbolicArguments`
    reads: dict[int, int]  # by the `id` of each symbolic tensor among them, the index of its value
    makes: tuple[int, ...]  # the indices of the values that the call makes

    @property
    def name(self) -> str:
        """The name of the layer or operation."""
        return str(self.operation.name)

    @property
    def inputs(self) -> list[int]:
        """The indices of the values that the call reads, in order."""
        return [self.reads[id(tensor)] for tensor in self.arguments.keras_tensors]


class Graph:
    """A functional or built sequential Keras model, with the models nested in it expanded.

    Values have indices: those of the inputs come first, each call adds the values that it makes.
    A subclassed model has no graph: ValueError.
    """

    policy: Policy | None = None  # what its inputs are converted to; else what it declares

    def __init__(self, model: Any) -> None:
        self.model, self.name = model, model.name
        self.symbolic: list[Any] = []  # by index of a value, its symbolic tensor
        self.calls: list[Call] = []
        self.inputs = [self._add(tensor) for tensor in _inputs_of(model)]
        self.outputs = self._expand(model, self.inputs)

    @property
    def layers(self) -> list[Any]:
        """The layers and operations in the order of their first calls, each once."""
        return list({id(call.operation): call.operation for call in self.calls}.values())

    @property
    def dtypes(self) -> set[str]:
        """The dtypes that its layers compute in."""
        return {layer.compute_dtype for layer in self.layers if hasattr(layer, "weights")}

    def shape(self, index: int) -> tuple[int, ...]:
        """Return the shape of a value."""
        return tuple(self.symbolic[index].shape)

    def _add(self, tensor: Any) -> int:
        self.symbolic.append(tensor)
        return len(self.symbolic) - 1

    def _expand(self, model: Any, inputs: Sequence[int]) -> list[int]:
        """Add the calls of a model, and return the indices of its outputs."""
        read = _inputs_of(model)
        index = {id(tensor): i for tensor, i in zip(read, inputs, strict=True)}
        # A new model, since a Sequential has no nodes of its own.
        by_depth = import_keras().Model(read, model.outputs)._nodes_by_depth
        for depth in sorted(by_depth, reverse=True):  # a call is deeper than those that read it
            for node in by_depth[depth]:
                if node.is_input:
                    continue
                reads = {id(tensor): index[id(tensor)] for tensor in node.input_tensors}
                if isinstance(node.operation, import_keras().Model):
                    given = [index[id(tensor)] for tensor in node.input_tensors]
                    makes = self._expand(node.operation, given)
                else:
                    makes = [self._add(tensor) for tensor in node.outputs]
                    call = Call(node.operation, node.arguments, reads, tuple(makes))
                    self.calls.append(call)
                index |= {id(tensor): i for tensor, i in zip(node.outputs, makes, strict=True)}
        return [index[id(tensor)] for tensor in model.outputs]

    def output(self, inputs: Sequence[Any]) -> Any:
        """Call the model as it is, in evaluation mode."""
        given: Any = inputs if len(inputs) > 1 else inputs[0]
        if isinstance(structure := getattr(self.model, "_inputs_struct", None), dict):
            given = dict(zip(structure, inputs, strict=True))
        try:
            return self.model(given, training=False)
        except Exception as error:  # a user's layer may raise anything
            raise ValueError(f"{self.name} cannot be computed: {first_line(error)}") from error

    def run(self, inputs: Sequence[Any]) -> list[Any]:
        """Compute all values in evaluation mode, by their indices."""
        return self._run(inputs, lambda call, *arguments: evaluate(call.operation, *arguments))

    def _run(self, inputs: Sequence[Any], compute: Callable[[Call, Any, Any], Any]) -> list[Any]:
        values: list[Any] = [None] * len(self.symbolic)
        for i, value in zip(self.inputs, inputs, strict=True):
            values[i] = value
        for step in self.calls:
            known = {key: values[i] for key, i in step.reads.items()}
            made = compute(step, *step.arguments.fill_in(known))
            for i, value in zip(step.makes, import_keras().tree.flatten(made), strict=True):
                values[i] = value
        return values


def _inputs_of(model: Any) -> list[Any]:
    inputs = getattr(model, "inputs", None)
    if not inputs and isinstance(model, import_keras().Sequential):
        raise ValueError(f"{model.name} has no inputs of known shape: give it a keras.Input")
    if not inputs or not getattr(model, "outputs", None):
        raise ValueError(
            f"{model.name} is a {type(model).__name__} without a graph of layers, as a subclassed "
            "keras.Model is: build it as keras.Model(inputs, outputs) or keras.Sequential with a "
            "keras.Input"
        )
    return list(inputs)


def keras_layers(model: Any) -> list[Any]:
    """Return the layers of a Keras model and of the models nested in it, in the order of calls."""
    return [layer for layer in Graph(model).layers if hasattr(layer, "weights")]


def evaluate(operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Call a layer or an operation in evaluation mode."""
    is_layer = isinstance(operation, import_keras().layers.Layer)
    if is_layer and "training" in signature(operation.call).parameters:
        kwargs = kwargs | {"training": False}
    return operation(*args, **kwargs)


def first_line(error: Exception) -> str:
    """Return an error's first line, with the Keras layer and without terminal colours."""
    said = error.args[0] if isinstance(error, KeyError) and error.args else error  # not its repr
    text = re.sub(r"\x1b\[[\d;]*m|\{\{.*?\}\} ?", "", str(said)).strip()
    heading = re.match(r"Exception encountered when calling (\S+?)\.call\(\)\.\s*", text)
    where = f"{heading[1]}: " if heading else ""
    line = next(iter(text[heading.end() if heading else 0 :].splitlines()), "")
    kind = "" if line and said is error else f"{type(error).__name__}: "
    return "".join(filter(str.isprintable, f"{where}{kind}{line}"))[:160]


_MOST_BLOCKS = 3  # 8 orders to try


class Features(NamedTuple):
    """Features that were flattened, in blocks: the shape of each, and if its channels are last."""

    blocks: tuple[tuple[Shape, bool], ...]

    @property
    def order(self) -> Order | None:
        """The order if it is not PyTorch's, else None."""
        order = tuple(shape if is_last else (prod(shape),) for shape, is_last in self.blocks)
        return order if any(len(shape) > 1 for shape in order) else None

    @property
    def orders(self) -> list[Order | None]:
        """The order, and then those in which blocks are in PyTorch's order, or are not."""
        blocks = self.blocks[:_MOST_BLOCKS]
        switched = (
            Features(
                (
                    *((s, last != it) for (s, last), it in zip(blocks, bits, strict=True)),
                    *self.blocks[_MOST_BLOCKS:],
                )
            )
            for bits in product((False, True), repeat=len(blocks))
        )
        return list(dict.fromkeys(it.order for it in switched))


class Orders:
    """The order of the features at every value of a graph.

    `in_torch_order` has the indices of inputs whose axes are in PyTorch's order; by default, images
    whose first axis alone can be the channels'.

    Attributes:
        features: By index of a value `(N, F)` what was flattened; None if nothing was.
        is_last: By index of another value, whether its channels are last, unlike PyTorch's.
        outputs: By the `id` of a dense layer, the order of its output features if that is not its
            own, but that of the features to which its output is added.
    """

    def __init__(self, graph: Graph, in_torch_order: frozenset[int] | None = None) -> None:
        if in_torch_order is None:
            inputs = {i: graph.shape(i)[1:] for i in graph.inputs}
            in_torch_order = frozenset(i for i, it in inputs.items() if _is_channels_first(it))
        self._graph = graph
        self.outputs: dict[int, Features] = {}
        known = -1
        while known < len(self.outputs):  # a dense layer may have to follow a later one
            known = len(self.outputs)
            self.features: dict[int, Features | None] = dict.fromkeys(graph.inputs)
            self.is_last = {
                i: len(graph.shape(i)) > 3 and i not in in_torch_order for i in graph.inputs
            }
            for call in graph.calls:
                for made in call.makes:
                    self._add(call, made)

    def of_input(self, call: Call) -> Features | None:
        """Return what was flattened to make a call's first input."""
        return self.features.get(call.inputs[0])

    def _add(self, call: Call, made: int) -> None:
        shape = self._graph.shape(made)
        if len(shape) == 2:
            self.features[made] = self._made_features(call)
            return
        self.is_last[made] = self._makes_channels_last(call)
        is_image = len(shape) > 3 and self.is_last[made] and shape[-1] != 1
        if is_image and len(self._graph.shape(call.inputs[0])) == 2:
            # Features that become an image: the dense layer gives them in the image's order.
            self._follow(call.inputs[0], Features(((shape[1:], True),)))

    def _made_features(self, call: Call) -> Features | None:
        if id(call.operation) in self.outputs:
            return self.outputs[id(call.operation)]
        kind, shapes = type(call.operation).__name__, list(map(self._graph.shape, call.inputs))
        if kind in ("Flatten", "Reshape") and len(shapes[0]) == 2:
            return self.of_input(call)
        if flattened := self._flattened(call):
            return flattened
        found = [self.features.get(i) for i in call.inputs]
        if kind == "Concatenate" and all(len(shape) == 2 for shape in shapes):
            whole = [Features(((shape[1:], False),)) for shape in shapes]
            parts = [it or own for it, own in zip(found, whole, strict=True)]
            return Features(tuple(block for part in parts for block in part.blocks))
        if not self._keeps_order(call):
            return None
        known = [features for features in found if features]
        moved = next((features for features in known if features.order), None)
        if moved:
            for i, features in zip(call.inputs, found, strict=True):
                if not features and self._graph.shape(i) == self._graph.shape(call.makes[0]):
                    self._follow(i, moved)
        return moved or (known[0] if known else None)

    def _flattened(self, call: Call) -> Features | None:
        """Return what a call flattens, whatever the operation is, a Lambda too."""
        shape, made = self._graph.shape(call.inputs[0])[1:], self._graph.shape(call.makes[0])
        is_flattening = len(call.inputs) == 1 and len(shape) > 1 and None not in shape
        # As many values, and no weights.
        if not is_flattening or prod(shape) != made[1] or getattr(call.operation, "weights", []):
            return None
        if getattr(call.operation, "data_format", None) == "channels_first":
            return Features((((*shape[1:], shape[0]), True),))  # it moves the channels last
        return Features(((shape, self.is_last[call.inputs[0]]),))

    def _follow(self, index: int, features: Features) -> None:
        """Let the dense layer that makes a value give its features in another order."""
        makers = {made: call for call in self._graph.calls for made in call.makes}
        call = makers.get(index)
        while call and self._keeps_order(call):
            call = makers.get(call.inputs[0])
        if call and isinstance(call.operation, import_keras().layers.Dense):
            self.outputs.setdefault(id(call.operation), features)

    def _keeps_order(self, call: Call) -> bool:
        # Whether each feature is computed from the one at the same place.
        kind, weights = type(call.operation).__name__, getattr(call.operation, "weights", [])
        same = self._graph.shape(call.makes[0]) in map(self._graph.shape, call.inputs)
        moves = kind in ("Permute", "Transpose", "Flip", "Roll")
        return same and not moves and (not weights or "Normalization" in kind or kind == "PReLU")

    def _makes_channels_last(self, call: Call) -> bool:
        operation, kind = call.operation, type(call.operation).__name__
        before = self.is_last.get(call.inputs[0], True)
        if kind == "Permute":
            return _moved(before, (0, *operation.dims))
        if kind == "Transpose":
            rank = len(self._graph.shape(call.makes[0]))
            return _moved(before, tuple(operation.axes or reversed(range(rank))))
        if data_format := getattr(operation, "data_format", None):
            return bool(data_format == "channels_last")
        if "Conv" in kind or "Pool" in kind:
            return True
        if kind == "Reshape" and len(self._graph.shape(call.inputs[0])) == 2:
            readers = [it for it in self._graph.calls if call.makes[0] in it.inputs]
            return not any(_reads_channels_first(it) for it in readers)
        # PyTorch's dense and recurrent layers read the last axis, too.
        return before and (self._keeps_order(call) or not getattr(operation, "weights", []))


def _is_channels_first(shape: Shape) -> bool:
    return len(shape) == 3 and shape[0] in (1, 3) and shape[0] != shape[2]


def _reads_channels_first(call: Call) -> bool:
    if type(call.operation).__name__ == "Permute":
        return _moved(False, (0, *call.operation.dims))
    return getattr(call.operation, "data_format", None) == "channels_first"


def _moved(is_last: bool, axes: Shape) -> bool:  # whether channels are last behind a permutation
    place = axes.index(len(axes) - 1 if is_last else 1)
    return place == len(axes) - 1 or (place != 1 and is_last)
