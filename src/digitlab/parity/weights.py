"""Matches the weights of a PyTorch module and a Keras model, and copies them.

Layers are matched by name if the names agree. Otherwise they are matched in the order of the calls,
by shape and, where a `Matcher` is shown the values, by what they read.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from digitlab.parity.copies import CopiedModel
from digitlab.parity.graph import Call, Graph, Orders
from digitlab.parity.layouts import Array, Indices, Layout, Order, is_close, torch_layouts
from digitlab.parity.parts import KerasPart, TorchPart, keras_parts, tensor_of, torch_parts


@dataclass(frozen=True)
class Match:
    """A Keras variable, and the PyTorch tensors with the same numbers in another layout."""

    layer: str  # name of the Keras layer
    variable: Any
    torch_names: tuple[str, ...]  # in the module's `state_dict`, or thirds as in `tensor_of`
    tensors: tuple[Tensor, ...]  # parts of a joint tensor are views
    # Where each number of the variable stands in the flattened, concatenated tensors; in each of
    # two tensors of which it is the sum.
    indices: Indices
    is_sum: bool

    @property
    def torch_name(self) -> str:
        """The names of the tensors."""
        return " + ".join(self.torch_names)

    def to_keras(self) -> Array:
        """Convert the tensors to Keras's layout."""
        arrays = [it.detach().cpu().numpy().ravel() for it in self.tensors]
        numbers = np.add(*arrays) if self.is_sum else np.concatenate(arrays)
        return np.asarray(numbers[self.indices])

    def to_torch(self, variable: Any, is_gradient: bool = False) -> tuple[Array, ...]:
        """Convert the variable, or its gradient, to PyTorch's layout.

        Of two tensors that are added up, the first gets the sum and the second zeros; the gradient
        of the sum is the gradient of each.
        """
        array = np.asarray(variable)
        numbers = np.empty(array.size, array.dtype)
        numbers[self.indices] = array
        if self.is_sum:
            parts = [numbers, numbers if is_gradient else np.zeros_like(numbers)]
        else:
            parts = np.split(numbers, np.cumsum([it.numel() for it in self.tensors])[:-1])
        return tuple(part.reshape(it.shape) for part, it in zip(parts, self.tensors, strict=True))


def match(module: nn.Module, graph: Graph) -> list[Match]:
    """Find the PyTorch tensors of each variable of a Keras model, or raise ValueError."""
    return Matcher(module, graph, Orders(graph)).finish()


def in_module(pairs: list[Match], module: nn.Module) -> list[Match]:
    """Return the same matches with the tensors of another module of the same architecture."""
    named: dict[str, Tensor] = dict(module.named_parameters(remove_duplicate=False))
    named |= dict(module.named_buffers(remove_duplicate=False))
    return [
        replace(pair, tensors=tuple(tensor_of(named, path) for path in pair.torch_names))
        for pair in pairs
    ]


def in_copies(pairs: list[Match], copied: CopiedModel) -> list[Match]:
    """Return the same matches with the variables of a model's copies."""
    return [replace(pair, variable=copied.variables[id(pair.variable)]) for pair in pairs]


def copy_weights(module: nn.Module, keras_model: Any) -> None:
    """Copy the weights of any PyTorch module into a Keras model, all or none of them.

    Raises:
        ValueError: One side lacks weights, shapes differ, or the layout of a kind of layer is not
            known; the message names the layer.
    """
    for pair in match(module, Graph(keras_model)):
        pair.variable.assign(pair.to_keras())


def load_keras_weights(model: nn.Module, keras_model: Any) -> None:
    """Copy the weights of a Keras model into a PyTorch module, all or none of them.

    Raises:
        ValueError: As for `copy_weights`.
    """
    load_matched(match(model, Graph(keras_model)))


def load_matched(pairs: list[Match]) -> None:
    """Copy the variables of matches into their tensors."""
    with torch.no_grad():
        for pair in pairs:
            for tensor, array in zip(pair.tensors, pair.to_torch(pair.variable), strict=True):
                tensor.copy_(torch.from_numpy(array))


class Matcher:
    """Matches the layers of a Keras model one by one, in the order of their calls.

    `read` has what the PyTorch modules read, by name in the order of calls, if that is known. Where
    several read the same as a Keras layer, `choices` says which to take, by default the first.

    Attributes:
        named: Whether layers are matched by name.
        options: Where several PyTorch layers read the same, how many.
        ambiguous: The names of the Keras layers there.
        agreeing: How many Keras layers read the same as their PyTorch layer.
    """

    def __init__(
        self,
        module: nn.Module,
        graph: Graph,
        orders: Orders,
        read: Mapping[str, list[Array]] | None = None,
        choices: Sequence[int] = (),
    ) -> None:
        self.module, self.graph, self.orders, self.read = module, graph, orders, read or {}
        self.choices, self.options, self.agreeing = choices, list[int](), 0
        self.ambiguous: list[str] = []
        self.pairs: list[Match] = []
        found = {layer: keras_parts(layer) for layer in graph.layers if hasattr(layer, "weights")}
        layers = [layer for layer, parts in found.items() if parts]
        self.theirs = {id(layer): found[layer] for layer in layers}
        self.free, self.parts_by_name = self._parts(layers)
        self.named = bool(self.parts_by_name)
        # In the order of calls, as far as that is known; what is never called keeps its place.
        called = {name: place for place, name in enumerate(self.read)}
        place = -1
        places = {id(part): (place := called.get(part.module, place)) for part in self.free}
        self.free.sort(key=lambda part: places[id(part)])

    def _parts(self, layers: list[Any]) -> tuple[list[TorchPart], dict[int, list[TorchPart]]]:
        """Find as many PyTorch parts as Keras layers have, and those of each layer by name."""
        wanted = sum(map(len, self.theirs.values()))
        for projections in ("heads", "split", "joint"):
            parts = torch_parts(self.module, projections)
            if len(parts) > wanted:
                parts = _without_tied(parts)
            if len(parts) > wanted:
                parts = [part for part in parts if not part.is_constant]
            named = _by_name(self.module, parts, layers, self.theirs)
            if named or len(parts) == wanted:
                return parts, named
        every = torch_parts(self.module)
        left = ", ".join(part.full_name for part in every)
        right = ", ".join(layer.name for layer in layers)
        raise ValueError(
            f"{len(every)} PyTorch layers have weights ({left}) and {wanted} Keras layers "
            f"({right}): give both the same layers, or the same names"
        )

    def add(self, call: Call, value: Array | None = None) -> list[Match]:
        """Match the weights of a called layer, which reads `value`, unless an earlier call did."""
        new: list[Match] = []
        for i, theirs in enumerate(self.theirs.pop(id(call.operation), [])):
            ours, inputs = self._choose(call, i, theirs, value if i == 0 else None)
            self.free.remove(ours)
            outputs = self.orders.outputs.get(id(call.operation))
            order = outputs.order if outputs else None
            for variable, layout in _pairs(call.name, theirs, ours):
                names = tuple(ours.paths[it] for it in layout.sources)
                tensors = tuple(ours.tensors[it] for it in layout.sources)
                shapes = [tuple(it.shape) for it in tensors]
                indices = layout.indices(shapes, tuple(variable.shape), inputs, order)
                new.append(Match(call.name, variable, names, tensors, indices, layout.is_sum))
        self.pairs += new
        return new

    def finish(self) -> list[Match]:
        """Add the calls that are left, and return all matches."""
        for call in self.graph.calls:
            self.add(call)
        if left := [part for part in self.free if not part.is_constant]:
            raise ValueError(
                f"the Keras model has no weights for {left[0].full_name} of "
                f"{type(self.module).__name__}: give both the same layers"
            )
        return self.pairs

    def _choose(
        self, call: Call, i: int, theirs: KerasPart, value: Array | None
    ) -> tuple[TorchPart, Order | None]:
        """Choose the PyTorch part of a Keras part, and the order of the layer's features."""
        features = self.orders.of_input(call) if i == 0 else None
        orders = features.orders if features else [None]
        known = self.parts_by_name.get(id(call.operation))
        fitting = [known[i]] if known else self._fitting(call, theirs)
        agreeing: dict[str, tuple[TorchPart, Order | None]] = {}  # by module, the first
        for ours, order in product(fitting, orders):
            read = self.read.get(ours.module, [])
            # Constants in float32 differ by 1e-8.
            layouts = [] if value is None else torch_layouts(value, [order])
            if any(is_close(*both, 1e-6) for both in product(read, layouts)):
                agreeing.setdefault(ours.module, (ours, order))
        self.agreeing += bool(agreeing)
        if len(agreeing) > 1:
            place = len(self.options)
            self.options.append(len(agreeing))
            self.ambiguous.append(call.name)
            return list(agreeing.values())[self.choices[place] if self.choices[place:] else 0]
        if agreeing:
            return next(iter(agreeing.values()))
        names = set(theirs.variables)
        own = [it for it in fitting if theirs.kind == "parameters" and set(it.tensors) == names]
        return (own or fitting)[0], orders[0]

    def _fitting(self, call: Call, theirs: KerasPart) -> list[TorchPart]:
        """Return the free PyTorch parts that have the weights of a Keras part."""
        fitting, reasons = [], []
        for ours in self.free:
            try:
                _pairs(call.name, theirs, ours)
            except ValueError as error:
                reasons.append(error)
            else:
                fitting.append(ours)
        if not fitting:
            raise reasons[0]
        return fitting


def _by_name(
    module: nn.Module,
    ours: list[TorchPart],
    layers: list[Any],
    theirs: Mapping[int, list[KerasPart]],
) -> dict[int, list[TorchPart]]:
    """Return the PyTorch parts of each Keras layer by name; nothing if a name is not found."""
    names = [name for name, _ in module.named_modules()] + [part.full_name for part in ours]
    known = {name.rpartition(".")[2]: name for name in names}
    known |= {name.replace(".", "_"): name for name in names} | {name: name for name in names}
    found: dict[int, list[TorchPart]] = {}
    for layer in layers:
        name = known.get(layer.name)
        if not name:
            return {}
        inside = [it for it in ours if f"{it.full_name}.".startswith(f"{name}.")]
        if len(inside) != len(theirs[id(layer)]):
            return {}
        found[id(layer)] = _in_order_of(theirs[id(layer)], inside)
    taken = [part.full_name for parts in found.values() for part in parts]
    return found if len(set(taken)) == len(taken) else {}


def _in_order_of(theirs: list[KerasPart], ours: list[TorchPart]) -> list[TorchPart]:
    """Put parts that are single parameters in the order of the Keras variables of their names."""
    names = [next(iter(it.variables)) if it.kind == "parameters" else "" for it in theirs]
    by_name = {part.name: part for part in ours if part.name}
    if all(name in by_name for name in names):
        return [by_name[name] for name in names]
    return ours


def _without_tied(parts: list[TorchPart]) -> list[TorchPart]:
    """Leave out the parts all of whose tensors an earlier one has."""
    seen: set[int] = set()
    kept = []
    for part in parts:
        tensors = {id(tensor) for tensor in part.tensors.values()}
        if not tensors <= seen:
            kept.append(part)
        seen |= tensors
    return kept


def _pairs(layer: str, theirs: KerasPart, ours: TorchPart) -> list[tuple[Any, Layout]]:
    """Return the layout of each variable of a Keras part, or refuse a part that does not fit."""
    where, left = "/".join(filter(None, (layer, theirs.name))), set(ours.tensors)
    found = []
    for name, variable in theirs.variables.items():
        layouts = theirs.layouts(name, ours.tensors)
        if not layouts:
            raise ValueError(
                f"{where}/{name} is a variable whose layout is not known: use a {theirs.kind} "
                "without it"
            )
        source = layouts[0].source
        if not set(layouts[0].sources) <= set(ours.tensors):
            raise ValueError(
                f"{where}/{name} has no counterpart {ours.full_name}.{source}".replace(" .", " ")
                + ": give both layers the same weights, as use_bias=True and bias=True do"
            )
        shape, actual = tuple(variable.shape), tuple(ours.tensors[source].shape)
        empty = [np.broadcast_to(False, ours.tensors[it].shape) for it in layouts[0].sources]
        layout = next((it for it in layouts if it.arranged(empty, shape) is not None), None)
        if layout is None:
            raise ValueError(
                f"{ours.paths[source]} is {actual} and {where}/{name} is {shape}: give both the "
                "same shape but for the order of axes"
            )
        left -= set(layout.sources)
        found.append((variable, layout))
    if left:
        raise ValueError(
            f"{ours.paths[min(left)]} has no counterpart in the Keras layer {where}: give both "
            "layers the same weights, as bias=True and use_bias=True do"
        )
    return found
