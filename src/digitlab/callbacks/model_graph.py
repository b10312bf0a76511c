"""The graph of the network."""

from collections import Counter
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, fx, nn

from digitlab import tensorboard
from digitlab.classifier import Classifier
from digitlab.data import ImageDataModule
from digitlab.predictions import evaluating


class ModelGraph(Callback):
    """Shows the network in TensorBoard, under Graphs, once training has ended."""

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Follow an image of the validation's through the network."""
        data = trainer.datamodule  # type: ignore[attr-defined]  # set by `fit`
        if not trainer.is_global_zero or not isinstance(data, ImageDataModule):
            return
        assert isinstance(pl_module, Classifier)
        loggers, network = tensorboard.of_tensorboard(trainer.loggers), pl_module.network
        if loggers:
            (image, _), *_ = data.image_loader(data.arrays("validation")[0][:1])
            with tensorboard.unless_it_fails("graph"), evaluating(network), torch.no_grad():
                graph = trace(network, image.to(next(network.parameters())))
                tensorboard.show_graph(loggers, graph)


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
