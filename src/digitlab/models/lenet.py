"""LeNet-5 as document B has it, and B's wider, deeper "LeNet1"."""

from collections import OrderedDict
from typing import Any, Literal

from torch import nn

from digitlab.classifier import Classifier


class LeNet5(Classifier):
    """LeNet-5 with rectifiers and max pooling, 61,706 parameters (document B).

    LeCun's network reads 32×32 images, so the first convolution pads by 2. In the paper,
    the network also has scaled hyperbolic tangents, trainable subsampling, a sparse connection
    table before the second convolution, and radial basis functions at its output.

    Shape:
        - Input: float32 `(N, in_channels, 28, 28)`, normalized images.
        - Output: logits `(N, num_classes)`.

    Args:
        in_channels: Channels of an image, 1 for grey (at least 1).
        num_classes: Number of classes (at least 2).
        **kwargs: Arguments of `Classifier`.

    Reference:
        LeCun, Bottou, Bengio and Haffner, "Gradient-based learning applied to document
        recognition", Proceedings of the IEEE 86(11), 1998, section II.B.
    """

    def __init__(self, in_channels: int = 1, num_classes: int = 10, **kwargs: Any) -> None:
        layers = {
            "conv1": nn.Conv2d(in_channels, 6, kernel_size=5, padding=2),
            "relu1": nn.ReLU(),
            "pool1": nn.MaxPool2d(2),
            "conv2": nn.Conv2d(6, 16, kernel_size=5),
            "relu2": nn.ReLU(),
            "pool2": nn.MaxPool2d(2),
            "flatten": nn.Flatten(),
            "fc1": nn.Linear(16 * 5 * 5, 120),
            "relu3": nn.ReLU(),
            "fc2": nn.Linear(120, 84),
            "relu4": nn.ReLU(),
            "fc3": nn.Linear(84, num_classes),
        }
        super().__init__(network=nn.Sequential(OrderedDict(layers)), **kwargs)


class LeNet1(Classifier):
    """Document B's "improved LeNet", 121,994 parameters; not LeCun's LeNet-1 of 1989.

    B wrote it twice, and the two are different functions although every parameter has the same
    shape: its PyTorch program pads the first convolution by 2 (28 → 30 → 15 → 13 → 6 → 4, and a
    row and a column are lost in pooling), its Keras program pads to the same size (28 → 14 → 12 →
    6 → 4).

    Shape:
        - Input: float32 `(N, in_channels, 28, 28)`, normalized images.
        - Output: logits `(N, num_classes)`.

    Args:
        padding: Padding of the first convolution: 2 is B's PyTorch network, `same` its Keras one.
        in_channels: Channels of an image, 1 for grey (at least 1).
        num_classes: Number of classes (at least 2).
        **kwargs: Arguments of `Classifier`.
    """

    def __init__(
        self,
        padding: Literal[2, "same"] = 2,
        in_channels: int = 1,
        num_classes: int = 10,
        **kwargs: Any,
    ) -> None:
        layers = {
            "conv1": nn.Conv2d(in_channels, 32, kernel_size=3, padding=padding),
            "relu1": nn.ReLU(),
            "pool1": nn.MaxPool2d(2),
            "conv2": nn.Conv2d(32, 64, kernel_size=3),
            "relu2": nn.ReLU(),
            "pool2": nn.MaxPool2d(2),
            "conv3": nn.Conv2d(64, 64, kernel_size=3),
            "relu3": nn.ReLU(),
            "flatten": nn.Flatten(),
            "fc1": nn.Linear(64 * 4 * 4, 64),
            "relu4": nn.ReLU(),
            "fc2": nn.Linear(64, num_classes),
        }
        super().__init__(network=nn.Sequential(OrderedDict(layers)), **kwargs)
