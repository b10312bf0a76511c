"""Where two networks part: the first Keras layer whose output PyTorch does not compute."""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from digitlab.parity.backend import import_keras
from digitlab.parity.compare import TOLERANCES, relative_difference
from digitlab.parity.flattening import flattened_in, inputs_within
from digitlab.parity.layout import Array
from digitlab.parity.sides import (
    channels_first,
    evaluation_mode,
    keras_images,
    precision,
    sole_output,
    torch_images,
)


def first_divergence(module: nn.Module, keras_model: Any, images: Tensor) -> str | None:
    """Name the first Keras layer from which on a model computes something else than a module.

    A layer agrees if PyTorch computes its output anywhere: in a layer, or by a function within a
    `forward`. One that does not agree is excused if all that follows from it agrees again, as
    where one side pools before it rectifies and the other after. The model's last layer must
    agree with what the module returns.

    A layer that changes nothing, or gives the same value everywhere, would agree by chance: it is
    also held against the PyTorch layer of its name, if there is one.

    Args:
        module: The PyTorch side; its mode and its weights stay as they are.
        keras_model: The Keras side, functional or sequential, with the same weights.
        images: Float32 `(N, C, H, W)`; a few dozen do, and the outputs of all layers for all of
            them are held in memory.

    Returns:
        The layer's name, or None if what the two return agrees.

    Raises:
        ValueError: The Keras model reads no such images, or a side gives more than one array.
    """
    tolerance = TOLERANCES[precision(module, keras_model)]
    record = _record(module, images)
    steps, last = _keras_steps(keras_model, images)
    agrees = [_agrees(step, steps, record, tolerance) for step in steps]
    agrees[last] = _close(channels_first(steps[last].value), record.result, tolerance)
    guilty = set() if agrees[last] else {last}
    for i in reversed(range(len(steps))):
        if i in guilty:
            guilty |= {source for source in steps[i].sources if not agrees[source]}
    return steps[min(guilty)].name if guilty else None


@dataclass
class _Step:
    """What a Keras layer gave, and the steps that it read."""

    name: str
    value: Array
    sources: tuple[int, ...]
    flattened: tuple[int, ...] | None


@dataclass
class _Record(TorchFunctionMode):
    """Keeps all that torch computes while it is entered."""

    computed: list[Array] = field(default_factory=list)
    of_layers: dict[str, list[Array]] = field(default_factory=dict)
    result: Array = field(default_factory=lambda: np.zeros(0))

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call a function of torch, and keep the tensors that it gives."""
        result = func(*args, **(kwargs or {}))
        self.computed += _arrays(result)
        return result


def _record(module: nn.Module, images: Tensor) -> _Record:
    record, given = _Record(), torch_images(module, images)
    with ExitStack() as stack:
        stack.enter_context(evaluation_mode(module))
        stack.enter_context(torch.no_grad())
        for name, layer in module.named_modules():

            def keep(_: nn.Module, __: Any, result: Any, name: str = name) -> None:
                arrays = _arrays(result)
                record.computed += arrays
                for known in {name, name.rpartition(".")[2], name.replace(".", "_")}:
                    record.of_layers.setdefault(known, []).extend(arrays)

            stack.enter_context(layer.register_forward_hook(keep))
        stack.enter_context(record)
        output = sole_output(module(given))
    record.result = output.cpu().numpy()
    record.computed.append(given.cpu().numpy())
    return record


def _arrays(result: Any) -> list[Array]:
    """Copy the tensors that a function gave: the next one may overwrite them."""
    parts = result if isinstance(result, list | tuple) else [result]
    with torch._C.DisableTorchFunction():
        return [
            part.detach().cpu().numpy().copy()
            for part in parts
            if isinstance(part, Tensor) and part.is_floating_point() and part.ndim > 1
        ]


def _keras_steps(keras_model: Any, images: Tensor) -> tuple[list[_Step], int]:
    """Evaluate all layers of a Keras model in their order, those of models within it too.

    Returns:
        The steps, and the place of the one that gives the model's output.

    Raises:
        ValueError: The model returns what it reads.
    """
    steps: list[_Step] = []
    within = inputs_within(keras_model)
    read = keras_images(keras_model, images)
    made = _add_steps(steps, keras_model, {id(keras_model.inputs[0]): (read, None)}, within)
    last = made[id(keras_model.outputs[0])]
    if last is None:
        raise ValueError(f"{keras_model.name} returns its input: it must have a layer")
    return steps, last


def _add_steps(
    steps: list[_Step],
    model: Any,
    given: dict[int, tuple[Any, int | None]],
    within: dict[int, Any],
) -> dict[int, int | None]:
    """Add the steps of a model that reads the given values.

    Args:
        steps: Where to add.
        model: A functional or sequential model.
        given: By the id of a symbolic input, its value and the step that made it.
        within: What `inputs_within` gives for the outermost model.

    Returns:
        By the id of a symbolic tensor, the step that made it; None for an input.
    """
    inputs, nodes = _nodes(model)
    tensors = {str(id(tensor)): tensor for node in nodes for tensor in node.output_tensors}
    values = {str(id(tensor)): given[id(tensor)][0] for tensor in inputs}
    if tensors:
        # By name, since Keras gives a list of one as the tensor itself.
        extractor = import_keras().Model(inputs, tensors)
        values |= extractor(list(values.values()), training=False)
    made = {id(tensor): given[id(tensor)][1] for tensor in inputs}
    for node in nodes:
        operation, read = node.operation, [id(tensor) for tensor in node.input_tensors]
        if hasattr(operation, "layers"):
            inner = {
                id(tensor): (values[str(key)], made[key])
                for tensor, key in zip(operation.inputs, read, strict=True)
            }
            made_inside = _add_steps(steps, operation, inner, within)
            pairs = zip(node.output_tensors, operation.outputs, strict=True)
            made |= {id(ours): made_inside[id(theirs)] for ours, theirs in pairs}
            continue
        sources = tuple(source for key in read if (source := made[key]) is not None)
        for tensor in node.output_tensors:
            made[id(tensor)] = len(steps)
            value = import_keras().ops.convert_to_numpy(values[str(id(tensor))])
            steps.append(_Step(operation.name, value, sources, flattened_in(tensor, within)))
    return made


def _nodes(model: Any) -> tuple[list[Any], list[Any]]:
    """Give a model's inputs, and the calls of its layers, each behind those that it reads."""
    graph = import_keras().Model(model.inputs, model.outputs)
    by_depth = graph._nodes_by_depth
    nodes = [node for depth in sorted(by_depth, reverse=True) for node in by_depth[depth]]
    return list(graph.inputs), [node for node in nodes if not node.is_input]


def _agrees(step: _Step, steps: list[_Step], record: _Record, tolerance: float) -> bool:
    layouts = list(_layouts(step))

    def among(arrays: list[Array]) -> bool:
        return any(_close(layout, array, tolerance) for layout in layouts for array in arrays)

    if not among(record.computed):
        return False
    value = step.value
    unchanged = any(np.array_equal(value, steps[source].value) for source in step.sources)
    if unchanged or np.ptp(value) == 0:
        return step.name not in record.of_layers or among(record.of_layers[step.name])
    return True


def _layouts(step: _Step) -> Iterator[Array]:
    """Yield an output as PyTorch may lay it out: channels last, channels first, flattened so."""
    yield step.value
    if step.flattened:
        yield np.moveaxis(step.value.reshape(-1, *step.flattened), -1, 1)
    elif step.value.ndim > 2:
        yield channels_first(step.value)


def _close(ours: Array, theirs: Array, tolerance: float) -> bool:
    """Tell whether two arrays agree, image by image and value by value, whatever their shapes."""
    if ours.size != theirs.size or len(ours) != len(theirs):
        return False
    return (
        relative_difference(ours.reshape(len(ours), -1), theirs.reshape(len(ours), -1)) <= tolerance
    )
