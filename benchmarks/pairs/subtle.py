"""Layers that are hard to copy in float64, and faults that few examples or gradients show."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from benchmarks.pairs.common import *

# fmt: off
Both = tuple[Any, Any]
ACT = fails("act")

def times(config: str) -> Any:
    """Make a user's layer that doubles, with or without a usable configuration."""
    class Times(keras.layers.Layer):  # type: ignore[misc,name-defined]
        def __init__(self, factor: Any, **options: Any) -> None:
            super().__init__(**options)
            self.inner = factor

        def call(self, x: Any) -> Any:
            return x * (self.inner(2) if callable(self.inner) else self.inner)

        if config in ("right", "incomplete"):
            def get_config(self) -> Any:
                given = 3 if config == "incomplete" else self.inner
                return super().get_config() | {"factor": given}

        if config == "raises":
            def get_config(self) -> Any:
                raise NotImplementedError

    return Times((lambda x: x) if config == "takes a function" else 2)

def fixed(outside: bool) -> Any:
    class Fixed(keras.layers.Layer):  # type: ignore[misc,name-defined]
        def call(self, x: Any) -> Any:
            y = 2 * ops.cast(x, "float32")
            return y if outside else ops.cast(y, x.dtype)

    return Fixed(name="fixed")

def resized(x: Any) -> Any:
    same = L.UpSampling2D(1, interpolation="bilinear")
    return 2 * through(x, L.Reshape((2, 3, 1)), same, L.Reshape((6,)))

def twice(x: Any) -> Any:
    return x * 2

def copied(between: Any, epsilon: float = 1e-6, ours: Any = twice) -> Both:
    """Build a layer between others, with timm's epsilon behind it."""
    module = Net(lambda m, x: m.fc2(m.ln(ours(m.fc1(x.flatten(1)))).tanh()), fc1=nn.Linear(64, 6),
                 ln=nn.LayerNorm(6, eps=1e-6), fc2=nn.Linear(6, 4))
    norm = L.LayerNormalization(epsilon=epsilon, name="ln")
    layers = [L.Flatten(), L.Dense(6, name="fc1"), between, norm, L.Activation("tanh")]
    return module, functional(lambda x: through(x, *layers, L.Dense(4, name="fc2")))

LAYERS: dict[str, Any] = {
    "Lambda of a Python function": lambda: L.Lambda(twice),
    "Lambda of a lambda": lambda: L.Lambda(lambda x: x * 2),
    "Lambda with arguments": lambda: L.Lambda(lambda x, by: x * by, arguments={"by": 2}),
    "Activation of a Python function": lambda: L.Activation(twice),
    "Activation of a lambda": lambda: L.Activation(lambda x: x + x),
    "an operation": lambda: twice,
    "operations with Python numbers": lambda: lambda x: ops.add(x, x * 1.0),
    **{f"a user's layer whose get_config is {it}": lambda it=it: times(it)
        for it in ("right", "inferred")},
}
WEAK: dict[str, Any] = {
    **{f"a user's layer: get_config {it}": lambda it=it: times(it)
       for it in ("incomplete", "raises", "takes a function")},
    "bilinear resizing": lambda: resized,
}

def between_norms(make: Any, epsilon: float = 1e-6) -> Both:
    return copied(make(), epsilon)

def both(layers: dict[str, Any], expected: Any, epsilon: float) -> Iterator[Pair]:
    for name, make in layers.items():
        yield Pair(name, expected, partial(between_norms, make))
        yield Pair(f"{name}, epsilon behind", fails("ln"), partial(between_norms, make, epsilon))

def rounded(x: Tensor) -> Tensor:
    return (2 * x.float()).to(x.dtype)

def chain(*layers: Any, ours: Any = torch.tanh) -> Both:
    """Build two linear layers of equal shapes that are registered in another order."""
    module = Net(lambda m, x: m.second(ours(m.first(x.flatten(1)))), second=nn.Linear(64, 64),
                 first=nn.Linear(64, 64))
    act = [L.Activation("tanh")] if ours is torch.tanh else []
    return module, sequential(L.Flatten(), L.Dense(64), *act, *layers)

def dense_in_float32() -> Any:
    class Fixed(keras.layers.Layer):  # type: ignore[misc,name-defined]
        def build(self, shape: Any) -> None:
            self.inner = L.Dense(64, dtype="float32")
            self.inner.build(shape)

        def call(self, x: Any) -> Any:
            return self.inner(x)

    return Fixed()

COPIES = [
    *both(LAYERS, PASSED, 1e-5),
    *both(WEAK, FLOAT32, 1e-3),
    Pair("ops.cast to float32 in Keras alone", fails("cast"),
        lambda: copied(lambda x: 2 * ops.cast(x, "float32"))),
    Pair("a user's layer that returns float32", fails("fixed"), lambda: copied(fixed(True))),
    Pair("a user's layer with float32 inside", fails("fixed"), lambda: copied(fixed(False))),
    Pair("float32 inside both", PASSED, lambda: copied(fixed(False), ours=rounded)),
    Pair("float32 inside PyTorch alone", fails("lambda", "ln"),
        lambda: copied(L.Lambda(twice), ours=rounded)),
    Pair("a user's layer with a float32 layer in it", FLOAT32, lambda: chain(dense_in_float32())),
    Pair("nothing copied, layers in another order", FLOAT32,
        lambda: chain(times("raises"), L.Dense(64), ours=twice)),
]

def branch(act: str, epsilon: float = 1e-5, scale: float = 0.0) -> Both:
    """Build a residual branch whose last norm multiplies by a number that may be zero."""
    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.stem(x)
        return m.fc((x + m.bn(m.conv2(m.conv1(x).relu()))).flatten(1))

    def network(x: Any) -> Any:
        x = L.Conv2D(2, 3, name="stem")(x)
        conv1, conv2 = (L.Conv2D(2, 3, padding="same", name=f"conv{i}") for i in (1, 2))
        norm = L.BatchNormalization(epsilon=epsilon, name="bn")
        y = through(x, conv1, L.Activation(act, name="act"), conv2, norm)
        return L.Dense(4, name="fc")(L.Flatten()(L.Add()([x, y])))

    bn = nn.BatchNorm2d(2)
    nn.init.constant_(bn.weight, scale)
    module = Net(forward, stem=nn.Conv2d(1, 2, 3), conv1=nn.Conv2d(2, 2, 3, padding=1), bn=bn,
                 conv2=nn.Conv2d(2, 2, 3, padding=1), fc=nn.Linear(72, 4))
    return module, functional(network)

def between(ours: Any, layer: Any) -> Both:
    """Build a function between two linear layers."""
    module = Net(lambda m, x: m.fc2(ours(m.fc1(x.flatten(1)))), fc1=nn.Linear(64, 6),
        fc2=nn.Linear(6, 4))
    layers = L.Flatten(), L.Dense(6, name="fc1"), layer, L.Dense(4, name="fc2")
    return module, functional(lambda x: through(x, *layers))

def hidden(name: str, expected: Any, ours: Any, theirs: Any, **options: Any) -> Pair:
    return Pair(name, expected, lambda: between(ours, L.Lambda(theirs, name="act")), **options)

def without_gradient(x: Tensor) -> Tensor:
    with torch.no_grad():
        return x.tanh()

def one_in_many(batch: int) -> Any:
    def make() -> list[Any]:
        made = [*labelled((1, 8, 8)), *labelled((1, 8, 8))]
        made[batch][0][-1] = 30.0
        return made

    return make

def shifted() -> Both:
    """Build logits that are all shifted alike, by which the loss does not change."""
    module = Net(lambda m, x: m.fc(x.flatten(1)) + m.shift(x.flatten(1)), fc=nn.Linear(64, 4),
        shift=nn.Linear(64, 1))
    layers = L.Dense(4, name="fc"), L.Dense(1, name="shift")
    return module, functional(lambda x: L.Add()([layer(L.Flatten()(x)) for layer in layers]))

def pooled(second: str = "Max") -> Both:
    """Build a network that pools before the ReLU in Keras alone, where the order is equal."""
    def forward(m: Any, x: Tensor) -> Tensor:
        x = F.max_pool2d(m.conv(x).relu(), 2)
        return m.fc(F.max_pool2d(x, 2).flatten(1))

    module = Net(forward, conv=nn.Conv2d(1, 3, 3), fc=nn.Linear(3, 4))
    pool = getattr(L, f"{second}Pooling2D")(2, name="pool")
    front = L.Conv2D(3, 3), L.MaxPooling2D(2), L.ReLU()
    return module, sequential(*front, pool, L.Flatten(), L.Dense(4))

def dead(act: str) -> Both:
    """Build a rectifier that gives nothing but zeros, and a way around it."""
    def forward(m: Any, x: Tensor) -> Tensor:
        h = m.fc1(x.flatten(1)).tanh()
        return m.fc2(h + (h - 2).relu())

    def network(x: Any) -> Any:
        h = L.Dense(6, act, name="fc1")(L.Flatten()(x))
        return L.Dense(4, name="fc2")(L.Add()([h, L.ReLU()(L.Lambda(lambda x: x - 2)(h))]))

    module = Net(forward, fc1=nn.Linear(64, 6), fc2=nn.Linear(6, 4))
    return module, functional(network)

def named_relu() -> Both:
    layers = L.Flatten(), L.Dense(6, name="fc1"), L.Activation("linear", name="relu")
    module = Net(lambda m, x: m.fc2(m.relu(m.fc1(x.flatten(1)))), fc1=nn.Linear(64, 6),
        relu=nn.ReLU(), fc2=nn.Linear(6, 4))
    return module, sequential(*layers, L.Dense(4, name="fc2"))

STOPPED = fails("fc1", "act", "fc2")
HIDDEN = [
    Pair("zero-initialized branch", PASSED, lambda: branch("relu"), is_trained=False),
    Pair("zero-initialized branch, ELU in it", ACT, lambda: branch("elu"), is_trained=False),
    Pair("zero-initialized branch, epsilon 1e-3", fails("bn"), lambda: branch("relu", 1e-3),
        is_trained=False),
    Pair("small branch", PASSED, lambda: branch("relu", scale=1e-6), is_trained=False),
    Pair("small branch, ELU in it", ACT, lambda: branch("elu", scale=1e-6), is_trained=False),
    hidden("gradient stopped in both", PASSED, lambda x: x * x.detach(),
        lambda x: x * ops.stop_gradient(x)),
    hidden("gradient stopped in Keras", STOPPED, lambda x: x * x,
        lambda x: x * ops.stop_gradient(x)),
    hidden("gradient stopped in PyTorch", STOPPED, lambda x: x * x.detach(), lambda x: x * x),
    hidden("no_grad in PyTorch", STOPPED, without_gradient, lambda x: ops.tanh(x)),
    hidden("straight-through rounding", STOPPED, lambda x: x + (x.round() - x).detach(),
        lambda x: ops.round(x)),
    *(hidden(f"one example of batch {i + 1} alone", ACT, lambda x: x.relu(),
             lambda x: ops.clip(x, 0, 8), batches=one_in_many(i)) for i in range(4)),
    hidden("clipped where no example is", PASSED, lambda x: x.relu(),
        lambda x: ops.clip(x, 0, 1e6)),
    Pair("a shift of all logits, without a gradient", PASSED, shifted),
    Pair("pooled before the ReLU", PASSED, pooled),
    Pair("pooled before the ReLU, a fault behind", fails("pool"), lambda: pooled("Average")),
    Pair("zeros that agree downstream", PASSED, lambda: dead("tanh")),
    Pair("zeros that agree downstream, a fault before", fails("fc1"), lambda: dead("sigmoid")),
    Pair("nothing for a ReLU of its name", fails("relu"), named_relu),
    hidden("zeros for values", ACT, torch.abs, lambda x: 0 * x),
    hidden("constants for values", ACT, torch.tanh, lambda x: ops.ones_like(x)),
    hidden("examples mixed up", ACT, torch.tanh, lambda x: ops.tanh(ops.flip(x, 0))),
    hidden("the batch's mean subtracted", ACT, torch.tanh, lambda x: ops.tanh(x - ops.mean(x, 0))),
]

TOPICS = {"layers that are hard to copy": COPIES, "hidden faults": HIDDEN}
