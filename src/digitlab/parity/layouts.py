"""How each kind of layer stores its weights in PyTorch and in Keras.

A layer has one or more parts: most have one, an attention has four projections, a recurrent layer a
part for each layer and direction. `torch_parts` and `keras_parts` find them, and `LAYOUTS` says how
the variables of each kind of Keras part are made of the tensors of a PyTorch part.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from digitlab.parity.backend import import_keras

Array = NDArray[Any]
Shape = tuple[int, ...]
Order = tuple[Shape, ...]
"""The order of features that are not in PyTorch's: blocks one after the other, each a flattening of
a shape with the channels last. A block with one axis is in PyTorch's order."""


@dataclass(frozen=True)
class Layout:
    """How a Keras variable is made of a PyTorch tensor, or of two.

    Args:
        source: Name of the tensor in the PyTorch part.
        axes: For each axis of the variable, the axis of the tensor, merged axes counted singly.
        merged: The groups of axes that are one axis of the tensor; an empty group is an axis of
            size 1. By default each axis is its own.
        gates: Block i along the variable's last axis is block `gates[i]` along the tensor's first.
        second: Name of a second tensor of the same shape.
        join: Whether the two are stacked on a new first axis, or added up.
        per_input: Whether the variable's first axis is the layer's input features.
        per_output: Whether its last axis is the layer's output features.
    """

    source: str
    axes: Shape
    merged: tuple[Shape, ...] | None = None
    gates: Shape = ()
    second: str = ""
    join: Literal["", "stack", "add"] = ""
    per_input: bool = False
    per_output: bool = False

    @property
    def sources(self) -> tuple[str, ...]:
        """The names of the tensors."""
        return (self.source, self.second) if self.second else (self.source,)

    def torch_shape(self, shape: Shape) -> Shape | None:
        """Return the shape of each tensor for a variable's shape; None if that does not fit."""
        shape = shape[self.join == "stack" :]
        if len(shape) != len(self.axes):
            return None
        single = self._single(shape)
        if self.merged is None:
            return single
        groups = self.merged
        return tuple(prod(single[axis] for axis in group) for group in groups)

    def _single(self, shape: Shape) -> Shape:
        return tuple(shape[axis] for axis in np.argsort(self.axes))

    def to_keras(
        self,
        *tensors: Array,
        shape: Shape = (),
        inputs: Order | None = None,
        outputs: Order | None = None,
    ) -> Array:
        """Convert PyTorch tensors, one for each of `sources`, to the Keras variable.

        Args:
            *tensors: The tensors, or their gradients.
            shape: The variable's shape, needed where axes are merged.
            inputs: The order of the layer's input features, if it is not PyTorch's.
            outputs: The order of its output features.

        Examples:
            >>> dense = Layout("weight", (1, 0), per_input=True)
            >>> dense.to_keras(np.array([[1, 2, 3, 4]]), inputs=((1, 2, 2),)).tolist()
            [[1], [3], [2], [4]]
        """
        arrays = []
        for tensor in tensors:
            if self.gates:
                blocks = np.split(tensor, len(self.gates))
                tensor = np.concatenate([blocks[i] for i in self.gates])
            if self.merged is not None:
                tensor = tensor.reshape(self._single(shape[self.join == "stack" :]))
            arrays.append(tensor.transpose(self.axes))
        array = (
            np.stack(arrays)
            if self.join == "stack"
            else np.add(*arrays)
            if self.join
            else arrays[0]
        )
        if self.per_input and inputs:
            array = array[channels_last(inputs)]
        if self.per_output and outputs:
            array = array[..., channels_last(outputs)]
        return np.asarray(array, order="C")  # `ascontiguousarray` makes a scalar an array

    def to_torch(
        self,
        variable: Array,
        inputs: Order | None = None,
        outputs: Order | None = None,
        is_gradient: bool = False,
    ) -> tuple[Array, ...]:
        """Convert a Keras variable to PyTorch tensors: the inverse of `to_keras`.

        Of two tensors that are added up, the first gets the sum and the second zeros; the gradient
        of the sum is the gradient of each.
        """
        if self.per_input and inputs:
            variable = variable[np.argsort(channels_last(inputs))]
        if self.per_output and outputs:
            variable = variable[..., np.argsort(channels_last(outputs))]
        arrays = []
        for part in variable if self.join == "stack" else [variable]:
            array = part.transpose(np.argsort(self.axes))
            if self.merged is not None:
                array = array.reshape(
                    [prod(array.shape[i] for i in group) for group in self.merged]
                )
            if self.gates:
                blocks = np.split(array, len(self.gates))
                array = np.concatenate([blocks[i] for i in np.argsort(self.gates)])
            arrays.append(np.asarray(array, order="C"))
        if self.join == "add":
            arrays.append(arrays[0] if is_gradient else np.zeros_like(arrays[0]))
        return tuple(arrays)


def channels_last(order: Order) -> NDArray[np.intp]:
    """Return, for each feature in an order, its index in PyTorch's order.

    Examples:
        >>> channels_last(((2, 2), (1,))).tolist()
        [0, 2, 1, 3, 4]
    """
    blocks, start = [], 0
    for shape in order:
        *space, channels = shape
        indices = np.arange(start, start + prod(shape)).reshape(channels, *space)
        blocks.append(np.moveaxis(indices, 0, -1).ravel())
        start += prod(shape)
    return np.concatenate(blocks)


def _convolution(dimensions: int) -> dict[str, tuple[Layout, ...]]:
    axes = (*range(2, dimensions + 2), 1, 0)
    return {"kernel": (Layout("weight", axes),), "bias": _BIAS}


def _depthwise(dimensions: int) -> dict[str, tuple[Layout, ...]]:
    # PyTorch's grouped convolution has one axis for channel and multiplier, and an axis of size 1.
    space = range(2, dimensions + 2)
    merged = ((0, 1), (), *((axis,) for axis in space))
    kernel = (Layout("weight", (*space, 0, 1), merged),)
    return {"kernel": kernel, "depthwise_kernel": kernel, "bias": _BIAS}


def _recurrent(gates: Shape, stacked: bool = False) -> dict[str, tuple[Layout, ...]]:
    biases = Layout(
        "bias_ih", (0,), gates=gates, second="bias_hh", join="stack" if stacked else "add"
    )
    return {
        "kernel": (Layout("weight_ih", (1, 0), gates=gates, per_input=True),),
        "recurrent_kernel": (Layout("weight_hh", (1, 0), gates=gates),),
        "bias": (biases,),
    }


def _normalization(**others: str) -> dict[str, tuple[Layout, ...]]:
    names = {"gamma": "weight", "beta": "bias", **others}
    # Over several axes: channels last of an image, or as they are of a sequence.
    several = [axes for n in (2, 3, 4) for axes in ((*range(1, n), 0), tuple(range(n)))]
    return {
        variable: (Layout(tensor, (0,), per_input=True), *(Layout(tensor, it) for it in several))
        for variable, tensor in names.items()
    }


_BIAS = (Layout("bias", (0,), per_output=True),)

LAYOUTS: dict[str, dict[str, tuple[Layout, ...]]] = {
    "Dense": {
        "kernel": (Layout("weight", (1, 0), per_input=True, per_output=True),),
        "bias": _BIAS,
    },
    **{f"Conv{n}D": _convolution(n) for n in (1, 2, 3)},
    **{f"Conv{n}DTranspose": _convolution(n) for n in (1, 2, 3)},
    **{f"DepthwiseConv{n}D": _depthwise(n) for n in (1, 2)},
    "Embedding": {"embeddings": (Layout("weight", (0, 1)),)},
    "BatchNormalization": _normalization(moving_mean="running_mean", moving_variance="running_var"),
    "GroupNormalization": _normalization(),
    "LayerNormalization": _normalization(),
    "RMSNormalization": _normalization(scale="weight"),
    # A slope for each channel, or one for all, beside axes of size 1.
    "PReLU": {
        "alpha": tuple(
            Layout("weight", tuple(range(n)), (tuple(range(n)),), per_input=n == 1)
            for n in (1, 2, 3)
        )
    },
    "LSTMCell": _recurrent((0, 1, 2, 3)),
    "GRUCell": _recurrent((1, 0, 2), stacked=True),
    "SimpleRNNCell": _recurrent((0,)),
    # Of an attention: the projections into heads, and the one out of them.
    "projection": {
        "kernel": (Layout("weight", (2, 0, 1), ((0, 1), (2,))),),
        "bias": (Layout("bias", (0, 1), ((0, 1),)),),
    },
    "output projection": {"kernel": (Layout("weight", (1, 2, 0), ((0,), (1, 2))),), "bias": _BIAS},
}
"""By kind of a Keras part and name of its variable, the possible layouts."""


_LAYER_TENSORS = {"weight", "bias", "running_mean", "running_var"} | {
    f"{kind}_{gate}" for kind in ("weight", "bias") for gate in ("ih", "hh")
}
"""Names of tensors in PyTorch's layers; parameters of other names are matched singly."""


@dataclass(frozen=True)
class KerasPart:
    """Variables of a Keras layer that belong together.

    Args:
        name: Name within the layer; empty if the layer has no other part.
        kind: The key of its layouts; "parameters" are a layer's own, stored as in PyTorch.
        variables: The variables by their names.
    """

    name: str
    kind: str
    variables: dict[str, Any]

    def layouts(self, variable: str, tensors: Mapping[str, Tensor]) -> tuple[Layout, ...]:
        """Return the possible layouts of a variable, none if it is not known.

        Args:
            variable: The variable's name.
            tensors: Those of a PyTorch part.
        """
        if self.kind != "parameters":
            return LAYOUTS[self.kind].get(variable, ())
        if len(tensors) != 1:
            return ()
        ((source, tensor),) = tensors.items()
        shape = tuple(self.variables[variable].shape)
        as_they_are = tuple(range(len(shape)))
        merged = _merged(shape, tuple(tensor.shape))
        moved = [(*as_they_are[1:], 0)] if len(shape) > 2 else []
        return (
            Layout(source, as_they_are, merged),
            *(Layout(source, axes) for axes in moved),
        )


def _merged(shape: Shape, target: Shape) -> tuple[Shape, ...] | None:
    """Return the groups of axes that make one shape of another by leaving out axes of size 1."""
    left, groups = list(range(len(shape))), []
    for size in target:
        group: list[int] = []
        while left and (size != 1 and (not group or shape[group[-1]] == 1)):
            group.append(left.pop(0))
        groups.append(tuple(group))
    if groups:
        groups[-1] = (*groups[-1], *left)
    return tuple(groups)


@dataclass(frozen=True)
class TorchPart:
    """Tensors of a PyTorch module that belong together.

    Args:
        module: Name of the module, as in `named_modules`.
        name: Name of the part within the module; empty if it has no other.
        tensors: Parameters and buffers, or views of them, by their names in the part.
        paths: The names of the tensors in the root's `state_dict`, as `tensor_of` reads them.
    """

    module: str
    name: str
    tensors: dict[str, Tensor]
    paths: dict[str, str]

    @property
    def full_name(self) -> str:
        """The module's name and the part's."""
        return ".".join(filter(None, (self.module, self.name)))

    @property
    def is_constant(self) -> bool:
        """Whether it is a buffer that is no layer's, such as a mean to subtract."""
        is_norm = any(name.startswith("running_") for name in self.tensors)
        return not is_norm and not any(
            isinstance(it, nn.Parameter) or it._is_view() for it in self.tensors.values()
        )


def tensor_of(named: Mapping[str, Any], path: str) -> Any:
    """Return the tensor of a path; of one such as `in_proj_weight[1/3]`, the second third.

    Examples:
        >>> tensor_of({"weight": np.arange(6)}, "weight[1/3]").tolist()
        [2, 3]
    """
    name, _, third = path.partition("[")
    tensor = named.get(name)
    if tensor is None or not third:
        return tensor
    size = len(tensor) // 3
    return tensor[int(third[0]) * size :][:size]


Projections = Literal["heads", "split", "joint"]
"""How to see projections that are stored as one: an attention's in three; of `nn.Linear`, too, if
the output is three times as wide as the input; or all of them as one."""


def torch_parts(module: nn.Module, projections: Projections = "heads") -> list[TorchPart]:
    """Find the parts of a PyTorch module that have weights, in the order of registration."""
    found: list[TorchPart] = []
    for name, layer in module.named_modules():
        tensors: dict[str, Any] = dict(layer.named_parameters(recurse=False))
        tensors |= dict(layer.named_buffers(recurse=False))
        tensors.pop("num_batches_tracked", None)  # Keras has no such counter
        if isinstance(layer, nn.RNNBase):
            found += _recurrent_parts(name, layer, tensors)
        elif isinstance(layer, nn.MultiheadAttention):
            found += _attention_parts(name, tensors, projections)
        elif isinstance(layer, nn.Linear) and layer.out_features == 3 * layer.in_features:
            found += (
                _thirds(name, tensors, "")
                if projections == "split"
                else _plain_parts(name, tensors)
            )
        else:
            found += _plain_parts(name, tensors)
    return found


def _plain_parts(name: str, tensors: dict[str, Any]) -> Iterator[TorchPart]:
    """Yield the tensors of a layer as one part, and each other parameter as a part of its own."""
    paths = {key: f"{name}.{key}".lstrip(".") for key in tensors}
    of_layer = {key: tensors[key] for key in tensors if key in _LAYER_TENSORS}
    if of_layer:
        yield TorchPart(name, "", of_layer, {key: paths[key] for key in of_layer})
    for key in (it for it in tensors if it not in of_layer):
        yield TorchPart(name, key, {key: tensors[key]}, {key: paths[key]})


def _recurrent_parts(name: str, layer: nn.RNNBase, tensors: dict[str, Any]) -> Iterator[TorchPart]:
    directions = ("", "_reverse") if layer.bidirectional else ("",)
    for suffix in (f"_l{i}{it}" for i in range(layer.num_layers) for it in directions):
        of_part = {key.removesuffix(suffix): key for key in tensors if key.endswith(suffix)}
        yield TorchPart(
            name,
            suffix.lstrip("_") if len(tensors) > 4 else "",
            {ours: tensors[key] for ours, key in of_part.items()},
            {ours: f"{name}.{key}".lstrip(".") for ours, key in of_part.items()},
        )


def _attention_parts(
    name: str, tensors: dict[str, Any], projections: Projections
) -> Iterator[TorchPart]:
    """Yield the three projections into heads, which are usually stored as one."""
    if "in_proj_weight" in tensors and projections == "joint":
        paths = {key: f"{name}.in_proj_{key}".lstrip(".") for key in ("weight", "bias")}
        joint = {key: it for key in paths if (it := tensors.get(f"in_proj_{key}")) is not None}
        yield TorchPart(name, "in_proj", joint, {key: paths[key] for key in joint})
    elif "in_proj_weight" in tensors:
        yield from _thirds(name, tensors, "in_proj_")
    else:  # keys and values of other widths than the queries
        biases = list(_thirds(name, {"in_proj_bias": tensors["in_proj_bias"]}, "in_proj_"))
        for part in biases:
            key = f"{part.name[0]}_proj_weight"
            weight = {"weight": f"{name}.{key}".lstrip(".")}
            yield TorchPart(
                name, part.name, {"weight": tensors[key], **part.tensors}, weight | part.paths
            )


def _thirds(name: str, tensors: dict[str, Any], prefix: str) -> Iterator[TorchPart]:
    """Yield the projections of queries, keys and values that are stored as one."""
    kinds = [key for key in ("weight", "bias") if tensors.get(prefix + key) is not None]
    for i, part in enumerate(("query", "key", "value")):
        keys = {kind: f"{prefix}{kind}[{i}/3]" for kind in kinds}
        yield TorchPart(
            name,
            part,
            {kind: tensor_of(tensors, key) for kind, key in keys.items()},
            {kind: f"{name}.{key}".lstrip(".") for kind, key in keys.items()},
        )


def keras_parts(layer: Any, name: str = "") -> list[KerasPart]:
    """Find the parts of a Keras layer that have weights, in PyTorch's order.

    Args:
        layer: The layer.
        name: The name to report, if the layer is within another.

    Raises:
        ValueError: A part's layout is not known, or no PyTorch layer computes the same.
    """
    if not layer.weights:
        return []
    kind = next((it.__name__ for it in type(layer).__mro__ if it.__name__ in LAYOUTS), None)
    if kind == "GRUCell" and not layer.reset_after:
        raise ValueError(
            f"{name or layer.name} has reset_after=False, which computes another function than "
            "torch.nn.GRU: use reset_after=True"
        )
    if kind:
        return [KerasPart("", kind, {it.name: it for it in layer.weights})]
    if isinstance(layer, import_keras().layers.MultiHeadAttention):
        return _projections(layer)
    if "SeparableConv" in type(layer).__name__:
        return _separable(layer)
    return [
        KerasPart(".".join(filter(None, (within, part.name))), part.kind, part.variables)
        for within, sublayer in _sublayers(layer, name or layer.name)
        for part in keras_parts(sublayer, name or layer.name)
    ] or _of_own_layer(layer)


def _sublayers(layer: Any, name: str) -> list[tuple[str, Any]]:
    """Return the layers that a layer of Keras wraps, and their names; refuse an unknown one."""
    layers = import_keras().layers
    if isinstance(layer, layers.Bidirectional):
        return [("forward", layer.forward_layer), ("backward", layer.backward_layer)]
    if isinstance(layer, layers.TimeDistributed):
        return [("", layer.layer)]
    if isinstance(layer, layers.RNN):
        return [("", layer.cell)]
    if isinstance(layer, layers.StackedRNNCells):
        return [(f"cell{i}", cell) for i, cell in enumerate(layer.cells)]
    if isinstance(layer, layers.Pipeline):
        return [(it.name, it) for it in layer.layers]
    if type(layer).__module__.startswith("keras."):
        raise ValueError(
            f"{name} is a {type(layer).__name__}, whose layout of weights is not known: use "
            f"layers of {', '.join(it for it in LAYOUTS if it[0].isupper())}"
        )
    return []


def _projections(layer: Any) -> list[KerasPart]:
    names = ("query", "key", "value", "attention_output")
    parts = [next(it for it in layer._flatten_layers() if it.name == name) for name in names]
    return [
        KerasPart(
            name,
            "output projection" if name == names[-1] else "projection",
            {variable.name: variable for variable in part.weights},
        )
        for name, part in zip(names, parts, strict=True)
    ]


def _separable(layer: Any) -> list[KerasPart]:
    variables, dimensions = {it.name: it for it in layer.weights}, type(layer).__name__[-2:]
    depthwise = {"kernel": variables.pop("depthwise_kernel")}
    variables["kernel"] = variables.pop("pointwise_kernel")
    return [
        KerasPart("depthwise", f"DepthwiseConv{dimensions}", depthwise),
        KerasPart("pointwise", f"Conv{dimensions}", variables),
    ]


def _of_own_layer(layer: Any) -> list[KerasPart]:
    """Find the parts of a user's layer: its own variables, then those of the layers in it."""
    sublayers = [it for it in layer._layers if it.weights]
    inside = {id(variable) for sublayer in sublayers for variable in sublayer.weights}
    own = {it.name: it for it in layer.weights if id(it) not in inside}
    parts = [KerasPart("", "parameters", {name: variable}) for name, variable in own.items()]
    for sublayer in sublayers:
        for part in keras_parts(sublayer):
            name = ".".join(filter(None, (sublayer.name, part.name)))
            parts.append(KerasPart(name, part.kind, part.variables))
    return parts
