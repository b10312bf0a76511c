"""Steps 5 and 6 of the comparison: single steps of the optimizers, and a whole trajectory."""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from digitlab.parity.backend import import_keras, import_tensorflow, keras_dtype
from digitlab.parity.compare import TOLERANCES, Check, relative_difference
from digitlab.parity.formulas import FORMULAS
from digitlab.parity.layout import Array
from digitlab.parity.masks import Masks, check_dropouts, masked_model, masked_module
from digitlab.parity.recipe import exact_optimizer, keras_settings, to_keras_optimizer
from digitlab.parity.sides import keras_images, precision, torch_images
from digitlab.parity.weights import Match, copy_weights, match

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
