"""A small ViT with attention, a class token and learned positions."""

import torch
from torch import nn

from digitlab import parity

keras = parity.import_keras()
layers, ops = keras.layers, keras.ops


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(32), nn.LayerNorm(32)
        self.attn = nn.MultiheadAttention(32, num_heads=4, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32))

    def forward(self, x):
        y = self.norm1(x)
        x = x + self.attn(y, y, y, need_weights=False)[0]
        return x + self.mlp(self.norm2(x))


class ViT(nn.Module):
    def __init__(self):
        super().__init__()
        self.patch = nn.Conv2d(1, 32, 7, stride=7)
        self.cls_token = nn.Parameter(torch.randn(1, 1, 32))
        self.pos_embed = nn.Parameter(torch.randn(1, 17, 32))
        self.blocks = nn.Sequential(Block(), Block())
        self.norm, self.head = nn.LayerNorm(32), nn.Linear(32, 10)

    def forward(self, x):
        x = self.patch(x).flatten(2).transpose(1, 2)  # channels first: a token for each patch
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1) + self.pos_embed
        return self.head(self.norm(self.blocks(x))[:, 0])


class Tokens(layers.Layer):
    def build(self, shape):
        self.cls_token = self.add_weight((1, 1, 32), name="cls_token")
        self.pos_embed = self.add_weight((1, 17, 32), name="pos_embed")

    def call(self, x):
        first = ops.broadcast_to(self.cls_token, (ops.shape(x)[0], 1, 32))
        return ops.concatenate([first, x], axis=1) + self.pos_embed


def norm(x):
    return layers.LayerNormalization(epsilon=1e-5)(x)  # 1e-3 by default


inputs = keras.Input((28, 28, 1))
x = Tokens()(layers.Reshape((16, 32))(layers.Conv2D(32, 7, strides=7)(inputs)))
for _ in range(2):
    y = norm(x)
    x = x + layers.MultiHeadAttention(num_heads=4, key_dim=8)(y, y)  # key_dim is a head's width
    y = layers.Dense(64, activation="gelu")(norm(x))
    x = x + layers.Dense(32)(y)
theirs = keras.Model(inputs, layers.Dense(10)(norm(x)[:, 0]))

batches = [(torch.randn(8, 1, 28, 28), torch.randint(10, (8,)))]
report = parity.check(ViT(), theirs, batches)
print(report)
report.assert_passed()
