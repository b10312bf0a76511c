"""What the first layer of a convolutional network looks for."""

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from PIL.Image import Image
from torch import Tensor, nn

from digitlab import tensorboard
from digitlab.execution import epoch_end_step
from digitlab.pictures import draw_kernels

SHOWN = 64
"""Kernels, at most; the documents' networks have up to 32."""


class Filters(Callback):
    """Shows in TensorBoard the first convolution's kernels after each epoch, `weights/<layer>`.

    Of several input channels the first is shown. A network without convolutions shows nothing.
    """

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the kernels."""
        if not trainer.is_global_zero or not tensorboard.of_tensorboard(trainer.loggers):
            return
        for name, layer in pl_module.named_modules():
            if isinstance(layer, nn.Conv2d):
                tag = filters_tag(name)
                picture = draw_filters(layer.weight)
                tensorboard.show_picture(trainer.loggers, tag, picture, epoch_end_step(trainer))
                return


def filters_tag(layer: str) -> str:
    """Name the picture of a layer, which may be inside of others."""
    return f"weights/{layer.rpartition('.')[2]}"


def draw_filters(weight: Tensor) -> Image:
    """Draw a convolution's kernels, `(out_channels, in_channels, height, width)`."""
    return draw_kernels(weight.detach()[:SHOWN, 0].to("cpu", torch.float32).numpy())
