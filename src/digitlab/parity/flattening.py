"""In which order features stand after a flattening, at every value of a Keras model.

PyTorch flattens an image channels first, Keras channels last. A dense layer behind the flattening
has its weights in that order. So has one whose output is added to such features, or reshaped to an
image.
"""

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


class Orders:
    """The order of the features at every value of a graph.

    Args:
        graph: The model.
        in_torch_order: The indices of inputs whose axes are in PyTorch's order. By default, images
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
        """Return what was flattened to make a call's output `(N, F)`."""
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
        """Return whether a call computes each feature from the one at the same place."""
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


def _moved(is_last: bool, axes: Shape) -> bool:
    """Return whether channels are last behind a permutation."""
    place = axes.index(len(axes) - 1 if is_last else 1)
    return place == len(axes) - 1 or (place != 1 and is_last)
