"""What a person sees of a run, beside the progress bar."""

from math import prod

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn

from digitlab.callbacks.history import History, Row
from digitlab.classifier import Classifier


class Console(Callback):
    """Prints the network's layers when a fit starts, and a line after each epoch.

    Args:
        history: Has the epochs' rows; must come before this among the trainer's callbacks.
    """

    def __init__(self, history: History) -> None:
        self.history = history

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the layers."""
        if trainer.is_global_zero and isinstance(pl_module, Classifier):
            print(describe_layers(pl_module.network), flush=True)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the epoch's line."""
        if trainer.is_global_zero:
            print(describe_epoch(self.history.rows[-1]), flush=True)


def describe_epoch(row: Row) -> str:
    """Say an epoch's scores in a line."""
    line = f"epoch {row['epoch']:>3}  train {_score(row, 'train')}"
    if row["val_loss"] is not None:
        line += f"  val {_score(row, 'val')}"
    return f"{line}  {row['seconds']:.1f} s"


def describe_layers(network: nn.Module) -> str:
    """Make a table of a network's layers with the shapes of their parameter tensors.

    >>> print(describe_layers(nn.Sequential(nn.Linear(3, 2), nn.ReLU())))
    layer  type    parameter tensors           count
    0      Linear  weight (2, 3), bias (2,)        8
    1      ReLU                                    0
    8 parameters in 2 tensors
    """
    layers = [
        (name, type(layer).__name__, {key: tuple(p.shape) for key, p in layer.named_parameters()})
        for name, layer in network.named_children()
    ]
    return tabulate_layers(layers)


def tabulate_layers(layers: list[tuple[str, str, dict[str, tuple[int, ...]]]]) -> str:
    """Make a table of layers: name, type, and the shapes of parameter tensors by name."""
    rows = [("layer", "type", "parameter tensors", "count")]
    counts = []
    for name, kind, tensors in layers:
        shapes = ", ".join(f"{key} {shape}" for key, shape in tensors.items())
        counts += [prod(shape) for shape in tensors.values()]
        rows.append((name, kind, shapes, f"{sum(map(prod, tensors.values())):,}"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        f"{name:{widths[0]}}  {kind:{widths[1]}}  {shapes:{widths[2]}}  {count:>{widths[3] + 2}}"
        for name, kind, shapes, count in rows
    ]
    return "\n".join([*lines, f"{sum(counts):,} parameters in {len(counts)} tensors"])


def _score(row: Row, phase: str) -> str:
    return f"loss {row[f'{phase}_loss']:.4f} accuracy {row[f'{phase}_accuracy']:.2%}"
