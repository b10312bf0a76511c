"""What the documents' architectures consist of: shapes and counts, written down by hand.

Each shape follows from the text of the documents. Nothing here is computed from the PyTorch classes
or the Keras twins, so that both can be counted against it.
"""

from collections.abc import Mapping

from digitlab import models
from digitlab.classifier import Classifier

Shapes = Mapping[str, tuple[int, ...]]

LINEAR_CLASSIFIER: Shapes = {"fc1.weight": (10, 784), "fc1.bias": (10,)}
MLP_512_512: Shapes = {
    "fc1.weight": (512, 784),
    "fc1.bias": (512,),
    "fc2.weight": (512, 512),
    "fc2.bias": (512,),
    "fc3.weight": (10, 512),
    "fc3.bias": (10,),
}
MLP_128: Shapes = {
    "fc1.weight": (128, 784),
    "fc1.bias": (128,),
    "fc2.weight": (10, 128),
    "fc2.bias": (10,),
}
LENET5: Shapes = {
    "conv1.weight": (6, 1, 5, 5),
    "conv1.bias": (6,),
    "conv2.weight": (16, 6, 5, 5),
    "conv2.bias": (16,),
    "fc1.weight": (120, 400),
    "fc1.bias": (120,),
    "fc2.weight": (84, 120),
    "fc2.bias": (84,),
    "fc3.weight": (10, 84),
    "fc3.bias": (10,),
}
LENET1: Shapes = {
    "conv1.weight": (32, 1, 3, 3),
    "conv1.bias": (32,),
    "conv2.weight": (64, 32, 3, 3),
    "conv2.bias": (64,),
    "conv3.weight": (64, 64, 3, 3),
    "conv3.bias": (64,),
    "fc1.weight": (64, 1024),
    "fc1.bias": (64,),
    "fc2.weight": (10, 64),
    "fc2.bias": (10,),
}
PYTORCH_EXAMPLE_NET: Shapes = {
    "conv1.weight": (10, 1, 5, 5),
    "conv1.bias": (10,),
    "conv2.weight": (20, 10, 5, 5),
    "conv2.bias": (20,),
    "fc1.weight": (50, 320),
    "fc1.bias": (50,),
    "fc2.weight": (10, 50),
    "fc2.bias": (10,),
}
TENSORFLOW_TUTORIAL_CNN: Shapes = {
    "conv1.weight": (32, 1, 5, 5),
    "conv1.bias": (32,),
    "conv2.weight": (64, 32, 5, 5),
    "conv2.bias": (64,),
    "fc1.weight": (1024, 3136),
    "fc1.bias": (1024,),
    "fc2.weight": (10, 1024),
    "fc2.bias": (10,),
}
FAST_CNN: Shapes = {  # of no document: from the description in its docstring
    "conv1.weight": (16, 1, 5, 5),
    "conv1.bias": (16,),
    "conv2.weight": (32, 16, 3, 3),
    "conv2.bias": (32,),
    "fc1.weight": (256, 800),
    "fc1.bias": (256,),
    "fc2.weight": (10, 256),
    "fc2.bias": (10,),
}

_BY_CLASS: dict[type[Classifier], Shapes] = {
    models.LinearClassifier: LINEAR_CLASSIFIER,
    models.LeNet5: LENET5,
    models.LeNet1: LENET1,
    models.PyTorchExampleNet: PYTORCH_EXAMPLE_NET,
    models.TensorFlowTutorialCNN: TENSORFLOW_TUTORIAL_CNN,
    models.FastCNN: FAST_CNN,
}
_BY_WIDTHS: dict[tuple[int, ...], Shapes] = {(512, 512): MLP_512_512, (128,): MLP_128}


def documented(model: Classifier) -> Shapes | None:
    """Give the documented shape of each tensor of a model, by its name in the network.

    Returns:
        The shapes as PyTorch lays them out, or None for a model that no document has: another
        architecture, other widths, or not one channel and ten classes.
    """
    settings = model.hparams
    if (settings.get("in_channels"), settings.get("num_classes")) != (1, 10):
        return None
    if type(model) is models.MLP:
        return _BY_WIDTHS.get(tuple(settings["hidden_features"]))
    return _BY_CLASS.get(type(model))
