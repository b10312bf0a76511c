"""Convolutions, pooling and upsampling of images and sequences."""

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from benchmarks.pairs.common import *

# fmt: off
LAYER = refused("layer")

def ours(layer: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 2), nn.Tanh(), layer, nn.SiLU(), nn.Flatten(),
        nn.LazyLinear(4))

def theirs(*layers: Any) -> Any:
    front = L.Conv2D(4, 2, activation="tanh", name="front")
    return sequential(front, *layers, L.Activation("silu"), L.Flatten(), L.Dense(4),
        shape=(8, 8, 1))

def conv(size: Any = 3, *args: Any, **options: Any) -> Any:
    return T.Conv2d(4, 3, size, *args, **options)

def k(size: Any = 3, strides: Any = 1, padding: str = "valid", **options: Any) -> Any:
    return K.Conv2D(3, size, strides, padding, **options)

def padded(pad: Any, *args: Any) -> Any:
    return T.Sequential(pad, conv(*args))

def k_padded(pad: Any, *args: Any) -> Any:
    return [K.ZeroPadding2D(pad, name="pad"), K.Conv2D(3, *args, name="layer")]

PAD = fails("pad", "layer")
PADDING = [  # feature maps are 7×7
    ("no padding", conv(), k()),
    ("padding 1 as 'same'", conv(padding=1), k(padding="same")),
    ("'same' in both", conv(padding="same"), k(padding="same")),
    ("padding 1 as ZeroPadding2D", conv(padding=1), k_padded(1, 3)),
    ("padding 2 against 'same', kernel 3", conv(padding=2), k(padding="same"), REFUSED),
    ("stride 2", conv(stride=2), k(3, 2)),
    ("stride 2, padding 1 of odd sizes is 'same'", conv(3, 2, 1), k(3, 2, "same")),
    ("stride 2, kernel 4, 'same' is one-sided", conv(4, 2, 2), k(4, 2, "same"), FAILS),
    ("stride 2, kernel 2, 'same'", padded(T.ZeroPad2d((0, 1, 0, 1)), 2, 2), k(2, 2, "same")),
    ("stride 2, padded left and above", padded(T.ZeroPad2d((0, 1, 0, 1)), 2, 2),
     k_padded(((1, 0), (1, 0)), 2, 2), PAD),
    ("kernel 4, 'same' against the other side", padded(T.ZeroPad2d((2, 1, 2, 1)), 4),
     k(4, padding="same"), FAILS),
    ("dilation 2", conv(dilation=2), k(dilation_rate=2)),
    ("dilation 2, 'same'", conv(padding=2, dilation=2), k(padding="same", dilation_rate=2)),
    ("dilation in PyTorch alone", conv(padding=2, dilation=2), k(padding="same"), FAILS),
    ("kernel (3, 5)", conv((3, 5)), k((3, 5))),
    ("kernel (3, 5) against (5, 3)", conv((3, 5)), k((5, 3)), LAYER),
    ("kernel (1, 3) against (3, 1)", conv((1, 3), padding=(0, 1)), k((3, 1), 1, "same"), LAYER),
    ("stride (2, 1)", conv(3, (2, 1)), k(3, (2, 1))),
    ("stride (2, 1) against (1, 2)", conv(3, (2, 1)), k(3, (1, 2)), FAILS),
    ("padding (2, 1)", conv(padding=(2, 1)), k_padded((2, 1), 3)),
    ("padding (2, 1) against (1, 2)", conv(padding=(2, 1)), k_padded((1, 2), 3), PAD),
    ("reflected against zeros", conv(padding=1, padding_mode="reflect"), k(padding="same"), FAILS),
    ("replicated against zeros", padded(T.ReplicationPad2d(1)), k_padded(1, 3), PAD),
    ("cropped", padded(T.ZeroPad2d(-1)), [K.Cropping2D(1), k()]),
    ("cropped elsewhere", padded(T.ZeroPad2d((0, -2, 0, -2))),
     [K.Cropping2D(1, name="layer"), k()], fails("layer", "conv2d")),
    ("bias in PyTorch alone", conv(), k(use_bias=False), LAYER),
    ("bias in Keras alone", conv(bias=False), k(), LAYER),
]

def grouped(c_out: int = 4, size: Any = 3, **options: Any) -> Any:
    return T.Conv2d(4, c_out, size, **{"groups": 4, **options})

def separable(bias: bool = False, c_out: int = 4, **options: Any) -> Any:
    return T.Sequential(grouped(c_out, bias=bias, **options), T.Conv2d(c_out, 5, 1))

def mobile(activation: Any) -> Any:
    return T.Sequential(grouped(padding=1, bias=False), T.BatchNorm2d(4), activation,
                        T.Conv2d(4, 5, 1, bias=False), T.BatchNorm2d(5))

def k_mobile(activation: str) -> Any:
    return [K.DepthwiseConv2D(3, 1, "same", use_bias=False), K.BatchNormalization(epsilon=1e-5),
            K.Activation(activation, name="layer"), K.Conv2D(5, 1, use_bias=False),
            K.BatchNormalization(epsilon=1e-5)]

def shuffle(x: Tensor) -> Tensor:
    return x.unflatten(1, (2, 2)).transpose(1, 2).flatten(1, 2)

DW, SEP, IN_GROUPS = K.DepthwiseConv2D, K.SeparableConv2D, K.Conv2D(4, 3, groups=2)
SHUFFLED = [IN_GROUPS, K.Reshape((5, 5, 2, 2)), K.Permute((1, 2, 4, 3), name="layer"),
            K.Reshape((5, 5, 4), name="shuffled")]
GROUPED = [
    ("DepthwiseConv2D", grouped(), DW(3)),
    ("depthwise as Conv2D with groups", grouped(), K.Conv2D(4, 3, groups=4)),
    ("depthwise without bias", grouped(bias=False), DW(3, use_bias=False)),
    ("depthwise, bias only in PyTorch", grouped(), DW(3, use_bias=False), LAYER),
    ("depthwise, multiplier 2", grouped(8), DW(3, depth_multiplier=2)),
    ("depthwise, multiplier 2 only in Keras", grouped(), DW(3, depth_multiplier=2), LAYER),
    ("depthwise, multiplier 2, channels in another order", T.Sequential(grouped(8),
     Function(lambda x: x.unflatten(1, (4, 2)).transpose(1, 2).flatten(1, 2))),
     DW(3, depth_multiplier=2), fails("activation")),
    ("depthwise 'same'", grouped(padding=1), DW(3, 1, "same")),
    ("depthwise, stride 2", grouped(stride=2), DW(3, 2)),
    ("depthwise, kernel 4, stride 2, 'same' is one-sided", grouped(size=4, stride=2, padding=2),
     DW(4, 2, "same"), FAILS),
    ("depthwise (3, 2) against (2, 3)", grouped(size=(3, 2)), DW((2, 3)), LAYER),
    ("depthwise with another activation", T.Sequential(grouped(), nn.ReLU()),
     DW(3, activation="tanh"), FAILS),
    ("SeparableConv2D", separable(), SEP(5, 3)),
    ("separable as two layers", separable(), [DW(3, use_bias=False), K.Conv2D(5, 1)]),
    ("separable, two biases as two layers", separable(True), [DW(3), K.Conv2D(5, 1)]),
    ("separable, two biases in PyTorch", separable(True), SEP(5, 3), LAYER),
    ("separable, multiplier 2", separable(c_out=8), SEP(5, 3, depth_multiplier=2)),
    ("separable with ReLU between in PyTorch",
     T.Sequential(grouped(bias=False), nn.ReLU(), T.Conv2d(4, 5, 1)), SEP(5, 3), FAILS),
    ("two groups", grouped(groups=2), IN_GROUPS),
    ("two groups against four", grouped(groups=2), K.Conv2D(4, 3, groups=4), LAYER),
    ("shuffled", T.Sequential(grouped(groups=2), Function(shuffle)), SHUFFLED),
    ("shuffled in Keras alone", grouped(groups=2), SHUFFLED, fails("layer", "shuffled")),
    ("MobileNet's block", mobile(nn.ReLU6()), k_mobile("relu6")),
    ("MobileNet's block with SiLU in Keras", mobile(nn.ReLU6()), k_mobile("silu"), FAILS),
]

def up(size: Any, stride: int = 1, **options: Any) -> Any:
    return T.ConvTranspose2d(4, 3, size, stride, **options)

def k_up(size: Any, strides: int = 1, padding: str = "valid", **options: Any) -> Any:
    return K.Conv2DTranspose(3, size, strides, padding, **options)

def pixels(*permutation: int) -> Any:
    return [K.Reshape((7, 7, 2, 2)), K.Permute(permutation, name="layer"), K.Reshape((14, 14, 1))]

REPEAT = Function(lambda x: x.repeat_interleave(2, 2).repeat_interleave(2, 3))
HALVE = Function(lambda x: F.interpolate(x, size=(4, 4), mode="bilinear"))
TRANSPOSED = [
    ("kernel 2, stride 2", up(2, 2), k_up(2, 2)),
    ("kernel 3, stride 2", up(3, 2), k_up(3, 2)),
    ("kernel 4, stride 2, padding 1 as 'same'", up(4, 2, padding=1), k_up(4, 2, "same")),
    ("kernel 3, stride 2, 'same' cuts the last row",
     T.Sequential(up(3, 2), T.ZeroPad2d((0, -1, 0, -1))), k_up(3, 2, "same")),
    ("kernel 3, stride 2, output_padding 1 against 'same'", up(3, 2, padding=1, output_padding=1),
     k_up(3, 2, "same"), FAILS),
    ("output_padding 1 in both", up(3, 2, output_padding=1), k_up(3, 2, output_padding=1)),
    ("output_padding in PyTorch alone", up(3, 2, output_padding=1), k_up(3, 2), REFUSED),
    ("kernel (2, 3) against (3, 2)", up((2, 3), 2), k_up((3, 2), 2), LAYER),
    ("bias in PyTorch alone", up(2, 2), k_up(2, 2, use_bias=False), LAYER),
    ("dilation 2", up(2, dilation=2), k_up(2, dilation_rate=2), FLOAT32),
    ("two groups", T.ConvTranspose2d(4, 4, 2, 2, groups=2), K.Conv2DTranspose(4, 2, 2), LAYER),
    ("a convolution in PyTorch", T.Conv2d(4, 4, 3, padding=1), K.Conv2DTranspose(4, 3, 1, "same"),
     FAILS),
    ("another activation", T.Sequential(up(2, 2), nn.ReLU()), k_up(2, 2, activation="elu"), FAILS),
    ("upsampling to the nearest", nn.Upsample(scale_factor=2), K.UpSampling2D(2)),
    ("bilinear upsampling", nn.Upsample(scale_factor=2, mode="bilinear"),
     K.UpSampling2D(2, interpolation="bilinear"), FLOAT32),
    ("bilinear in Keras alone", REPEAT, K.UpSampling2D(2, interpolation="bilinear"), FAILS),
    ("bilinear with aligned corners", nn.Upsample(scale_factor=2, mode="bilinear",
     align_corners=True), K.UpSampling2D(2, interpolation="bilinear"), FAILS),
    ("bicubic of other coefficients", nn.Upsample(scale_factor=2, mode="bicubic"),
     K.UpSampling2D(2, interpolation="bicubic"), FAILS),
    ("bilinear Resizing", HALVE, K.Resizing(4, 4), FLOAT32),
    ("pixel shuffle", nn.PixelShuffle(2), pixels(1, 3, 2, 4)),
    ("pixel shuffle, blocks transposed", nn.PixelShuffle(2), pixels(1, 4, 2, 3), FAILS),
]

MEAN, MAX = K.GlobalAveragePooling2D(), K.GlobalMaxPooling2D()
MEANS, LARGEST = K.AveragePooling2D, K.MaxPooling2D
POOLING = [
    ("global mean", Function(lambda x: x.mean((2, 3))), MEAN),
    ("global mean by AdaptiveAvgPool2d", nn.AdaptiveAvgPool2d(1), MEAN),
    ("global mean by operations", Function(lambda x: x.flatten(2).mean(2)),
     K.Lambda(lambda x: ops.mean(x, (1, 2)))),
    ("global maximum", Function(lambda x: x.amax((2, 3))), MAX),
    ("maximum for mean", Function(lambda x: x.mean((2, 3))), MAX, FAILS),
    ("mean over rows and channels, of the same number",
     T.Sequential(T.Conv2d(4, 7, 1), Function(lambda x: x.mean((1, 2)))),
     [K.Conv2D(7, 1), K.GlobalAveragePooling2D(name="layer")], FAILS),
    ("max 2", nn.MaxPool2d(2), LARGEST()),
    ("max (2, 3) against (3, 2)", nn.MaxPool2d((2, 3)), LARGEST((3, 2)), FAILS),
    ("max 3, padding 1 as 'same'", nn.MaxPool2d(3, 2, 1), LARGEST(3, 2, "same")),
    ("max 2, ceil_mode as 'same'", nn.MaxPool2d(2, ceil_mode=True), LARGEST(2, 2, "same")),
    ("max 2, ceil_mode in PyTorch alone", nn.MaxPool2d(2, ceil_mode=True), LARGEST(2), REFUSED),
    ("max 2, 'same' against padding 1", nn.MaxPool2d(2, 2, 1), LARGEST(2, 2, "same"), FAILS),
    ("max padded with zeros against 'same'", T.Sequential(nn.ZeroPad2d(1), nn.MaxPool2d(3, 2)),
     LARGEST(3, 2, "same"), FAILS),
    ("max for mean", nn.AvgPool2d(2), LARGEST(2), FAILS),
    ("mean, padding counted, against 'same'", nn.AvgPool2d(3, 2, 1), MEANS(3, 2, "same"), FAILS),
    ("mean, padding not counted, as 'same'", nn.AvgPool2d(3, 2, 1, count_include_pad=False),
     MEANS(3, 2, "same")),
    ("mean, padding counted, as ZeroPadding2D", nn.AvgPool2d(3, 2, 1),
     [K.ZeroPadding2D(1), MEANS(3, 2)]),
    ("mean, divisor_override", nn.AvgPool2d(2, divisor_override=3), MEANS(2), FAILS),
    ("norms by LPPool2d", nn.LPPool2d(2, 2), MEANS(2), FAILS),
    ("AdaptiveAvgPool2d of windows that overlap", nn.AdaptiveAvgPool2d(3), MEANS(3, 2)),
    ("AdaptiveAvgPool2d of uneven windows", nn.AdaptiveAvgPool2d(5), MEANS(3, 1), FAILS),
]

def sequence(layer: nn.Module) -> nn.Module:
    return nn.Sequential(layer, nn.Tanh(), nn.Flatten(), nn.LazyLinear(4))

def k_sequence(*layers: Any) -> Any:
    return sequential(*layers, L.Activation("tanh"), L.Flatten(), L.Dense(4), shape=(9, 3))

def conv1(size: int = 3, **options: Any) -> Any:
    return T.Conv1d(3, 4, size, **options)

def behind(layer: Any) -> Any:
    return T.Sequential(conv1(), layer)

K1 = K.Conv1D
SEQUENCES = [
    ("Conv1d", conv1(), K1(4, 3)),
    ("'same'", conv1(padding=1), K1(4, 3, padding="same")),
    ("stride 2, 'same' of an odd length", conv1(stride=2, padding=1), K1(4, 3, 2, "same")),
    ("dilation 2", conv1(dilation=2), K1(4, 3, dilation_rate=2)),
    ("causal", T.Sequential(nn.ZeroPad1d((2, 0)), conv1()), K1(4, 3, padding="causal")),
    ("causal in Keras alone", conv1(padding=1), K1(4, 3, padding="causal"), FAILS),
    ("kernel of another size", conv1(padding=1), K1(4, 5, padding="same"), LAYER),
    ("DepthwiseConv1D", T.Conv1d(3, 3, 3, groups=3), K.DepthwiseConv1D(3)),
    ("SeparableConv1D", T.Sequential(T.Conv1d(3, 3, 3, groups=3, bias=False), T.Conv1d(3, 5, 1)),
     K.SeparableConv1D(5, 3)),
    ("Conv1DTranspose", T.ConvTranspose1d(3, 4, 2, 2), K.Conv1DTranspose(4, 2, 2)),
    ("Conv1DTranspose of another stride", T.ConvTranspose1d(3, 4, 2, 2), K.Conv1DTranspose(4, 2),
     REFUSED),
    ("max pooling", behind(nn.MaxPool1d(2)), [K1(4, 3), K.MaxPooling1D(2)]),
    ("average for max pooling", behind(nn.MaxPool1d(2)),
     [K1(4, 3), K.AveragePooling1D(2, name="layer")], FAILS),
    ("padded and cropped", behind(nn.ConstantPad1d((1, -1), 0.0)),
     [K1(4, 3), K.ZeroPadding1D((1, 0)), K.Cropping1D((0, 1))]),
    ("normalized", behind(T.BatchNorm1d(4)), [K1(4, 3), K.BatchNormalization(epsilon=1e-5)]),
    ("normalized over steps", T.Sequential(T.Conv1d(3, 7, 3), T.BatchNorm1d(7)),
     [K1(7, 3), K.BatchNormalization(1, epsilon=1e-5, name="layer")], FAILS),
]

def volumes(transposed: bool, strides: int = 2) -> tuple[nn.Module, Any]:
    layer = nn.ConvTranspose3d(2, 3, 2, 2) if transposed else nn.Conv3d(2, 3, 2, 2)
    kind = L.Conv3DTranspose if transposed else L.Conv3D
    module = nn.Sequential(layer, nn.BatchNorm3d(3), nn.Tanh(), nn.Flatten(), nn.LazyLinear(4))
    norm = L.BatchNormalization(epsilon=1e-5)
    return module, sequential(kind(3, 2, strides, "same"), norm, L.Activation("tanh"), L.Flatten(),
                              L.Dense(4), shape=(4, 4, 4, 2))

VOLUME = (2, 4, 4, 4)
TOPICS = {
    "padding and strides": table(PADDING, ours, theirs),
    "grouped and separable convolutions": table(GROUPED, ours, theirs),
    "transposed convolutions, upsampling": [
        *table(TRANSPOSED, ours, theirs),
        Pair("of volumes", PASSED, lambda: volumes(True), shape=VOLUME),
        Pair("of volumes, stride 1 in Keras", REFUSED, lambda: volumes(True, 1), shape=VOLUME),
    ],
    "pooling": [
        *table(POOLING, ours, theirs),
    ],
    "sequences and volumes": [
        *table(SEQUENCES, sequence, k_sequence, shape=(3, 9)),
        Pair("volumes", PASSED, lambda: volumes(False), shape=VOLUME),
        Pair("volumes, stride 1 in Keras", REFUSED, lambda: volumes(False, 1), shape=VOLUME),
    ],
}
