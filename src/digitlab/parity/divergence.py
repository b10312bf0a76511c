"""Where a PyTorch module and a Keras model with the same weights begin to differ."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from digitlab.parity.backend import import_keras, import_tensorflow
from digitlab.parity.copies import CopiedModel
from digitlab.parity.flattening import feature_orders
from digitlab.parity.graph import Graph
from digitlab.parity.layouts import Array, Order, channels_last
from digitlab.parity.sides import (
    TOLERANCES,
    Inputs,
    in_torch_layout,
    keras_inputs,
    precision,
    relative_difference,
    torch_inputs,
    torch_output,
)


def record_calls(module: nn.Module, inputs: Inputs) -> dict[str, list[Array]]:
    """Return what each submodule reads first, by its name, in the order of the calls."""
    read: dict[str, list[Array]] = {}
    with ExitStack() as stack:
        for name, layer in module.named_modules():

            def keep(_: nn.Module, args: Any, kwargs: Any, name: str = name) -> None:
                given = [it for it in (*args, *kwargs.values()) if isinstance(it, Tensor)]
                arrays = [it.detach().cpu().numpy().copy() for it in given[:1]]
                read.setdefault(name, []).extend(arrays)

            stack.enter_context(_hook(layer.register_forward_pre_hook, keep, with_kwargs=True))
        with torch.no_grad():
            torch_output(module, inputs)
    return read


@contextmanager
def _hook(register: Callable[..., Any], function: Any, **options: Any) -> Iterator[None]:
    try:
        handle = register(function, **options)
    except RuntimeError:  # a ScriptModule calls no hooks
        yield
        return
    try:
        yield
    finally:
        handle.remove()


def first_divergence(
    module: nn.Module, keras_model: Any, inputs: Inputs, strict: bool = False
) -> str | None:
    """Name the first Keras layer whose output differs from the module's.

    A layer agrees if PyTorch computes its output anywhere: in a layer, or by a function within a
    `forward`. One that does not agree is excused if everything that depends on it agrees again, as
    where one side pools before the ReLU and the other after. The model's last layer must agree with
    the module's output.

    A layer that changes nothing, or returns a constant, could agree by chance: it is also compared
    with the PyTorch layer of its name, if there is one.

    Args:
        module: The PyTorch side; its mode and its weights stay as they are.
        keras_model: The Keras side with the same weights, a `keras.Model` or a `CopiedModel`.
        inputs: A few dozen examples: the outputs of all layers are kept in memory.
        strict: Whether no layer is excused.

    Returns:
        The layer's name, or None if none differs.

    Raises:
        ValueError: A side cannot read the inputs, or returns more than one array.
    """
    tolerance = TOLERANCES[precision(module, keras_model)]
    record = _record(module, inputs)
    steps, last = _keras_steps(keras_model, inputs)
    agrees = _agreements(steps, record, tolerance)
    value = in_torch_layout(record.result, steps[last].value)
    agrees[last] = _close(value, record.result, tolerance)
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
    """Keeps everything that torch computes in its `with` block."""

    result: Array

    def __init__(self) -> None:
        super().__init__()
        self.computed: list[Array] = []
        self.of_layers: dict[str, list[Array]] = {}
        self.is_paused = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call a function of torch, and keep the tensors that it returns."""
        result = func(*args, **(kwargs or {}))
        if not self.is_paused:
            self.computed += _arrays(result)
        return result

    def keep(self, name: str, result: Any) -> None:
        """Keep what a layer returned."""
        self.is_paused = True
        arrays = _arrays(result)
        self.is_paused = False
        self.computed += arrays
        for known in {name, name.rpartition(".")[2], name.replace(".", "_")}:
            self.of_layers.setdefault(known, []).extend(arrays)


def _record(module: nn.Module, inputs: Inputs) -> _Record:
    record = _Record()
    given = torch_inputs(module, inputs)
    with ExitStack() as stack:
        for name, layer in module.named_modules():

            def keep(layer: nn.Module, args: Any, result: Any, name: str = name) -> None:
                record.keep(name, result)
                if isinstance(layer, nn.RNNBase) and layer.num_layers > 1:
                    record.keep(name, _inside(layer, args[0]))

            stack.enter_context(_hook(layer.register_forward_hook, keep))
        stack.enter_context(torch.no_grad())
        stack.enter_context(record)
        output = torch_output(module, inputs)
    record.result = output.cpu().numpy()
    parts = given.values() if isinstance(given, dict) else given
    for part in parts if isinstance(given, dict | tuple) else [given]:
        record.computed += _arrays(part)
    return record


def _inside(layer: nn.RNNBase, x: Tensor) -> list[Tensor]:
    """Return the outputs of all but the last layer of a stack of recurrent layers."""
    outputs = []
    for n in range(1, layer.num_layers):
        names = ("input_size", "hidden_size", "bias", "batch_first", "bidirectional")
        options = {name: getattr(layer, name) for name in names}
        kind: Any = type(layer)
        lower = kind(num_layers=n, **options).to(x)
        lower.load_state_dict({key: layer.state_dict()[key] for key in lower.state_dict()})
        outputs.append(lower(x)[0])
    return outputs


def _arrays(result: Any) -> list[Array]:
    """Copy the tensors that a function returned, since the next one may overwrite them."""
    parts = result if isinstance(result, list | tuple) else [result]
    arrays = []
    for part in parts:
        if isinstance(part, list | tuple):  # as a recurrent layer's states
            arrays += _arrays(part)
        elif isinstance(part, Tensor) and part.is_floating_point() and part.ndim > 1:
            arrays.append(part.detach().cpu().numpy().copy())
    return arrays


def _keras_steps(keras_model: Any, inputs: Inputs) -> tuple[list[_Step], int]:
    """Evaluate all layers of a Keras model and of those nested in it, in order.

    Returns:
        The steps, and the index of the one with the model's output.
    """
    arrays, in_torch_order = keras_inputs(keras_model, inputs)
    read = [import_tensorflow().constant(array) for array in arrays]
    copied = isinstance(keras_model, CopiedModel)
    graph = keras_model.graph if copied else Graph(keras_model)
    values = keras_model.run(read) if copied else graph.run(read)
    orders = feature_orders(graph, frozenset(graph.inputs[i] for i in in_torch_order))
    steps: list[_Step] = []
    made: dict[int, int] = {}
    for call in graph.calls:
        sources = tuple(made[i] for i in call.inputs if i in made)
        for i in call.makes:
            made[i] = len(steps)
            value = import_keras().ops.convert_to_numpy(values[i])
            features = orders.features.get(i)
            steps.append(_Step(call.name, value, sources, features.orders if features else []))
    last = made.get(graph.outputs[0])
    if last is None:
        raise ValueError(f"{graph.name} returns its input: it must have a layer")
    return steps, last


def _agreements(steps: list[_Step], record: _Record, tolerance: float) -> list[bool]:
    """Return for each step whether PyTorch computes the same somewhere."""
    agrees: list[bool] = []
    for step in steps:
        layouts = list(_layouts(step))

        def among(arrays: list[Array], layouts: list[Array] = layouts) -> bool:
            return any(_close(layout, array, tolerance) for layout in layouts for array in arrays)

        value, known = step.value, record.of_layers.get(step.name)
        # What keeps all values in their places, as a reshape does, agrees if what it reads does.
        same = next((i for i in step.sources if _has_values_of(value, steps[i].value)), None)
        if value.dtype.kind != "f":  # indices and masks
            agrees.append(True)
        elif same is not None and value.shape != steps[same].value.shape:
            agrees.append(agrees[same])
        elif not among(record.computed):
            agrees.append(False)
        elif known and (same is not None or np.ptp(value) == 0):  # it could agree by chance
            agrees.append(among(known))
        else:
            agrees.append(True)
    return agrees


def _has_values_of(value: Array, source: Array) -> bool:
    return value.size == source.size and np.array_equal(value.ravel(), source.ravel())


def _layouts(step: _Step) -> Iterator[Array]:
    """Yield an output in each layout that PyTorch may have: channels last, first, or flattened."""
    yield step.value
    if step.value.ndim == 2:
        yield from (step.value[:, np.argsort(channels_last(it))] for it in step.orders if it)
    elif step.value.ndim > 2:
        yield np.moveaxis(step.value, -1, 1)


def _close(ours: Array, theirs: Array, tolerance: float) -> bool:
    """Return whether two arrays agree, example by example, whatever their shapes."""
    if ours.size != theirs.size:
        return False
    # PyTorch may have put steps into the batch, as for a layer that is shared in time.
    rows = len(ours) if len(ours) == len(theirs) else 1
    left, right = ours.reshape(rows, -1), theirs.reshape(rows, -1)
    return relative_difference(left, right) <= tolerance
