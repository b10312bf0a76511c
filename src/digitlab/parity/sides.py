"""How a comparison evaluates its two sides: the same images, in the same precision, no dropout."""

from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from digitlab.parity.backend import Policy, import_keras, keras_dtype, unchanged_random_state
from digitlab.parity.compare import TOLERANCES
from digitlab.parity.layout import Array
from digitlab.parity.weights import keras_layers


def outputs(module: nn.Module, keras_model: Any, images: Tensor) -> tuple[Array, Array]:
    """Compute what both sides give of the same images, in PyTorch's layout.

    Args:
        module: The PyTorch side; its mode and its weights stay as they are.
        keras_model: The Keras side.
        images: Float32 `(N, C, H, W)`, normalized images.

    Raises:
        ValueError: The Keras model reads no such images, or a side gives more than one array.
    """
    read = keras_images(keras_model, images)
    with evaluation_mode(module), torch.no_grad():
        ours = sole_output(module(torch_images(module, images))).cpu().numpy()
    return ours, channels_first(keras_model(read, training=False))


def precision(module: nn.Module, keras_model: Any) -> str:
    """Give the coarser dtype of the two sides, `float32` or `float64`.

    Raises:
        ValueError: A side has another dtype.
    """
    ours = {str(t.dtype).removeprefix("torch.") for t in module.parameters()}
    found = ours | {layer.compute_dtype for layer in keras_layers(keras_model)}
    if unknown := sorted(found - set(TOLERANCES)):
        raise ValueError(
            f"a side computes in {unknown[0]}: compare in float32 or float64, "
            "as `module.float()` and Keras's dtype policy make them"
        )
    return min(found, default="float32")


@contextmanager
def evaluation_mode(module: nn.Module) -> Iterator[None]:
    """Turn dropout off in the `with` block, also where `eval()` leaves it on; restore the modes.

    What the block draws at random leaves the CPU's generator as it was.
    """
    modes = {part: part.training for part in module.modules()}
    try:
        for part in modes:
            part.training = False  # `train(False)` of a Classifier may keep dropout on
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        for part, mode in modes.items():
            part.training = mode


def torch_images(module: nn.Module, images: Tensor) -> Tensor:
    """Bring images to the device and dtype of a module's parameters."""
    parameter = next(module.parameters(), None)
    return images if parameter is None else images.to(parameter.device, parameter.dtype)


def keras_images(keras_model: Any, images: Tensor) -> Array:
    """Lay out images as a Keras model reads them.

    That is `(N, H, W, C)`; or, if only that fits the model's input, `(N, H, W)` of one channel,
    `(N, C·H·W)` in PyTorch's order, or `(N, C, H, W)`.

    Args:
        keras_model: Functional or sequential, with one input of known shape.
        images: `(N, C, H, W)`.

    Raises:
        ValueError: The images are not four-dimensional, or the model reads no such images.
    """
    if images.ndim != 4:
        raise ValueError(f"images are {tuple(images.shape)}: they must be (N, C, H, W)")
    wanted = tuple(sole_input(keras_model).shape[1:])
    array = images.detach().cpu().numpy()
    layouts = [array.transpose(0, 2, 3, 1), array.reshape(len(array), prod(array.shape[1:])), array]
    if images.shape[1] == 1:
        layouts.append(array[:, 0])
    for layout in layouts:
        shape = layout.shape[1:]
        if len(shape) == len(wanted) and all(
            size in (None, actual) for size, actual in zip(wanted, shape, strict=True)
        ):
            return np.ascontiguousarray(layout, dtype=str(sole_input(keras_model).dtype))
    raise ValueError(
        f"{keras_model.name} reads {wanted}, and the images are (C, H, W) = "
        f"{tuple(images.shape[1:])}: it must read (H, W, C), (H, W), (C·H·W,) or (C, H, W)"
    )


def sole_input(keras_model: Any) -> Any:
    """Give the one symbolic tensor that a Keras model reads.

    Raises:
        ValueError: It reads several, or none is known.
    """
    inputs = getattr(keras_model, "inputs", None) or []
    if len(inputs) != 1:
        raise ValueError(
            f"{keras_model.name} has {len(inputs)} inputs of known shape: give it one keras.Input"
        )
    return inputs[0]


def copy_in(keras_model: Any, policy: Policy) -> Any:
    """Copy a Keras model in another precision, with its weights, all of which are trainable."""
    keras = import_keras()

    def copy(layer: Any) -> Any:
        if hasattr(layer, "layers"):
            return keras.models.clone_model(layer, clone_function=copy)
        config = layer.get_config()
        config.pop("dtype", None)  # the policy sets it; not every user's layer takes it
        return type(layer).from_config(config)

    with keras_dtype(policy), unchanged_random_state():
        made = copy(keras_model)
    made.set_weights(keras_model.get_weights())
    for layer in keras_layers(made):  # the model's own switch misses what a config freezes
        layer.trainable = True
    return made


def channels_first(output: Any) -> Array:
    """Turn what a Keras layer gives, channels last, into PyTorch's layout.

    Raises:
        ValueError: It is not one tensor.
    """
    array: Array = import_keras().ops.convert_to_numpy(sole_output(output))
    return np.moveaxis(array, -1, 1) if array.ndim > 2 else array


def sole_output(output: Any) -> Any:
    """Give the one tensor that a model gives.

    Raises:
        ValueError: It gives several.
    """
    if isinstance(output, list | tuple | dict):
        raise ValueError(f"a side gives {len(output)} arrays: it must give the logits alone")
    return output
