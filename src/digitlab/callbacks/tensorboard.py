"""TensorBoard beside scalars: pictures of validations, kernels, graph and projector.

`FirstLayerKernels`, `ModelGraph` and `Projector` read a PyTorch network. A module that trains
another framework's network shows it by methods of its own, which are used instead:

- `first_kernels() -> tuple[str, Tensor] | None`, which may be its network's: name and weights
  `(out, in, height, width)` of the first convolution.
- `trace_graph() -> GraphDef | None`: the graph, TensorBoard's or TensorFlow's message: only its
  `SerializeToString()` is called.
- `features(images) -> Tensor | None`: the last fully connected layer's input for
  `(N, C, 28, 28)` images, float `(N, D)`.

None stands for a network that has no such thing.
"""

import re
import shutil
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
from torch.fx.passes.shape_prop import ShapeProp

from digitlab.callbacks.pictures import (
    count_confusion,
    draw_confusion_matrix,
    draw_kernels,
    draw_mistakes,
)
from digitlab.classifier import Classifier
from digitlab.data import ImageDataModule
from digitlab.distributed import gather
from digitlab.execution import epoch_end_step
from digitlab.scores import evaluating, name_classes
from digitlab.terminal import printable

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


DETAILS = re.compile("train/(.+_step|learning_rate|images_per_second)")


class EventLogger(TensorBoardLogger):
    """Lightning's logger, with the curves of accuracy and loss on top.

    TensorBoard sorts groups by name, so the details of the training are moved from `train/…` to
    `while_training/…`, behind `val`. Lightning's scalar `epoch` is left out.
    """

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        """Log scalars under TensorBoard's tags."""
        tags = {tag: DETAILS.sub(r"while_training/\1", tag) for tag in metrics if tag != "epoch"}
        super().log_metrics({shown: metrics[tag] for tag, shown in tags.items()}, step)


def of_tensorboard(loggers: Iterable[Logger]) -> list[TensorBoardLogger]:
    """Return the TensorBoard loggers among `loggers`; equally many in all processes."""
    return [logger for logger in loggers if isinstance(logger, TensorBoardLogger)]


def shows_pictures(loggers: Iterable[Logger]) -> bool:
    """Return whether a logger shows pictures: TensorBoard's, or one with Lightning's `log_image`.

    Lightning's `WandbLogger` has that method. The answer is the same in all processes.
    """
    return any(isinstance(it, TensorBoardLogger) or hasattr(it, "log_image") for it in loggers)


def writers(loggers: Iterable[Logger]) -> list["SummaryWriter"]:
    """Return the writers of the TensorBoard loggers; only those of rank 0 write."""
    return [logger.experiment for logger in of_tensorboard(loggers)]


@contextmanager
def unless_it_fails(name: str) -> Iterator[None]:
    """Print an error of the `with` block, so that a trained run still gets its scores."""
    try:
        yield
    except OSError:  # such as a full disk
        raise
    except Exception as error:  # a user's network may do anything
        reason = str(error).partition("\n")[0]
        said = f"TensorBoard has no {name} of this network: {type(error).__name__}: {reason}"
        print(printable(said))


def show_picture(loggers: Iterable[Logger], tag: str, picture: Image.Image, step: int) -> None:
    """Show an RGB picture: in TensorBoard under Images."""
    pixels = np.asarray(picture)
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_image(tag, pixels, step, dataformats="HWC")
        elif hasattr(logger, "log_image"):
            logger.log_image(tag, [pixels], step=step)


def show_text(loggers: Iterable[Logger], tag: str, text: str, step: int) -> None:
    """Show a text as it is, under Text."""
    indented = "".join(f"    {line}\n" for line in text.splitlines())  # Markdown's code
    for writer in writers(loggers):
        writer.add_text(tag, indented, step)


class ValidationPicture(Callback, ABC):
    """Keeps something of each validation batch, and logs one picture of it all.

    A subclass chooses the tensors to keep of a batch, and draws those of all ranks. Nothing is read
    back from a GPU before the end of the validation.
    """

    tag: ClassVar[str]
    """Name of the picture."""

    def __init__(self) -> None:
        self._kept: list[tuple[Tensor, ...]] = []

    @abstractmethod
    def update(self, images: Tensor, labels: Tensor, logits: Tensor) -> tuple[Tensor, ...]:
        """Return the tensors to keep of a batch of N images in K classes.

        Args:
            images: float `(N, C, 28, 28)`, with any normalization.
            labels: int64 `(N,)`.
            logits: float32 or wider, `(N, K)`.
        """

    @abstractmethod
    def draw(self, kept: Sequence[Tensor], names: Sequence[str]) -> Image.Image | None:
        """Draw the tensors of at least one batch; None if there is nothing to draw.

        Args:
            kept: The tensors of `update`, on the CPU; those of all batches and ranks are
                concatenated along the first dimension.
            names: The classes' names; a class without one gets its number.
        """

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._kept.clear()

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        """Keep tensors of a batch; its logits are the output of `Classifier.validation_step`."""
        # Other modules' validation steps return nothing, or the loss.
        if isinstance(outputs, Tensor) and outputs.ndim == 2 and _is_shown(trainer):
            images, labels = batch
            self._kept.append(self.update(images, labels, outputs))

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not _is_shown(trainer):
            return
        # Joined before they are copied from the device: one copy each, not one for each batch.
        here = [torch.cat(tensors).cpu() for tensors in zip(*self._kept, strict=True)]
        self._kept.clear()
        given = [process for process in gather(trainer, here) if process]
        if not given or not trainer.is_global_zero:
            return
        kept = [torch.cat(tensors) for tensors in zip(*given, strict=True)]
        data = trainer.datamodule  # type: ignore[attr-defined]  # set by `fit`
        if picture := self.draw(kept, getattr(data, "class_names", ())):
            # A validation before the first step is logged at 0.
            show_picture(trainer.loggers, self.tag, picture, max(trainer.global_step - 1, 0))


def _is_shown(trainer: Trainer) -> bool:
    return shows_pictures(trainer.loggers) and not trainer.sanity_checking


class ConfusionMatrix(ValidationPicture):
    """Logs the confusion matrix of a validation, `val/confusion_matrix`."""

    tag = "val/confusion_matrix"

    def update(self, images: Tensor, labels: Tensor, logits: Tensor) -> tuple[Tensor, ...]:
        """Keep the labels and the predicted classes, both int64 `(N,)`."""
        return labels, logits.argmax(1)

    def draw(self, kept: Sequence[Tensor], names: Sequence[str]) -> Image.Image:
        labels, predicted = kept
        classes = max(len(names), int(max(labels.max(), predicted.max())) + 1)
        counts = count_confusion(labels, predicted, classes)
        return draw_confusion_matrix(counts, name_classes(names, classes))


MISTAKES_SHOWN = 16
"""Four rows."""


class WorstMistakes(ValidationPicture):
    """Logs the most confident wrong predictions.

    The picture `val/mistakes` has up to 16 images, the most confident mistake first, each with its
    class, the predicted class, and the probability of the latter.
    """

    tag = "val/mistakes"

    def update(self, images: Tensor, labels: Tensor, logits: Tensor) -> tuple[Tensor, ...]:
        """Keep the worst: probability, true and predicted class `(n,)`, and image `(n, 28, 28)`."""
        probability, predicted = logits.softmax(1).max(1)
        # Give correct images -1 instead of filtering them: filtering would synchronize the GPU.
        wrong = probability.where(predicted != labels, -1.0)
        worst = wrong.topk(min(MISTAKES_SHOWN, len(wrong)))
        chosen = worst.indices
        return worst.values, labels[chosen], predicted[chosen], images[chosen, 0]

    def draw(self, kept: Sequence[Tensor], names: Sequence[str]) -> Image.Image | None:
        """Draw the worst mistakes of all batches; nothing if no prediction is wrong."""
        probability, labels, predicted, images = kept
        order = probability.argsort(descending=True, stable=True)[:MISTAKES_SHOWN]
        order = order[probability[order] >= 0]
        if not len(order):
            return None
        named = name_classes(names, int(max(labels.max(), predicted.max())) + 1)
        shown = {"label": labels, "class": predicted, "probability": probability}
        worst = {name: values[order].tolist() for name, values in shown.items()}
        return draw_mistakes(np.stack([_pixels(it) for it in images[order]]), worst, named)


def _pixels(image: Tensor) -> NDArray[np.uint8]:
    """Stretch a normalized image to the range from black to white."""
    image = image.float() - image.min()
    shades: NDArray[np.float32] = (255 * image / image.max().clamp(min=1e-12)).numpy()
    return shades.round().astype(np.uint8)


KERNELS_SHOWN = 64
"""Kernels, at most; the documents' networks have up to 32."""


class FirstLayerKernels(Callback):
    """Logs the first convolution's kernels after each epoch, `weights/<layer>`.

    Only the first input channel is shown. A network without convolutions shows nothing.
    """

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero or not shows_pictures(trainer.loggers):
            return
        if found := picture_kernels(pl_module):
            name, picture = found
            show_picture(trainer.loggers, f"weights/{name}", picture, epoch_end_step(trainer))


def picture_kernels(pl_module: Any) -> tuple[str, Image.Image] | None:
    """Draw the first convolution's kernels; return its name without its parents', and a picture."""
    if not (found := first_kernels(pl_module)):
        return None
    path, weight = found
    kernels = weight.detach()[:KERNELS_SHOWN, 0].to("cpu", torch.float32)
    return path.rpartition(".")[2], draw_kernels(kernels.numpy())


def first_kernels(pl_module: Any) -> tuple[str, Tensor] | None:
    """Return name and weights `(out, in, height, width)` of a network's first convolution."""
    for module in pl_module.modules():
        if hasattr(module, "first_kernels"):
            return module.first_kernels()  # type: ignore[no-any-return]
    layers = pl_module.named_modules()
    return next(((n, layer.weight) for n, layer in layers if isinstance(layer, nn.Conv2d)), None)


class ModelGraph(Callback):
    """Shows the network in TensorBoard, under Graphs, after training."""

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        from tensorboard.compat.proto.event_pb2 import Event

        data = trainer.datamodule  # type: ignore[attr-defined]  # set by `fit`
        found = of_tensorboard(trainer.loggers) if trainer.is_global_zero else []
        if not found or not isinstance(data, ImageDataModule):
            return
        with unless_it_fails("graph"):
            if graph := trace_graph(pl_module, data):
                for writer in writers(found):
                    # Its public functions take a PyTorch network, or an ONNX file.
                    event = Event(graph_def=graph.SerializeToString())
                    writer.file_writer.add_event(event)  # type: ignore[attr-defined]  # untyped


def trace_graph(pl_module: Any, data: ImageDataModule) -> Any:
    """Return a network's graph as a `GraphDef`."""
    if hasattr(pl_module, "trace_graph"):
        return pl_module.trace_graph()
    (image, _), *_ = data.image_loader(data.arrays("validation")[0][:1])
    with evaluating(pl_module.network), torch.no_grad():
        return trace(pl_module.network, image.to(next(pl_module.network.parameters())))


def trace(network: nn.Module, images: Tensor) -> Any:
    """Return the calls of layers and functions that a PyTorch network makes, as a `GraphDef`.

    Its control flow must not depend on the images. TensorBoard's writer would use
    `torch.jit.trace`, which is deprecated, keeps 0.2 MB in memory for each network, and shows the
    operations inside layers instead of the layers.
    """
    from tensorboard.compat.proto.graph_pb2 import GraphDef

    traced = fx.Tracer().trace(network)
    ShapeProp(fx.GraphModule(network, traced)).propagate(images)
    graph = GraphDef()
    names: dict[fx.Node, str] = {}
    calls: Counter[str] = Counter()
    for node in traced.nodes:
        if node.op == "call_module":
            layer = network.get_submodule(path := str(node.target))
            again = f"_{calls[path]}" if calls[path] else ""
            calls[path] += 1
            # TensorBoard draws a box for the part before the last slash.
            names[node] = f"{path.replace('.', '/')}{again}/{type(layer).__name__}"
            shown = graph.node.add(name=names[node], op=type(layer).__name__)
            for name, parameter in layer.named_parameters():
                shown.attr[name].s = str(tuple(parameter.shape)).encode()
        else:
            names[node] = node.name
            shown = graph.node.add(name=node.name, op=node.op)
        shown.input.extend(names[given] for given in node.all_input_nodes)
        if hasattr(output := node.meta.get("tensor_meta"), "shape"):
            sizes = shown.attr["_output_shapes"].list.shape.add()
            for size in output.shape:
                sizes.dim.add(size=size)
    return graph


IMAGES = 1000
"""Images in the projector; with more, TensorBoard's projections get slow in a browser."""
TAG = "penultimate_layer"


class Projector(Callback):
    """Shows the penultimate layer in TensorBoard's projector, after training.

    The points are the inputs of the network's last fully connected layer for the first 1,000
    validation images (of the test split unless there is a hold-out), with their pictures, classes
    and predicted classes. A network without such a layer shows nothing.
    """

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        data = trainer.datamodule  # type: ignore[attr-defined]  # set by `fit`
        found = of_tensorboard(trainer.loggers) if trainer.is_global_zero else []
        if not found or not isinstance(data, ImageDataModule):
            return
        assert isinstance(pl_module, Classifier)
        precision = trainer.precision_plugin
        points: list[Tensor] = []
        predicted: list[int] = []
        with unless_it_fails("projector"), pl_module.averaged():
            with evaluating(pl_module.network), torch.no_grad(), precision.forward_context():
                for batch, _ in data.image_loader(data.arrays("validation")[0][:IMAGES]):
                    images = precision.convert_input(batch.to(pl_module.device))
                    if (given := features(pl_module, images)) is None:
                        return
                    points.append(given.to("cpu", torch.float32))
                    predicted += pl_module(images).argmax(1).tolist()
            images, labels = (array[: len(predicted)] for array in data.arrays("validation"))
            known = name_classes(data.class_names, 1 + max(*predicted, *labels.tolist()))
            names = [printable(name) for name in known]  # a folder's name may have a tab
            rows = [[names[i], names[j]] for i, j in zip(labels, predicted, strict=True)]
            pictures = torch.from_numpy(images[:, None] / np.float32(255))
            header = {"metadata_header": ["class", "predicted"]}
            for writer in writers(found):
                shutil.rmtree(Path(writer.log_dir, "projector"), ignore_errors=True)  # an older one
                # In place of a step, the name of the folder that it writes to.
                step: Any = "projector"
                writer.add_embedding(torch.cat(points), rows, pictures, step, TAG, **header)


def features(pl_module: Any, images: Tensor) -> Tensor | None:
    """Compute the input of a network's last fully connected layer, float `(N, D)`."""
    if hasattr(pl_module, "features"):
        return pl_module.features(images)  # type: ignore[no-any-return]
    linear = [layer for layer in pl_module.network.modules() if isinstance(layer, nn.Linear)]
    if not linear:
        return None
    seen: list[Tensor] = []
    with linear[-1].register_forward_pre_hook(lambda _, given: seen.append(given[0].flatten(1))):
        pl_module(images)
    if len(seen) != 1:
        raise ValueError("its last fully connected layer is not called once for a batch")
    return seen[0]
