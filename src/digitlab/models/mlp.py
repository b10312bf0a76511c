"""Networks without convolutions: softmax regression and the multilayer perceptron."""

from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from torch import nn

from digitlab.classifier import Classifier


class LinearClassifier(Classifier):
    """Softmax regression: one fully connected layer, 7,850 parameters.

    The linear classifier that document A mentions had 12% errors in 1998; that one was trained on
    squared errors, this one on cross-entropy.

    Shape:
        - Input: float32 `(N, in_channels, 28, 28)`, normalized images.
        - Output: logits `(N, num_classes)`.

    Args:
        in_channels: Channels of an image, 1 for grey (at least 1).
        num_classes: Number of classes (at least 2).
        **kwargs: Arguments of `Classifier`.

    Reference:
        LeCun, Bottou, Bengio and Haffner, "Gradient-based learning applied to document
        recognition", Proceedings of the IEEE 86(11), 1998, section III.C.1.
    """

    def __init__(self, in_channels: int = 1, num_classes: int = 10, **kwargs: Any) -> None:
        layers = {"flatten": nn.Flatten(), "fc1": nn.Linear(in_channels * 28 * 28, num_classes)}
        super().__init__(network=nn.Sequential(OrderedDict(layers)), **kwargs)


class MLP(Classifier):
    """A multilayer perceptron with dropout after each hidden layer.

    669,706 parameters with the default `hidden_features=[512, 512]` (document A, Keras; its source
    is Keras's example `mnist_mlp`) and 101,770 with `[128]` (document B's NN).

    Shape:
        - Input: float32 `(N, in_channels, 28, 28)`, normalized images.
        - Output: logits `(N, num_classes)`. Document A's network ends in a softmax; here it is
          part of the loss, which is the same function without its clipping.

    Args:
        hidden_features: Width of each hidden layer (each at least 1).
        dropout: Probability that an activation is dropped, in [0, 1); 0.2 in both documents.
        in_channels: Channels of an image, 1 for grey (at least 1).
        num_classes: Number of classes (at least 2).
        **kwargs: Arguments of `Classifier`.

    Raises:
        ValueError: A hidden layer has no features.
    """

    def __init__(
        self,
        hidden_features: Sequence[int] = (512, 512),
        dropout: float = 0.2,
        in_channels: int = 1,
        num_classes: int = 10,
        **kwargs: Any,
    ) -> None:
        if min(hidden_features, default=1) < 1:
            raise ValueError(
                f"hidden_features is {list(hidden_features)}: each layer must have at least 1"
            )
        layers: dict[str, nn.Module] = {"flatten": nn.Flatten()}
        widths = [in_channels * 28 * 28, *hidden_features]
        for i, (fan_in, fan_out) in enumerate(pairwise(widths), start=1):
            layers[f"fc{i}"] = nn.Linear(fan_in, fan_out)
            layers[f"relu{i}"] = nn.ReLU()
            layers[f"dropout{i}"] = nn.Dropout(dropout)
        layers[f"fc{len(widths)}"] = nn.Linear(widths[-1], num_classes)
        super().__init__(network=nn.Sequential(OrderedDict(layers)), **kwargs)
