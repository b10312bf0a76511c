"""What a person sees of a run, beside the progress bar."""

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn

from digitlab.callbacks.history import History
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
            row = self.history.rows[-1]
            line = f"epoch {row['epoch']:>3}  train {_score(row, 'train')}"
            if row["val_loss"] is not None:
                line += f"  val {_score(row, 'val')}"
            print(f"{line}  {row['seconds']:.1f} s", flush=True)


def describe_layers(network: nn.Module) -> str:
    """Make a table of a network's layers with the shapes of their parameter tensors.

    >>> print(describe_layers(nn.Sequential(nn.Linear(3, 2), nn.ReLU())))
    layer  type    parameter tensors           count
    0      Linear  weight (2, 3), bias (2,)        8
    1      ReLU                                    0
    8 parameters in 2 tensors
    """
    rows = [("layer", "type", "parameter tensors", "count")]
    for name, layer in network.named_children():
        tensors = dict(layer.named_parameters())
        shapes = ", ".join(f"{key} {tuple(tensor.shape)}" for key, tensor in tensors.items())
        count = sum(tensor.numel() for tensor in tensors.values())
        rows.append((name, type(layer).__name__, shapes, f"{count:,}"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        f"{name:{widths[0]}}  {kind:{widths[1]}}  {shapes:{widths[2]}}  {count:>{widths[3] + 2}}"
        for name, kind, shapes, count in rows
    ]
    parameters = list(network.parameters())
    total = sum(parameter.numel() for parameter in parameters)
    return "\n".join([*lines, f"{total:,} parameters in {len(parameters)} tensors"])


def _score(row: dict[str, int | float | None], phase: str) -> str:
    return f"loss {row[f'{phase}_loss']:.4f} accuracy {row[f'{phase}_accuracy']:.2%}"
