"""A ResNet-8 with batch normalization: layers are matched by name."""

from collections import OrderedDict

import torch
from torch import nn

from digitlab import parity

keras = parity.import_keras()
layers = keras.layers


class Block(nn.Module):
    def __init__(self, inputs, channels, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut = nn.Conv2d(inputs, channels, 1, stride, bias=False)

    def forward(self, x):
        y = self.bn1(self.conv1(x)).relu()
        return (self.bn2(self.conv2(y)) + self.shortcut(x)).relu()


ours = nn.Sequential(
    OrderedDict(
        stem=nn.Conv2d(3, 16, 3, padding=1),
        block1=Block(16, 16, stride=1),
        block2=Block(16, 32, stride=2),
        block3=Block(32, 64, stride=2),
        pool=nn.AdaptiveAvgPool2d(1),
        flatten=nn.Flatten(),
        fc=nn.Linear(64, 10),
    )
)


def block(x, channels, stride, name):
    def conv(x, size, stride, part):
        return layers.Conv2D(channels, size, stride, use_bias=False, name=f"{name}_{part}")(x)

    def norm(x, part):  # PyTorch's momentum 0.1 is 0.9 here, and epsilon is 1e-3 by default
        return layers.BatchNormalization(momentum=0.9, epsilon=1e-5, name=f"{name}_{part}")(x)

    y = conv(layers.ZeroPadding2D(1)(x), 3, stride, "conv1")  # "same" is one-sided for stride 2
    y = layers.ReLU()(norm(y, "bn1"))
    y = norm(conv(layers.ZeroPadding2D(1)(y), 3, 1, "conv2"), "bn2")
    return layers.ReLU()(layers.Add()([y, conv(x, 1, stride, "shortcut")]))


inputs = keras.Input((32, 32, 3))
x = layers.Conv2D(16, 3, padding="same", name="stem")(inputs)
for i, (channels, stride) in enumerate([(16, 1), (32, 2), (64, 2)], start=1):
    x = block(x, channels, stride, f"block{i}")
x = layers.GlobalAveragePooling2D()(x)
theirs = keras.Model(inputs, layers.Dense(10, name="fc")(x))

ours(torch.randn(64, 3, 32, 32))  # one batch in training mode moves the running averages
batches = [(torch.randn(8, 3, 32, 32), torch.randint(10, (8,)))]
report = parity.check(ours, theirs, batches)
print(report)
report.assert_passed()
