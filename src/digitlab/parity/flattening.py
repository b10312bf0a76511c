"""In which order features stand after a flattening, at every value of a Keras model.

PyTorch flattens an image channels first, Keras channels last. A dense layer behind the flattening
has its weights in that order. So has one whose output is added to such features, or reshaped to an
image.
"""

from dataclasses import dataclass
from itertools import product
from math import prod
from typing import NamedTuple

from digitlab.parity.backend import import_keras
from digitlab.parity.graph import Call, Graph
from digitlab.parity.layouts import Order, Shape

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


@dataclass
class Orders:
    """The order of the features at every value of a graph.

    Args:
        features: By index of a value `(N, F)` what was flattened; None if nothing was.
        is_last: By index of another value, whether its channels are last, unlike PyTorch's.
        outputs: By the `id` of a dense layer, the order of its output features if that is not its
            own, but that of the features to which its output is added.
    """

    features: dict[int, Features | None]
    is_last: dict[int, bool]
    outputs: dict[int, Features]

    def of_input(self, call: Call) -> Features | None:
        """Return what was flattened to make a call's first input."""
        return self.features.get(call.inputs[0]) if call.inputs else None


def feature_orders(graph: Graph, in_torch_order: frozenset[int] | None = None) -> Orders:
    """Find the order of the features at every value.

    Args:
        graph: The model.
        in_torch_order: The indices of inputs whose axes are in PyTorch's order. If that is not
            known, inputs with three axes besides the batch are channels last, but for grey and
            colour images whose first axis alone can be the channels'.
    """
    if in_torch_order is None:
        shapes = {i: tuple(graph.symbolic[i].shape[1:]) for i in graph.inputs}
        in_torch_order = frozenset(i for i, shape in shapes.items() if _is_channels_first(shape))
    outputs: dict[int, Features] = {}
    while True:
        orders = Orders({}, {}, outputs)
        for i in graph.inputs:
            is_image = len(graph.symbolic[i].shape) > 3 and i not in in_torch_order
            orders.is_last[i], orders.features[i] = is_image, None
        found: dict[int, Features] = {}
        for call in graph.calls:
            _add(call, graph, orders, found)
        if found.keys() <= outputs.keys():
            return orders
        outputs = outputs | found


def _is_channels_first(shape: Shape) -> bool:
    return len(shape) == 3 and shape[0] in (1, 3) and shape[0] != shape[2]


def _add(call: Call, graph: Graph, orders: Orders, found: dict[int, Features]) -> None:
    """Add the order of what a call makes; and to `found`, dense layers that must follow another."""
    for made in call.makes:
        shape = tuple(graph.symbolic[made].shape)
        if len(shape) == 2:
            orders.features[made] = _features(call, graph, orders, found)
            continue
        orders.is_last[made] = _is_channels_last(call, graph, orders)
        is_image = len(shape) > 3 and orders.is_last[made] and shape[-1] != 1
        if is_image and call.inputs and len(graph.symbolic[call.inputs[0]].shape) == 2:
            # Features that become an image: the dense layer gives them in the image's order.
            _follow(call.inputs[0], Features(((shape[1:], True),)), graph, found)


def _features(
    call: Call, graph: Graph, orders: Orders, found: dict[int, Features]
) -> Features | None:
    """Return what was flattened to make a call's output `(N, F)`."""
    if id(call.operation) in orders.outputs:
        return orders.outputs[id(call.operation)]
    read = call.inputs[0] if call.inputs else -1
    shape = tuple(graph.symbolic[read].shape) if call.inputs else ()
    if type(call.operation).__name__ in ("Flatten", "Reshape") and len(shape) == 2:
        return orders.features.get(read)
    features = graph.symbolic[call.makes[0]].shape[1]
    # Whatever the operation is, a Lambda too: as many values, and no weights.
    is_flattening = len(call.inputs) == 1 and len(shape) > 2 and None not in shape[1:]
    if is_flattening and prod(shape[1:]) == features and not getattr(call.operation, "weights", []):
        if getattr(call.operation, "data_format", None) == "channels_first":
            return Features((((*shape[2:], shape[1]), True),))  # it moves the channels last
        return Features(((shape[1:], orders.is_last[read]),))
    if type(call.operation).__name__ == "Concatenate" and all(
        len(graph.symbolic[i].shape) == 2 for i in call.inputs
    ):
        whole = [(tuple(graph.symbolic[i].shape[1:]), False) for i in call.inputs]
        parts = [orders.features.get(i) for i in call.inputs]
        blocks = [it.blocks if it else (own,) for it, own in zip(parts, whole, strict=True)]
        return Features(tuple(block for of_part in blocks for block in of_part))
    if not _keeps_order(call, graph):
        return None
    known = [features for i in call.inputs if (features := orders.features.get(i))]
    moved = next((features for features in known if features.order), None)
    if moved:
        for i in call.inputs:
            if not orders.features.get(i) and _is_same(i, call.makes[0], graph):
                _follow(i, moved, graph, found)
    return moved or (known[0] if known else None)


def _is_same(first: int, second: int, graph: Graph) -> bool:
    return tuple(graph.symbolic[first].shape) == tuple(graph.symbolic[second].shape)


def _follow(index: int, features: Features, graph: Graph, found: dict[int, Features]) -> None:
    """Let the dense layer that makes a value give its features in another order."""
    call = next((it for it in graph.calls if index in it.makes), None)
    while call and _keeps_order(call, graph) and call.inputs:
        call = next((it for it in graph.calls if call and call.inputs[0] in it.makes), None)
    if call and isinstance(call.operation, import_keras().layers.Dense):
        found[id(call.operation)] = features


def _keeps_order(call: Call, graph: Graph) -> bool:
    """Return whether a call computes each feature from the one at the same place."""
    kind, weights = type(call.operation).__name__, getattr(call.operation, "weights", [])
    same = any(_is_same(i, call.makes[0], graph) for i in call.inputs)
    moves = kind in ("Permute", "Transpose", "Flip", "Roll")
    return same and not moves and (not weights or "Normalization" in kind or kind == "PReLU")


def _is_channels_last(call: Call, graph: Graph, orders: Orders) -> bool:
    operation, kind = call.operation, type(call.operation).__name__
    before = orders.is_last.get(call.inputs[0], True) if call.inputs else False
    if kind == "Permute":
        return _moved(before, (0, *operation.dims))
    if kind == "Transpose":
        rank = len(graph.symbolic[call.makes[0]].shape)
        return _moved(before, tuple(operation.axes or reversed(range(rank))))
    if data_format := getattr(operation, "data_format", None):
        return bool(data_format == "channels_last")
    if "Conv" in kind or "Pool" in kind:
        return True
    if kind == "Reshape" and call.inputs and len(graph.symbolic[call.inputs[0]].shape) == 2:
        readers = [it for it in graph.calls if call.makes[0] in it.inputs]
        return not any(_reads_channels_first(it) for it in readers)
    if _keeps_order(call, graph) or not getattr(operation, "weights", []):
        return before
    return False  # PyTorch's dense and recurrent layers read the last axis, too


def _reads_channels_first(call: Call) -> bool:
    operation = call.operation
    if type(operation).__name__ == "Permute":
        return _moved(False, (0, *operation.dims))
    return getattr(operation, "data_format", None) == "channels_first"


def _moved(is_last: bool, axes: Shape) -> bool:
    """Return whether channels are last behind a permutation."""
    place = axes.index(len(axes) - 1 if is_last else 1)
    return place == len(axes) - 1 or (place != 1 and is_last)
