"""Copies of Keras's layers in another precision, in which rounding hides nothing.

TensorFlow holds some constants in float32 even in float64: the slope of a leaky ReLU, the square
root in GELU, Python numbers that Keras casts (`Rescaling`, `Normalization`, limits of `ReLU`). The
context `exact_constants` computes with all of their digits.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from math import pi, sqrt
from typing import Any
from unittest.mock import patch

import numpy as np

from digitlab.parity.backend import (
    Policy,
    import_keras,
    import_tensorflow,
    keras_dtype,
    unchanged_random_state,
)
from digitlab.parity.graph import Call, Graph, evaluate, first_line
from digitlab.parity.layouts import relative_difference


class CopyError(ValueError):
    """A layer that cannot be copied in float64; the message names it, the reason and the remedy."""


def copy_layer(layer: Any, policy: Policy) -> Any:
    """Copy a layer and its weights in another precision, with nothing frozen, or raise CopyError.

    An operation that is no layer is returned as it is. What TensorFlow cannot compute channels
    first on a CPU is computed channels last.
    """
    if not isinstance(layer, import_keras().layers.Layer):
        return layer
    with keras_dtype(policy), unchanged_random_state(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Keras warns of Python functions in a configuration
        # A user's layer may raise anything when it is copied.
        try:
            made = _made_again(layer)
            shapes = layer.get_build_config()
            if transposed := is_channels_first_on_cpu(layer):
                made = _made_again(layer, channels_last=True)
                if shapes:
                    batch, channels, *space = shapes["input_shape"]
                    shapes = {"input_shape": (batch, *space, channels)}
            if layer.built and not made.built:
                made.build_from_config(shapes)
            made.set_weights(layer.get_weights())
        except Exception as error:
            raise CopyError(
                f"{layer.name} cannot be copied in {policy} ({type(error).__name__}): give "
                f"{type(layer).__name__} a get_config that has all its arguments"
            ) from error
    for part in made._flatten_layers():  # the layer's own switch misses those frozen by a config
        part.trainable = True
        if part.compute_dtype != policy:
            raise CopyError(
                f"{layer.name} computes in {part.compute_dtype} whatever its dtype is: let "
                f"{type(layer).__name__} pass its dtype on"
            )
    return _ChannelsFirst(made) if transposed else made


def is_channels_first_on_cpu(operation: Any) -> bool:
    """Return whether TensorFlow refuses an operation on a CPU for its layout."""
    if getattr(operation, "data_format", None) != "channels_first":
        return False
    kind = type(operation).__name__
    computed = "Conv" in kind or ("Pool" in kind and "Global" not in kind)
    return computed and not import_tensorflow().config.list_logical_devices("GPU")


def _made_again(layer: Any, channels_last: bool = False) -> Any:
    config = _without_dtype(layer.get_config())
    config.pop("dtype", None)  # also where Keras infers the configuration, without a name
    if channels_last:
        config["data_format"] = "channels_last"
    try:
        return type(layer).from_config(config)
    except Exception:
        # Keras refuses to make a Python function from a file; here the function itself is at hand.
        functions = {
            key: value
            for key in config
            if callable(value := getattr(layer, key, None))
            and not isinstance(value, import_keras().layers.Layer)
        }
        if not functions:
            raise
        if "function" in config:  # a Lambda's configuration has more than its arguments
            config.pop("function_config", None)
        return type(layer)(**config | functions)


def _without_dtype(config: Any) -> Any:  # of a layer, and of the layers in it
    if isinstance(config, list | tuple):
        return type(config)(map(_without_dtype, config))
    if not isinstance(config, dict):
        return config
    return {
        key: _without_dtype(value)
        for key, value in config.items()
        if key != "dtype" or "name" not in config
    }


@contextmanager
def exact_constants() -> Iterator[None]:
    """Let TensorFlow compute casts of numbers, leaky ReLU and GELU with float64 constants."""
    tensorflow = import_tensorflow()
    cast, leaky_relu, gelu = tensorflow.cast, tensorflow.nn.leaky_relu, tensorflow.nn.gelu

    def exact_cast(x: Any, dtype: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(x, float) and tensorflow.as_dtype(dtype) == tensorflow.float64:
            return tensorflow.constant(x, tensorflow.float64)
        return cast(x, dtype, *args, **kwargs)

    def exact_leaky_relu(features: Any, alpha: float = 0.2, name: str | None = None) -> Any:
        if features.dtype != tensorflow.float64:
            return leaky_relu(features, alpha, name)
        return tensorflow.where(features > 0, features, alpha * features)

    def exact_gelu(features: Any, approximate: bool = False, name: str | None = None) -> Any:
        if features.dtype != tensorflow.float64:
            return gelu(features, approximate, name)
        if approximate:
            inner = sqrt(2 / pi) * (features + 0.044715 * features**3)
            return 0.5 * features * (1 + tensorflow.tanh(inner))
        return 0.5 * features * (1 + tensorflow.math.erf(features / sqrt(2)))

    with (
        patch.object(tensorflow, "cast", exact_cast),
        patch.object(tensorflow.nn, "leaky_relu", exact_leaky_relu),
        patch.object(tensorflow.nn, "gelu", exact_gelu),
    ):
        yield


class CopiedModel(Graph):
    """A Keras model whose layers are copies in one precision, with nothing frozen, or CopyError.

    Attributes:
        copies: By `id` of a layer, its copy.
        variables: By `id` of a layer's variable, its copy.
        is_exact: Whether to compute with `exact_constants`; off at first.
        rounded: By name of a layer whose constants TensorFlow holds in float32, the relative
            difference that this makes to its output.
    """

    def __init__(self, graph: Graph, policy: Policy = "float64") -> None:
        vars(self).update(vars(graph))
        self.policy, self.is_exact = policy, False
        for layer in graph.layers:
            resizes = type(layer).__name__ in ("UpSampling2D", "Resizing", "Resize")
            interpolates = resizes and getattr(layer, "interpolation", "nearest") != "nearest"
            if policy == "float64" and interpolates:
                raise CopyError(
                    f"TensorFlow computes {layer.name} in float32: interpolate to the nearest "
                    "value, or outside the model"
                )
        self.copies = {id(layer): copy_layer(layer, policy) for layer in graph.layers}
        self.variables = {
            id(variable): copy
            for layer in graph.layers
            if hasattr(layer, "weights")
            for variable, copy in zip(layer.weights, self.copies[id(layer)].weights, strict=True)
        }
        self.rounded: dict[str, float] = {}

    @property
    def dtypes(self) -> set[str]:
        """The dtype of the copies."""
        return {str(self.policy)}

    def output(self, inputs: Sequence[Any]) -> Any:
        """Compute the output of the copies."""
        return self.run(inputs)[self.outputs[0]]

    def _evaluate(self, call: Call, args: Any, kwargs: Any, is_exact: bool) -> Any:
        copy = self.copies[id(call.operation)]
        if getattr(copy, "input_mean", None) is not None:  # a Normalization
            dtype, built = (np.float64 if is_exact else np.float32), copy._build_input_shape
            copy.input_mean, copy.input_variance = (
                np.asarray(value, dtype)
                for value in (call.operation.input_mean, call.operation.input_variance)
            )
            copy.build(built)
        # An argument may be a variable of the model.
        copied = import_keras().tree.map_structure(
            lambda value: self.variables.get(id(value), value), (args, kwargs)
        )
        with exact_constants() if is_exact else nullcontext():
            return evaluate(copy, *copied)

    def run(
        self,
        inputs: Sequence[Any],
        before: Callable[[Call, tuple[Any, ...]], None] = lambda call, args: None,
        watch: bool = False,
    ) -> list[Any]:
        """Compute all values, or raise CopyError.

        `before` gets each call and its arguments before it is computed; `watch` compares each copy
        with its layer, and notes in `rounded` what TensorFlow's constants change.
        """

        def compute(call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            before(call, args)
            try:
                made = self._evaluate(call, args, kwargs, self.is_exact)
            except Exception as error:  # a user's layer may raise anything
                raise CopyError(
                    f"{call.name} cannot be computed in {self.policy} ({first_line(error)}): "
                    "replace it by layers that can"
                ) from error
            if watch:
                self._watch(call, args, kwargs, made)
            return made

        return self._run(inputs, compute)

    def _watch(self, call: Call, args: Any, kwargs: Any, made: Any) -> None:
        copy, tree = self.copies[id(call.operation)], import_keras().tree
        other = self._evaluate(call, args, kwargs, not self.is_exact)
        if difference := _largest_difference(made, other):
            self.rounded[call.name] = max(self.rounded.get(call.name, 0.0), difference)
        if copy is call.operation or isinstance(copy, _ChannelsFirst):
            return
        # A copy lacks what a layer's configuration does not contain.
        original = evaluate(call.operation, *tree.map_structure(_as_float32, (args, kwargs)))
        if not _largest_difference(made, original) < 1e-3:
            raise CopyError(
                f"the copy of {call.name} computes something else: give "
                f"{type(call.operation).__name__} a get_config that has all its arguments"
            )


class _ChannelsFirst:
    """Computes a layer in the layout `channels_first` by the same one in `channels_last`."""

    def __init__(self, layer: Any) -> None:
        self.layer, self.weights, self.name = layer, layer.weights, layer.name

    def __call__(self, inputs: Any) -> Any:
        """Compute the layer, `(N, C, ...)` to `(N, C, ...)`."""
        ops = import_keras().ops
        return ops.moveaxis(self.layer(ops.moveaxis(inputs, 1, -1)), -1, 1)


def _as_float32(value: Any) -> Any:
    tensorflow = import_tensorflow()
    is_double = getattr(value, "dtype", None) == tensorflow.float64
    return tensorflow.cast(value, tensorflow.float32) if is_double else value


def _largest_difference(ours: Any, theirs: Any) -> float:  # of the floats in two structures
    flatten = import_keras().tree.flatten
    pairs = [list(map(np.asarray, it)) for it in zip(flatten(ours), flatten(theirs), strict=True)]
    return max((relative_difference(*it) for it in pairs if it[0].dtype.kind == "f"), default=0.0)
