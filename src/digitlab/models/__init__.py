"""The documents' architectures: each a `Classifier`, each importable by its name."""

from digitlab.models.cnn import PyTorchExampleNet, TensorFlowTutorialCNN
from digitlab.models.lenet import LeNet1, LeNet5
from digitlab.models.mlp import MLP, LinearClassifier

__all__ = [
    "MLP",
    "LeNet1",
    "LeNet5",
    "LinearClassifier",
    "PyTorchExampleNet",
    "TensorFlowTutorialCNN",
]
