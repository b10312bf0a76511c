"""The check of whole trainings: both sides with the same weights, batches and dropout masks.

The frameworks draw dropout masks from different generators, so both sides get copies whose dropout
layers take fixed masks from `DropoutMasks`.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import batch_norm, cross_entropy

from digitlab.parity.backend import import_keras, import_tensorflow, keras_dtype
from digitlab.parity.checks import Check
from digitlab.parity.flattening import feature_orders
from digitlab.parity.graph import Graph, keras_layers
from digitlab.parity.layouts import Array, Layout, Order
from digitlab.parity.matching import Match, match
from digitlab.parity.sides import TOLERANCES, keras_inputs, precision, torch_inputs
from digitlab.parity.weights import copy_weights

Batch = tuple[Tensor, Tensor]
MakeOptimizer = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]

# By class name, whether a layer drops whole channels.
_DROPOUTS = {"Dropout": False, "Dropout1d": True, "Dropout2d": True, "Dropout3d": True}
_KERAS_DROPOUTS = {"Dropout": False} | {f"SpatialDropout{n}D": True for n in (1, 2, 3)}
_FEATURES = Layout("uniform", (1, 0), per_input=True)  # flattened features are permuted


@dataclass
class DropoutMasks:
    """Fixed dropout masks for both sides, a function of seed, layer and step alone.

    Args:
        seed: At least 0 and below 2⁶⁴.
        step: The training step, from 0; to be set before each.

    Examples:
        >>> DropoutMasks(seed=0).uniform(layer=0, shape=(2,)).round(3).tolist()
        [0.012, 0.242]
        >>> DropoutMasks(seed=0, step=1).uniform(layer=0, shape=(2,)).round(3).tolist()
        [0.342, 0.577]
    """

    seed: int = 0
    step: int = 0

    def uniform(self, layer: int, shape: tuple[int, ...]) -> Array:
        """Draw float64 numbers in [0, 1) for a dropout layer, by its index among all of them.

        The shape is that of the layer's input in PyTorch's layout, or `(N, C)` for whole channels.
        """
        # Philox is counter-based: a draw depends on no other layer or step. The counter's last word
        # leaves 2¹⁹² blocks of numbers to a step.
        philox = np.random.Philox(key=[self.seed, layer], counter=[0, 0, 0, self.step])
        return np.random.Generator(philox).random(shape)

    def mask(self, layer: int, shape: tuple[int, ...], rate: float) -> Array:
        """Return a mask that keeps a share of `1 - rate`, scaled to keep the mean."""
        return (self.uniform(layer, shape) >= rate) * (1 / (1 - rate) if rate < 1 else 0.0)


def torch_with_masks(module: nn.Module, masks: DropoutMasks) -> nn.Module:
    """Copy a module, and make the copy's dropout layers use fixed masks in training mode."""
    copy = deepcopy(module)
    dropouts: list[Any] = [item for item in copy.named_modules() if _is_dropout(item[1])]
    for index, (name, layer) in enumerate(dropouts):
        kind = type(layer).__name__
        if kind not in _DROPOUTS:
            raise ValueError(_unknown(name, kind, "nn.Dropout or nn.Dropout1d, 2d or 3d"))
        copy.set_submodule(name, _MaskedDropout(layer.p, index, _DROPOUTS[kind], masks))
    return copy


class KerasBatchNorm(nn.Module):
    """Batch normalization whose running variance is updated as Keras's is.

    PyTorch updates `running_var` with the unbiased variance of the batch, n / (n - 1) times the
    biased one, with which Keras updates `moving_variance`; n is the number of values of a channel.
    All else is equal: PyTorch's momentum m is Keras's 1 - m.

    Args:
        layer: A `nn.BatchNorm1d`, 2d or 3d, whose parameters and buffers it takes over.

    Raises:
        ValueError: The layer averages over all batches (`momentum=None`), which Keras does not.
    """

    def __init__(self, layer: nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d) -> None:
        super().__init__()
        if layer.momentum is None:
            raise ValueError("a BatchNorm has momentum=None, which Keras has not: give a number")
        self.running_mean: Tensor
        self.running_var: Tensor
        self.momentum, self.eps = layer.momentum, layer.eps
        self.weight, self.bias = layer.weight, layer.bias
        self.register_buffer("running_mean", layer.running_mean)
        self.register_buffer("running_var", layer.running_var)

    def forward(self, x: Tensor) -> Tensor:
        """Normalize `(N, C, ...)`, and update the running statistics in training mode."""
        if not self.training:
            mean, variance = self.running_mean, self.running_var
            return batch_norm(x, mean, variance, self.weight, self.bias, False, 0.0, self.eps)
        axes = [axis for axis in range(x.ndim) if axis != 1]
        variance, mean = torch.var_mean(x.detach(), axes, unbiased=False)
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance, self.momentum)
        return batch_norm(x, None, None, self.weight, self.bias, True, 0.0, self.eps)


def is_batch_norm(layer: nn.Module) -> bool:
    """Return whether a layer is a batch normalization with running statistics."""
    kinds = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
    return isinstance(layer, kinds) and bool(layer.track_running_stats)


def with_keras_batch_norms(module: nn.Module) -> nn.Module:
    """Put `KerasBatchNorm` in the place of a module's batch normalizations, and return it."""
    for name, layer in list(module.named_modules()):
        if is_batch_norm(layer):
            module.set_submodule(name, KerasBatchNorm(layer))
    return module


def keras_with_masks(keras_model: Any, masks: DropoutMasks) -> Any:
    """Copy a Keras model without its weights, with dropout layers as `torch_with_masks`."""
    indices = {id(layer): index for index, layer in enumerate(_keras_dropouts(keras_model))}
    graph = Graph(keras_model)
    orders = feature_orders(graph)
    features = {id(call.operation): orders.of_input(call) for call in reversed(graph.calls)}

    def clone(layer: Any) -> Any:
        if id(layer) not in indices:
            return type(layer).from_config(layer.get_config())
        kind = type(layer).__name__
        if kind not in _KERAS_DROPOUTS or getattr(layer, "noise_shape", None):
            raise ValueError(_unknown(layer.name, kind, "Dropout or SpatialDropout1D, 2D or 3D"))
        flattened = features[id(layer)]
        order = flattened.order if flattened else None
        draw = _keras_mask(layer, indices[id(layer)], order, masks)
        return _masked_layer()(draw, name=layer.name, dtype=layer.dtype_policy)

    return import_keras().models.clone_model(keras_model, clone_function=clone, recursive=True)


def check_dropouts(module: nn.Module, keras_model: Any) -> None:
    """Refuse sides with different numbers of dropout layers, which are matched by order."""
    ours, theirs = sum(map(_is_dropout, module.modules())), len(_keras_dropouts(keras_model))
    if ours != theirs:
        raise ValueError(
            f"the PyTorch module has {ours} dropout layers and the Keras model {theirs}: "
            "give both the same"
        )


def _keras_dropouts(keras_model: Any) -> list[Any]:
    return [layer for layer in keras_layers(keras_model) if _is_dropout(layer)]


def _is_dropout(layer: Any) -> bool:
    return "Dropout" in type(layer).__name__  # also of the kinds that are refused


class _MaskedDropout(nn.Module):
    def __init__(self, rate: float, index: int, of_channels: bool, masks: DropoutMasks) -> None:
        super().__init__()
        self.rate, self.index, self.of_channels, self.masks = rate, index, of_channels, masks

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        shape = tuple(x.shape[:2] if self.of_channels else x.shape)
        mask = torch.from_numpy(self.masks.mask(self.index, shape, self.rate)).to(x)
        return x * mask.reshape(shape + (1,) * (x.ndim - mask.ndim))


def _keras_mask(
    layer: Any, index: int, flattened: Order | None, masks: DropoutMasks
) -> Callable[[tuple[int, ...]], Array]:
    """Make the function that returns a Keras layer's mask for an input shape, channels last."""
    of_channels, rate = _KERAS_DROPOUTS[type(layer).__name__], float(layer.rate)

    def draw(shape: tuple[int, ...]) -> Array:
        batch, *space, channels = shape
        if of_channels:
            mask = masks.mask(index, (batch, channels), rate)
            return mask.reshape(batch, *[1] * len(space), channels)
        if space:
            return np.moveaxis(masks.mask(index, (batch, channels, *space), rate), 1, -1)
        return _FEATURES.to_keras(masks.mask(index, shape, rate), inputs=flattened).T

    return draw


@cache
def _masked_layer() -> Any:
    """Make the Keras layer's class, whose base class is known only once Keras is imported."""
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
    exact_norms: bool = True,
) -> Check:
    """Train copies of both sides on the same batches, and compare them after every step.

    Both start from the module's weights. A loss's difference is relative to the largest loss so
    far, a weight's in float64 to the largest weight. In float32 the norm of a tensor's difference
    is compared with the norm of its layer's weights: where a gradient is hardly larger than its
    rounding error, Adam divides one by the other, and single weights differ by up to 1e-4 although
    nothing is wrong.

    Args:
        module: The PyTorch side.
        keras_model: The Keras side. The precision of both sets the tolerance.
        batches: Images, float32 `(N, C, H, W)`, and labels, int64 `(N,)`; at least `steps`.
        make_optimizer: Makes the optimizer of the copy's parameters.
        make_keras_optimizer: Makes Keras's, in the precision of the model.
        steps: Number of steps, at least 1.
        seed: Seed of the dropout masks.
        exact_norms: Whether `KerasBatchNorm` takes the place of PyTorch's batch normalization.

    Raises:
        ValueError: There are fewer batches; or the sides have other weights or dropout layers.
    """
    check_dropouts(module, keras_model)
    dtype = precision(module, keras_model)
    masks = DropoutMasks(seed)
    copy = torch_with_masks(module, masks)
    ours = _TorchSide(with_keras_batch_norms(copy) if exact_norms else copy, make_optimizer)
    theirs = _KerasSide(keras_with_masks(keras_model, masks), make_keras_optimizer, dtype)
    copy_weights(ours.module, theirs.model)
    pairs = match(ours.module, theirs.model)
    worst, largest_loss, done = _Worst(TOLERANCES[dtype]), 0.0, 0
    for done, (images, labels) in enumerate(islice(batches, steps), start=1):
        masks.step = done - 1
        our_loss, their_loss = ours.step(images, labels), theirs.step(images, labels)
        largest_loss = max(largest_loss, abs(our_loss), abs(their_loss))
        worst.add(done, "the loss", 1, abs(our_loss - their_loss) / (largest_loss or 1))
        for pair, difference in _differences(pairs, is_double=dtype == "float64"):
            worst.add(done, pair.torch_name, pair.variable.value.shape.num_elements(), difference)
    if done < steps:
        raise ValueError(f"steps is {steps}, but there are only {done} batches: take fewer steps")
    name = f"{steps} training step{'s' * (steps > 1)}, {dtype}"
    return Check(name, worst.compared, worst.difference, worst.tolerance, worst.note)


def _differences(pairs: list[Match], is_double: bool) -> Iterator[tuple[Match, float]]:
    """Yield the relative difference of each pair, as `trajectory` defines it for the precision."""
    scales: dict[str, float] = {}
    differences = []
    for pair in pairs:
        # In Keras's layout, where two tensors that are added up are one.
        ours, theirs = pair.to_keras(), np.asarray(pair.variable)
        size = max(_size(ours, is_double), _size(theirs, is_double))
        key = "" if is_double else pair.layer
        before = scales.get(key, 0.0)
        scales[key] = max(before, size) if is_double else math.hypot(before, size)
        differences.append((pair, key, _size(ours - theirs, is_double)))
    for pair, key, difference in differences:
        yield pair, difference / (scales[key] or 1.0)


def _size(array: Array, is_double: bool) -> float:
    # The norm in float64, in which squares of small differences are not lost.
    return float(np.abs(array).max() if is_double else np.linalg.norm(array.astype(np.float64)))


@dataclass
class _Worst:
    """The largest difference of a trajectory so far, and the first beyond the tolerance."""

    tolerance: float
    compared: int = 0
    difference: float = 0.0
    most: str = ""
    first: str = ""

    def add(self, step: int, name: str, compared: int, difference: float) -> None:
        difference = float(np.nan_to_num(difference, nan=np.inf))
        where = f"{name.removeprefix('network.')} at step {step}"
        self.compared += compared
        if difference > self.difference:
            self.difference, self.most = difference, where
        if difference > self.tolerance and not self.first:
            self.first = where

    @property
    def note(self) -> str:
        most = f"most in {self.most}" if self.most else ""
        return f"exceeded first in {self.first}, {most}" if self.first else most


class _TorchSide:
    def __init__(self, module: nn.Module, make_optimizer: MakeOptimizer) -> None:
        self.module = module.train()
        self.optimizer = make_optimizer(module.parameters())

    def step(self, images: Tensor, labels: Tensor) -> float:
        """Take an optimizer step, and return the loss before it."""
        self.optimizer.zero_grad()
        logits = self.module(torch_inputs(self.module, images))
        loss = cross_entropy(logits, labels.to(logits.device))
        loss.backward()  # type: ignore[no-untyped-call]  # torch's own
        self.optimizer.step()
        return loss.item()


class _KerasSide:
    def __init__(self, model: Any, make_optimizer: Callable[[], Any], dtype: Any) -> None:
        self.model = model
        with keras_dtype(dtype):
            self.optimizer = make_optimizer()  # its learning rate gets the current float type
            self.optimizer.build(model.trainable_variables)
        # Traced once, a step takes half the time of an eager one, and returns the same bits.
        tensorflow, (images,) = import_tensorflow(), model.inputs
        self._traced = tensorflow.function(self._step).get_concrete_function(
            tensorflow.TensorSpec(images.shape, images.dtype),
            tensorflow.TensorSpec((None,), "int64"),
        )

    def step(self, images: Tensor, labels: Tensor) -> float:
        """Take an optimizer step, and return the loss before it."""
        constant, (read,) = import_tensorflow().constant, keras_inputs(self.model, images)[0]
        return float(self._traced(constant(read), constant(labels.cpu().numpy())))

    def _step(self, images: Any, labels: Any) -> Any:
        keras, variables = import_keras(), self.model.trainable_variables
        with import_tensorflow().GradientTape() as tape:
            logits = self.model(images, training=True)
            loss = keras.ops.mean(
                keras.losses.sparse_categorical_crossentropy(labels, logits, from_logits=True)
            )
            for penalty in self.model.losses:  # of a regularizer, with which `fit` trains too
                loss += penalty
        gradients = tape.gradient(loss, [variable.value for variable in variables])
        self.optimizer.apply(gradients, variables)
        return loss
