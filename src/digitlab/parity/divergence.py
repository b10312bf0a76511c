"""Where a PyTorch module and a Keras model with the same weights begin to differ."""

from collections import defaultdict
from contextlib import ExitStack
from copy import copy
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from digitlab.parity.backend import import_keras
from digitlab.parity.graph import Graph, Orders
from digitlab.parity.layouts import (
    TOLERANCES,
    Array,
    Order,
    in_torch_layout,
    is_close,
    torch_layouts,
)
from digitlab.parity.sides import Inputs, flat, keras_inputs, precision, torch_inputs, torch_output


def record_calls(module: nn.Module, inputs: Inputs) -> dict[str, list[Array]]:
    """Return what each submodule reads first, by its name, in the order of the calls."""
    read = defaultdict[str, list[Array]](list)

    def keep(name: str, layer: nn.Module, args: Any, kwargs: Any) -> None:
        given = [it for it in (*args, *kwargs.values()) if isinstance(it, Tensor)]
        read[name] += [it.detach().cpu().numpy().copy() for it in given[:1]]

    with ExitStack() as stack, torch.no_grad():
        for name, layer in _with_hooks(module):
            hook = layer.register_forward_pre_hook(partial(keep, name), with_kwargs=True)
            stack.enter_context(hook)
        torch_output(module, inputs)
    return read


def _with_hooks(module: nn.Module) -> list[tuple[str, nn.Module]]:
    # TorchScript's modules call no hooks.
    named = module.named_modules()
    return [(name, it) for name, it in named if not isinstance(it, torch.jit.ScriptModule)]


def first_divergence(
    module: nn.Module, model: Graph, inputs: Inputs, strict: bool = False
) -> str | None:
    """Name the first Keras layer whose output differs from the module's, if any.

    A layer agrees if PyTorch computes its output anywhere: in a layer, or by a function within a
    `forward`. Unless `strict`, one that does not agree is excused if everything that depends on it
    agrees again, as where one side pools before the ReLU and the other after. The model's last
    layer must agree with the module's output.

    A layer that changes nothing, or returns a constant, could agree by chance: it is also compared
    with the PyTorch layer of its name, if there is one.
    """
    tolerance = TOLERANCES[precision(module, model)]
    record = _Record(module, inputs)
    steps, last = _keras_steps(model, inputs)
    agrees = _agreements(steps, record, tolerance)
    value = in_torch_layout(record.result, steps[last].value)
    agrees[last] = is_close(record.result, value, tolerance)
    guilty = set() if agrees[last] else {last}
    if strict:
        guilty = {i for i, agreed in enumerate(agrees) if not agreed}
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
    orders: list[Order | None]


class _Record(TorchFunctionMode):
    """All that torch computes in a forward pass, by layer too: by path, last part, underscores."""

    def __init__(self, module: nn.Module, inputs: Inputs) -> None:
        super().__init__()
        self.computed: list[Array] = []
        self.of_layers = defaultdict[str, list[Array]](list)
        self._is_paused = False
        with ExitStack() as stack, torch.no_grad():
            for name, layer in _with_hooks(module):
                stack.enter_context(layer.register_forward_hook(partial(self._keep, name)))
            stack.enter_context(self)
            output = torch_output(module, inputs)
        self.result = output.cpu().numpy()
        self.computed += _arrays(flat(torch_inputs(module, inputs)))

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Keep the tensors that a function of torch returns."""
        result = func(*args, **(kwargs or {}))
        if not self._is_paused:
            self.computed += _arrays(result)
        return result

    def _keep(self, name: str, layer: nn.Module, args: Any, result: Any) -> None:
        self._is_paused = True
        inside = _inside(layer, args[0]) if isinstance(layer, nn.RNNBase) else []
        arrays = _arrays([result, inside])
        self._is_paused = False
        self.computed += arrays
        for known in {name, name.rpartition(".")[2], name.replace(".", "_")}:
            self.of_layers[known] += arrays


def _inside(layer: nn.RNNBase, x: Tensor) -> list[Tensor]:
    """Return the outputs of all but the last layer of a stack of recurrent layers."""
    weights, outputs = layer._flat_weights, []
    for n in range(1, layer.num_layers):
        lower: Any = copy(layer)
        lower.num_layers = n
        lower._flat_weights = weights[: len(weights) // layer.num_layers * n]
        outputs.append(lower.forward(x)[0])
    return outputs


def _arrays(result: Any) -> list[Array]:
    """Copy the tensors that a function returned, since the next one may overwrite them."""
    if isinstance(result, list | tuple):
        return [array for part in result for array in _arrays(part)]
    if isinstance(result, Tensor) and result.is_floating_point() and result.ndim > 1:
        return [result.detach().cpu().numpy().copy()]
    return []


def _keras_steps(model: Graph, inputs: Inputs) -> tuple[list[_Step], int]:
    """Evaluate all layers in order; return the steps and the index of the one with the output."""
    read, in_torch_order = keras_inputs(model, inputs)
    values, orders = model.run(read), Orders(model, in_torch_order)
    steps: list[_Step] = []
    made: dict[int, int] = {}
    for call in model.calls:
        sources = tuple(made[i] for i in call.inputs if i in made)
        for i in call.makes:
            made[i] = len(steps)
            value = import_keras().ops.convert_to_numpy(values[i])
            features = orders.features.get(i)
            steps.append(_Step(call.name, value, sources, features.orders if features else [None]))
    last = made.get(model.outputs[0])
    if last is None:
        raise ValueError(f"{model.name} returns its input: it must have a layer")
    return steps, last


def _agreements(steps: list[_Step], record: _Record, tolerance: float) -> list[bool]:
    agrees: list[bool] = []
    for step in steps:
        layouts = list(torch_layouts(step.value, step.orders))

        def among(arrays: list[Array], layouts: list[Array] = layouts) -> bool:
            return any(is_close(array, it, tolerance) for it in layouts for array in arrays)

        value, known = step.value, record.of_layers.get(step.name)
        # What keeps all values in their places, as a reshape does, agrees if what it reads does.
        same = next((i for i in step.sources if _has_values_of(value, steps[i].value)), None)
        if value.dtype.kind != "f":  # indices and masks
            agrees.append(True)
        elif same is not None and value.shape != steps[same].value.shape:
            agrees.append(agrees[same])
        else:
            by_chance = known and (same is not None or np.ptp(value) == 0)
            agrees.append(among(record.computed) and (not by_chance or among(known or [])))
    return agrees


def _has_values_of(value: Array, source: Array) -> bool:
    return value.size == source.size and np.array_equal(value.ravel(), source.ravel())
