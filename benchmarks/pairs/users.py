"""Users' modules and Keras models of every kind, wrapped and nested, trained as users do."""

from collections.abc import Iterator
from typing import Any

import lightning
import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.pairs.common import *

# fmt: off
Both = tuple[Any, Any]
ACT, ANY = fails("act"), fails()

class Plain(nn.Module):
    """A convolution, a norm and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.fc = nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Linear(108, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.bn(self.conv(x)).relu().flatten(1))

def plain(act: str = "relu", frozen: Any = (), between: Any = (), **options: Any) -> list[Any]:
    """List the layers of its counterpart; the options are those of the convolution."""
    norm = L.BatchNormalization(epsilon=1e-5, name="bn")
    layers = [L.Conv2D(3, 3, name="conv", **options), norm, L.Activation(act, name="act"),
              *between, L.Flatten(), L.Dense(4, name="fc")]
    for layer in layers:
        layer.trainable = layer.name not in frozen
    return layers

class Lit(lightning.LightningModule):
    """A LightningModule around a network, with a criterion."""

    def __init__(self, weight: Tensor | None = None) -> None:
        super().__init__()
        self.net, self.criterion = Plain(), nn.CrossEntropyLoss(weight=weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

def trained() -> nn.Module:
    module = Plain()
    optimizer = torch.optim.SGD(module.parameters(), 0.1)
    for images, labels in labelled((1, 8, 8)):
        nn.functional.cross_entropy(module(images), labels).backward()
        optimizer.step()
    return module

def lazy() -> nn.Module:
    layers = nn.LazyConv2d(3, 3), nn.LazyBatchNorm2d(), nn.ReLU(), nn.Flatten(), nn.LazyLinear(4)
    return nn.Sequential(*layers)

def frozen(*names: str) -> nn.Module:
    module = Plain()
    for name in names:
        module.get_submodule(name).requires_grad_(False)
    return module

def around(forward: Any) -> nn.Module:
    return Net(forward, net=Plain())

def in_place(m: Any, x: Tensor) -> Tensor:
    return m.net.fc(m.net.bn(m.net.conv(x)).relu_().flatten(1))

def pair(name: str, expected: Any, module: Any = Plain, model: Any = None, **options: Any) -> Pair:
    """Make a pair; each side is given by a function, Keras's also by the arguments of `plain`."""
    def build() -> Both:
        return module(), model() if callable(model) else sequential(*plain(**(model or {})))

    return Pair(name, expected, build, **options)

TANH = {"act": "tanh"}
IMAGES, LABELS = labelled((1, 8, 8))[0]
BATCHES: dict[str, Any] = {
    "a DataLoader": lambda: DataLoader(TensorDataset(IMAGES, LABELS), 2),
    "a generator": lambda: iter(labelled((1, 8, 8))),
    "arrays": lambda: [(IMAGES.numpy(), LABELS.numpy())],
    "lists": lambda: [[IMAGES, LABELS]],
    "one example": lambda: [(IMAGES[:1], LABELS[:1])],
    "an empty batch among others": lambda: [(IMAGES[:0], LABELS[:0]), (IMAGES, LABELS)],
    "images that need gradients": lambda: [(IMAGES.clone().requires_grad_(), LABELS)],
    "images that are not contiguous": lambda: [(IMAGES.transpose(2, 3), LABELS)],
    "float64 images": lambda: [(IMAGES.double(), LABELS)],
}

MODULES = [
    pair("plain", PASSED),
    pair("LightningModule", PASSED, Lit),
    pair("LightningModule, tanh in Keras", ACT, Lit, TANH),
    pair("LightningModule with weights of classes", PASSED, lambda: Lit(torch.ones(4))),
    pair("DataParallel", PASSED, lambda: nn.DataParallel(Plain())),
    pair("torch.compile", PASSED, lambda: torch.compile(Plain(), backend="eager")),
    pair("torch.jit.script", FLOAT32, lambda: torch.jit.script(Plain())),
    pair("torch.jit.script, tanh in Keras", ANY, lambda: torch.jit.script(Plain()), TANH),
    pair("torch.jit.trace", FLOAT32, lambda: torch.jit.trace(Plain().eval(), IMAGES)),
    pair("torch.fx", PASSED, lambda: torch.fx.symbolic_trace(Plain())),
    pair("lazy layers", refused("0.weight", "call"), lazy, is_trained=False),
    pair("lazy layers, called once", PASSED, lazy),
    pair("trained, in training mode", PASSED, trained, is_trained=False),
    pair("in place", PASSED, lambda: around(in_place)),
    pair("in place, tanh in Keras", ACT, lambda: around(in_place), TANH),
    pair("channels_last memory", PASSED, lambda: Plain().to(memory_format=torch.channels_last)),
    pair("float16", refused("float16"), lambda: Plain().half()),
    pair("float64 in PyTorch alone", ANY, lambda: Plain().double()),
    pair("a tuple returned", refused("one"), lambda: around(lambda m, x: (m.net(x), x))),
    pair("a dict returned", refused("one"), lambda: around(lambda m, x: {"logits": m.net(x)})),
    *(pair(f"batches: {kind}", PASSED, batches=make) for kind, make in BATCHES.items()),
    pair("batches: a DataLoader, tanh in Keras", ACT, Plain, TANH, batches=BATCHES["a DataLoader"]),
]

def chained(layers: Any = None) -> Any:
    return functional(lambda x: through(x, *(layers or plain())))

def subclassed(how: str) -> Any:
    class Sub(keras.Model):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            start = keras.Input((8, 8, 1))
            if how == "functional":
                super().__init__(start, through(start, *plain()))
            else:
                super().__init__()
                self.parts = plain()

        def call(self, x: Any, training: bool = False) -> Any:
            return super().call(x) if how == "functional" else through(x, *self.parts)

    model = Sub()
    if how in ("called", "inside"):
        model(np.zeros((1, 8, 8, 1), "float32"))
    return functional(model) if how == "inside" else model

def holder(attribute: str, act: str = "relu") -> Any:
    """Build a user's layer that holds the first layers in an attribute."""
    class Holder(keras.layers.Layer):  # type: ignore[misc,name-defined]
        def __init__(self, **options: Any) -> None:
            super().__init__(**options)
            setattr(self, attribute, plain(act)[:3])

        def build(self, shape: Any) -> None:
            for layer in getattr(self, attribute):
                layer.build(shape)
                shape = layer.compute_output_shape(shape)

        def call(self, x: Any) -> Any:
            return through(x, *getattr(self, attribute))

    return sequential(Holder(name="act"), L.Flatten(), L.Dense(4, name="fc"))

def lora() -> Any:
    model = sequential(*plain())
    model.get_layer("fc").enable_lora(2)
    return model

def outputs(kind: str) -> Any:
    model = chained()
    made = model.outputs[0]
    kinds = {"one": [made], "two": [made, 2 * made], "dict": {"a": made, "b": -made}}
    return keras.Model(model.inputs, kinds[kind])

def nested(kind: str, outermost: str, depth: int, act: str) -> Any:
    """Put layers into models within models; the wrong activation is in the innermost."""
    def put(layers: list[Any], shape: tuple[int, ...], kind: str) -> Any:
        if kind == "Sequential":
            return keras.Sequential(layers)
        if kind == "functional":
            return functional(lambda x: through(x, *layers), shape)
        return sequential(*layers, shape=shape)

    conv, norm, activation, *head = plain(act)
    inner = put([norm, activation], (6, 6, 3), kind)
    for _ in range(depth - 1):
        inner = put([inner, L.Activation("linear")], (6, 6, 3), kind)
    whole = [conv, inner, put(head, (6, 6, 3), kind)]
    return put(whole, (8, 8, 1), "functional" if outermost == "functional" else "Input")

def all_nested() -> Iterator[Pair]:
    for outermost in ("Sequential", "functional"):
        for kind in ("Sequential", "Sequential with Input", "functional"):
            for depth, act in ((1, "relu"), (1, "elu"), (3, "relu"), (3, "elu")):
                title = f"{kind} in {outermost}, depth {depth}, {act}"
                yield pair(title, PASSED if act == "relu" else ACT, Plain,
                           lambda o=outermost, k=kind, d=depth, a=act: nested(k, o, d, a))

SUBCLASSED = refused("keras.Model(inputs, outputs)")
KINDS = [
    pair("functional", PASSED, Plain, chained),
    pair("subclassed", SUBCLASSED, Plain, lambda: subclassed("fresh")),
    pair("subclassed, called", SUBCLASSED, Plain, lambda: subclassed("called")),
    pair("subclassed, inside a functional one", SUBCLASSED, Plain, lambda: subclassed("inside")),
    pair("subclassed with inputs and outputs", PASSED, Plain, lambda: subclassed("functional")),
    pair("Sequential without an input", refused("keras.Input"), Plain,
        lambda: keras.Sequential(plain())),
    pair("cloned", PASSED, Plain, lambda: keras.models.clone_model(sequential(*plain()))),
    pair("a user's layer with `layers`", PASSED, Plain, lambda: holder("layers")),
    pair("a user's layer with `layers`, tanh in it", ACT, Plain, lambda: holder("layers", "tanh")),
    pair("a user's layer with `blocks`", PASSED, Plain, lambda: holder("blocks")),
    pair("Pipeline of layers", PASSED, Plain,
         lambda: sequential(L.Pipeline(plain()[:3], name="act"), *plain()[3:])),
    pair("two outputs", refused("one output"), Plain, lambda: outputs("two")),
    pair("two outputs in a dict", refused("one output"), Plain, lambda: outputs("dict")),
    pair("one output in a list", PASSED, Plain, lambda: outputs("one")),
    Pair("no weights", PASSED,
        lambda: (nn.Flatten(), sequential(L.Permute((3, 1, 2)), L.Flatten())),
        batches=lambda: [IMAGES], loss=None),
    Pair("no weights, in another order", fails("flatten"),
        lambda: (nn.Flatten(), sequential(L.Permute((3, 2, 1)), L.Flatten(name="flatten"))),
        batches=lambda: [IMAGES], loss=None),
    Pair("its input returned", refused("returns its input"),
        lambda: (Function(lambda x: 2 * x), functional(lambda x: x, (6,))),
        batches=lambda: [torch.rand(3, 6)], loss=None),
    pair("LoRA in Keras", refused("lora_kernel_a"), Plain, lora),
    Pair("one layer", PASSED, lambda: (nn.Linear(6, 4), sequential(L.Dense(4), shape=(6,))), (6,)),
]

def penalized() -> Any:
    class Penalty(keras.layers.Layer):  # type: ignore[misc,name-defined]
        def call(self, x: Any) -> Any:
            self.add_loss(0.1 * ops.mean(ops.square(x)))
            return x

    return sequential(*plain(between=[Penalty()]))

def inner_setting(**options: Any) -> Any:
    conv, *rest = plain(**options)
    return sequential(sequential(conv), *rest)

def unfrozen(trainable: bool) -> Any:
    model = sequential(*plain())
    model.trainable = trainable
    return model

def rows(torch_layer: nn.Module, layer: Any) -> Both:
    module = Net(lambda m, x: m.fc(m.rnn(x[:, 0])[0][:, -1]), rnn=torch_layer, fc=nn.LazyLinear(4))
    return module, sequential(layer, L.Lambda(lambda x: x[:, -1]), L.Dense(4), shape=(8, 8))

ONE_SIDED = {"kernel_regularizer": "l2", "bias_regularizer": "l1", "activity_regularizer": "l2",
             "kernel_constraint": "max_norm", "bias_constraint": "non_neg"}
GRU = {"batch_first": True}
SETTINGS = [
    *(pair(name, ANY, Plain, {name: value}) for name, value in ONE_SIDED.items()),
    pair("initializers alone", PASSED, Plain, {"kernel_initializer": "he_normal"}),
    pair("a regularizer in an inner model", ANY, Plain,
        lambda: inner_setting(kernel_regularizer="l2")),
    pair("a constraint in an inner model", ANY, Plain,
        lambda: inner_setting(kernel_constraint="max_norm")),
    Pair("a regularizer of a recurrent layer", ANY, lambda: rows(
        nn.GRU(8, 5, **GRU), L.GRU(5, return_sequences=True, recurrent_regularizer="l2"))),
    Pair("a constraint within Bidirectional", ANY, lambda: rows(
        nn.GRU(8, 5, bidirectional=True, **GRU),
        L.Bidirectional(L.GRU(5, return_sequences=True, kernel_constraint="max_norm")))),
    Pair("a regularizer within RNN", ANY, lambda: rows(
        nn.GRU(8, 5, **GRU), L.RNN(L.GRUCell(5, bias_regularizer="l2"), return_sequences=True))),
    pair("a user's layer that adds a loss", ANY, Plain, penalized),
    pair("ActivityRegularization", ANY, Plain,
        lambda: sequential(*plain(between=[L.ActivityRegularization(0.1)]))),
    pair("frozen in both", PASSED, lambda: frozen("conv"), {"frozen": ["conv"]}),
    pair("frozen in Keras alone", ANY, Plain, {"frozen": ["conv"]}),
    pair("frozen in PyTorch alone", ANY, lambda: frozen("conv")),
    pair("other layers frozen", ANY, lambda: frozen("conv"), {"frozen": ["fc"]}),
    pair("a norm frozen in Keras alone", ANY, Plain, {"frozen": ["bn"]}),
    pair("a norm frozen in both", PASSED, lambda: frozen("bn"), {"frozen": ["bn"]}),
    pair("all frozen in Keras alone", ANY, Plain, lambda: unfrozen(False)),
]

TOPICS = {
    "users' modules and batches": MODULES,
    "kinds of Keras models": KINDS,
    "nested models": list(all_nested()),
    "settings of one side's training": SETTINGS,
}
