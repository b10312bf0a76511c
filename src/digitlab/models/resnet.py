"""A residual network with batch normalization, of neither document."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from digitlab.classifier import Classifier
from digitlab.errors import check_at_least


class ResNet(Classifier):
    """A residual network with batch normalization and global average pooling, of neither document.

    It has 120,986 parameters with the default width of 16, fewer than LeNet1; 47,600 with width 10
    and 750,770 with 40. The number grows with the square of the width. Unlike in the reference,
    max pooling halves the image before the second and later stages, where a convolution with
    stride 2 does it there: it pads all sides alike, in both frameworks.

    Shape:
        - Input: float32 `(N, in_channels, 28, 28)`, normalized images.
        - Output: logits `(N, num_classes)`.

    Args:
        width: Channels of the stem, at least 1.
        growth: Channels of each stage, in multiples of `width`; each at least 1, one to five
            stages.
        blocks: Residual blocks of each stage, each at least 1.
        in_channels: Channels of an image, 1 for grey (at least 1).
        num_classes: Number of classes (at least 2).
        **kwargs: Arguments of `Classifier`.

    Raises:
        ValueError: A number is too small; or `growth` and `blocks` differ in length.

    Reference:
        He, Zhang, Ren and Sun, "Deep residual learning for image recognition", CVPR 2016, 4.2.
    """

    def __init__(
        self,
        width: int = 16,
        growth: Sequence[int] = (1, 2, 3),
        blocks: Sequence[int] = (2, 2, 2),
        in_channels: int = 1,
        num_classes: int = 10,
        **kwargs: Any,
    ) -> None:
        check_at_least(1, width=width, **{f"growth {it}": it for it in growth})
        check_at_least(1, **{f"blocks {it}": it for it in blocks})
        if len(growth) != len(blocks) or not 1 <= len(blocks) <= 5:  # five halvings: 28 to 1
            raise ValueError(
                f"growth is {growth} and blocks is {blocks}: give one to five numbers, as many of "
                "each"
            )
        layers: dict[str, nn.Module] = {
            "stem": nn.Conv2d(in_channels, width, 3, padding=1, bias=False),
            "norm": nn.BatchNorm2d(width),
            "relu": nn.ReLU(),
        }
        channels = width
        for stage, (factor, count) in enumerate(zip(growth, blocks, strict=True), start=1):
            if stage > 1:
                layers[f"pool{stage}"] = nn.MaxPool2d(2)
            for i in range(1, count + 1):
                layers[f"block{stage}_{i}"] = ResidualBlock(channels, factor * width)
                channels = factor * width
        layers["average"] = nn.AdaptiveAvgPool2d(1)
        layers["flatten"] = nn.Flatten()
        layers["fc"] = nn.Linear(channels, num_classes)
        super().__init__(network=nn.Sequential(OrderedDict(layers)), **kwargs)


class ResidualBlock(nn.Module):
    """Adds two convolutions to the input, which a 1×1 convolution widens where needed."""

    def __init__(self, inputs: int, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, channels, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)
        self.shortcut = (
            nn.Identity() if inputs == channels else nn.Conv2d(inputs, channels, 1, bias=False)
        )
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Compute the output, `(N, channels, H, W)`."""
        y = self.norm2(self.conv2(self.relu1(self.norm1(self.conv1(x)))))
        added: Tensor = self.relu2(y + self.shortcut(x))
        return added
