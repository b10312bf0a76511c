"""The parts of layers that have weights, in PyTorch and in Keras.

Most layers have one part; an attention has four projections, a recurrent layer one part for each
layer and direction.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import Tensor, nn

from digitlab.parity.backend import import_keras
from digitlab.parity.layouts import LAYOUTS, Layout, last, without_ones

_LAYER_TENSORS = {"weight", "bias", "running_mean", "running_var"} | {
    f"{kind}_{gate}" for kind in ("weight", "bias") for gate in ("ih", "hh")
}
"""Names of tensors in PyTorch's layers; parameters of other names are matched singly."""


@dataclass(frozen=True)
class KerasPart:
    """Variables of a Keras layer that belong together."""

    name: str  # within the layer; empty if the layer has no other part
    kind: str  # the key of its layouts; "parameters" are a layer's own, stored as in PyTorch
    variables: dict[str, Any]  # by name

    def layouts(self, variable: str, tensors: Mapping[str, Tensor]) -> tuple[Layout, ...]:
        """Return the possible layouts of a variable of a PyTorch part's tensors."""
        if self.kind != "parameters":
            return LAYOUTS[self.kind].get(variable, ())
        if len(tensors) != 1:
            return ()
        (source,) = tensors
        as_it_is = Layout(source, without_ones)
        is_image = len(self.variables[variable].shape) > 2
        return (as_it_is, Layout(source, last)) if is_image else (as_it_is,)


@dataclass(frozen=True)
class TorchPart:
    """Parameters and buffers of a PyTorch module that belong together."""

    module: str  # as in `named_modules`
    name: str  # within the module; empty if the module has no other part
    tensors: dict[str, Tensor]  # or views of them, by their names in the part
    paths: dict[str, str]  # of the tensors, as `tensor_of` reads them

    @property
    def full_name(self) -> str:
        """The module's name and the part's."""
        return ".".join(filter(None, (self.module, self.name)))

    @property
    def is_constant(self) -> bool:
        """Whether it is a buffer that is no layer's, such as a mean to subtract."""
        return not any(
            name.startswith("running_") or is_parameter(tensor, self.paths[name])
            for name, tensor in self.tensors.items()
        )


def is_parameter(tensor: Tensor, path: str) -> bool:
    """Return whether the tensor of a path is a parameter, or a third of one."""
    return isinstance(tensor, nn.Parameter) or "[" in path


def tensor_of(named: Mapping[str, Any], path: str) -> Any:
    """Return the tensor of a path; of one such as `in_proj_weight[1/3]`, the second third.

    Examples:
        >>> tensor_of({"weight": list(range(6))}, "weight[1/3]")
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
        is_triple = isinstance(layer, nn.Linear) and layer.out_features == 3 * layer.in_features
        if isinstance(layer, nn.RNNBase):
            keys = _recurrent_keys(layer, tensors)
        elif isinstance(layer, nn.MultiheadAttention):
            keys = _attention_keys(tensors, projections)
        elif is_triple and projections == "split":
            keys = _thirds("", tensors)
        else:
            keys = _plain_keys(tensors)
        for part, of_part in keys.items():
            found.append(
                TorchPart(
                    name,
                    part,
                    {ours: tensor_of(tensors, key) for ours, key in of_part.items()},
                    {ours: f"{name}.{key}".lstrip(".") for ours, key in of_part.items()},
                )
            )
    return found


_Keys = dict[str, dict[str, str]]
"""By name of a part, and by name of a tensor in it, the path of the tensor in the layer."""


def _plain_keys(tensors: dict[str, Any]) -> _Keys:
    """Return the tensors of a layer as one part, and each other parameter as a part of its own."""
    of_layer = {key: key for key in tensors if key in _LAYER_TENSORS}
    single = {key: {key: key} for key in tensors if key not in of_layer}
    return ({"": of_layer} if of_layer else {}) | single


def _recurrent_keys(layer: nn.RNNBase, tensors: dict[str, Any]) -> _Keys:
    directions = ("", "_reverse") if layer.bidirectional else ("",)
    return {
        suffix.lstrip("_") if len(tensors) > 4 else "": {
            key.removesuffix(suffix): key for key in tensors if key.endswith(suffix)
        }
        for suffix in (f"_l{i}{it}" for i in range(layer.num_layers) for it in directions)
    }


def _attention_keys(tensors: dict[str, Any], projections: Projections) -> _Keys:
    if "in_proj_weight" not in tensors:  # keys and values of other widths than the queries
        biases = _thirds("in_proj_", tensors)
        return {part: {"weight": f"{part[0]}_proj_weight", **biases[part]} for part in biases}
    if projections == "joint":
        kinds = [kind for kind in ("weight", "bias") if f"in_proj_{kind}" in tensors]
        return {"in_proj": {kind: f"in_proj_{kind}" for kind in kinds}}
    return _thirds("in_proj_", tensors)


def _thirds(prefix: str, tensors: dict[str, Any]) -> _Keys:
    kinds = [kind for kind in ("weight", "bias") if prefix + kind in tensors]
    return {
        part: {kind: f"{prefix}{kind}[{i}/3]" for kind in kinds}
        for i, part in enumerate(("query", "key", "value"))
    }


def keras_parts(layer: Any, name: str = "") -> list[KerasPart]:
    """Find the parts of a Keras layer and of the layers in it that have weights, or refuse it.

    `name` is reported instead of the layer's own, if the layer is within another.
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
    if "SeparableConv" in type(layer).__name__:
        return _separable(layer)
    sublayers = [it for it in layer._layers if it.weights]
    if isinstance(layer, import_keras().layers.MultiHeadAttention):
        kinds = {"attention_output": "output projection"}
        return [
            KerasPart(it.name, kinds.get(it.name, "projection"), {v.name: v for v in it.weights})
            for it in sublayers
        ]
    inside = {id(variable) for sublayer in sublayers for variable in sublayer.weights}
    own = {it.name: it for it in layer.weights if id(it) not in inside}
    if own and type(layer).__module__.startswith("keras."):
        raise ValueError(
            f"{name or layer.name} is a {type(layer).__name__}, whose layout of weights is not "
            f"known: use layers of {', '.join(it for it in LAYOUTS if it[0].isupper())}"
        )
    return [KerasPart("", "parameters", {key: variable}) for key, variable in own.items()] + [
        replace(part, name=".".join(filter(None, (sublayer.name, part.name))))
        for sublayer in sublayers
        for part in keras_parts(sublayer, name or layer.name)
    ]


def _separable(layer: Any) -> list[KerasPart]:
    variables, dimensions = {it.name: it for it in layer.weights}, type(layer).__name__[-2:]
    depthwise = {"kernel": variables.pop("depthwise_kernel")}
    variables["kernel"] = variables.pop("pointwise_kernel")
    return [
        KerasPart("depthwise", f"DepthwiseConv{dimensions}", depthwise),
        KerasPart("pointwise", f"Conv{dimensions}", variables),
    ]
