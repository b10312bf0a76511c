"""Attention, as one layer and written out, and transformers of images."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.pairs.common import *

# fmt: off
ROWS = (8, 8)  # the rows of an image are the tokens
ATTN = fails("attn")

def attend(forward: Any = None, **options: Any) -> nn.Module:
    forward = forward or (lambda m, x: m.attn(x, x, x)[0])
    attn = nn.MultiheadAttention(8, 2, **{"batch_first": True, **options})
    return Net(lambda m, x: m.fc(forward(m, x[:, 0]).mean(1)), attn=attn, fc=nn.Linear(8, 4))

def keras_attend(call: Any = None, heads: int = 2, size: int = 4, **options: Any) -> Any:
    call = call or (lambda layer, x: layer(x, x))

    def network(x: Any) -> Any:
        y = call(L.MultiHeadAttention(heads, size, name="attn", **options), x)
        return L.Dense(4, name="fc")(L.GlobalAveragePooling1D()(y))

    return functional(network, ROWS)

def pair(name: str, expected: Any, ours: dict[str, Any], **theirs: Any) -> Pair:
    return Pair(name, expected, lambda: (attend(**ours), keras_attend(**theirs)))

def causal(m: Any, x: Tensor) -> Tensor:
    mask = nn.Transformer.generate_square_subsequent_mask(8, dtype=x.dtype)
    return m.attn(x, x, x, attn_mask=mask)[0]

def time_first(m: Any, x: Tensor) -> Tensor:
    x = x.transpose(0, 1)
    return m.attn(x, x, x)[0].transpose(0, 1)

CROSSED = {"forward": lambda m, x: m.attn(x[:, :4], x[:, 4:], x[:, 4:])[0]}
NARROW = {"forward": lambda m, x: m.attn(x, x[..., :6], x[..., :6])[0], "kdim": 6, "vdim": 6}

def frozen() -> tuple[nn.Module, Any]:
    module: Any = attend()
    for parameter in (module.attn.in_proj_weight, module.attn.in_proj_bias):
        parameter.requires_grad_(False)
    return module, keras_attend()

class SelfAttention(nn.Module):
    """Attention written out, with one projection into queries, keys and values or with three."""

    def __init__(self, fused: bool) -> None:
        super().__init__()
        if fused:
            self.qkv = nn.Linear(8, 24)
        else:
            self.query, self.key, self.value = (nn.Linear(8, 8) for _ in range(3))
        self.proj = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        n, t, c = x.shape
        fused = hasattr(self, "qkv")
        parts = self.qkv(x).chunk(3, -1) if fused else (self.query(x), self.key(x), self.value(x))
        q, k, v = (it.view(n, t, 2, -1).transpose(1, 2) for it in parts)
        weights = (q @ k.transpose(2, 3) / math.sqrt(c // 2)).softmax(-1)
        return self.proj((weights @ v).transpose(1, 2).reshape(n, t, c))

def keras_written_out(fused: bool, scale: float = 0.5, axis: int = -1) -> Any:
    def network(x: Any) -> Any:
        parts = (ops.split(L.Dense(24, name="qkv")(x), 3, -1) if fused
                 else [L.Dense(8, name=name)(x) for name in ("query", "key", "value")])
        q, k, v = (ops.transpose(ops.reshape(it, (-1, 8, 2, 4)), (0, 2, 1, 3)) for it in parts)
        scores = ops.matmul(q, ops.transpose(k, (0, 1, 3, 2))) * scale
        mixed = ops.matmul(L.Softmax(axis, name="softmax")(scores), v)
        y = L.Dense(8, name="proj")(ops.reshape(ops.transpose(mixed, (0, 2, 1, 3)), (-1, 8, 8)))
        return L.Dense(4, name="fc")(L.GlobalAveragePooling1D()(y))

    return functional(network, ROWS)

def written_out(name: str, expected: Any, fused: bool, **options: Any) -> Pair:
    """Make a pair of PyTorch's attention written out, and Keras's written out or its layer."""
    keras_layer = options.pop("keras_layer", False)

    def build() -> tuple[nn.Module, Any]:
        module = Net(lambda m, x: m.fc(m.attn(x[:, 0]).mean(1)), attn=SelfAttention(fused),
            fc=nn.Linear(8, 4))
        return module, keras_attend(**options) if keras_layer else keras_written_out(fused,
            **options)

    return Pair(name, expected, build)

def encoder(name: str, expected: Any, first: bool = True, keras_first: bool = True,
    **wrong: Any) -> Pair:
    """Make a pair of nn.TransformerEncoderLayer and its counterpart."""

    def build() -> tuple[nn.Module, Any]:
        block = nn.TransformerEncoderLayer(8, 2, 16, 0.1, "gelu", batch_first=True,
            norm_first=first)
        return (Net(lambda m, x: m.fc(m.block(x[:, 0])[:, 0]), block=block, fc=nn.Linear(8, 4)),
                functional(network, ROWS))

    def norm(x: Any, i: int) -> Any:
        return L.LayerNormalization(epsilon=wrong.get("epsilon", 1e-5), name=f"block_norm{i}")(x)

    def attention(x: Any) -> Any:
        return L.MultiHeadAttention(2, 4, dropout=0.1, name="block_self_attn")(x, x)

    def mlp(x: Any) -> Any:
        x = L.Dense(16, wrong.get("activation", "gelu"), name="block_linear1")(x)
        return L.Dense(8, name="block_linear2")(x)

    def network(x: Any) -> Any:
        for i, part in enumerate((attention, mlp), 1):
            x = L.Add()([x, part(norm(x, i))]) if keras_first else norm(L.Add()([x, part(x)]), i)
        return L.Dense(4, name="fc")(x[:, 0])

    return Pair(name, expected, build)

class Block(nn.Module):
    """A transformer's block with pre-normalization."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(8, eps=1e-6), nn.LayerNorm(8, eps=1e-6)
        self.attn = nn.MultiheadAttention(8, 2, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        x = x + self.attn(y, y, y, need_weights=False)[0]
        return x + self.mlp(self.norm2(x))

class ViT(nn.Module):
    """A small ViT: 4×4 patches, a class token, learned positions, two blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(1, 8, 4, 4)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, 8))
        self.pos_embed = nn.Parameter(torch.randn(1, 5, 8) * 0.02)
        self.blocks = nn.ModuleList([Block(), Block()])
        self.norm, self.head = nn.LayerNorm(8, eps=1e-6), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)[:, 0])

def vit(name: str, expected: Any, named: bool = True, **wrong: Any) -> Pair:
    """Make a pair of ViTs."""

    def called(name: str) -> dict[str, str]:
        return {"name": name} if named else {}

    def norm(x: Any, name: str, epsilon: float = 1e-6) -> Any:
        return L.LayerNormalization(epsilon=epsilon, **called(name))(x)

    def with_class(layer: Any, x: Any) -> Any:
        return ops.concatenate([ops.broadcast_to(layer.cls_token, (ops.shape(x)[0], 1, 8)), x], 1)

    def network(x: Any) -> Any:
        x = L.Conv2D(8, 4, 4, **called("patch"))(x)
        x = L.Permute((2, 1, 3), name="columns")(x) if wrong.get("columns") else x
        x = weighted(with_class, "cls_token" if named else "a",
            cls_token=(1, 1, 8))(L.Reshape((4, 8))(x))
        x = weighted(lambda layer, x: x + layer.pos_embed, "pos_embed" if named else "b",
                     pos_embed=(1, 5, 8))(x)
        for i in range(2):
            y = norm(x, f"blocks_{i}_norm1", wrong.get("epsilon", 1e-6) if i else 1e-6)
            attn = L.MultiHeadAttention(*wrong.get("heads", (2, 4)), **called(f"blocks_{i}_attn"))
            x = L.Add()([x, attn(y, y)])
            y = norm(x, f"blocks_{i}_norm2")
            y = L.Dense(16, wrong.get("activation", "gelu"), **called(f"blocks_{i}_mlp_0"))(y)
            x = L.Add()([x, L.Dense(8, **called(f"blocks_{i}_mlp_2"))(y)])
        x = norm(x, "norm")
        x = L.GlobalAveragePooling1D(name="mean")(x) if wrong.get("mean") else x[:, 0]
        return L.Dense(4, **called("head"))(x)

    return Pair(name, expected, lambda: (ViT(), functional(network)))

TOPICS = {
    "attention": [
        pair("MultiHeadAttention", PASSED, {}),
        pair("without biases", PASSED, {"bias": False}, use_bias=False),
        pair("biases in PyTorch alone", refused("attn"), {}, use_bias=False),
        pair("causal", PASSED, {"forward": causal}, call=lambda at,
            x: at(x, x, use_causal_mask=True)),
        pair("causal in PyTorch alone", ATTN, {"forward": causal}),
        pair("crossed", PASSED, CROSSED, call=lambda at, x: at(x[:, :4], x[:, 4:])),
        pair("crossed, queries for keys", ATTN, CROSSED, call=lambda at, x: at(x[:, 4:], x[:, :4])),
        pair("keys of another width", PASSED, NARROW, call=lambda at, x: at(x, x[:, :, :6])),
        pair("keys of other columns", fails("attn", "get_item"), NARROW,
             call=lambda at, x: at(x, x[:, :, 2:])),
        pair("four heads of 2 for two of 4", ATTN, {}, heads=4, size=2),
        pair("one head of 8 for two of 4", ATTN, {}, heads=1, size=8),
        pair("heads as wide as the model", refused("attn"), {}, size=8),
        pair("another dropout", PASSED, {"dropout": 0.2}, dropout=0.5),
        pair("time first in PyTorch", PASSED, {"forward": time_first, "batch_first": False}),
        pair("keys of zeros added in PyTorch", ATTN, {"add_zero_attn": True}),
        pair("biases of keys in PyTorch", ATTN, {"add_bias_kv": True}),
        Pair("projections frozen in PyTorch alone", fails(), frozen),
        written_out("written out, one projection", PASSED, True),
        written_out("written out, three projections", PASSED, False),
        written_out("written out, another scale", fails("softmax", "multiply"), True,
            scale=8**-0.5),
        written_out("written out, softmax over queries", fails("softmax"), False, axis=-2),
        written_out("three projections against Keras's layer", PASSED, False, keras_layer=True),
        written_out("one projection against Keras's layer", PASSED, True, keras_layer=True),
        written_out("three projections, four heads in Keras's layer", ATTN, False, keras_layer=True,
                    heads=4, size=2),
        Pair("PyTorch's layer against Dense layers", PASSED,
            lambda: (attend(), keras_written_out(True))),
        encoder("encoder block", PASSED),
        encoder("encoder block, normalized last", PASSED, False, False),
        encoder("encoder block, normalized last in PyTorch",
            fails("block_norm1", "block_self_attn"), False),
        encoder("encoder block with ReLU", fails("block_linear1"), activation="relu"),
        encoder("encoder block, Keras's epsilon", fails("block_norm1"), epsilon=1e-3),
    ],
    "ViT": [
        vit("named", PASSED),
        vit("unnamed", PASSED, named=False),
        vit("epsilon of the second block", fails("blocks_1_norm1"), epsilon=1e-5),
        vit("GELU by tanh", fails("blocks_0_mlp_0"),
            activation=lambda x: ops.gelu(x, approximate=True)),
        vit("patches column by column", fails("columns"), columns=True),
        vit("the mean for the class token", fails("mean"), mean=True),
        vit("four heads of 2", fails("blocks_0_attn"), heads=(4, 2)),
    ],
}
