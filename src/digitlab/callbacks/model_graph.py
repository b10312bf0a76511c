"""The graph of the network."""

import warnings

from lightning.pytorch import Callback, LightningModule, Trainer

from digitlab import tensorboard
from digitlab.classifier import Classifier
from digitlab.data import ImageDataModule
from digitlab.predictions import evaluating


class ModelGraph(Callback):
    """Shows the network in TensorBoard, under Graphs, once training has ended."""

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Trace the network on an image of the validation's."""
        data = trainer.datamodule  # type: ignore[attr-defined]  # set by `fit`
        if not trainer.is_global_zero or not isinstance(data, ImageDataModule):
            return
        assert isinstance(pl_module, Classifier)
        network = pl_module.network
        for writer in tensorboard.writers(trainer.loggers):
            (image, _), *_ = data.image_loader(data.arrays("validation")[0][:1])
            traced = warnings.catch_warnings()
            with tensorboard.unless_it_fails("graph"), evaluating(network), traced:
                # torch 2.15 would have `torch.jit.trace`, which this calls, replaced.
                warnings.simplefilter("ignore", FutureWarning)
                writer.add_graph(network, image.to(next(network.parameters())))
