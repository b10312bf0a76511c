"""What a pair is, how it is run and judged, and short forms to write its two sides.

Keras is imported when the first pair is built, so that the lists of pairs can be read without it.
"""

import re
import traceback
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from digitlab import parity

OURS = Path(parity.__file__).parents[1]
CLASSES = 4
"""Outputs of every network here that gives logits."""


class _Lazy:
    """A module of Keras that is imported when it is first used."""

    def __init__(self, *path: str) -> None:
        self._path = path

    def __getattr__(self, name: str) -> Any:
        value = parity.import_keras()
        for part in (*self._path, name):
            value = getattr(value, part)
        return value


keras = _Lazy()
L = _Lazy("layers")
ops = _Lazy("ops")


@dataclass(frozen=True)
class Expected:
    """What `parity.check` must say of a pair.

    Args:
        verdict: `passed`, `passed_float32`, `failed` or `refused`.
        names: Of a pair that fails, the layers of which one must be named; of a refused one, the
            words that the message must contain. Any will do if there are none.
    """

    verdict: str
    names: frozenset[str] = frozenset()

    def __str__(self) -> str:
        word = " at " if self.verdict == "failed" else ": "
        return self.verdict + (word + "/".join(sorted(self.names)) if self.names else "")


PASSED, FLOAT32 = Expected("passed"), Expected("passed_float32")


def fails(*names: str) -> Expected:
    """Expect a failure that names one of these Keras layers."""
    return Expected("failed", frozenset(names))


def refused(*words: str) -> Expected:
    """Expect a `ValueError` of digitlab's own with these words."""
    return Expected("refused", frozenset(words))


FAILS, REFUSED = fails("layer"), refused()


@dataclass(frozen=True)
class Pair:
    """A PyTorch module, a Keras model and what a comparison of the two must say.

    Args:
        name: Unique in its topic.
        expected: The right verdict.
        build: Makes both sides.
        shape: The shape of one input, if the inputs are random numbers.
        batches: Makes the batches; by default labels for inputs of `shape`.
        loss: As for `parity.check`.
        is_trained: Whether to give norms and biases values as after some training, and lazy layers
            their shapes.
    """

    name: str
    expected: Expected
    build: Callable[[], tuple[Any, Any]]
    shape: tuple[int, ...] = (1, 8, 8)
    batches: Callable[[], Any] | None = None
    loss: Any = "cross_entropy"
    is_trained: bool = True


@dataclass(frozen=True)
class Result:
    """What came of a pair: a verdict or `crash`, the layer named, the message."""

    pair: Pair
    verdict: str
    named: str | None = None
    words: str = ""
    details: str = field(default="", compare=False)

    @property
    def fault(self) -> str:
        """What is wrong with it; empty if nothing is."""
        wanted = self.pair.expected
        if self.verdict == "crash":
            return "crash"
        if self.verdict != wanted.verdict:
            accepted = self.verdict.startswith("passed")
            if wanted.verdict in ("passed", "passed_float32"):
                return "weaker or stronger verdict" if accepted else "false failure"
            return "wrong accept" if accepted else "another verdict"
        known = {self.named, re.sub(r"_\d+$", "", self.named or "")}  # Keras numbers names
        if self.verdict == "failed" and wanted.names and not known & wanted.names:
            return "wrong name"
        if any(others in self.words for others in ("Exception encountered", "{{", "\x1b")):
            return "poor words"  # of TensorFlow or Keras
        missing = [word for word in wanted.names if word not in self.words]
        one_line_with_remedy = "\n" not in self.words and ": " in self.words
        if self.verdict == "refused" and (missing or not one_line_with_remedy):
            return "poor words"
        return ""


def run(pair: Pair) -> Result:
    """Build a pair and compare its sides."""
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what the pair uses
        return _run(pair)


def _run(pair: Pair) -> Result:
    try:
        module, model = pair.build()
        batches = pair.batches() if pair.batches else labelled(pair.shape)
        if pair.is_trained and isinstance(module, nn.Module):
            if any(map(is_lazy, module.parameters())):
                module(batches[0][0])
            as_trained(module)
    except Exception as error:
        words = f"the pair itself is wrong: {type(error).__name__}: {error}"
        return Result(pair, "crash", None, words, traceback.format_exc())
    try:
        report = parity.check(module, model, batches, loss=pair.loss)
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        is_ours = isinstance(error, ValueError) and Path(frames[-1].filename).is_relative_to(OURS)
        words = str(error) if is_ours else f"{type(error).__name__}: {str(error)[:300]}"
        place = "".join(traceback.format_list(frames[-6:]))
        return Result(pair, "refused" if is_ours else "crash", None, words, place)
    return Result(pair, report.verdict, report.first_divergence, report.only_float32, str(report))


def as_trained(module: nn.Module) -> None:
    """Give biases, norms, running statistics and constant tensors values as after training."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in (*module.named_parameters(), *module.named_buffers()):
            if not tensor.is_floating_point():
                continue
            drawn = torch.rand(tensor.shape, generator=generator).to(tensor)
            if "running_var" in name or (tensor.ndim < 2 and name.endswith("weight")):
                tensor.copy_(0.5 + drawn)
            elif tensor.ndim < 2 or (tensor == tensor.flatten()[0]).all():
                tensor.copy_(drawn - 0.4)


def labelled(shape: tuple[int, ...], classes: int = CLASSES) -> list[tuple[Tensor, Tensor]]:
    """Make two batches of random inputs with labels."""
    draw = torch.Generator().manual_seed(1)
    return [
        (torch.randn(n, *shape, generator=draw), torch.randint(classes, (n,), generator=draw))
        for n in (5, 3)
    ]


def tokens(length: int, size: int = 12, lowest: int = 0) -> list[tuple[Tensor, Tensor]]:
    """Make two batches of integers below `size` with labels."""
    draw = torch.Generator().manual_seed(1)
    return [
        (
            torch.randint(lowest, size, (n, length), generator=draw),
            torch.randint(CLASSES, (n,), generator=draw),
        )
        for n in (5, 3)
    ]


class Net(nn.Module):
    """A module made of named layers, parameters and buffers, and a function as its `forward`.

    Args:
        function: Called with the module and what it reads.
        **children: Its attributes; tensors become buffers.
    """

    def __init__(self, function: Callable[..., Any], **children: Any) -> None:
        super().__init__()
        self.function = function
        for name, child in children.items():
            if isinstance(child, Tensor) and not isinstance(child, nn.Parameter):
                self.register_buffer(name, child)
            else:
                setattr(self, name, child)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Compute the function."""
        return self.function(self, *args, **kwargs)


class Function(nn.Module):
    """A function of one tensor as a layer."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        """Compute the function."""
        return self.function(x)


def sequential(*layers: Any, shape: tuple[int | None, ...] = (8, 8, 1)) -> Any:
    """Build a `keras.Sequential` that reads one input of a shape."""
    return keras.Sequential([keras.Input(shape), *layers])


def functional(function: Callable[..., Any], *shapes: Any, **options: Any) -> Any:
    """Build a functional model of a function of symbolic inputs, 8×8 images by default."""
    inputs = [keras.Input(shape, **options) for shape in shapes or [(8, 8, 1)]]
    return keras.Model(inputs[0] if len(inputs) == 1 else inputs, function(*inputs))


def weighted(
    function: Callable[..., Any], name: str, trainable: bool = True, /, **shapes: tuple[int, ...]
) -> Any:
    """Make a layer of one's own, with a weight of each name and shape, as users write them.

    Args:
        function: Called with the layer and its inputs.
        name: Of the layer.
        trainable: Whether the weights are trained.
        **shapes: Of the weights that `add_weight` makes.
    """
    return _weighted_class()(function, shapes, trainable, name=name)


@cache
def _weighted_class() -> Any:
    class Weighted(parity.import_keras().layers.Layer):  # type: ignore[misc]
        def __init__(self, function: Any, shapes: Any, trained: bool, **options: Any) -> None:
            super().__init__(**options)
            self.function, self.shapes, self.trained = function, shapes, trained
            for key, shape in shapes.items():
                made = self.add_weight(shape, "zeros", trainable=trained, name=key)
                setattr(self, key, made)

        def call(self, *args: Any) -> Any:
            return self.function(self, *args)

        def get_config(self) -> dict[str, Any]:
            given = {"function": self.function, "shapes": dict(self.shapes)}
            return super().get_config() | given | {"trained": self.trained}

    return Weighted


class Later:
    """A layer of a table: a class and its arguments, of which each building makes a new layer.

    Args:
        find: Returns the class.
        args: Its arguments; those that are `Later` themselves are built, too.
        options: Its arguments by name.
    """

    def __init__(self, find: Callable[[], Any], args: Any, options: dict[str, Any]) -> None:
        self.find, self.args, self.options = find, args, options

    def build(self, **defaults: Any) -> Any:
        """Make the layer; a default is used where the table gives nothing."""
        options = {key: built(value) for key, value in {**defaults, **self.options}.items()}
        return self.find()(*map(built, self.args), **options)


class _Delayed:
    """The classes of a module, whose calls return `Later`."""

    def __init__(self, module: Any) -> None:
        self._module = module

    def __getattr__(self, name: str) -> Callable[..., Later]:
        return lambda *args, **options: Later(lambda: getattr(self._module, name), args, options)


T, K = _Delayed(nn), _Delayed(L)
"""PyTorch's and Keras's layers for tables."""


def built(value: Any) -> Any:
    """Build what is `Later`, also in lists."""
    if isinstance(value, list):
        return [built(it) for it in value]
    return value.build() if isinstance(value, Later) else value


def table(
    rows: Iterable[tuple[Any, ...]],
    ours: Callable[[Any], Any],
    theirs: Callable[..., Any],
    **options: Any,
) -> list[Pair]:
    """Make pairs of rows, each of whose layers is put into a network of its side.

    Args:
        rows: The name, the PyTorch layer, the Keras layer or a list of them, and what is expected
            unless they are equal. A Keras layer that is alone is called `layer`.
        ours: Makes PyTorch's network.
        theirs: Makes Keras's network of layers.
        **options: Of all pairs.
    """

    def builder(torch_layer: Any, keras_layer: Any) -> Callable[[], tuple[Any, Any]]:
        def build() -> tuple[Any, Any]:
            alone = isinstance(keras_layer, Later)
            layers = [keras_layer.build(name="layer")] if alone else built(keras_layer)
            return ours(built(torch_layer)), theirs(*layers)

        return build

    return [
        Pair(
            name, expected[0] if expected else PASSED, builder(torch_layer, keras_layer), **options
        )
        for name, torch_layer, keras_layer, *expected in rows
    ]


def through(x: Any, *layers: Any) -> Any:
    """Call layers one after the other."""
    for layer in layers:
        x = layer(x)
    return x
