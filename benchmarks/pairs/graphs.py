"""Residual and branched networks, shared layers, layers in another order than their calls."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from benchmarks.pairs.common import *

# fmt: off
Both = tuple[nn.Module, Any]

class BasicBlock(nn.Module):
    """Two convolutions and a shortcut."""

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(c_out)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(c_out)
        conv = nn.Conv2d(c_in, c_out, 1, stride, bias=False)
        self.down = nn.Sequential(conv, nn.BatchNorm2d(c_out)) if stride > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        out += self.down(x)
        return F.relu(out)

class ResNet8(nn.Module):
    """A ResNet with three blocks, of 4, 8 and 16 channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, 4, 3, 1, 1, bias=False), nn.BatchNorm2d(4)
        self.stages = nn.ModuleList([BasicBlock(4, 4, 1), BasicBlock(4, 8, 2),
            BasicBlock(8, 16, 2)])
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        for stage in self.stages:
            x = stage(x)
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))

@dataclass(frozen=True)
class Recipe:
    """How a Keras ResNet-8 is written, and what is wrong with it; `wrong` alone has a name, too."""

    is_named: bool = True
    shortcut_first: bool = False
    strided: str = "zero"
    epsilon: float = 1e-5
    last: str = "relu"
    merge: str = "Add"
    exchanged: bool = False
    wrong: str = ""

    def named(self, name: str) -> dict[str, str]:
        return {"name": name} if self.is_named or name == self.wrong else {}

    def conv(self, x: Any, channels: int, stride: int, name: str) -> Any:
        same = stride == 1 or self.strided == "same"
        x = x if same else L.ZeroPadding2D(1)(x)
        padding = "same" if same else "valid"
        return L.Conv2D(channels, 3, stride, padding, use_bias=False, **self.named(name))(x)

    def norm(self, x: Any, name: str, epsilon: float = 1e-5) -> Any:
        return L.BatchNormalization(epsilon=epsilon, **self.named(name))(x)

    def shortcut(self, x: Any, channels: int, stride: int, name: str) -> Any:
        if stride == 1:
            return x
        conv = L.Conv2D(channels, 1, stride, use_bias=False, **self.named(f"{name}_down_0"))
        return self.norm(conv(x), f"{name}_down_1", self.epsilon)

    def block(self, x: Any, channels: int, stride: int, name: str) -> Any:
        short = self.shortcut(x, channels, stride, name) if self.shortcut_first else None
        one, two = (2, 1) if self.exchanged and stride == 1 else (1, 2)
        y = self.norm(self.conv(x, channels, stride, f"{name}_conv{one}"), f"{name}_bn1")
        y = self.norm(self.conv(L.ReLU()(y), channels, 1, f"{name}_conv{two}"), f"{name}_bn2")
        short = self.shortcut(x, channels, stride, name) if short is None else short
        y = getattr(L, self.merge)(**self.named(f"{name}_merge"))([y, short])
        return L.Activation(self.last, **self.named(f"{name}_out"))(y)

    def build(self) -> Both:
        def network(x: Any) -> Any:
            x = L.ReLU()(self.norm(self.conv(x, 4, 1, "stem"), "norm"))
            for i, (channels, stride) in enumerate([(4, 1), (8, 2), (16, 2)]):
                x = self.block(x, channels, stride, f"stages_{i}")
            return L.Dense(4, **self.named("head"))(L.GlobalAveragePooling2D()(x))

        return ResNet8(), functional(network)

def resnet(name: str, expected: Any, **options: Any) -> Pair:
    return Pair(name, expected, Recipe(**options).build)

def squeeze(gate: str) -> Both:
    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.conv(x)
        weights = m.up(m.down(x.mean((2, 3))).relu()).sigmoid()
        return m.fc((x * weights[:, :, None, None]).flatten(1))

    def network(x: Any) -> Any:
        x = L.Conv2D(6, 3)(x)
        layers = L.GlobalAveragePooling2D(), L.Dense(2, "relu"), L.Dense(6, gate, name="gate")
        y = L.Multiply()([x, L.Reshape((1, 1, 6))(through(x, *layers))])
        return L.Dense(4)(L.Flatten()(y))

    return Net(forward, conv=nn.Conv2d(1, 6, 3), down=nn.Linear(6, 2), up=nn.Linear(2, 6),
               fc=nn.Linear(216, 4)), functional(network)

def unet(exchanged: bool) -> Both:
    def forward(m: Any, x: Tensor) -> Tensor:
        high = m.down1(x).relu()
        low = m.down2(F.max_pool2d(high, 2)).relu()
        return m.out(m.merge(torch.cat([high, m.up(low)], 1)).relu().mean((2, 3)))

    def conv(x: Any) -> Any:
        return L.Conv2D(4, 3, padding="same", activation="relu")(x)

    def network(x: Any) -> Any:
        high = conv(x)
        raised = L.Conv2DTranspose(4, 2, 2)(conv(L.MaxPooling2D()(high)))
        joined = L.Concatenate(name="joined")([raised, high] if exchanged else [high, raised])
        return L.Dense(4)(L.GlobalAveragePooling2D()(conv(joined)))

    module = Net(forward, up=nn.ConvTranspose2d(4, 4, 2, 2), out=nn.Linear(4, 4),
                 down1=nn.Conv2d(1, 4, 3, padding=1), merge=nn.Conv2d(8, 4, 3, padding=1),
                 down2=nn.Conv2d(4, 4, 3, padding=1))
    return module, functional(network)

def times(count: int, activation: str = "tanh", name: str = "mid") -> Both:
    """Build a layer that PyTorch calls twice, and Keras as often as told; or a second layer."""
    def forward(m: Any, x: Tensor) -> Tensor:
        return m.out(m.mid(m.mid(m.first(x.flatten(1)).tanh()).tanh()).tanh())

    def network(x: Any) -> Any:
        x, mid = L.Dense(6, "tanh", name="first")(L.Flatten()(x)), L.Dense(6, activation,
            name="mid")
        other = mid if name == "mid" else L.Dense(6, "tanh", name=name)
        return through(x, *[mid, other, other][:count], L.Dense(4, name="out"))

    return Net(forward, first=nn.Linear(64, 6), mid=nn.Linear(6, 6),
        out=nn.Linear(6, 4)), functional(network)

def siamese(merge: str, nested: bool = False, convolved: bool = False) -> Both:
    """Build one network that reads the upper and the lower half of an image."""
    front = [nn.Conv2d(1, 3, 3), nn.ReLU()] if convolved else []
    body = nn.Sequential(*front, nn.Flatten(), nn.LazyLinear(6))
    module = Net(lambda m, x: m.head((m.body(x[:, :, :4]) - m.body(x[:, :, 4:])).abs()), body=body,
                 head=nn.Linear(6, 4))

    def network(x: Any) -> Any:
        layers = [*([L.Conv2D(3, 3), L.ReLU()] if convolved else []), L.Flatten(), L.Dense(6)]
        layers = [sequential(*layers, shape=(4, 8, 1))] if nested else layers
        halves = [through(x[:, :4], *layers), through(x[:, 4:], *layers)]
        return L.Dense(4)(ops.absolute(getattr(L, merge)(name="merged")(halves)))

    return module, functional(network)

def autoencoder(tied: bool, keras_tied: bool) -> Both:
    def forward(m: Any, x: Tensor) -> Tensor:
        y = m.enc(x.flatten(1)).tanh()
        return m.head((F.linear(y, m.enc.weight.T) if tied else m.dec(y)).tanh())

    def network(x: Any) -> Any:
        enc = L.Dense(6, use_bias=False, name="enc")
        y = ops.tanh(enc(L.Flatten()(x)))
        if keras_tied:
            y = weighted(lambda layer, a, b: ops.matmul(a, ops.transpose(b)), "dec")(y, enc.kernel)
        else:
            y = L.Dense(64, use_bias=False, name="dec")(y)
        return L.Dense(4, name="head")(ops.tanh(y))

    layers = {"enc": nn.Linear(64, 6, bias=False), "head": nn.Linear(64, 4)}
    layers |= {} if tied else {"dec": nn.Linear(6, 64, bias=False)}
    return Net(forward, **layers), functional(network, (8, 8))

def language_model(tied: bool, keras_tied: bool) -> Both:
    emb, head = nn.Embedding(4, 6), nn.Linear(6, 4, bias=False)
    if tied:
        head.weight = emb.weight
    module = Net(lambda m, x: m.head(m.emb(x).mean(1).tanh()), emb=emb, head=head)

    def network(x: Any) -> Any:
        kind = L.ReversibleEmbedding if keras_tied else L.Embedding
        emb = kind(4, 6, name="emb")
        y = ops.tanh(ops.mean(emb(x), 1))
        return emb(y, reverse=True) if keras_tied else L.Dense(4, use_bias=False, name="head")(y)

    return module, functional(network, (5,), dtype="int32")

def tied_layers(shared: bool) -> Both:
    one, two = nn.Linear(6, 6), nn.Linear(6, 6)
    two.weight, two.bias = one.weight, one.bias
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 6), one, nn.Tanh(), two, nn.Linear(6, 4))

    def network(x: Any) -> Any:
        mid = L.Dense(6)
        layers = L.Dense(6), mid, L.Activation("tanh"), mid if shared else L.Dense(6), L.Dense(4)
        return through(L.Flatten()(x), *layers)

    return module, functional(network)

class Reordered(nn.Module):
    """Registers its layers in another order than it calls them."""

    def __init__(self, order: str) -> None:
        super().__init__()
        for name in order:
            conv = nn.Conv2d(1 if name == "s" else 4, 4, 3, padding=1)
            setattr(self, name, nn.Linear(4, 4) if name == "h" else conv)

    def forward(self, x: Tensor) -> Tensor:
        for name in "sabc":
            x = getattr(self, name)(x).relu()
        return self.get_submodule("h")(x.mean((2, 3)))

def chain(name: str, order: str, names: str, expected: Any, wrong: int | None = None) -> Pair:
    """Make a pair of chains of convolutions; a dash in Keras's names is a layer without one."""
    def build() -> Both:
        convs = [
            L.Conv2D(4, 3, padding="same", activation="elu" if i == wrong else "relu",
                     **({} if name == "-" else {"name": name})) for i, name in enumerate(names)]
        return Reordered(order), sequential(*convs, L.GlobalAveragePooling2D(),
            L.Dense(4, name="h"))

    return Pair(name, expected, build)

def branches(right_first: bool = False, exchanged: bool = False, act: str = "tanh") -> Both:
    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.stem(x).relu()
        return m.head((m.left2(m.left1(x).tanh()) - m.right(x)).relu().mean((2, 3)))

    def conv(x: Any) -> Any:
        return L.Conv2D(4, 3, padding="same")(x)

    def network(x: Any) -> Any:
        x = L.Conv2D(4, 3, activation="relu")(x)
        right = conv(x) if right_first else None
        left = conv(L.Activation(act, name="act")(conv(x)))
        right = conv(x) if right is None else right
        y = L.Subtract(name="difference")([right, left] if exchanged else [left, right])
        return through(y, L.ReLU(), L.GlobalAveragePooling2D(), L.Dense(4))

    module = Net(forward, **{name: nn.Conv2d(4, 4, 3, padding=1)
        for name in ("right", "left1", "left2")},
                 stem=nn.Conv2d(1, 4, 3), head=nn.Linear(4, 4))
    return module, functional(network)

def parallel(sizes: tuple[int, int], act: str = "tanh", deeper: bool = False) -> Both:
    """Build two convolutions of the same input that are told apart by what follows."""
    module = Net(lambda m, x: m.head(torch.cat([m.one(x).tanh(), m.two(x).sigmoid()],
        1).mean((2, 3))),
                 two=nn.Conv2d(1, 4, sizes[1], padding="same"),
                 one=nn.Conv2d(1, 4, sizes[0], padding="same"), head=nn.Linear(8, 4))

    def network(x: Any) -> Any:
        a, b = (L.Conv2D(4, size, padding="same")(x) for size in sizes)
        b = L.Activation("linear")(b) if deeper else b
        joined = L.Concatenate()([L.Activation(act, name="act")(a), ops.sigmoid(b)])
        return L.Dense(4)(L.GlobalAveragePooling2D()(joined))

    return module, functional(network)

def experts(axis: int) -> Both:
    def forward(m: Any, x: Tensor) -> Tensor:
        made = torch.stack([expert(x.flatten(1)) for expert in m.experts], 1)
        return torch.einsum("nec,ne->nc", made, m.gate(x.flatten(1)).softmax(1))

    def network(x: Any) -> Any:
        x = L.Flatten()(x)
        weights = L.Softmax(axis, name="softmax")(L.Dense(3, name="gate")(x))
        made = ops.stack([L.Dense(4, name=f"experts_{i}")(x) for i in range(3)], 1)
        return ops.sum(made * ops.expand_dims(weights, -1), 1)

    made = nn.ModuleList([nn.Linear(64, 4) for _ in range(3)])
    return Net(forward, gate=nn.Linear(64, 3), experts=made), functional(network)

def never_called() -> Both:
    module = Net(lambda m, x: m.fc(x.flatten(1)), fc=nn.Linear(64, 4), spare=nn.Linear(64, 4))
    return module, sequential(L.Flatten(), L.Dense(4))

LAST, DOWN = "stages_0_out", "stages_1_down_1"
VOCABULARY: dict[str, Any] = {"batches": lambda: tokens(5, 4)}
TOPICS = {
    "residual and branched networks": [
        resnet("ResNet-8, named", PASSED),
        resnet("ResNet-8, unnamed", PASSED, is_named=False),
        resnet("ResNet-8, shortcut first", PASSED, shortcut_first=True),
        resnet("ResNet-8, unnamed, shortcut first", PASSED, is_named=False, shortcut_first=True),
        resnet("strided 'same' convolution", fails("stages_1_conv1"), strided="same"),
        resnet("a shortcut's epsilon", fails(DOWN), epsilon=1e-3),
        resnet("a shortcut's epsilon, unnamed", fails(DOWN), epsilon=1e-3, is_named=False,
            wrong=DOWN),
        resnet("no ReLU behind the sums", fails(LAST, "zero_padding2d"), last="linear"),
        resnet("tanh behind the sums", fails(LAST), last="tanh"),
        resnet("tanh behind the sums, unnamed", fails(LAST), last="tanh", is_named=False,
            wrong=LAST),
        resnet("products for sums", fails("stages_0_merge"), merge="Multiply"),
        resnet("means for sums", fails("stages_0_merge"), merge="Average"),
        resnet("maxima for sums", fails("stages_0_merge"), merge="Maximum"),
        resnet("convolutions exchanged by name", fails("stages_0_conv2"), exchanged=True),
        Pair("squeeze and excitation", PASSED, lambda: squeeze("sigmoid")),
        Pair("squeeze and excitation with tanh", fails("gate"), lambda: squeeze("tanh")),
        Pair("U-Net, unnamed", PASSED, lambda: unet(False)),
        Pair("U-Net, unnamed, concatenated the wrong way round", fails("joined"),
            lambda: unet(True)),
    ],
    "sharing and tied weights": [
        Pair("called twice", PASSED, lambda: times(2)),
        Pair("called once for twice", fails("out", "mid"), lambda: times(1)),
        Pair("called three times for twice", fails("mid"), lambda: times(3)),
        Pair("called twice, sigmoid", fails("mid"), lambda: times(2, "sigmoid")),
        Pair("called twice against two layers", REFUSED, lambda: times(2, name="mid2")),
        Pair("siamese", PASSED, lambda: siamese("Subtract")),
        Pair("siamese, added", fails("merged"), lambda: siamese("Add")),
        Pair("siamese convolutions", PASSED, lambda: siamese("Subtract", convolved=True)),
        Pair("siamese convolutions, nested", PASSED, lambda: siamese("Subtract", True, True)),
        Pair("siamese convolutions, nested, added", fails("merged"),
            lambda: siamese("Add", True, True)),
        Pair("tied autoencoder", PASSED, lambda: autoencoder(True, True)),
        Pair("untied autoencoder", PASSED, lambda: autoencoder(False, False)),
        Pair("autoencoder tied in PyTorch alone", REFUSED, lambda: autoencoder(True, False)),
        Pair("tied embedding and head", PASSED, lambda: language_model(True, True), **VOCABULARY),
        Pair("untied embedding and head", PASSED, lambda: language_model(False, False),
            **VOCABULARY),
        Pair("embedding and head tied in PyTorch alone", fails(),
            lambda: language_model(True, False), **VOCABULARY),
        Pair("tied layers against one called twice", PASSED, lambda: tied_layers(True)),
        Pair("tied layers against two", fails(), lambda: tied_layers(False)),
    ],
    "matching of layers": [
        chain("registered as called, unnamed", "sabch", "----", PASSED),
        chain("registered the other way round, unnamed", "hcbas", "----", PASSED),
        chain("registered in another order, unnamed", "hbsca", "----", PASSED),
        chain("registered in another order, named", "hbsca", "sabc", PASSED),
        chain("names of one chain in another order", "sabch", "sbac", fails("b")),
        chain("one name of four is unknown", "hbsca", "sab-", PASSED),
        chain("a fault behind layers in another order", "hbsca", "--x-", fails("x"), 2),
        chain("a fault in the first of them", "hcbas", "x---", fails("x"), 0),
        Pair("branches, unnamed", PASSED, branches),
        Pair("branches, the other written first", PASSED, lambda: branches(True)),
        Pair("branches subtracted the wrong way round", fails("difference"),
            lambda: branches(exchanged=True)),
        Pair("a fault in a branch", fails("act"), lambda: branches(act="elu")),
        Pair("parallel layers of other shapes", PASSED, lambda: parallel((3, 5))),
        Pair("parallel layers of equal shapes", PASSED, lambda: parallel((3, 3))),
        Pair("parallel layers of equal shapes, one deeper", PASSED,
            lambda: parallel((3, 3), deeper=True)),
        Pair("parallel layers, a fault behind one", fails("act"), lambda: parallel((3, 5), "elu")),
        Pair("mixture of experts", PASSED, lambda: experts(-1)),
        Pair("mixture of experts, softmax over the batch", fails("softmax"), lambda: experts(0)),
        Pair("a layer that is never called", refused("spare"), never_called),
    ],
}
