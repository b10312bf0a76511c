"""Convolutional networks: document A's two, and that of the record `configs/mnist/fast99.yaml`."""

from collections import OrderedDict
from typing import Any

from torch import nn

from digitlab.classifier import Classifier


class PyTorchExampleNet(Classifier):
    """The network of PyTorch's MNIST example as of 2017, 21,840 parameters (document A).

    It pools before the rectifier, which gives the same numbers as the usual order, and drops whole
    channels between the second convolution and its pooling.

    Shape:
        - Input: float32 `(N, in_channels, 28, 28)`, normalized images.
        - Output: logits `(N, num_classes)`. The example ends in a log-softmax; here it is part of
          the loss, which is the same function.

    Args:
        dropout: Probability that a channel of the second convolution, and an activation of the
            first fully connected layer, is dropped, in [0, 1); 0.5 in the document.
        in_channels: Channels of an image, 1 for grey (at least 1).
        num_classes: Number of classes (at least 2).
        **kwargs: Arguments of `Classifier`.
    """

    def __init__(
        self, dropout: float = 0.5, in_channels: int = 1, num_classes: int = 10, **kwargs: Any
    ) -> None:
        layers = {
            "conv1": nn.Conv2d(in_channels, 10, kernel_size=5),
            "pool1": nn.MaxPool2d(2),
            "relu1": nn.ReLU(),
            "conv2": nn.Conv2d(10, 20, kernel_size=5),
            "dropout1": nn.Dropout2d(dropout),
            "pool2": nn.MaxPool2d(2),
            "relu2": nn.ReLU(),
            "flatten": nn.Flatten(),
            "fc1": nn.Linear(20 * 4 * 4, 50),
            "relu3": nn.ReLU(),
            "dropout2": nn.Dropout(dropout),
            "fc2": nn.Linear(50, num_classes),
        }
        super().__init__(network=nn.Sequential(OrderedDict(layers)), **kwargs)


class TensorFlowTutorialCNN(Classifier):
    """The network of TensorFlow 1.4's tutorial on layers, 3,274,634 parameters (document A).

    Shape:
        - Input: float32 `(N, in_channels, 28, 28)`, normalized images.
        - Output: logits `(N, num_classes)`.

    Args:
        dropout: Probability that an activation of the first fully connected layer is dropped, in
            [0, 1); 0.4 in the document.
        in_channels: Channels of an image, 1 for grey (at least 1).
        num_classes: Number of classes (at least 2).
        **kwargs: Arguments of `Classifier`.
    """

    def __init__(
        self, dropout: float = 0.4, in_channels: int = 1, num_classes: int = 10, **kwargs: Any
    ) -> None:
        layers = {
            "conv1": nn.Conv2d(in_channels, 32, kernel_size=5, padding=2),
            "relu1": nn.ReLU(),
            "pool1": nn.MaxPool2d(2),
            "conv2": nn.Conv2d(32, 64, kernel_size=5, padding=2),
            "relu2": nn.ReLU(),
            "pool2": nn.MaxPool2d(2),
            "flatten": nn.Flatten(),
            "fc1": nn.Linear(64 * 7 * 7, 1024),
            "relu3": nn.ReLU(),
            "dropout": nn.Dropout(dropout),
            "fc2": nn.Linear(1024, num_classes),
        }
        super().__init__(network=nn.Sequential(OrderedDict(layers)), **kwargs)


class FastCNN(Classifier):
    """A small network that one pass over MNIST's training images takes past 99%.

    It has 212,682 parameters and is the only architecture here from neither document. The
    reference's network begins with 24 filters of 5×5, stride 1 and max pooling; this one has 16
    with stride 2 and no pooling, which halves the time of a step on a CPU and makes as many errors
    on held-out images. The second pooling comes before its rectifier, which gives the same numbers
    as the usual order for a quarter of the rectifier's work.

    Shape:
        - Input: float32 `(N, in_channels, 28, 28)`, normalized images.
        - Output: logits `(N, num_classes)`.

    Args:
        in_channels: Channels of an image, 1 for grey (at least 1).
        num_classes: Number of classes (at least 2).
        **kwargs: Arguments of `Classifier`.

    Reference:
        "Training a NN to 99% accuracy on MNIST in 0.76 seconds",
        https://github.com/tuomaso/train_mnist_fast, its last notebook.
    """

    def __init__(self, in_channels: int = 1, num_classes: int = 10, **kwargs: Any) -> None:
        layers = {
            "conv1": nn.Conv2d(in_channels, 16, kernel_size=5, stride=2),
            "relu1": nn.ReLU(),
            "conv2": nn.Conv2d(16, 32, kernel_size=3),
            "pool2": nn.MaxPool2d(2),
            "relu2": nn.ReLU(),
            "flatten": nn.Flatten(),
            "fc1": nn.Linear(32 * 5 * 5, 256),
            "relu3": nn.ReLU(),
            "fc2": nn.Linear(256, num_classes),
        }
        super().__init__(network=nn.Sequential(OrderedDict(layers)), **kwargs)
