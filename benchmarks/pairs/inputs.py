"""Inputs that are not images, losses by name or none, and what must be refused."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from benchmarks.pairs.common import *

# fmt: off
Both = tuple[Any, Any]
HIDDEN = fails("hidden")

def mean(ours: Any = None, pool: str = "Average", **options: Any) -> Both:
    """Build the mean of embedded tokens."""
    emb = nn.Embedding(12, 6, **options)
    module = Net(ours or (lambda m, x: m.fc(m.emb(x).mean(1))), emb=emb, fc=nn.Linear(6, 4))
    layer = getattr(L, f"Global{pool}Pooling1D")(name="pool")
    return module, sequential(L.Embedding(12, 6, name="emb"), layer, L.Dense(4, name="fc"),
        shape=(7,))

def one_hot() -> Both:
    module = Net(lambda m, x: m.fc(F.one_hot(x, 12).to(m.fc.weight.dtype).sum(1)),
        fc=nn.Linear(12, 4))
    return module, functional(lambda x: L.Dense(4)(ops.sum(ops.one_hot(x, 12), 1)), (7,),
        dtype="int32")

def two(kind: str = "list", swapped: bool = False, size: int = 5) -> Both:
    """Build a network of an image and numbers."""
    def forward(m: Any, image: Tensor, numbers: Tensor) -> Tensor:
        return m.out(torch.cat([m.conv(image).relu().flatten(1), m.table(numbers).tanh()], 1))

    module = Net(forward, conv=nn.Conv2d(1, 2, 3), table=nn.Linear(5, 3), out=nn.Linear(75, 4))
    image, numbers = keras.Input((8, 8, 1), name="image"), keras.Input((size,), name="numbers")
    parts = [L.Flatten()(L.Conv2D(2, 3, activation="relu", name="conv")(image)),
             L.Dense(3, "tanh", name="table")(numbers)]
    out = L.Dense(4, name="out")(L.Concatenate(name="joined")(parts[::-1] if swapped else parts))
    inputs = {"list": [image, numbers], "other order": [numbers, image],
              "dict": {"image": image, "numbers": numbers}}
    return module, keras.Model(inputs[kind], out)

def two_batches(kind: str) -> Any:
    def make() -> list[Any]:
        made = []
        for images, labels in labelled((1, 8, 8)):
            numbers = images.flatten(1)[:, :5].contiguous()
            kinds: dict[str, Any] = {
                "tuple": (images, numbers), "list": [images, numbers],
                "three": (images, numbers, numbers),
                "dict": {"image": images, "numbers": numbers},
                "wrong names": {"picture": images, "numbers": numbers},
                "dict in another order": {"numbers": numbers, "image": images}}
            made.append((kinds[kind], labels))
        return made

    return make

def twins(exchanged: bool) -> Both:
    module = Net(lambda m, a, b: m.fc((m.body(a) - m.body(b)).tanh()),
                 body=nn.Sequential(nn.Flatten(), nn.Linear(64, 6)), fc=nn.Linear(6, 4))

    def network(a: Any, b: Any) -> Any:
        body = sequential(L.Flatten(), L.Dense(6))
        made = [body(b), body(a)] if exchanged else [body(a), body(b)]
        return L.Dense(4)(ops.tanh(L.Subtract(name="difference")(made)))

    return module, functional(network, (8, 8, 1), (8, 8, 1))

def twin_batches() -> list[Any]:
    return [((x, x.flip(2)), y) for x, y in labelled((1, 8, 8))]

def numbers(act: str) -> Both:
    module = nn.Sequential(nn.Linear(7, 5), nn.ReLU(), nn.Linear(5, 4))
    return module, sequential(L.Dense(5, act, name="hidden"), L.Dense(4), shape=(7,))

def words_and_numbers() -> Both:
    module = Net(lambda m, words, numbers: m.out(torch.cat([m.emb(words).mean(1), numbers], 1)),
                 emb=nn.Embedding(12, 6), out=nn.Linear(9, 4))
    words, numbers = keras.Input((7,), dtype="int32"), keras.Input((3,))
    y = L.Concatenate()([L.GlobalAveragePooling1D()(L.Embedding(12, 6)(words)), numbers])
    return module, keras.Model([words, numbers], L.Dense(4)(y))

def masked(used: bool) -> Both:
    module = Net(lambda m, x, mask: m.fc(m.attn(x, x, x, key_padding_mask=mask == 0)[0].mean(1)),
                 attn=nn.MultiheadAttention(6, 2, batch_first=True), fc=nn.Linear(6, 4))
    x, mask = keras.Input((7, 6)), keras.Input((7,), dtype="int32")
    seen = ops.expand_dims(ops.greater(mask, 0), 1)
    y = L.MultiHeadAttention(2, 3, name="attn")(x, x,
        attention_mask=seen if used else ops.ones_like(seen))
    return module, keras.Model([x, mask], L.Dense(4, name="fc")(L.GlobalAveragePooling1D()(y)))

def masked_batches() -> list[Any]:
    return [((x, (torch.arange(7) < torch.randint(1, 8, (len(x), 1))).long()), y) for x,
        y in labelled((7, 6))]

def pooled_volumes() -> Both:
    module = nn.Sequential(nn.Conv3d(2, 3, 2), nn.MaxPool3d(2), nn.Flatten(), nn.Linear(24, 4))
    return module, sequential(L.Conv3D(3, 2), L.MaxPooling3D(2), L.Flatten(), L.Dense(4),
        shape=(5, 5, 5, 2))

def net(count: int = 4, act: str = "relu", last: Any = None) -> Both:
    """Build a network of images with some outputs."""
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 6), nn.ReLU(), nn.Linear(6, count))
    return module, sequential(L.Flatten(), L.Dense(6, act, name="hidden"),
        L.Dense(count, last, name="out"))

def targets(*shape: int, binary: bool = False) -> Any:
    def make() -> list[Any]:
        draw = torch.Generator().manual_seed(2)
        made = [(images, torch.rand(len(images), *shape, generator=draw)) for images,
            _ in labelled((1, 8, 8))]
        return [(x, (y > 0.5).float()) for x, y in made] if binary else made

    return make

def images() -> list[Tensor]:
    return [x for x, _ in labelled((1, 8, 8))]

def loss(name: str, expected: Any, kind: Any, batches: Any = images, count: int = 3,
    **options: Any) -> Pair:
    return Pair(name, expected, lambda: net(count, **options), batches=batches, loss=kind)

def pixelwise(act: str) -> Both:
    module = nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), nn.Conv2d(3, 2, 1))
    return module, sequential(L.Conv2D(3, 3, padding="same", activation=act, name="hidden"),
        L.Conv2D(2, 1))

def autoencoder(last: str) -> Both:
    module = nn.Sequential(nn.Conv2d(1, 3, 2, 2), nn.ReLU(), nn.ConvTranspose2d(3, 1, 2, 2),
        nn.Sigmoid())
    up = L.Conv2DTranspose(1, 2, 2, activation=last, name="up")
    return module, sequential(L.Conv2D(3, 2, 2, activation="relu"), up)

def raising() -> Both:
    def forward(m: Any, x: Any) -> Any:
        raise KeyError("mode")

    return Net(forward, net=net()[0]), net()[1]

def keras_raising() -> Both:
    class Raising(keras.layers.Layer):  # type: ignore[misc,name-defined]
        def call(self, x: Any) -> Any:
            if not isinstance(x, keras.KerasTensor):
                raise KeyError("mode")
            return x

        def compute_output_spec(self, x: Any) -> Any:
            return keras.KerasTensor(x.shape, x.dtype)

    return net()[0], functional(lambda x: through(
        x, L.Flatten(), L.Dense(6, "relu"), Raising(name="mine"), L.Dense(4)))

def unknown(layer: str) -> Both:
    module = Net(lambda m, x: m.fc(m.conv(x).flatten(1)), conv=nn.Conv2d(1, 8, 1),
        fc=nn.LazyLinear(4))
    made = {"EinsumDense": lambda: L.EinsumDense("abcd,de->abce", (8, 8, 8), name="mine"),
            "ConvLSTM1D": lambda: L.ConvLSTM1D(2, 3, name="mine")}[layer]()
    return module, sequential(made, L.Flatten(), L.Dense(4))

def mixed(policy: str) -> Both:
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))
    return module, sequential(L.Flatten(), L.Dense(4, dtype=policy))

def changed(image: Any = None, label: Any = None) -> Any:
    """Delay batches whose images or labels are changed."""
    return lambda: [(image(x) if image else x, label(y) if label else y) for x,
        y in labelled((1, 8, 8))]

def wrong(name: str, words: Any, batches: Any = None, build: Any = net) -> Pair:
    words = words if isinstance(words, tuple) else (words,)
    return Pair(name, refused(*words), build, batches=batches)

TOKENS: dict[str, Any] = {"batches": lambda: tokens(7)}
TWO: dict[str, Any] = {"batches": two_batches("tuple")}
TOPICS = {
    "tables, tokens, several inputs": [
        Pair("numbers in a table", PASSED, lambda: numbers("relu"), (7,)),
        Pair("numbers in a table, ELU", HIDDEN, lambda: numbers("elu"), (7,)),
        Pair("tokens, their mean", PASSED, mean, **TOKENS),
        Pair("tokens, their maximum", fails("pool"), lambda: mean(pool="Max"), **TOKENS),
        Pair("tokens with a padding index", fails("emb"), lambda: mean(padding_idx=0), **TOKENS),
        Pair("tokens without the padding index", PASSED, lambda: mean(padding_idx=11),
            batches=lambda: tokens(7, 11)),
        Pair("tokens with a maximal norm", fails("emb"), lambda: mean(max_norm=0.5),
             batches=lambda: [tokens(7, 6)[0], tokens(7, 12, 6)[1]]),
        Pair("one-hot tokens", PASSED, one_hot, **TOKENS),
        Pair("tokens as int32", PASSED, mean, batches=lambda: [(x.int(), y) for x, y in tokens(7)]),
        Pair("tokens beyond the vocabulary", refused("index"), mean,
            batches=lambda: tokens(7, 40, 30)),
        *(Pair(f"two inputs as a {kind}", PASSED, two, batches=two_batches(kind))
          for kind in ("tuple", "list", "dict", "dict in another order")),
        Pair("two inputs, a dict on both sides", PASSED, lambda: two("dict"),
            batches=two_batches("dict")),
        Pair("two inputs as a tuple, a dict in Keras", PASSED, lambda: two("dict"), **TWO),
        Pair("two inputs, Keras's in another order", refused("numbers"), lambda: two("other order"),
            **TWO),
        Pair("two inputs, Keras's in another order, by name", PASSED, lambda: two("other order"),
            batches=two_batches("dict")),
        Pair("two inputs, joined the wrong way round", fails("joined", "out"),
            lambda: two(swapped=True), **TWO),
        Pair("two inputs, one of another size", refused("(5,)"), lambda: two(size=6), **TWO),
        Pair("two inputs of wrong names", refused("picture", "image"), two,
            batches=two_batches("wrong names")),
        Pair("three inputs for two", refused("3"), two, batches=two_batches("three")),
        Pair("two images", PASSED, lambda: twins(False), batches=twin_batches),
        Pair("two images, exchanged", fails("difference"), lambda: twins(True),
             batches=twin_batches),
        Pair("tokens and numbers", PASSED, words_and_numbers,
             batches=lambda: [((x, torch.randn(len(x), 3)), y) for x, y in tokens(7)]),
        Pair("sequences with a mask", PASSED, lambda: masked(True), batches=masked_batches),
        Pair("sequences with a mask, unused in Keras", fails("attn"), lambda: masked(False),
            batches=masked_batches),
        Pair("volumes, pooled", FLOAT32, pooled_volumes, (2, 5, 5, 5)),
    ],
    "losses and outputs": [
        loss("binary, one output", PASSED, "binary", targets(1, binary=True), 1),
        loss("binary, one output, targets (N,)", PASSED, "binary", targets(binary=True), 1),
        loss("binary, several outputs", PASSED, "binary", targets(3, binary=True)),
        loss("binary, soft targets", PASSED, "binary", targets(1), 1),
        loss("binary, ELU", HIDDEN, "binary", targets(1, binary=True), 1, act="elu"),
        loss("binary, probabilities in Keras", fails("out"), "binary", targets(1, binary=True), 1,
            last="sigmoid"),
        loss("binary, labels as integers", refused("binary"), "binary",
             lambda: [(x, (y > 1).long()[:, None]) for x, y in labelled((1, 8, 8))], 1),
        loss("mse", PASSED, "mse", targets(3)),
        loss("mse, one output, targets (N,)", PASSED, "mse", targets(), 1),
        loss("mse, ELU", HIDDEN, "mse", targets(3), act="elu"),
        loss("mse, targets of another shape", refused("targets"), "mse", targets(4)),
        loss("no loss", PASSED, None),
        loss("no loss, tuples of one", PASSED, None, lambda: [(x,) for x in images()]),
        loss("no loss, ELU", HIDDEN, None, act="elu"),
        loss("unknown loss", refused("hinge", "mse"), "hinge"),
        Pair("outputs of pixels, no loss", PASSED, lambda: pixelwise("relu"), batches=images,
             loss=None),
        Pair("outputs of pixels, no loss, ELU", HIDDEN, lambda: pixelwise("elu"), batches=images,
             loss=None),
        Pair("outputs of pixels, mse", PASSED, lambda: pixelwise("relu"), batches=targets(2, 8, 8),
            loss="mse"),
        Pair("outputs of pixels, cross-entropy", refused("mse"), lambda: pixelwise("relu")),
        Pair("autoencoder", PASSED, lambda: autoencoder("sigmoid"), batches=targets(1, 8, 8),
            loss="mse"),
        Pair("autoencoder without sigmoid in Keras", fails("up"), lambda: autoencoder("linear"),
             batches=targets(1, 8, 8), loss="mse"),
    ],
    "wrong arguments": [
        wrong("images (N, H, W, C)", "(N, C, H, W)", changed(lambda x: x.permute(0, 2, 3, 1)),
              lambda: (nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(72, 4)),
                       sequential(L.Conv2D(2, 3), L.Flatten(), L.Dense(4)))),
        wrong("images (C, H, W)", "5", changed(lambda x: x[0])),
        wrong("images of another size", "6, 6", changed(lambda x: x[:, :, :6, :6])),
        wrong("images of three channels", "8", changed(lambda x: x.repeat(1, 3, 1, 1))),
        wrong("uint8 images", ("uint8", "float()"), changed(lambda x: (x * 50).abs().byte())),
        wrong("float16 images", "float16", changed(lambda x: x.half())),
        wrong("lists for images", "list", changed(lambda x: x.tolist())),
        wrong("None for images", "None", changed(lambda x: None)),
        wrong("arrays of objects", "object", changed(lambda x: np.array([None] * len(x)))),
        wrong("one-hot labels", "argmax", changed(label=lambda y: F.one_hot(y, 4).float())),
        wrong("labels (N, 1)", "(5,)", changed(label=lambda y: y[:, None])),
        wrong("labels as int32", "int32", changed(label=lambda y: y.int())),
        wrong("labels from 1", "from 0 to 3", changed(label=lambda y: y + 1)),
        wrong("negative labels", "from 0", changed(label=lambda y: y - 1)),
        wrong("fewer labels than images", "labels", changed(label=lambda y: y[:-1])),
        wrong("images without labels", "labels", images),
        wrong("three parts", "labels", lambda: [(x, y, y) for x, y in labelled((1, 8, 8))]),
        wrong("a batch for batches", "labels", lambda: labelled((1, 8, 8))[0]),
        wrong("one tensor for batches", "labels", lambda: images()[0]),
        wrong("a dict for batches", "labels", lambda: {"images": torch.zeros(2, 1, 8, 8)}),
        wrong("an object for batches", "batches", object),
        wrong("Keras first", "in this order", build=lambda: net()[::-1]),
        wrong("a class for a module", "torch.nn.Module", build=lambda: (nn.Linear, net()[1])),
        wrong("a layer for a model", "keras.Model", build=lambda: (net()[0], L.Dense(4))),
        wrong("a path for a model", "keras.Model", build=lambda: (net()[0], "model.keras")),
        wrong("a module that raises", ("KeyError", "Net"), build=raising),
        wrong("a Keras layer that raises", ("Raising", "KeyError"), build=keras_raising),
        wrong("EinsumDense", "mine", build=lambda: unknown("EinsumDense")),
        wrong("ConvLSTM1D", "mine", build=lambda: unknown("ConvLSTM1D")),
        wrong("no weights in Keras", "Keras",
            build=lambda: (net()[0], functional(lambda x: L.Flatten()(x)[:, :4]))),
        wrong("mixed precision in Keras", "float16", build=lambda: mixed("mixed_float16")),
        wrong("bfloat16 in Keras", "bfloat16", build=lambda: mixed("bfloat16")),
    ],
}
