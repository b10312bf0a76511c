"""What TensorBoard shows of a Keras model itself: filters, graph and projector."""

from pathlib import Path
from typing import Any

import torch

from digitlab.callbacks import tensorboard
from digitlab.callbacks.tensorboard import (
    draw_first_kernels,
    kernels_tag,
    projected,
    write_projector,
)
from digitlab.parity.backend import import_keras, import_tensorflow
from digitlab.parity.hooks import Hooks
from digitlab.parity.keras_files import KerasNetwork
from digitlab.parity.recorder import Recorder
from digitlab.parity.weights import LAYOUTS, keras_layers


class ModelPictures(Hooks):
    """Shows what `FirstLayerKernels`, `ModelGraph` and `Projector` show of a PyTorch network.

    Args:
        recorder: Counts the steps; its hooks must come before these, whose time no rate counts.
    """

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Show the first convolution's kernels."""
        recorder, keras = self.recorder, import_keras()
        for layer in keras_layers(recorder.keras_model):
            if isinstance(layer, keras.layers.Conv2D):
                kernel = keras.ops.convert_to_numpy(layer.kernel)
                weight = torch.from_numpy(LAYOUTS["Conv2D"]["kernel"].to_torch(kernel))
                tag, picture = kernels_tag(layer.name), draw_first_kernels(weight)
                step = recorder.epoch_end_step
                tensorboard.show_picture(recorder.loggers, tag, picture, step)
                return

    def on_train_end(self, logs: Any = None) -> None:
        """Show the graph and the projector."""
        keras_model, loggers = self.recorder.keras_model, self.recorder.loggers
        with tensorboard.unless_it_fails("graph"):
            tensorboard.show_graph(loggers, _trace(keras_model))
        dense = import_keras().layers.Dense
        # A layer inside of another model has no input among this one's tensors.
        found = [layer for layer in keras_model.layers if isinstance(layer, dense)]
        if not found:
            return
        with tensorboard.unless_it_fails("projector"):
            (image,) = keras_model.inputs
            penultimate = import_keras().Model(image, found[-1].input)
            images = torch.cat(list(projected(self.recorder.data)))
            features, logits = (KerasNetwork(it)(images) for it in (penultimate, keras_model))
            for writer in tensorboard.writers(loggers):
                write_projector(Path(writer.log_dir), self.recorder.data, features, logits)


def _trace(keras_model: Any) -> Any:
    """Give the graph that Keras computes in inference mode, as a `GraphDef`.

    TensorBoard's own conversion of a model's layers does without the operations inside of them, but
    fails for a model that adds a number to a tensor.
    """
    tensorflow = import_tensorflow()
    (images,) = keras_model.inputs
    signature = tensorflow.TensorSpec(images.shape, images.dtype, name="images")
    compute = tensorflow.function(lambda images: keras_model(images, training=False))
    return compute.get_concrete_function(signature).graph.as_graph_def()
