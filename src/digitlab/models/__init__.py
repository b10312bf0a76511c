"""The documents' architectures, `FastCNN` and `ResNet`: each a `Classifier`."""

from digitlab.models.cnn import FastCNN, PyTorchExampleNet, TensorFlowTutorialCNN
from digitlab.models.lenet import LeNet1, LeNet5
from digitlab.models.mlp import MLP, LinearClassifier
from digitlab.models.resnet import ResNet

__all__ = [
    "MLP",
    "FastCNN",
    "LeNet1",
    "LeNet5",
    "LinearClassifier",
    "PyTorchExampleNet",
    "ResNet",
    "TensorFlowTutorialCNN",
]
