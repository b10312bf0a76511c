"""The check of whole trainings: both sides with the same weights, batches and dropout masks.

The frameworks draw dropout masks from different generators, so both sides get copies whose dropout
layers take fixed masks from `DropoutMasks`.
"""

import math
from collections.abc import Callable, Iterable
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cache
from itertools import islice
from operator import itemgetter
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim.optimizer import ParamsT
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from digitlab.classifier import decay_groups
from digitlab.parity.backend import import_keras, import_tensorflow, keras_dtype
from digitlab.parity.graph import Graph, Orders, keras_layers
from digitlab.parity.layouts import TOLERANCES, Array, channels_last
from digitlab.parity.optimizers import average_weights, averages, decay_kernels_only
from digitlab.parity.report import Check
from digitlab.parity.sides import arrange, torch_inputs
from digitlab.parity.weights import Match, in_module, match

Batch = tuple[Tensor, Tensor]
MakeOptimizer = Callable[[ParamsT], torch.optim.Optimizer]

# By class name, whether a layer drops whole channels.
_DROPOUTS = {"Dropout": False, "Dropout1d": True, "Dropout2d": True, "Dropout3d": True}
_KERAS_DROPOUTS = {"Dropout": False} | {f"SpatialDropout{n}D": True for n in (1, 2, 3)}


@dataclass
class DropoutMasks:
    """Fixed dropout masks for both sides, a function of seed, layer and step alone.

    Examples:
        >>> DropoutMasks(seed=0).uniform(layer=0, shape=(2,)).round(3).tolist()
        [0.012, 0.242]
        >>> DropoutMasks(seed=0, step=1).uniform(layer=0, shape=(2,)).round(3).tolist()
        [0.342, 0.577]
    """

    seed: int = 0  # below 2⁶⁴
    step: int = 0

    def uniform(self, layer: int, shape: tuple[int, ...]) -> Array:
        """Draw float64 numbers in [0, 1) for a dropout layer, by its index among all of them.

        The shape is that of the layer's input in PyTorch's layout, or `(N, C)` for whole channels.
        """
        # Philox is counter-based: a draw depends on no other layer or step. The counter's last word
        # leaves 2¹⁹² blocks of numbers to a step.
        philox = np.random.Philox(key=[self.seed, layer], counter=[0, 0, 0, self.step])
        return np.random.Generator(philox).random(shape)

    def mask(self, layer: int, shape: tuple[int, ...], rate: float, of_channels: bool) -> Array:
        """Return a mask for `(N, C, ...)` that keeps a share of `1 - rate`, and the mean."""
        drawn = shape[:2] if of_channels else shape
        kept = self.uniform(layer, drawn).reshape(drawn + (1,) * (len(shape) - len(drawn))) >= rate
        return kept * (1 / (1 - rate) if rate < 1 else 0.0)


def torch_with_masks(module: nn.Module, masks: DropoutMasks) -> nn.Module:
    """Copy a module, and make the copy's dropout layers use fixed masks in training mode."""
    copy = deepcopy(module)
    dropouts: list[Any] = [item for item in copy.named_modules() if _is_dropout(item[1])]
    for index, (name, layer) in enumerate(dropouts):
        kind = type(layer).__name__
        if kind not in _DROPOUTS:
            raise ValueError(_unknown(name, kind, "nn.Dropout or nn.Dropout1d, 2d or 3d"))

        def forward(x: Tensor, layer: Any = layer, index: int = index, kind: str = kind) -> Tensor:
            if not layer.training:
                return x
            mask = masks.mask(index, tuple(x.shape), layer.p, _DROPOUTS[kind])
            return x * torch.from_numpy(mask).to(x)

        layer.forward = forward
    return copy


def is_batch_norm(layer: nn.Module) -> bool:
    """Return whether a layer is a batch normalization with running statistics."""
    kinds = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
    return isinstance(layer, kinds) and bool(layer.track_running_stats)


def use_biased_variances(module: nn.Module) -> None:
    """Let a module's batch normalizations update their running variance as Keras's do.

    PyTorch updates it with the unbiased variance of the batch, n / (n - 1) times the biased one of
    Keras; n is the number of values of a channel.
    """

    def correct(layer: Any, args: tuple[Tensor], output: Tensor) -> None:
        if layer.training:
            channels = args[0].detach().transpose(0, 1).flatten(1)
            # `data`, since autograd keeps the buffer, although its gradient does not need it.
            layer.running_var.data -= layer.momentum * channels.var(1) / channels.shape[1]

    layers: list[Any] = list(filter(is_batch_norm, module.modules()))
    for layer in layers:
        if layer.momentum is None:
            raise ValueError("a BatchNorm has momentum=None, which Keras has not: give a number")
        layer.register_forward_hook(correct)


def keras_with_masks(keras_model: Any, masks: DropoutMasks) -> Any:
    """Copy a Keras model without its weights, with dropout layers as `torch_with_masks`."""
    indices = {id(layer): index for index, layer in enumerate(_keras_dropouts(keras_model))}
    graph = Graph(keras_model)
    orders = Orders(graph)
    features = {id(call.operation): orders.of_input(call) for call in reversed(graph.calls)}

    def clone(layer: Any) -> Any:
        if id(layer) not in indices:
            return type(layer).from_config(layer.get_config())
        kind = type(layer).__name__
        if kind not in _KERAS_DROPOUTS or getattr(layer, "noise_shape", None):
            raise ValueError(_unknown(layer.name, kind, "Dropout or SpatialDropout1D, 2D or 3D"))
        flattened, index = features[id(layer)], indices[id(layer)]
        order = flattened.order if flattened else None

        def draw(shape: tuple[int, ...]) -> Array:
            batch, *space, channels = shape
            rate, of_channels = float(layer.rate), _KERAS_DROPOUTS[kind]
            mask = masks.mask(index, (batch, channels, *space), rate, of_channels)
            return mask[:, channels_last(order)] if order else np.moveaxis(mask, 1, -1)

        return _masked_layer()(draw, name=layer.name, dtype=layer.dtype_policy)

    return import_keras().models.clone_model(keras_model, clone_function=clone, recursive=True)


def _keras_dropouts(keras_model: Any) -> list[Any]:
    return [layer for layer in keras_layers(keras_model) if _is_dropout(layer)]


def _is_dropout(layer: Any) -> bool:
    return "Dropout" in type(layer).__name__  # also of the kinds that are refused


@cache
def _masked_layer() -> Any:
    keras, tensorflow = import_keras(), import_tensorflow()

    class MaskedDropout(keras.layers.Layer):  # type: ignore[misc,name-defined]  # Keras ships no type hints
        def __init__(self, draw: Callable[[tuple[int, ...]], Array], **kwargs: Any) -> None:
            super().__init__(**kwargs)
            self.draw = draw
            self.supports_masking = True

        def call(self, inputs: Any, training: bool = False) -> Any:
            if not training:
                return inputs
            mask = tensorflow.numpy_function(
                lambda shape: self.draw(tuple(shape)).astype(inputs.dtype.as_numpy_dtype),
                [tensorflow.shape(inputs)],
                inputs.dtype,
            )
            return tensorflow.reshape(inputs * mask, tensorflow.shape(inputs))

        def compute_output_shape(self, input_shape: Any) -> Any:
            return input_shape

    return MaskedDropout


def _unknown(name: str, kind: str, known: str) -> str:
    return f"{name} is a {kind}, whose random numbers cannot be fixed: use {known}"


def trajectory(
    module: nn.Module,
    keras_model: Any,
    batches: Iterable[Batch],
    make_optimizer: MakeOptimizer,
    make_keras_optimizer: Callable[[], Any],
    steps: int,
    seed: int = 0,
    biased_variances: bool = True,
    average_decay: float | None = None,
    kernels_only: bool = False,
) -> Check:
    """Train copies of both sides on the same batches, and compare them after every step.

    Both start from the module's weights, in float64: in float32 Adam makes full steps of gradients
    that are hardly larger than their rounding errors. A loss's difference is relative to the
    largest loss so far, a weight's to the largest weight. Unless `biased_variances`, PyTorch's
    batch normalizations are its own. Averages of the weights are compared likewise; with
    `kernels_only`, weight decay spares what has one dimension, as `decay_groups` does.
    """
    dropouts = sum(map(_is_dropout, module.modules())), len(_keras_dropouts(keras_model))
    if dropouts[0] != dropouts[1]:
        raise ValueError(
            f"the PyTorch module has {dropouts[0]} dropout layers and the Keras model "
            f"{dropouts[1]}: give both the same"
        )
    masks = DropoutMasks(seed)
    ours, theirs = torch_with_masks(module, masks).train(), keras_with_masks(keras_model, masks)
    if biased_variances:
        use_biased_variances(ours)
    pairs = match(ours, Graph(theirs))
    for pair in pairs:
        pair.variable.assign(pair.to_keras())
    parameters = decay_groups(ours.parameters()) if kernels_only else ours.parameters()
    optimizer, losses = make_optimizer(parameters), import_keras().losses
    average = None
    if average_decay is not None:
        averaging = get_ema_multi_avg_fn(average_decay)  # type: ignore[no-untyped-call]
        average = AveragedModel(ours, multi_avg_fn=averaging)
    found: list[tuple[float, str]] = []  # each difference, and where it is
    largest_loss, done = 0.0, 0
    with keras_dtype("float64"):
        loss = losses.SparseCategoricalCrossentropy(from_logits=True)
        keras_optimizer = make_keras_optimizer()
        average_weights(keras_optimizer, average_decay)
        if kernels_only:
            decay_kernels_only(keras_optimizer, pairs)
        # XLA cannot compile the masks.
        theirs.compile(keras_optimizer, loss, jit_compile=False)
        averaged = _averages(pairs, theirs, average)
        for done, (images, labels) in enumerate(islice(batches, steps), start=1):
            masks.step = done - 1
            our_loss = _train_step(ours, optimizer, images, labels)
            read = arrange(images, theirs).cpu().numpy()
            logs = theirs.train_on_batch(read, labels.cpu().numpy(), return_dict=True)
            if average is not None:
                average.update_parameters(ours)
            largest_loss = max(largest_loss, abs(our_loss), abs(logs["loss"]))
            differences = {"the loss": abs(our_loss - logs["loss"]) / (largest_loss or 1)}
            differences |= _differences(pairs)
            differences |= {f"average of {k}": it for k, it in _differences(averaged).items()}
            found += [
                (float(np.nan_to_num(difference, nan=np.inf)), f"{name} at step {done}")
                for name, difference in differences.items()
            ]
    if done < steps:
        raise ValueError(f"steps is {steps}, but there are only {done} batches: take fewer steps")
    difference, where = max(found, key=itemgetter(0))
    tolerance, note = TOLERANCES["float64"], f"most in {where}" if difference else ""
    if difference > tolerance:
        first = next(it for size, it in found if size > tolerance)
        note = f"exceeded first in {first}, {note}"
    compared = steps * (1 + sum(math.prod(it.variable.shape) for it in (*pairs, *averaged)))
    name = f"{steps} training step{'s' * (steps > 1)}, float64"
    return Check(name, compared, difference, tolerance, note)


def _averages(pairs: list[Match], keras_model: Any, average: AveragedModel | None) -> list[Match]:
    """Return the matches of the averages, if there are any, of the trainable weights."""
    if average is None:
        return []
    keras_model.optimizer.build(keras_model.trainable_variables)
    found = {id(variable): made for variable, made in averages(keras_model)}
    return [
        replace(pair, variable=found[id(pair.variable)])
        for pair in in_module(pairs, average.module)
        if id(pair.variable) in found
    ]


def _train_step(
    module: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor
) -> float:
    optimizer.zero_grad()
    logits = module(torch_inputs(module, images))
    loss = cross_entropy(logits, labels.to(logits.device))
    loss.backward()  # type: ignore[no-untyped-call]  # torch's own
    optimizer.step()
    return loss.item()


def _differences(pairs: list[Match]) -> dict[str, float]:
    """Return the largest difference in each pair, relative to the largest weight of all."""
    # In Keras's layout, where two tensors that are added up are one.
    both = [(pair.to_keras(), np.asarray(pair.variable)) for pair in pairs]
    largest = max((np.abs(array).max() for sides in both for array in sides), default=0.0) or 1.0
    return {
        pair.torch_name.removeprefix("network."): float(np.abs(ours - theirs).max() / largest)
        for pair, (ours, theirs) in zip(pairs, both, strict=True)
    }
