"""A Keras model as a list of the calls of its layers, with nested models expanded at any depth."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from inspect import signature
from typing import Any

from digitlab.parity.backend import import_keras


@dataclass(frozen=True)
class Call:
    """One call of a Keras layer or operation.

    Args:
        operation: The layer or operation, as in the model.
        arguments: The symbolic arguments of the call (Keras's `SymbolicArguments`).
        reads: By the `id` of each symbolic tensor among the arguments, the index of its value.
        makes: The indices of the values that the call makes.
    """

    operation: Any
    arguments: Any
    reads: dict[int, int]
    makes: tuple[int, ...]

    @property
    def name(self) -> str:
        """The name of the layer or operation."""
        return str(self.operation.name)

    @property
    def inputs(self) -> list[int]:
        """The indices of the values that the call reads, in order."""
        return [self.reads[id(tensor)] for tensor in self.arguments.keras_tensors]


class Graph:
    """A functional or sequential Keras model, with the models nested in it expanded.

    Values have indices: those of the inputs come first, each call adds the values that it makes.

    Args:
        model: A `keras.Model` that was made from inputs and outputs, or a built `Sequential`.

    Raises:
        ValueError: The model, or one nested in it, is subclassed, so that its layers have no graph.
    """

    def __init__(self, model: Any) -> None:
        self.name = model.name
        self.symbolic: list[Any] = []  # by index of a value, its symbolic tensor
        self.calls: list[Call] = []
        self.inputs = [self._add(tensor) for tensor in _inputs_of(model)]
        self.outputs = self._expand(model, self.inputs)

    @property
    def layers(self) -> list[Any]:
        """The layers and operations in the order of their first calls, each once."""
        return list({id(call.operation): call.operation for call in self.calls}.values())

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

    def run(
        self,
        inputs: Sequence[Any],
        call: Callable[[Call, tuple[Any, ...], dict[str, Any]], Any] | None = None,
    ) -> list[Any]:
        """Compute all values in evaluation mode, and return them by their indices.

        Args:
            inputs: TensorFlow tensors, in the order of the model's inputs.
            call: Computes one call from its arguments; by default the layer itself does.
        """
        compute = call or (lambda call, args, kwargs: evaluate(call.operation, args, kwargs))
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
