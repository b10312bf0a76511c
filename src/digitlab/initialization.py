"""Initial values other than PyTorch's."""

from torch import nn


def initialize_as_keras(module: nn.Module) -> None:
    """Draw a layer's initial values as Keras does: Glorot-uniform weights and zero biases."""
    if isinstance(module, nn.Linear | nn.Conv2d):
        nn.init.xavier_uniform_(module.weight)  # Glorot and Bengio 2010, equation 16
        if module.bias is not None:
            nn.init.zeros_(module.bias)
