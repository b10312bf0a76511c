"""What the last layer sees of images, for TensorBoard's projector."""

import math
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from digitlab import runs, tensorboard
from digitlab.classifier import Classifier
from digitlab.data import ImageDataModule
from digitlab.predictions import evaluating, name_classes

IMAGES = 1000
"""So many are shown; with more, TensorBoard's projections get slow in a browser."""
FOLDER = "projector"
_CONFIG = "projector_config.pbtxt"  # the name that TensorBoard looks for


class Projector(Callback):
    """Shows the penultimate layer in TensorBoard's projector, once training has ended.

    The points are what the last fully connected layer, of those that the network lists, is given
    for the first 1,000 images validated on, those of the test split unless there is a hold-out,
    with their pictures, the names of their classes, and those of the classes that they are taken
    for. A network without such a layer shows nothing.
    """

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Classify the images once more, and write what the last layer was given."""
        data = trainer.datamodule  # type: ignore[attr-defined]  # set by `fit`
        if not trainer.is_global_zero or not isinstance(data, ImageDataModule):
            return
        assert isinstance(pl_module, Classifier)
        writers = tensorboard.writers(trainer.loggers)
        linear = [it for it in pl_module.network.modules() if isinstance(it, nn.Linear)]
        if not writers or not linear:
            return
        with tensorboard.unless_it_fails("projector"):
            with trainer.precision_plugin.forward_context():
                features, logits = _features(pl_module.network, linear[-1], projected(data))
            for writer in writers:
                write_projector(Path(writer.log_dir), data, features, logits)


def projected(data: ImageDataModule) -> Iterator[Tensor]:
    """Yield the images that are shown, normalized, in batches `(n, C, 28, 28)`."""
    images, _ = data.arrays("validation")
    return (batch for batch, _ in data.image_loader(images[:IMAGES]))


def write_projector(folder: Path, data: ImageDataModule, features: Tensor, logits: Tensor) -> None:
    """Write what the projector shows into a folder of events.

    torch's own `add_embedding` takes 0.6 s for 1,000 points in 84 dimensions, this 0.06.

    Args:
        folder: Where the events are.
        data: Has the images, their classes and these classes' names.
        features: Of the images that `projected` yields, on the CPU, `(N, D)`.
        logits: Of the same images, `(N, K)`.
    """
    from google.protobuf import text_format
    from tensorboard.plugins.projector.projector_config_pb2 import ProjectorConfig

    images, labels = data.arrays("validation")
    images, labels = images[: len(features)], labels[: len(features)]
    names = name_classes(data.class_names, logits.shape[1])
    predicted = logits.argmax(1).tolist()

    config = ProjectorConfig()
    embedding = config.embeddings.add(tensor_name="penultimate layer")
    embedding.tensor_path = f"{FOLDER}/features.tsv"
    embedding.metadata_path = f"{FOLDER}/labels.tsv"
    embedding.sprite.image_path = f"{FOLDER}/images.png"
    embedding.sprite.single_image_dim.extend([images.shape[2], images.shape[1]])

    (folder / FOLDER).mkdir(exist_ok=True)
    with runs.whole(folder / embedding.tensor_path) as path:
        np.savetxt(path, features.numpy(), fmt="%.6g", delimiter="\t")
    rows = [f"{names[i]}\t{names[j]}" for i, j in zip(labels, predicted, strict=True)]
    runs.write_text(folder / embedding.metadata_path, "\n".join(["class\tpredicted", *rows, ""]))
    with runs.whole(folder / embedding.sprite.image_path) as path:
        _sprite(images).save(path)
    runs.write_text(folder / _CONFIG, text_format.MessageToString(config))  # last: it names them


def _features(
    network: nn.Module, last: nn.Linear, images: Iterable[Tensor]
) -> tuple[Tensor, Tensor]:
    """Give what a layer is given for images, float32 `(N, D)`, and the network's logits."""
    seen: list[Tensor] = []
    said: list[Tensor] = []
    hook = last.register_forward_pre_hook(lambda _, given: seen.append(given[0].flatten(1)))
    with hook, evaluating(network), torch.no_grad():
        for batch in images:
            said.append(network(batch.to(last.weight)))
    if len(seen) != len(said):
        raise ValueError("its last fully connected layer is not called once for a batch")
    features, logits = (torch.cat(tensors).to("cpu", torch.float32) for tensors in (seen, said))
    return features, logits


def _sprite(images: NDArray[np.uint8]) -> Image.Image:
    """Put images side by side into a square, as the projector wants them."""
    number, height, width = images.shape
    side = math.ceil(math.sqrt(number))
    tiles = np.zeros((side * side, height, width), np.uint8)
    tiles[:number] = images
    rows = tiles.reshape(side, side, height, width).swapaxes(1, 2)
    return Image.fromarray(rows.reshape(side * height, side * width))
