"""What TensorBoard shows beside scalars: pictures of validations, kernels, graph and projector."""

import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, fx, nn
from torchmetrics.functional.classification import multiclass_confusion_matrix

from digitlab import files
from digitlab.callbacks.pictures import draw_confusion_matrix, draw_images, draw_kernels
from digitlab.classifier import Classifier
from digitlab.data import ImageDataModule
from digitlab.distributed import gather
from digitlab.execution import epoch_end_step
from digitlab.scores import evaluating, name_classes

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


def of_tensorboard(loggers: Iterable[Logger]) -> list[TensorBoardLogger]:
    """Give those of the loggers that are TensorBoard's; equally many in all processes."""
    return [logger for logger in loggers if isinstance(logger, TensorBoardLogger)]


def writers(loggers: Iterable[Logger]) -> list["SummaryWriter"]:
    """Give their writers, of which only the first process's write."""
    return [logger.experiment for logger in of_tensorboard(loggers)]


@contextmanager
def unless_it_fails(what: str) -> Iterator[None]:
    """Say why something cannot be shown, where a run that has trained would end without figures."""
    try:
        yield
    except OSError:  # a full disk, say, is nothing to be silent about
        raise
    except Exception as error:  # a network of one's own may do whatever it likes
        reason = str(error).partition("\n")[0]
        print(f"TensorBoard has no {what} of this network: {type(error).__name__}: {reason}")


def latest_step(trainer: Trainer) -> int:
    """Give the last optimizer step made, as it is counted on the axis; 0 before the first."""
    return max(trainer.global_step - 1, 0)


def show_picture(loggers: Iterable[Logger], tag: str, picture: Image.Image, step: int) -> None:
    """Show an RGB picture under Images."""
    for writer in writers(loggers):
        writer.add_image(tag, np.asarray(picture), step, dataformats="HWC")


def show_graph(loggers: Iterable[Logger], graph: Any) -> None:
    """Show a `GraphDef` under Graphs."""
    from tensorboard.compat.proto.event_pb2 import Event

    for writer in writers(loggers):
        # Its public functions take a PyTorch network, or an ONNX file.
        file_writer = writer._get_file_writer()  # type: ignore[no-untyped-call]  # torch's
        file_writer.add_event(Event(graph_def=graph.SerializeToString()))


def show_text(loggers: Iterable[Logger], tag: str, text: str, step: int) -> None:
    """Show a text as it is, under Text."""
    indented = "".join(f"    {line}\n" for line in text.splitlines())  # Markdown's code
    for writer in writers(loggers):
        writer.add_text(tag, indented, step)


class ValidationPicture(Callback, ABC):
    """Looks at each batch of a validation, and at its end shows a picture in TensorBoard.

    A subclass says what it keeps of a batch and what it draws of all that was kept, by all
    processes. Nothing is read back from a GPU before the end.
    """

    tag: ClassVar[str]
    """Under which the picture is shown."""

    def __init__(self) -> None:
        self._kept: list[tuple[Tensor, ...]] = []

    @abstractmethod
    def look_at(self, images: Tensor, labels: Tensor, logits: Tensor) -> tuple[Tensor, ...]:
        """Give what is worth keeping of a batch of N images in K classes.

        Args:
            images: float `(N, C, 28, 28)`, normalized in whatever way.
            labels: int64 `(N,)`.
            logits: float32 or wider, `(N, K)`.
        """

    @abstractmethod
    def draw(self, kept: Sequence[tuple[Tensor, ...]], names: Sequence[str]) -> Image.Image | None:
        """Draw what was kept of at least one batch, on the CPU; None where there is nothing.

        Args:
            kept: What `look_at` gave of each batch.
            names: Of the classes; others are named by their numbers.
        """

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget what was validated before."""
        self._kept.clear()

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Look at a batch and its logits, which a `Classifier`'s validation step gives."""
        # Others' validation steps give nothing, or the loss.
        if isinstance(outputs, Tensor) and outputs.ndim == 2 and _looks(trainer):
            images, labels = batch
            self._kept.append(self.look_at(images, labels, outputs))

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw what was kept, in the first process."""
        if not _looks(trainer):
            return
        here = [tuple(tensor.cpu() for tensor in kept) for kept in self._kept]
        kept = [of_batch for process in gather(trainer, here) for of_batch in process]
        self._kept.clear()
        if not kept or not trainer.is_global_zero:
            return
        data = trainer.datamodule  # type: ignore[attr-defined]  # set by `fit`
        if picture := self.draw(kept, getattr(data, "class_names", ())):
            step = latest_step(trainer)
            show_picture(trainer.loggers, self.tag, picture, step)


def _looks(trainer: Trainer) -> bool:
    return bool(of_tensorboard(trainer.loggers)) and not trainer.sanity_checking


class ConfusionMatrix(ValidationPicture):
    """Shows in TensorBoard which classes are taken for which, `val/confusion_matrix`."""

    tag = "val/confusion_matrix"

    def look_at(self, images: Tensor, labels: Tensor, logits: Tensor) -> tuple[Tensor, ...]:
        """Keep the labels and the predicted classes, both int64 `(N,)`."""
        return labels, logits.argmax(1)

    def draw(self, kept: Sequence[tuple[Tensor, ...]], names: Sequence[str]) -> Image.Image:
        """Count the images of each class by what they are taken for, and draw the counts."""
        labels, predicted = (torch.cat(part) for part in zip(*kept, strict=True))
        classes = max(len(names), int(max(labels.max(), predicted.max())) + 1)
        counts = multiclass_confusion_matrix(predicted, labels, classes)
        return draw_confusion_matrix(counts.numpy(), name_classes(names, classes))


MISTAKES_SHOWN = 16
"""Four rows."""


class WorstMistakes(ValidationPicture):
    """Shows in TensorBoard the images that are most confidently taken for another class.

    The picture `val/mistakes` has up to 16 of them, the most confident first, each with the name of
    its class, what it was taken for, and how probable that is to the network.
    """

    tag = "val/mistakes"

    def look_at(self, images: Tensor, labels: Tensor, logits: Tensor) -> tuple[Tensor, ...]:
        """Keep the worst: probability, true and predicted class `(n,)`, and image `(n, 28, 28)`."""
        probability, predicted = logits.softmax(1).max(1)
        # Of those that are right -1, and not left out: their number is known to a GPU alone.
        wrong = probability.where(predicted != labels, -1.0)
        worst = wrong.topk(min(MISTAKES_SHOWN, len(wrong)))
        chosen = worst.indices
        return worst.values, labels[chosen], predicted[chosen], images[chosen, 0]

    def draw(self, kept: Sequence[tuple[Tensor, ...]], names: Sequence[str]) -> Image.Image | None:
        """Draw the worst of all that was kept; nothing if no image is wrong."""
        parts = (torch.cat(part) for part in zip(*kept, strict=True))
        probability, labels, predicted, images = parts
        order = probability.argsort(descending=True, stable=True)[:MISTAKES_SHOWN]
        order = order[probability[order] >= 0]
        if not len(order):
            return None
        named = name_classes(names, int(max(labels.max(), predicted.max())) + 1)
        said = zip(predicted[order].tolist(), probability[order].tolist(), strict=True)
        return draw_images(
            np.stack([_pixels(image) for image in images[order]]),
            [named[label] for label in labels[order].tolist()],
            [f"{named[number]} ({certainty:.0%})" for number, certainty in said],
        )


def _pixels(image: Tensor) -> NDArray[np.uint8]:
    """Make of a normalized image one from black to white, of the same shape."""
    image = image.float() - image.min()
    shades: NDArray[np.float32] = (255 * image / image.max().clamp(min=1e-12)).numpy()
    return shades.round().astype(np.uint8)


KERNELS_SHOWN = 64
"""Kernels, at most; the documents' networks have up to 32."""


class FirstLayerKernels(Callback):
    """Shows in TensorBoard the first convolution's kernels after each epoch, `weights/<layer>`.

    Of several input channels the first is shown. A network without convolutions shows nothing.
    """

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the kernels."""
        if not trainer.is_global_zero or not of_tensorboard(trainer.loggers):
            return
        for name, layer in pl_module.named_modules():
            if isinstance(layer, nn.Conv2d):
                tag = kernels_tag(name)
                picture = draw_first_kernels(layer.weight)
                show_picture(trainer.loggers, tag, picture, epoch_end_step(trainer))
                return


def kernels_tag(layer: str) -> str:
    """Name the picture of a layer, which may be inside of others."""
    return f"weights/{layer.rpartition('.')[2]}"


def draw_first_kernels(weight: Tensor) -> Image.Image:
    """Draw a convolution's kernels, `(out_channels, in_channels, height, width)`."""
    return draw_kernels(weight.detach()[:KERNELS_SHOWN, 0].to("cpu", torch.float32).numpy())


class ModelGraph(Callback):
    """Shows the network in TensorBoard, under Graphs, once training has ended."""

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Follow an image of the validation's through the network."""
        data = trainer.datamodule  # type: ignore[attr-defined]  # set by `fit`
        if not trainer.is_global_zero or not isinstance(data, ImageDataModule):
            return
        assert isinstance(pl_module, Classifier)
        loggers, network = of_tensorboard(trainer.loggers), pl_module.network
        if loggers:
            (image, _), *_ = data.image_loader(data.arrays("validation")[0][:1])
            with unless_it_fails("graph"), evaluating(network), torch.no_grad():
                graph = trace(network, image.to(next(network.parameters())))
                show_graph(loggers, graph)


def trace(network: nn.Module, images: Tensor) -> Any:
    """Give the calls of layers and functions that a network makes, as a `GraphDef`.

    TensorBoard's writer would do it by `torch.jit.trace`, which is deprecated, keeps 0.2 MB in
    memory for each network, and shows the operations inside of layers instead of the layers.

    Args:
        network: Without control flow that depends on the images.
        images: `(N, C, 28, 28)`; the sizes of what layers give are shown for these.
    """
    from tensorboard.compat.proto.graph_pb2 import GraphDef

    traced = fx.Tracer().trace(network)
    _Sizes(network, graph=traced).run(images)
    graph = GraphDef()
    names: dict[fx.Node, str] = {}
    calls: Counter[str] = Counter()
    for node in traced.nodes:
        if node.op == "call_module":
            layer = network.get_submodule(path := str(node.target))
            again = f"_{calls[path]}" if calls[path] else ""
            calls[path] += 1
            # TensorBoard draws a box for what is before the last slash.
            names[node] = f"{path.replace('.', '/')}{again}/{type(layer).__name__}"
            shown = graph.node.add(name=names[node], op=type(layer).__name__)
            for name, parameter in layer.named_parameters():
                shown.attr[name].s = str(tuple(parameter.shape)).encode()
        else:
            names[node] = node.name
            shown = graph.node.add(name=node.name, op=node.op)
        shown.input.extend(names[given] for given in node.all_input_nodes)
        if "size" in node.meta:
            sizes = shown.attr["_output_shapes"].list.shape.add()
            for size in node.meta["size"]:
                sizes.dim.add(size=size)
    return graph


class _Sizes(fx.Interpreter):
    """Runs a traced network and notes the size of each tensor at its node."""

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, Tensor):
            n.meta["size"] = tuple(result.shape)
        return result


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
        found = writers(trainer.loggers)
        linear = [it for it in pl_module.network.modules() if isinstance(it, nn.Linear)]
        if not found or not linear:
            return
        with unless_it_fails("projector"):
            with trainer.precision_plugin.forward_context():
                features, logits = _features(pl_module.network, linear[-1], projected(data))
            for writer in found:
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
    with files.atomic_write(folder / embedding.tensor_path) as path:
        np.savetxt(path, features.numpy(), fmt="%.6g", delimiter="\t")
    rows = [f"{names[i]}\t{names[j]}" for i, j in zip(labels, predicted, strict=True)]
    files.write_text(folder / embedding.metadata_path, "\n".join(["class\tpredicted", *rows, ""]))
    with files.atomic_write(folder / embedding.sprite.image_path) as path:
        _sprite(images).save(path)
    files.write_text(folder / _CONFIG, text_format.MessageToString(config))  # last: it names them


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
