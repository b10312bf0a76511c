"""The architectures against the documents' own programs, as references in functional form."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 # its usual name
from torch.nn.functional import cross_entropy

from digitlab.classifier import Classifier
from digitlab.models import (
    MLP,
    LeNet1,
    LeNet5,
    LinearClassifier,
    PyTorchExampleNet,
    TensorFlowTutorialCNN,
)
from tests.fitting import whole

Parameters = Iterator[Tensor]


def linear(p: Parameters, x: Tensor, training: bool) -> Tensor:
    """Softmax regression's logits: one matrix product over the pixels in rows."""
    return x.reshape(len(x), 784) @ next(p).T + next(p)


def mlp(p: Parameters, x: Tensor, training: bool) -> Tensor:
    """Document A's Keras network, without its softmax."""
    x = x.reshape(len(x), 784)
    for _ in range(2):
        x = F.dropout(F.relu(F.linear(x, next(p), next(p))), 0.2, training)
    return F.linear(x, next(p), next(p))


def nn_128(p: Parameters, x: Tensor, training: bool) -> Tensor:
    """Document B's NN."""
    x = F.relu(F.linear(x.reshape(len(x), 784), next(p), next(p)))
    return F.linear(F.dropout(x, 0.2, training), next(p), next(p))


def pytorch_example(p: Parameters, x: Tensor, training: bool) -> Tensor:
    """Document A's PyTorch program: pools, then rectifies; ends in a log-softmax."""
    x = F.relu(F.max_pool2d(F.conv2d(x, next(p), next(p)), 2))
    x = F.relu(F.max_pool2d(F.dropout2d(F.conv2d(x, next(p), next(p)), 0.5, training), 2))
    x = F.relu(F.linear(x.reshape(-1, 320), next(p), next(p)))
    return F.log_softmax(F.linear(F.dropout(x, 0.5, training), next(p), next(p)), 1)


def tensorflow_tutorial(p: Parameters, x: Tensor, training: bool) -> Tensor:
    """Document A's Estimator program; "same" is a padding of 2 for its 5x5 filters."""
    for _ in range(2):
        x = F.max_pool2d(F.relu(F.conv2d(F.pad(x, (2, 2, 2, 2)), next(p), next(p))), 2)
    x = F.relu(F.linear(x.reshape(-1, 3136), next(p), next(p)))
    return F.linear(F.dropout(x, 0.4, training), next(p), next(p))


def lenet5(p: Parameters, x: Tensor, training: bool) -> Tensor:
    """Document B's LeNet, given the 32x32 images that the paper's network reads."""
    x = F.pad(x, (2, 2, 2, 2))
    for _ in range(2):
        x = F.max_pool2d(F.relu(F.conv2d(x, next(p), next(p))), 2)
    x = x.flatten(1)
    for _ in range(2):
        x = F.relu(F.linear(x, next(p), next(p)))
    return F.linear(x, next(p), next(p))


def lenet1(padding: int, sizes: list[int]) -> Callable[[Parameters, Tensor, bool], Tensor]:
    """Document B's LeNet1, checked to pass through images of the given widths."""

    def forward(p: Parameters, x: Tensor, training: bool) -> Tensor:
        seen = [x.shape[-1]]
        x = F.pad(x, [padding] * 4)
        for layer in ("conv", "pool", "conv", "pool", "conv"):
            x = F.relu(F.conv2d(x, next(p), next(p))) if layer == "conv" else F.max_pool2d(x, 2)
            seen.append(x.shape[-1])
        assert seen == sizes
        x = F.relu(F.linear(x.reshape(len(x), 1024), next(p), next(p)))
        return F.linear(x, next(p), next(p))

    return forward


lenet1_torch = lenet1(padding=2, sizes=[28, 30, 15, 13, 6, 4])
lenet1_keras = lenet1(padding=1, sizes=[28, 28, 14, 12, 6, 4])

PAIRS = {
    "linear": (LinearClassifier, {}, linear),
    "MLP 512-512": (MLP, {}, mlp),
    "NN 128": (MLP, {"hidden_features": [128]}, nn_128),
    "PyTorch example": (PyTorchExampleNet, {}, pytorch_example),
    "TensorFlow tutorial": (TensorFlowTutorialCNN, {}, tensorflow_tutorial),
    "LeNet-5": (LeNet5, {}, lenet5),
    "LeNet1 PyTorch": (LeNet1, {"padding": 2}, lenet1_torch),
    "LeNet1 Keras": (LeNet1, {"padding": "same"}, lenet1_keras),
}
each_pair = pytest.mark.parametrize(("ours", "options", "theirs"), PAIRS.values(), ids=PAIRS)


def pair(ours: type[Classifier], options: dict[str, Any]) -> tuple[Classifier, Tensor, Tensor]:
    torch.manual_seed(0)
    images, labels = whole("test")
    return ours(**options), images, labels


@each_pair
def test_evaluation_gives_the_logits_of_the_documents_program(
    ours: type[Classifier], options: dict[str, Any], theirs: Callable[..., Tensor]
) -> None:
    model, images, _ = pair(ours, options)
    logits = model.double().eval()(images.double())
    if ours is PyTorchExampleNet:
        logits = logits.log_softmax(1)
    torch.testing.assert_close(logits, theirs(model.parameters(), images.double(), False))


@each_pair
def test_training_draws_the_dropout_of_the_documents_program(
    ours: type[Classifier], options: dict[str, Any], theirs: Callable[..., Tensor]
) -> None:
    model, images, labels = pair(ours, options)
    torch.manual_seed(5)
    our_loss = cross_entropy(model.train()(images), labels)
    torch.manual_seed(5)
    output = theirs(model.parameters(), images, True)
    # Reference: the likelihood, from A's PyTorch program's log-probabilities or others' logits.
    log_probabilities = output if ours is PyTorchExampleNet else output.log_softmax(1)
    torch.testing.assert_close(our_loss, F.nll_loss(log_probabilities, labels))
