"""Normalizations, activations, dropout and the constants that TensorFlow holds in float32."""

from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.utils import parametrizations

from benchmarks.pairs.common import *

# fmt: off
LAYER = refused("layer")

def ours(layer: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 6, 3), layer, nn.Tanh(), nn.Flatten(), nn.LazyLinear(4))

def theirs(*layers: Any) -> Any:
    front = L.Conv2D(6, 3, name="front")
    return sequential(front, *layers, L.Activation("tanh"), L.Flatten(), L.Dense(4))

def bn(**options: Any) -> Any:
    return K.BatchNormalization(**{"epsilon": 1e-5, **options})

BN = T.BatchNorm2d(6)
FLAT = [K.Flatten(), bn(name="layer")]
BATCH = [  # feature maps are 6×6 with 6 channels
    ("PyTorch's epsilon", BN, bn()),
    ("Keras's epsilon in both", T.BatchNorm2d(6, 1e-3), bn(epsilon=1e-3)),
    ("Keras's epsilon in Keras", BN, bn(epsilon=1e-3), FAILS),
    ("epsilon 1.1e-5 in Keras", BN, bn(epsilon=1.1e-5), FAILS),
    ("neither scale nor shift", T.BatchNorm2d(6, affine=False), bn(scale=False, center=False)),
    ("no scale in Keras", BN, bn(scale=False), LAYER),
    ("no scale in PyTorch", T.BatchNorm2d(6, affine=False), bn(), LAYER),
    ("batch statistics", T.BatchNorm2d(6, track_running_stats=False), bn(), LAYER),
    ("ReLU first in Keras", T.Sequential(BN, nn.ReLU()), [K.ReLU(), bn()], fails("re_lu")),
    ("normalized over rows, of the same number", BN, bn(axis=1), FAILS),
    ("momentum has no part in a forward pass", BN, bn(momentum=0.5)),
    ("no normalization in Keras", BN, K.Activation("linear"), REFUSED),
    ("group normalization in Keras", BN, K.GroupNormalization(2), LAYER),
    ("of flattened features", T.Sequential(nn.Flatten(), T.BatchNorm1d(216)), FLAT),
    ("of flattened features, epsilon 1e-3",
     T.Sequential(nn.Flatten(), T.BatchNorm1d(216, 1e-3)), FLAT, FAILS),
    ("two norms", T.Sequential(BN, nn.Tanh(), T.BatchNorm2d(6)),
     [bn(), K.Activation("tanh"), bn()]),
]

def group(*args: Any, **options: Any) -> Any:
    return K.GroupNormalization(*args, **{"epsilon": 1e-5, **options})

def layer_norm(**options: Any) -> Any:
    return K.LayerNormalization(**{"epsilon": 1e-5, **options})

def rms(**options: Any) -> Any:
    return K.RMSNormalization(**{"epsilon": 1e-5, **options})

def channels(norm: Any) -> Any:
    """Normalize the channels of each pixel, as ConvNeXt does."""
    last = Function(lambda x: x.permute(0, 2, 3, 1))
    return T.Sequential(last, norm, Function(lambda x: x.permute(0, 3, 1, 2)))

def standardized(correction: int) -> Function:
    return Function(lambda x: (x - x.mean(1, True)) / x.std(1, keepdim=True, correction=correction))

IMAGE, BARE = (6, 6, 6), {"scale": False, "center": False}
STANDARD = K.Lambda(lambda x: (x - ops.mean(x, -1, keepdims=True)) / ops.std(x, -1, keepdims=True))
NORMS = [
    ("LayerNorm of channels", channels(T.LayerNorm(6)), layer_norm()),
    ("LayerNorm of channels, Keras's epsilon", channels(T.LayerNorm(6)), layer_norm(epsilon=1e-3),
     FAILS),
    ("LayerNorm of rows for channels", T.LayerNorm(6), layer_norm(), FAILS),
    ("LayerNorm of images", T.LayerNorm(IMAGE), layer_norm(axis=[1, 2, 3])),
    ("LayerNorm of images, of channels in Keras", T.LayerNorm(IMAGE), layer_norm(), LAYER),
    ("LayerNorm of images without weights", T.LayerNorm(IMAGE, elementwise_affine=False),
     layer_norm(axis=[1, 2, 3], **BARE)),
    ("LayerNorm of images without weights, of channels in Keras",
     T.LayerNorm(IMAGE, elementwise_affine=False), layer_norm(**BARE), FAILS),
    ("LayerNorm without bias", channels(T.LayerNorm(6, bias=False)), layer_norm(center=False)),
    ("LayerNorm, bias in Keras alone", channels(T.LayerNorm(6, bias=False)), layer_norm(), LAYER),
    ("GroupNorm", T.GroupNorm(2, 6), group(2)),
    ("GroupNorm of other groups", T.GroupNorm(2, 6), group(3), FAILS),
    ("GroupNorm, Keras's epsilon", T.GroupNorm(2, 6), group(2, epsilon=1e-3), FAILS),
    ("GroupNorm of one group against LayerNorm of images", T.GroupNorm(1, 6, affine=False),
     layer_norm(axis=[1, 2, 3], **BARE)),
    ("InstanceNorm as GroupNorm", T.InstanceNorm2d(6, affine=True), group(-1)),
    ("InstanceNorm against all channels", T.InstanceNorm2d(6, affine=True), group(1), FAILS),
    ("RMSNorm", channels(T.RMSNorm(6, 1e-6)), rms(epsilon=1e-6)),
    ("RMSNorm, PyTorch's default epsilon", channels(T.RMSNorm(6)), rms(), FAILS),
    ("RMSNorm against LayerNorm", channels(T.RMSNorm(6, 1e-5)), layer_norm(center=False), FAILS),
    ("unit length", Function(lambda x: nn.functional.normalize(x, eps=1e-6)),
     K.UnitNormalization()),
    ("standardized by hand, unbiased", standardized(1), STANDARD, FAILS),
    ("LocalResponseNorm has no layer in Keras", nn.LocalResponseNorm(3), K.Activation("linear"),
     fails("layer", "activation")),
]

def parametrized(kind: str) -> tuple[nn.Module, Any]:
    conv = nn.Conv2d(6, 6, 1)
    wrap = torch.nn.utils.weight_norm if kind == "hook" else getattr(parametrizations, kind)
    return ours(wrap(conv)), theirs(L.Conv2D(6, 1))

def steps(layer: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Flatten(1, 2), nn.Linear(8, 6), layer, nn.SiLU(), nn.Flatten(),
        nn.Linear(48, 4))

def k_steps(*layers: Any) -> Any:
    front = L.Dense(6, name="front")
    return sequential(front, *layers, L.Activation("silu"), L.Flatten(), L.Dense(4), shape=(8, 8))

STEPS = [
    ("LayerNorm of sequences", T.LayerNorm(6), layer_norm()),
    ("LayerNorm of steps and features", T.LayerNorm((8, 6)), layer_norm(axis=[1, 2])),
    ("LayerNorm of steps and features, of features in Keras", T.LayerNorm((8, 6)), layer_norm(),
     LAYER),
    ("RMSNorm of sequences", T.RMSNorm(6, 1e-6), rms(epsilon=1e-6)),
    ("LayerNorm of sequences against RMSNorm", T.LayerNorm(6, bias=False), rms(), FAILS),
]

def act(function: Any) -> Any:
    return K.Activation(function)

def large(layer: nn.Module) -> nn.Module:
    front = nn.Conv2d(1, 4, 3, 2), Function(lambda x: 8 * x)
    return nn.Sequential(*front, layer, nn.Flatten(), nn.LazyLinear(4))

def k_large(*layers: Any) -> Any:
    front = L.Conv2D(4, 3, 2, name="front"), L.Rescaling(8.0)
    return sequential(*front, *layers, L.Flatten(), L.Dense(4))

ACTIVATIONS = [
    ("ReLU", nn.ReLU(), K.ReLU()),
    ("ELU", nn.ELU(), K.ELU()),
    ("ELU, another alpha", nn.ELU(0.5), K.ELU(), FAILS),
    ("SELU", nn.SELU(), act("selu")),
    ("SiLU", nn.SiLU(), act("silu")),
    ("SiLU and its hard form", nn.Hardswish(), act("silu"), FAILS),
    ("sigmoid and its hard form", nn.Sigmoid(), act("hard_sigmoid"), FAILS),
    ("hard tanh", nn.Hardtanh(), act("hard_tanh")),
    ("tanh and its hard form", nn.Tanh(), act("hard_tanh"), FAILS),
    ("softsign", nn.Softsign(), act("softsign")),
    ("softplus, which is linear above 20 in PyTorch",
     nn.Sequential(Function(lambda x: 9 * x), nn.Softplus()), act(lambda x: ops.softplus(9 * x)),
         FAILS),
    ("softplus, never linear", nn.Softplus(threshold=1000), act("softplus")),
    ("ReLU6", nn.ReLU6(), act("relu6")),
    ("ReLU6 in Keras alone", nn.ReLU(), act("relu6"), FAILS),
    ("GELU and SiLU", nn.GELU(), act("silu"), FAILS),
    ("GELU exact and by tanh", nn.GELU(), act(lambda x: ops.gelu(x, approximate=True)), FAILS),
    ("GELU by tanh and exact", nn.GELU("tanh"), act("gelu"), FAILS),
    ("LeakyReLU, both defaults", nn.LeakyReLU(), K.LeakyReLU(), FAILS),
    ("LeakyReLU by name, whose slope is 0.2", nn.LeakyReLU(0.3), act("leaky_relu"), FAILS),
    ("GLU", nn.GLU(1), K.Lambda(lambda x: ops.glu(x, -1))),
    ("softmax over channels", nn.Softmax(1), K.Softmax()),
    ("softmax over rows", nn.Softmax(2), K.Softmax(), FAILS),
    ("softmax over rows in both", nn.Softmax(2), K.Softmax(axis=1)),
    ("PReLU, a slope for all", T.PReLU(), K.PReLU(shared_axes=[1, 2, 3])),
    ("PReLU, a slope for each channel", T.PReLU(4), K.PReLU(shared_axes=[1, 2])),
    ("PReLU, a slope for each pixel in Keras", T.PReLU(4), K.PReLU(), LAYER),
    ("PReLU, shared over channels in Keras", T.PReLU(4), K.PReLU(shared_axes=[3]), LAYER),
    ("PReLU, one slope against four", T.PReLU(), K.PReLU(shared_axes=[1, 2]), LAYER),
    ("PReLU against LeakyReLU", T.PReLU(), K.LeakyReLU(), REFUSED),
    ("RReLU takes the mean slope", nn.RReLU(), K.LeakyReLU((1 / 8 + 1 / 3) / 2)),
    ("no activation in Keras", nn.ReLU(), act("linear"), fails("layer", "flatten", "dense")),
]

def ending(name: str, last: Any, activation: Any, *expected: Any) -> Any:
    head = T.Sequential(nn.Flatten(), T.Linear(36, 4), last)
    return name, head, [K.Flatten(), K.Dense(4, activation, name="layer")], *expected

SOFT, LOG = nn.Softmax(1), nn.LogSoftmax(1)
ENDINGS = [
    ending("softmax ends both", SOFT, "softmax"),
    ending("softmax ends Keras's", nn.Identity(), "softmax", FAILS),
    ending("softmax ends PyTorch's", SOFT, None, FAILS),
    ending("log-softmax ends both", LOG, "log_softmax"),
    ending("log-softmax ends PyTorch's", LOG, None, FAILS),
    ending("log-softmax against softmax", LOG, "softmax", FAILS),
    ending("sigmoid ends both", nn.Sigmoid(), "sigmoid"),
    ending("ReLU ends Keras's", nn.Identity(), "relu", FAILS),
]

def last_conv(layer: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 1, 3), layer)

def k_last(*layers: Any) -> Any:
    return sequential(L.Conv2D(1, 3), *layers)

F32 = float(np.float32(0.1))
MEAN, STD = 0.1307, 0.3081
NORMALIZED = Function(lambda x: (x - MEAN) / STD)
TENTH, LEAKY = Function(lambda x: 0.1 * x), K.LeakyReLU(0.01)

def dense(activation: Any) -> Any:
    return [K.Flatten(), K.Dense(8, activation, name="layer")]

def linear(activation: nn.Module) -> Any:
    return T.Sequential(nn.Flatten(), T.Linear(216, 8), activation)

CONSTANTS = [
    ("GELU", nn.GELU(), act("gelu")),
    ("GELU by tanh", nn.GELU("tanh"), act(lambda x: ops.gelu(x, approximate=True))),
    ("GELU in Dense", linear(nn.GELU()), dense("gelu")),
    ("SiLU for GELU in Dense", linear(nn.SiLU()), dense("gelu"), FAILS),
    ("LeakyReLU 0.01", nn.LeakyReLU(), LEAKY),
    ("LeakyReLU 0.1 rounded in PyTorch", nn.LeakyReLU(F32), K.LeakyReLU(0.1)),
    ("LeakyReLU 0.01 and 0.0100001", nn.LeakyReLU(0.0100001), LEAKY, FAILS),
    ("LeakyReLU 0.01 and 0.010000001", nn.LeakyReLU(0.010000001), LEAKY, FAILS),
    ("ReLU(negative_slope=0.1)", nn.LeakyReLU(0.1), K.ReLU(negative_slope=0.1)),
    ("leaky_relu in a Lambda", nn.LeakyReLU(0.1), K.Lambda(lambda x: ops.leaky_relu(x, 0.1))),
    ("ReLU(max_value=0.7)", nn.Hardtanh(0, 0.7), K.ReLU(0.7)),
    ("ReLU(max_value=0.7) and 0.7000001", nn.Hardtanh(0, 0.7000001), K.ReLU(0.7), FAILS),
    ("ReLU(threshold=0.3)", nn.Threshold(0.3, 0), K.ReLU(threshold=0.3)),
    ("hard_sigmoid", nn.Hardsigmoid(), act("hard_sigmoid")),
    ("hard_sigmoid in Dense", linear(nn.Hardsigmoid()), dense("hard_sigmoid")),
    ("hard_sigmoid of Keras 2", Function(lambda x: (0.2 * x + 0.5).clamp(0, 1)),
     act("hard_sigmoid"), FAILS),
    ("Rescaling 1/3", Function(lambda x: x / 3), K.Rescaling(1 / 3)),
    ("Rescaling 0.1, 0.2", Function(lambda x: 0.1 * x + 0.2), K.Rescaling(0.1, 0.2)),
    ("Rescaling 1/3 and 0.3333333", Function(lambda x: x / 3), K.Rescaling(0.3333333), FAILS),
    ("multiplied by 0.1", TENTH, K.Lambda(lambda x: x * 0.1)),
    ("multiplied by 0.1 and 0.100000001", TENTH, K.Lambda(lambda x: x * 0.100000001), FAILS),
    ("Normalization", NORMALIZED, K.Normalization(mean=MEAN, variance=STD**2)),
    ("Normalization by the deviation", NORMALIZED, K.Normalization(mean=MEAN, variance=STD), FAILS),
    ("two Rescalings of pixels", Function(lambda x: (x / 255 - MEAN) / STD),
     [K.Rescaling(1 / 255), K.Rescaling(1 / STD, -MEAN / STD)]),
    ("two Rescalings of pixels, of 256", Function(lambda x: (x / 255 - MEAN) / STD),
     [K.Rescaling(1 / 256, name="layer"), K.Rescaling(1 / STD, -MEAN / STD)], FAILS),
    ("a tiny epsilon's difference behind GELU", T.Sequential(nn.GELU(), T.BatchNorm2d(6, 1.001e-6)),
     [act("gelu"), bn(epsilon=1e-6, name="layer")], FAILS),
]

ALWAYS = Function(lambda x: nn.functional.dropout(x, 0.5, training=True))
DROPOUT = [
    ("Dropout", nn.Dropout(0.3), K.Dropout(0.3)),
    ("Dropout2d", nn.Dropout2d(0.3), K.SpatialDropout2D(0.3)),
    ("another rate", nn.Dropout(0.3), K.Dropout(0.5)),
    ("another kind of noise", nn.AlphaDropout(0.3), K.GaussianNoise(0.3)),
    ("augmentation in Keras alone", nn.Identity(), K.RandomRotation(0.1)),
    ("dropout for a rescaling", nn.Dropout(0.5), K.Rescaling(0.5), FAILS),
    ("dropout always on in PyTorch", ALWAYS, K.Dropout(0.5), fails()),
]

TOPICS = {
    "batch normalization": [
        *table(BATCH, ours, theirs),
    ],
    "other normalizations": [
        *table(NORMS, ours, theirs),
        *table(STEPS, steps, k_steps),
        Pair("weight_norm has no layer in Keras", REFUSED, lambda: parametrized("weight_norm")),
        Pair("spectral_norm has no layer in Keras", REFUSED, lambda: parametrized("spectral_norm")),
        Pair("weight_norm by a hook", REFUSED, lambda: parametrized("hook")),
    ],
    "activations and endings": [
        *table(ACTIVATIONS, large, k_large), *table(ENDINGS, last_conv, k_last)],
    "constants in float32": table(CONSTANTS, ours, theirs),
    "dropout, which is off": [
        *table(DROPOUT, ours, theirs),
    ],
}
