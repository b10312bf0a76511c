"""The checks of training: single optimizer steps, and whole trainings with dropout."""

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
from torch.nn.functional import cross_entropy

from digitlab.parity.backend import import_keras, import_tensorflow, keras_dtype
from digitlab.parity.checks import (
    TOLERANCES,
    Check,
    keras_images,
    precision,
    relative_difference,
    torch_images,
)
from digitlab.parity.formulas import FORMULAS
from digitlab.parity.optimizers import exact_optimizer, keras_settings, to_keras_optimizer
from digitlab.parity.weights import (
    Array,
    Layout,
    Match,
    copy_weights,
    flattened_in,
    inputs_within,
    keras_layers,
    match,
)

# They drop whole channels.
_OF_CHANNELS = ("Dropout1d", "Dropout2d", "Dropout3d")
_OF_CHANNELS_IN_KERAS = ("SpatialDropout1D", "SpatialDropout2D", "SpatialDropout3D")
_FEATURES = Layout("uniform", (1, 0), per_input=True)  # flattened ones are in another order


@dataclass
class Masks:
    """Uniform numbers for the dropout of both sides, a function of seed, layer and step alone.

    Args:
        seed: At least 0 and below 2⁶⁴.
        step: The training step, from 0; set it before each.

    Examples:
        >>> Masks(seed=0).uniform(layer=0, shape=(2,)).round(3).tolist()
        [0.012, 0.242]
        >>> Masks(seed=0, step=1).uniform(layer=0, shape=(2,)).round(3).tolist()
        [0.342, 0.577]
    """

    seed: int = 0
    step: int = 0

    def uniform(self, layer: int, shape: tuple[int, ...]) -> Array:
        """Give numbers in [0, 1), float64, for a dropout layer.

        Args:
            layer: The layer's place among the network's dropout layers, from 0.
            shape: Of the layer's input in PyTorch's layout; `(N, C)` where whole channels are
                dropped.
        """
        # Philox turns a key and a counter into numbers: nothing is left over from another layer or
        # step. The counter's last word leaves 2¹⁹² blocks of numbers to a step.
        philox = np.random.Philox(key=[self.seed, layer], counter=[0, 0, 0, self.step])
        return np.random.Generator(philox).random(shape)


def masked_module(module: nn.Module, masks: Masks) -> nn.Module:
    """Copy a module, with dropout that reads its numbers from `masks` while it trains.

    Raises:
        ValueError: It has a dropout of another kind than `nn.Dropout` and `nn.Dropout1d` to `3d`.
    """
    copy = deepcopy(module)
    dropouts = [(name, layer) for name, layer in copy.named_modules() if _is_dropout(layer)]
    for place, (name, layer) in enumerate(dropouts):
        kind = type(layer).__name__
        if kind not in ("Dropout", *_OF_CHANNELS):
            raise ValueError(_unknown(name, kind, "nn.Dropout or nn.Dropout1d, 2d or 3d"))
        rate: Any = layer.p
        copy.set_submodule(name, _MaskedDropout(rate, place, kind in _OF_CHANNELS, masks))
    return copy


def masked_model(keras_model: Any, masks: Masks) -> Any:
    """Copy a Keras model, with dropout that reads its numbers from `masks` while it trains.

    The copy's weights are new: give it some.

    Raises:
        ValueError: It has a dropout of another kind than `Dropout` and `SpatialDropout1D` to `3D`.
    """
    places = {id(layer): place for place, layer in enumerate(_keras_dropouts(keras_model))}
    within = inputs_within(keras_model)

    def clone(layer: Any) -> Any:
        if id(layer) not in places:
            return type(layer).from_config(layer.get_config())
        kind = type(layer).__name__
        if kind not in ("Dropout", *_OF_CHANNELS_IN_KERAS) or getattr(layer, "noise_shape", None):
            raise ValueError(_unknown(layer.name, kind, "Dropout or SpatialDropout1D, 2D or 3D"))
        flattened = flattened_in(layer.input, within)
        draw = _keras_mask(layer, places[id(layer)], flattened, masks)
        return _masked_layer()(draw, name=layer.name, dtype=layer.dtype_policy)

    return import_keras().models.clone_model(keras_model, clone_function=clone, recursive=True)


def check_dropouts(module: nn.Module, keras_model: Any) -> None:
    """Check that both sides have equally many dropout layers, which are matched by their order.

    Raises:
        ValueError: They have not.
    """
    ours = sum(map(_is_dropout, module.modules()))
    theirs = len(_keras_dropouts(keras_model))
    if ours != theirs:
        raise ValueError(
            f"the PyTorch module has {ours} dropout layers and the Keras model {theirs}: "
            "give both the same"
        )


def _keras_dropouts(keras_model: Any) -> list[Any]:
    return [layer for layer in keras_layers(keras_model) if _is_dropout(layer)]


def _is_dropout(layer: Any) -> bool:
    return "Dropout" in type(layer).__name__  # also of the kinds that are refused


def _mask(uniform: Array, rate: float) -> Array:
    """Keep a share of `1 - rate`, enlarged so that the mean stays, and make the others 0."""
    return (uniform >= rate) * (1 / (1 - rate) if rate < 1 else 0.0)


class _MaskedDropout(nn.Module):
    def __init__(self, rate: float, place: int, of_channels: bool, masks: Masks) -> None:
        super().__init__()
        self.rate, self.place, self.of_channels, self.masks = rate, place, of_channels, masks

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        shape = tuple(x.shape[:2] if self.of_channels else x.shape)
        mask = torch.from_numpy(_mask(self.masks.uniform(self.place, shape), self.rate)).to(x)
        return x * mask.reshape(shape + (1,) * (x.ndim - mask.ndim))


def _keras_mask(
    layer: Any, place: int, flattened: tuple[int, ...] | None, masks: Masks
) -> Callable[[tuple[int, ...]], Array]:
    """Make the function that gives the mask for an input, channels last, of a Keras layer."""
    of_channels = type(layer).__name__ in _OF_CHANNELS_IN_KERAS

    def draw(shape: tuple[int, ...]) -> Array:
        batch, *space, channels = shape
        if of_channels:
            uniform = masks.uniform(place, (batch, channels))
            uniform = uniform.reshape(batch, *[1] * len(space), channels)
        elif space:
            uniform = np.moveaxis(masks.uniform(place, (batch, channels, *space)), 1, -1)
        else:
            uniform = _FEATURES.to_keras(masks.uniform(place, shape), flattened).T
        return _mask(uniform, float(layer.rate))

    return draw


@cache
def _masked_layer() -> Any:
    """Make the class of the Keras layer, which needs Keras to be derived from."""
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
    return f"{name} is a {kind}, whose random numbers cannot be given: use {known}"


Batch = tuple[Tensor, Tensor]
MakeOptimizer = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]


def optimizer_steps(optimizer: torch.optim.Optimizer, steps: int = 5, seed: int = 0) -> list[Check]:
    """Compare the steps of both frameworks' optimizers with the formula in NumPy, in float64.

    Weights and gradients are random. The gradients are of sizes from 1e-9 to 1, so that an epsilon
    in another place, or of another size, is seen.

    Args:
        optimizer: Its settings are used, its parameters and its state are not.
        steps: Number of steps, at least 1.
        seed: Of the random weights and gradients.

    Returns:
        A check for PyTorch and one for Keras.

    Raises:
        ValueError: The optimizer has no counterpart in Keras.
    """
    kind, settings = keras_settings(optimizer)
    random = np.random.default_rng(seed)
    weights = random.normal(0, 0.01, 1000)
    sizes = 10 ** random.uniform(-9, 0, 1000)
    gradients = random.normal(0, sizes, (steps, 1000))
    formula = np.array(list(FORMULAS[kind](weights, gradients, **settings)))

    parameter = nn.Parameter(torch.from_numpy(weights.copy()))
    exact = exact_optimizer(optimizer, [parameter])
    with keras_dtype("float64"):
        variable = import_keras().Variable(weights)
        theirs = to_keras_optimizer(optimizer)
    paths: dict[str, list[Array]] = {"torch": [], "keras": []}
    for gradient in gradients:
        parameter.grad = torch.from_numpy(gradient)
        exact.step()
        paths["torch"].append(parameter.detach().numpy().copy())
        theirs.apply([import_tensorflow().constant(gradient)], [variable])
        paths["keras"].append(variable.numpy().copy())
    names = {"torch": type(exact).__name__, "keras": type(theirs).__name__}
    return [
        Check(
            f"{steps} optimizer steps, {side}, float64",
            formula.size,
            relative_difference(np.array(path), formula),
            TOLERANCES["float64"],
            f"{names[side]} against its formula in NumPy",
        )
        for side, path in paths.items()
    ]


def trajectory(
    module: nn.Module,
    keras_model: Any,
    batches: Iterable[Batch],
    make_optimizer: MakeOptimizer,
    make_keras_optimizer: Callable[[], Any],
    steps: int,
    seed: int = 0,
) -> Check:
    """Train both sides with the same batches and dropout, and compare them after every step.

    Both start from the module's weights. A loss's difference is relative to the largest loss so
    far, that of a weight in float64 to the largest weight. In float32 a tensor's difference is a
    length, as of vectors, and relative to the length of all weights of its layer: where a gradient
    is hardly larger than its rounding, Adam divides one by the other, and single weights differ by
    up to 1e-4 although nothing is wrong.

    Args:
        module: The PyTorch side, which stays as it is: a copy is trained.
        keras_model: The Keras side, of which a copy is trained too. Its precision and the module's
            set the tolerance.
        batches: Images, float32 `(N, C, H, W)`, and labels, int64 `(N,)`; at least `steps`.
        make_optimizer: Makes the optimizer of the copy's parameters.
        make_keras_optimizer: Makes Keras's, in the precision of the model.
        steps: Number of steps, at least 1.
        seed: Of the dropout.

    Returns:
        A check whose note says where they differ most, and where the tolerance is exceeded first.

    Raises:
        ValueError: There are fewer batches; or the sides do not match in their weights or dropouts.
    """
    check_dropouts(module, keras_model)
    dtype = precision(module, keras_model)
    masks = Masks(seed)
    ours = _TorchSide(masked_module(module, masks), make_optimizer)
    theirs = _KerasSide(masked_model(keras_model, masks), make_keras_optimizer, dtype)
    copy_weights(ours.module, theirs.model)
    pairs = match(ours.module, theirs.model)
    found, largest_loss, done = _Found(TOLERANCES[dtype]), 0.0, 0
    for done, (images, labels) in enumerate(islice(batches, steps), start=1):
        masks.step = done - 1
        our_loss, their_loss = ours.step(images, labels), theirs.step(images, labels)
        largest_loss = max(largest_loss, abs(our_loss), abs(their_loss))
        found.add(done, "the loss", 1, abs(our_loss - their_loss) / (largest_loss or 1))
        differences = _largest_differences if dtype == "float64" else _lengths_of_differences
        for name, size, difference in differences(pairs):
            found.add(done, name, size, difference)
    if done < steps:
        raise ValueError(f"steps is {steps}, but there are only {done} batches: take fewer steps")
    name = f"{steps} training step{'s' * (steps > 1)}, {dtype}"
    return Check(name, found.compared, found.difference, found.tolerance, found.note)


def _largest_differences(pairs: list[Match]) -> Iterator[tuple[str, int, float]]:
    """Yield each tensor's name, size and largest difference, relative to the largest weight."""
    largest = 0.0
    differences = {}
    for pair in pairs:
        ours, theirs = pair.tensor.detach().cpu().numpy(), pair.to_torch(pair.variable)
        largest = max(largest, float(np.abs(ours).max()), float(np.abs(theirs).max()))
        differences[pair.torch_name] = float(np.abs(ours - theirs).max())
    for pair in pairs:
        difference = differences[pair.torch_name] / (largest or 1.0)
        yield pair.torch_name, pair.tensor.numel(), difference


def _lengths_of_differences(pairs: list[Match]) -> Iterator[tuple[str, int, float]]:
    """Yield each tensor's name, size and length of difference, relative to its layer's length."""
    lengths: dict[str, float] = {}
    differences = {}
    for pair in pairs:
        ours, theirs = pair.tensor.detach().cpu().numpy(), pair.to_torch(pair.variable)
        length = max(_length(ours), _length(theirs))
        lengths[pair.layer] = math.hypot(lengths.get(pair.layer, 0.0), length)
        differences[pair.torch_name] = _length(ours - theirs)
    for pair in pairs:
        difference = differences[pair.torch_name] / (lengths[pair.layer] or 1.0)
        yield pair.torch_name, pair.tensor.numel(), difference


def _length(array: Array) -> float:
    return float(np.linalg.norm(array.astype(np.float64, copy=False)))


@dataclass
class _Found:
    """What a trajectory has come to so far."""

    tolerance: float
    compared: int = 0
    difference: float = 0.0
    most: str = ""
    first: str = ""

    def add(self, step: int, name: str, compared: int, difference: float) -> None:
        difference = float(np.nan_to_num(difference, nan=np.inf))
        name = name.removeprefix("network.")  # as all names of a Classifier begin
        self.compared += compared
        if difference > self.difference:
            self.difference, self.most = difference, f"{name} at step {step}"
        if difference > self.tolerance and not self.first:
            self.first = f"{name} at step {step}"

    @property
    def note(self) -> str:
        if self.first:
            return f"exceeded first in {self.first}, most in {self.most}"
        return f"most in {self.most}" if self.most else ""


class _TorchSide:
    def __init__(self, module: nn.Module, make_optimizer: MakeOptimizer) -> None:
        self.module = module.train()
        self.optimizer = make_optimizer(module.parameters())

    def step(self, images: Tensor, labels: Tensor) -> float:
        """Take an optimizer step, and give the loss before it."""
        self.optimizer.zero_grad()
        logits = self.module(torch_images(self.module, images))
        loss = cross_entropy(logits, labels.to(logits.device))
        loss.backward()  # type: ignore[no-untyped-call]  # torch's own
        self.optimizer.step()
        return loss.item()


class _KerasSide:
    def __init__(self, model: Any, make_optimizer: Callable[[], Any], dtype: Any) -> None:
        self.model = model
        with keras_dtype(dtype):
            self.optimizer = make_optimizer()  # its learning rate is of the precision of now
            self.optimizer.build(model.trainable_variables)
        # Traced once, a step takes half the time of an eager one, and gives the same bits.
        tensorflow, (images,) = import_tensorflow(), model.inputs
        self._traced = tensorflow.function(self._step).get_concrete_function(
            tensorflow.TensorSpec(images.shape, images.dtype),
            tensorflow.TensorSpec((None,), "int64"),
        )

    def step(self, images: Tensor, labels: Tensor) -> float:
        """Take an optimizer step, and give the loss before it."""
        constant = import_tensorflow().constant
        loss = self._traced(
            constant(keras_images(self.model, images)), constant(labels.cpu().numpy())
        )
        return float(loss)

    def _step(self, images: Any, labels: Any) -> Any:
        variables = self.model.trainable_variables
        with import_tensorflow().GradientTape() as tape:
            logits = self.model(images, training=True)
            losses = import_keras().losses.sparse_categorical_crossentropy(
                labels, logits, from_logits=True
            )
            loss = import_keras().ops.mean(losses)
        gradients = tape.gradient(loss, [variable.value for variable in variables])
        self.optimizer.apply(gradients, variables)
        return loss
