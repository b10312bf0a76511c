"""Features behind a flattening, images of other shapes, channels first, bare parameters."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.pairs.common import *

# fmt: off
CF = {"data_format": "channels_first"}
Both = tuple[nn.Module, Any]

def of_shape(shape: tuple[int, ...]) -> Iterator[Pair]:
    """Make pairs that read images of a shape, channels last and first, convolved and not."""
    c, h, w = shape
    last = (h, w, c)

    def ours(convolved: bool) -> nn.Module:
        return nn.Sequential(*([nn.Conv2d(c, 3, 3)] if convolved else []), nn.Tanh(), nn.Flatten(),
            nn.LazyLinear(4))

    def theirs(shape: Any, convolved: bool, flat: Any, **options: Any) -> Any:
        conv = [L.Conv2D(3, 3, **options)] if convolved else []
        return sequential(*conv, L.Activation("tanh"), L.Flatten(**flat), L.Dense(4), shape=shape)

    for name, build in {
        "convolved": lambda: (ours(True), theirs(last, True, {})),
        "flattened": lambda: (ours(False), theirs(last, False, {})),
        "channels first": lambda: (ours(True), theirs(shape, True, CF, **CF)),
        "channels first, Flatten by default": lambda: (ours(True), theirs(shape, True, {}, **CF)),
        "channels first, flattened": lambda: (ours(False), theirs(shape, False, {})),
    }.items():
        yield Pair(f"{c}×{h}×{w}, {name}", PASSED, build, shape)

def conv_net(layer: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 3, (3, 2)), nn.Tanh(), layer, nn.LazyLinear(4))

def k_conv(*layers: Any) -> Any:
    return sequential(L.Conv2D(3, (3, 2), activation="tanh"), *layers, L.Dense(4, name="fc"))

def moved(*axes: int) -> Any:
    return nn.Sequential(Function(lambda x: x.permute(0, *axes)), nn.Flatten())

FLAT, MOVED = nn.Flatten(), fails("layer", "fc")
FLATTEN = [  # feature maps are 6×7 with 3 channels
    ("Reshape(-1)", FLAT, K.Reshape((-1,))),
    ("Reshape to rows, then Flatten", FLAT, [K.Reshape((42, 3)), K.Flatten()]),
    ("Flatten twice", FLAT, [K.Flatten(), K.Flatten()]),
    ("moved to PyTorch's order before", FLAT, [K.Permute((3, 1, 2)), K.Flatten()]),
    ("flattened by an operation in a Lambda", FLAT, K.Lambda(lambda x: ops.reshape(x, (-1, 126)))),
    ("pooled behind a permutation", nn.Sequential(nn.MaxPool2d(2), nn.Flatten()),
     [K.Permute((3, 1, 2)), K.MaxPooling2D(2, **CF), K.Flatten()]),
    ("channels last in PyTorch, too", moved(2, 3, 1), K.Flatten()),
    ("(C, W, H) in PyTorch", moved(1, 3, 2), K.Flatten(), MOVED),
    ("(C, W, H) in both", moved(1, 3, 2), [K.Permute((2, 1, 3)), K.Flatten()]),
    ("(C, W, H) in Keras", FLAT, [K.Permute((2, 1, 3), name="layer"), K.Flatten()], MOVED),
    ("LayerNorm behind", T.Sequential(FLAT, T.LayerNorm(126)),
     [K.Flatten(), K.LayerNormalization(epsilon=1e-5)]),
    ("LayerNorm behind, epsilon 1e-3", T.Sequential(FLAT, T.LayerNorm(126)),
     [K.Flatten(), K.LayerNormalization(name="layer")], FAILS),
    ("PReLU behind", T.Sequential(FLAT, T.PReLU(126)), [K.Flatten(), K.PReLU()]),
    ("PReLU behind, a slope for all", T.Sequential(FLAT, T.PReLU()),
     [K.Flatten(), K.PReLU(shared_axes=[1])]),
]

def of_rows(kind: str) -> Both:
    """Build images that Keras reads as (H, W)."""
    conv = Net(lambda m, x: m.conv(x[:, 0].transpose(1, 2)), conv=nn.Conv1d(8, 3, 3))
    front = {"pooled": nn.AvgPool2d((2, 1)), "convolved": conv}.get(kind, nn.Identity())
    layers = {"pooled": [L.AveragePooling1D(2)], "convolved": [L.Conv1D(3, 3)],
              "reshaped": [L.Reshape((8, 8))], "transposed": [L.Permute((2, 1))]}.get(kind, [])
    return nn.Sequential(front, nn.Flatten(), nn.LazyLinear(4)), sequential(*layers, L.Flatten(),
        L.Dense(4), shape=(8, 8))

def residual(behind: str = "", merge: str = "Add", act: str = "tanh") -> Both:
    """Build flattened features to which dense layers of them are added."""
    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.conv(x).flatten(1)
        y = m.two(m.one(x).tanh())
        y = x * y.sigmoid() if behind == "gate" else m.norm(x + y)
        return m.out(y.tanh())

    def network(x: Any) -> Any:
        x = L.Flatten()(L.Conv2D(2, 3)(x))
        y = through(x, L.Dense(72, "tanh"), L.Dense(72, "sigmoid" if behind == "gate" else None))
        y = getattr(L, merge)(name="merge")([x, y])
        y = L.LayerNormalization(epsilon=1e-5)(y) if behind == "norm" else y
        return L.Dense(4)(L.Activation(act, name="act")(y))

    norm = nn.LayerNorm(72) if behind == "norm" else nn.Identity()
    return Net(forward, conv=nn.Conv2d(1, 2, 3), one=nn.Linear(72, 72), two=nn.Linear(72, 72),
        norm=norm,
               out=nn.Linear(72, 4)), functional(network)

def joined(parts: str, merge: str = "Concatenate", exchanged: bool = False) -> Both:
    """Build two flattened branches, or one beside features that were never an image."""
    def forward(m: Any, x: Tensor) -> Tensor:
        a, b = m.a(x).flatten(1), m.b(x).flatten(1) if parts == "two" else x.mean((2, 3))
        return m.fc(torch.cat([a, b], 1) if merge == "Concatenate" else a * b)

    def network(x: Any) -> Any:
        a = L.Flatten()(L.Conv2D(2, 3, name="a")(x))
        layers = [L.Conv2D(2, 3, name="b"), L.Flatten()] if parts == "two" else [
            L.GlobalAveragePooling2D()]
        both = [a, through(x, *layers)]
        y = getattr(L, merge)(name="joined")(both[::-1] if exchanged else both)
        return L.Dense(4, name="fc")(y)

    convs = {name: nn.Conv2d(1, 2, 3) for name in ("ab" if parts == "two" else "a")}
    return Net(forward, **convs, fc=nn.LazyLinear(4)), functional(network)

def decoder(act: str, moved: bool = False) -> Both:
    up = nn.ConvTranspose2d(3, 2, 2, 2)
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 48), nn.ReLU(), nn.Unflatten(1, (3, 4, 4)),
        up,
                           nn.ReLU(), nn.Flatten(), nn.Linear(128, 4))
    image = [L.Reshape((3, 4, 4)), L.Permute((2, 3, 1))] if moved else [L.Reshape((4, 4, 3))]
    k_up = L.Conv2DTranspose(2, 2, 2, activation=act, name="up")
    return module, sequential(L.Flatten(), L.Dense(48, "relu"), *image, k_up, L.Flatten(),
        L.Dense(4))

def means(channels: int = 1, classes: int = 4) -> nn.Module:
    return nn.Sequential(nn.Conv2d(channels, 5, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(5, classes))

def k_means(shape: Any, *front: Any, classes: int = 4) -> Any:
    layers = L.Conv2D(5, 3, activation="relu"), L.GlobalAveragePooling2D(), L.Dense(classes,
        name="head")
    return sequential(*front, *layers, shape=shape)

def images(name: str, expected: Any, shape: Any, reads: Any, *front: Any, classes: int = 4,
    batches: Any = None) -> Pair:
    """Make a pair that reads images of a shape, and in Keras of another."""
    return Pair(name, expected, lambda: (means(shape[0], classes),
        k_means(reads, *(it.build() for it in front), classes=classes)), shape, batches)

def first(layer: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Tanh(), layer,
        nn.Flatten(), nn.LazyLinear(4))

def k_first(*layers: Any) -> Any:
    front = L.Conv2D(4, 3, padding="same", **CF), L.BatchNormalization(axis=1,
        epsilon=1e-5), L.Activation("tanh")
    return sequential(*front, *layers, L.Flatten(**CF), L.Dense(4), shape=(1, 8, 8))

FIRST = [
    ("max pooling", nn.MaxPool2d(2), K.MaxPooling2D(2, **CF)),
    ("averages for max pooling", nn.MaxPool2d(2), K.AveragePooling2D(2, **CF), FAILS),
    ("global mean", nn.AdaptiveAvgPool2d(1), K.GlobalAveragePooling2D(**CF)),
    ("transposed convolution", T.ConvTranspose2d(4, 3, 2, 2), K.Conv2DTranspose(3, 2, 2, **CF)),
    ("depthwise", T.Conv2d(4, 4, 3, groups=4), K.DepthwiseConv2D(3, **CF)),
    ("zero padding", nn.ZeroPad2d(1), K.ZeroPadding2D(1, **CF)),
    ("upsampling", nn.Upsample(scale_factor=2), K.UpSampling2D(2, **CF)),
    ("upsampling in Keras alone", nn.Identity(), K.UpSampling2D(2, **CF), REFUSED),
    ("normalized over columns", nn.Identity(), K.BatchNormalization(3), REFUSED),
]

def param(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape))

def bare(ours: Callable[..., Any], theirs: Callable[..., Any], name: str = "", trained: bool = True,
    /,
         shapes: dict[str, tuple[int, ...]] | None = None, **children: Any) -> Callable[[], Both]:
    """Delay a convolution, a function with weights of the module's own, and a mean.

    The Keras layer has the name and the weights given, by default those of the module.
    """
    def build() -> Both:
        own = {key: param(*it) if isinstance(it, tuple) else it for key, it in children.items()}
        module = Net(lambda m, x: m.fc(ours(m, m.conv(x)).tanh().mean((2, 3))),
            conv=nn.Conv2d(1, 6, 3),
                     fc=nn.Linear(6, 4), **own)
        layer = weighted(theirs, name or next(iter(children)), trained, **(shapes or children))
        behind = L.Activation("tanh"), L.GlobalAveragePooling2D(), L.Dense(4, name="fc")
        return module, sequential(L.Conv2D(6, 3, name="conv"), layer, *behind)

    return build

class Affine(nn.Module):
    """A gain and a shift of each channel."""

    def __init__(self) -> None:
        super().__init__()
        self.gain, self.shift = param(6), param(6)

    def forward(self, x: Tensor) -> Tensor:
        return affine(self, x)

def affine(m: Any, x: Tensor) -> Tensor:
    return x * m.gain[:, None, None] + m.shift[:, None, None]

def k_affine(layer: Any, x: Any) -> Any:
    return x * layer.gain + layer.shift

def scale(m: Any, x: Any) -> Any:
    return m.scale * x

def positions(name: str, shape: tuple[int, ...], flipped: bool = False) -> Callable[[], Both]:
    def build() -> Both:
        module = Net(lambda m, x: m.head((m.patch(x).flatten(2).transpose(1,
            2) + m.pos_embed).tanh().flatten(1)),
                     patch=nn.Conv2d(1, 6, 4, 4), pos_embed=param(1, 4, 6), head=nn.Linear(24, 4))
        add = weighted(lambda layer, x: x + (ops.flip(layer.pos_embed, -2) if flipped
            else layer.pos_embed), name,
                       pos_embed=shape)
        layers = L.Reshape((4, 6)), add, L.Activation("tanh"), L.Flatten(), L.Dense(4, name="head")
        return module, sequential(L.Conv2D(6, 4, 4, name="patch"), *layers)

    return build

def two_scales(*names: str) -> Callable[[], Both]:
    def build() -> Both:
        module = Net(lambda m, x: m.fc((x.flatten(1) * m.first).tanh() * m.second),
            fc=nn.Linear(64, 4),
                     first=param(), second=param())
        one, two = (weighted(scale, name, scale=()) for name in names)
        return module, sequential(L.Flatten(), one, L.Activation("tanh"), two,
            L.Dense(4, name="fc"))

    return build

def constant() -> Both:
    module = Net(lambda m, x: m.fc((x - m.mean).flatten(1)), mean=torch.tensor([0.25]),
        fc=nn.Linear(64, 4))
    return module, functional(lambda x: L.Dense(4, name="fc")(L.Flatten()(x - 0.25)))

def spare() -> Both:
    module = Net(lambda m, x: m.fc(x.flatten(1)), fc=nn.Linear(64, 4), extra=param(3))
    return module, functional(lambda x: L.Dense(4, name="fc")(L.Flatten()(x)))

CHANNELS, MIXED, BUFFER = (6, 1, 1), fails("layer", "conv2d"), torch.ones(1) / 4
bare_pair = partial(bare, lambda m, x: x - m.mean, lambda layer, x: x - layer.mean, "mean")
TOPICS = {
    "flattening": [
        *(pair for shape in ((1, 8, 8), (3, 8, 8), (1, 8, 5), (3, 8, 5), (2, 7, 7), (5, 5, 5))
            for pair in of_shape(shape)),
        *table(FLATTEN, conv_net, k_conv),
        *(Pair(f"images as (H, W), {kind}", PASSED, partial(of_rows, kind))
          for kind in ("flattened", "reshaped", "pooled", "convolved", "transposed")),
        Pair("a residual sum behind", PASSED, residual),
        Pair("a residual sum behind, normalized", PASSED, lambda: residual("norm")),
        Pair("a gate behind", PASSED, lambda: residual("gate", "Multiply")),
        Pair("a residual difference for a sum", fails("merge"), lambda: residual("", "Subtract")),
        Pair("a residual sum, another activation", fails("act"), lambda: residual(act="elu")),
        Pair("two concatenated", PASSED, lambda: joined("two")),
        Pair("two multiplied", PASSED, lambda: joined("two", "Multiply")),
        Pair("two concatenated the wrong way round", fails("joined", "fc"),
            lambda: joined("two", exchanged=True)),
        Pair("one beside other features", PASSED, lambda: joined("one")),
        Pair("one behind other features in Keras", fails("joined", "fc"),
            lambda: joined("one", exchanged=True)),
        Pair("a decoder's image", PASSED, lambda: decoder("relu")),
        Pair("a decoder's image, channels moved", PASSED, lambda: decoder("relu", True)),
        Pair("a decoder's image, another activation", fails("up"), lambda: decoder("elu")),
    ],
    "images of other shapes": [
        *(images(f"{n} channels", PASSED, (n, 8, 8), (8, 8, n)) for n in (2, 3, 4, 7, 8)),
        images("100 classes", PASSED, (1, 8, 8), (8, 8, 1), classes=100,
            batches=lambda: labelled((1, 8, 8), 100)),
        images("9×6 pixels", PASSED, (3, 9, 6), (9, 6, 3)),
        images("9×6 pixels against 6×9", REFUSED, (3, 9, 6), (6, 9, 3)),
        images("any number of pixels", PASSED, (3, 8, 8), (None, None, 3),
               batches=lambda: [*labelled((3, 8, 8)), *labelled((3, 9, 6))]),
        images("BGR", MIXED, (3, 8, 8), (8, 8, 3), K.Lambda(lambda x: x[..., ::-1], name="layer")),
        images("rows and columns exchanged", MIXED, (3, 8, 8), (8, 8, 3),
            K.Permute((2, 1, 3), name="layer")),
        images("channels moved in Keras", PASSED, (3, 8, 8), (3, 8, 8), K.Permute((2, 3, 1))),
        images("channels moved in Keras, transposed", MIXED, (3, 8, 8), (3, 8, 8),
            K.Permute((3, 2, 1), name="layer")),
    ],
    "channels first": table(FIRST, first, k_first),
    "bare parameters": [
        Pair("a scale of each channel", PASSED,
            bare(scale, scale, scale=CHANNELS, shapes={"scale": (6,)})),
        Pair("a scale of each channel, squared", fails("scale"),
             bare(scale, lambda layer, x: layer.scale**2 * x, scale=CHANNELS,
                 shapes={"scale": (6,)})),
        Pair("a scale of all", PASSED, bare(scale, scale, scale=())),
        Pair("a scale of all with one axis", PASSED, bare(scale, scale, scale=(1,))),
        Pair("a scale of each channel in PyTorch, of all in Keras", refused("scale"),
             bare(scale, scale, scale=CHANNELS, shapes={"scale": ()})),
        Pair("a temperature", PASSED, bare(lambda m, x: x * m.t.exp(), lambda layer,
            x: x * ops.exp(layer.t), t=())),
        Pair("a temperature, doubled in Keras", fails("t"),
             bare(lambda m, x: x * m.t.exp(), lambda layer, x: x * ops.exp(2 * layer.t), t=())),
        Pair("gain and shift, one layer in Keras", PASSED,
            bare(affine, k_affine, "affine", gain=(6,), shift=(6,))),
        Pair("gain and shift as a layer, in another order", PASSED,
             bare(lambda m, x: m.affine(x), k_affine, affine=Affine(),
                 shapes={"shift": (6,), "gain": (6,)})),
        Pair("gain and shift as an unnamed layer", PASSED,
             bare(lambda m, x: m.affine(x), k_affine, "mine", affine=Affine(),
                 shapes={"gain": (6,), "shift": (6,)})),
        Pair("learned positions", PASSED, positions("pos_embed", (1, 4, 6))),
        Pair("learned positions without the batch's axis", PASSED, positions("pos_embed", (4, 6))),
        Pair("learned positions of another name", PASSED, positions("place", (1, 4, 6))),
        Pair("learned positions, the other way round", fails("pos_embed"),
            positions("pos_embed", (1, 4, 6), True)),
        Pair("a buffer as a weight", PASSED, bare_pair(False, mean=BUFFER, shapes={"mean": (1,)}),
            is_trained=False),
        Pair("a buffer as a weight that is trained", fails(),
            bare_pair(True, mean=BUFFER, shapes={"mean": (1,)}),
             is_trained=False),
        Pair("a buffer as a number", PASSED, constant, is_trained=False),
        Pair("two scales", PASSED, two_scales("first", "second")),
        Pair("two scales exchanged by name", fails("second"), two_scales("second", "first")),
        Pair("two scales of other names", PASSED, two_scales("a", "b")),
        Pair("a parameter that Keras lacks", refused("extra"), spare),
    ],
}
