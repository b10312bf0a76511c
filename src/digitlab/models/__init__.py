"""The documents' architectures and `FastCNN`: each a `Classifier`, importable by its name."""

from digitlab.models.cnn import FastCNN, PyTorchExampleNet, TensorFlowTutorialCNN
from digitlab.models.lenet import LeNet1, LeNet5
from digitlab.models.mlp import MLP, LinearClassifier

__all__ = [
    "MLP",
    "FastCNN",
    "LeNet1",
    "LeNet5",
    "LinearClassifier",
    "PyTorchExampleNet",
    "TensorFlowTutorialCNN",
]
