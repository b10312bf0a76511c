"""Printing and logging: history, epoch lines, throughput, class probabilities; GPU memory."""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from math import prod
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.model_summary.model_summary import LayerSummary
from torch import Tensor

from digitlab.batches import Block
from digitlab.classifier import Classifier
from digitlab.errors import check_at_least
from digitlab.execution import epoch_end_step, learning_rate, log_metrics
from digitlab.files import write_csv
from digitlab.scores import Score, evaluating, name_classes

HistoryRow = dict[str, int | float | None]


class History(Callback):
    """Keeps the scores of each epoch as a row, and all rows in `history.csv`.

    `rows` has, per epoch: `epoch` (from 1), `step` (optimizer steps since the start), `train_loss`,
    `train_accuracy`, `val_loss`, `val_accuracy` (None where the epoch had no validation),
    `learning_rate` (of the first parameter group, at the start) and `seconds` of wall time.

    Args:
        path: The CSV file to write after each epoch.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[HistoryRow] = []
        self._validation: Score | None = None
        self._started = 0.0
        self._learning_rate: float | None = None

    def state_dict(self) -> dict[str, Any]:
        return {
            "rows": self.rows,
            "validation": self._validation,
            "learning_rate": self._learning_rate,
            "seconds": perf_counter() - self._started,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state, also inside an epoch, whose start does not come again."""
        self.rows = state_dict["rows"]
        self._validation = state_dict["validation"]
        self._learning_rate = state_dict["learning_rate"]
        self._started = perf_counter() - state_dict["seconds"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remove from the file the rows of epochs that will be trained again."""
        if self._learning_rate is None:  # no checkpoint had it
            self.on_train_epoch_start(trainer, pl_module)
        if self.path.exists() and self.rows and trainer.is_global_zero:
            write_csv(self.path, self.rows)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._validation = None
        self._started = perf_counter()
        # Read now: at the epoch's end a scheduler has set the next epoch's.
        self._learning_rate = learning_rate(trainer.optimizers[0])

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, Classifier)
        self._validation = pl_module.epoch_score("val")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, Classifier)
        train = pl_module.epoch_score("train")
        row: HistoryRow = {
            "epoch": trainer.current_epoch + 1,
            "step": trainer.global_step,
            "train_loss": train["loss"],
            "train_accuracy": train["accuracy"],
            "val_loss": self._validation and self._validation["loss"],
            "val_accuracy": self._validation and self._validation["accuracy"],
            "learning_rate": self._learning_rate,
            "seconds": round(perf_counter() - self._started, 3),
        }
        self.rows.append(row)
        if trainer.is_global_zero:
            write_csv(self.path, self.rows)


class PrintEpoch(Callback):
    """Prints the layers of the network when a fit starts, and a line after each epoch.

    Args:
        history: Has the rows; must come before this among the trainer's callbacks.
    """

    def __init__(self, history: History) -> None:
        self.history = history
        self._validation = "val"
        self._is_headed = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Print the layers, before a strategy wraps or shards them."""
        data = trainer.datamodule  # type: ignore[attr-defined]  # set by `fit`
        if getattr(data, "validation_is_test", False):
            self._validation = "val (test split)"
        if trainer.is_global_zero and isinstance(pl_module, Classifier) and stage == "fit":
            shapes = output_shapes(pl_module, getattr(data, "image_size", 28))
            print(tabulate_layers(layer_table(pl_module), shapes), flush=True)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        if not self._is_headed:  # and not earlier, when the bar is on the line
            self._is_headed = True
            print(f"\n{epoch_heading(self._validation)}")
        print(describe_epoch(self.history.rows[-1], self._validation), flush=True)


def epoch_heading(validation: str) -> str:
    """Head the columns of `describe_epoch`; `validation` names the split, such as `val`."""
    return f"           train loss  accuracy  {validation} loss  accuracy"


def describe_epoch(row: HistoryRow, validation: str = "val") -> str:
    """Format the scores of an epoch in one line, below `epoch_heading`."""
    line = f"epoch {row['epoch']:>3}"
    for title, phase in ("train", "train"), (validation, "val"):
        loss, accuracy = row[f"{phase}_loss"], row[f"{phase}_accuracy"]
        scores = "" if loss is None else f"{loss:>{len(title) + 5}.4f}  {accuracy:>8.2%}"
        line += f"  {scores:{len(title) + 15}}"
    return f"{line}  {row['seconds']:.1f} s"


LayerTable = list[tuple[str, str, dict[str, tuple[int, ...]]]]
"""The name and class of each layer, and the shapes of its parameter tensors by name."""


def layer_table(pl_module: Any) -> LayerTable:
    """List the layers of a network: by the module's own method `layer_table`, if it has one."""
    if hasattr(pl_module, "layer_table"):
        return pl_module.layer_table()  # type: ignore[no-any-return]
    return [
        (name, type(layer).__name__, {key: tuple(p.shape) for key, p in layer.named_parameters()})
        for name, layer in pl_module.network.named_children()
    ]


def named_weights(pl_module: Any) -> Iterable[tuple[str, Tensor]]:
    """List the trained weights: by the module's own method `named_weights`, if it has one."""
    return getattr(pl_module, "named_weights", pl_module.named_parameters)()  # type: ignore[no-any-return]


def count_parameters(tensors: dict[str, tuple[int, ...]]) -> int:
    """Count the parameters of a layer in a `LayerTable`."""
    return sum(map(prod, tensors.values()))


def output_shapes(pl_module: Any, side: int = 28) -> dict[str, tuple[int, ...]]:
    """Compute the shape of each layer's output for an image, by the layer's name.

    By the module's own method `output_shapes`, if it has one. Empty for a network that does not
    take images `(1, side, side)`; a layer that is not called, or returns no tensor, is left out.
    """
    if hasattr(pl_module, "output_shapes"):
        return pl_module.output_shapes()  # type: ignore[no-any-return]
    layers = {name: LayerSummary(layer) for name, layer in pl_module.network.named_children()}
    weight = next(pl_module.parameters())
    image = torch.zeros(1, 1, side, side, dtype=weight.dtype, device=weight.device)
    with evaluating(pl_module.network), torch.no_grad(), suppress(RuntimeError):
        pl_module(image)
    sizes = {name: layer.out_size for name, layer in layers.items()}
    for layer in layers.values():
        layer.detach_hook()
    return {
        name: tuple(size[1:])
        for name, size in sizes.items()
        if isinstance(size, list) and all(isinstance(it, int) for it in size)
    }


def tabulate_layers(layers: LayerTable, outputs: dict[str, tuple[int, ...]]) -> str:
    """Make a table of layers, with the shapes of their outputs for an image.

    >>> layers = [("0", "Linear", {"weight": (2, 3)}), ("1", "ReLU", {})]
    >>> print(tabulate_layers(layers, {"0": (2,)}))
    layer  type    output  parameter tensors    count
    0      Linear  (2,)    weight (2, 3)            6
    1      ReLU                                     0
    6 parameters in 1 tensors
    """
    rows = [("layer", "type", "output", "parameter tensors", "count")]
    for name, kind, tensors in layers:
        shapes = ", ".join(f"{key} {shape}" for key, shape in tensors.items())
        output = str(outputs.get(name, ""))
        rows.append((name, kind, output, shapes, f"{count_parameters(tensors):,}"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join([*map(str.ljust, row[:-1], widths), row[-1].rjust(widths[-1] + 2)])
        for row in rows
    ]
    total = sum(count_parameters(tensors) for _, _, tensors in layers)
    number = sum(len(tensors) for _, _, tensors in layers)
    return "\n".join([*lines, f"{total:,} parameters in {number} tensors"])


class Throughput(Callback):
    """Times the phases of a run, and logs images per second and the learning rate.

    The scalars are `train/images_per_second_step`, over the last `log_every_n_steps` optimizer
    steps, `train/images_per_second`, over an epoch, and `train/learning_rate`, at the start of an
    epoch. Rates leave validation out and count the images of all processes.

    Attributes:
        seconds: Wall time by phase: `training`, `validation` and the phases of `time`.
        images: Images that this process has trained on.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.images = 0
        self._started: float | None = None  # of the phase under way, during a fit
        self._learning_rate: float | None = None
        self._seen_step = 0
        self._epoch_mark = self._step_mark = (0, 0.0)  # images and seconds

    @contextmanager
    def time(self, phase: str) -> Iterator[None]:
        """Add the time of the `with` block to a phase."""
        started = perf_counter()
        yield
        self.seconds[phase] += perf_counter() - started

    def _trained(self) -> tuple[int, float]:
        """Images trained on and seconds of training so far."""
        running = 0.0 if self._started is None else perf_counter() - self._started
        return self.images, self.seconds["training"] + running

    def _rate(self, trainer: Trainer, mark: tuple[int, float]) -> float:
        """Images per second of all processes since `_trained` gave `mark`."""
        images, seconds = self._trained()
        # A resumed epoch may have no batches left, so avoid dividing by zero.
        return trainer.world_size * (images - mark[0]) / max(seconds - mark[1], 1e-9)

    def _finish(self, phase: str) -> None:
        if self._started is not None:  # not in a sanity check or a validation on its own
            now = perf_counter()
            self.seconds[phase] += now - self._started
            self._started = now

    def state_dict(self) -> dict[str, Any]:
        running = {} if self._started is None else {"training": self._trained()[1]}
        return {
            "seconds": {**self.seconds, **running},
            "images": self.images,
            "learning_rate": self._learning_rate,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for phase, seconds in state_dict["seconds"].items():
            self.seconds[phase] += seconds
        self.images = state_dict["images"]
        self._learning_rate = state_dict.get("learning_rate")  # version 0.1 did not save it

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start to measure; a run resumed inside an epoch measures the rest of it."""
        self._started = perf_counter()
        self._seen_step = trainer.global_step
        self._epoch_mark = self._step_mark = self._trained()
        if self._learning_rate is None:  # no checkpoint had it
            self._learning_rate = learning_rate(trainer.optimizers[0])

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._epoch_mark = self._step_mark = self._trained()
        self._learning_rate = learning_rate(trainer.optimizers[0])

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.images += len(batch[1])
        seen, self._seen_step = self._seen_step, trainer.global_step
        every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]  # set at run time
        if every and self._seen_step // every > seen // every:
            values = {"train/images_per_second_step": self._rate(trainer, self._step_mark)}
            log_metrics(pl_module, values, self._seen_step - 1)
            self._step_mark = self._trained()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        values = {"train/images_per_second": self._rate(trainer, self._epoch_mark)}
        if self._learning_rate is not None:
            values["train/learning_rate"] = self._learning_rate
        log_metrics(pl_module, values, epoch_end_step(trainer))

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End a phase of training; inside an epoch, a GPU may still have some of it to do."""
        if pl_module.device.type == "cuda":
            torch.cuda.synchronize(pl_module.device)
        self._finish("training")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._finish("validation")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._finish("training")
        self._started = None


class ClassProbabilities(Callback):
    """Logs the predicted probability of each class, as a mean over the batch.

    An untrained network predicts all classes equally often; a collapsed one predicts one class. The
    scalars are `probabilities/<class name>`. They are computed again in evaluation mode, which does
    not change the weights and random numbers of the run.

    Args:
        every_n_steps: Optimizer steps between two records (at least 1); 50 in document A. With
            several steps per execution, the last step of a block is recorded.

    Raises:
        ValueError: `every_n_steps` is below 1.
    """

    def __init__(self, every_n_steps: int = 50) -> None:
        check_at_least(1, every_n_steps=every_n_steps)
        self.every_n_steps = every_n_steps
        self._seen_step = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._seen_step = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # A step may take several batches, and a Lightning batch may be several steps.
        seen, self._seen_step = self._seen_step, trainer.global_step
        if self._seen_step // self.every_n_steps == seen // self.every_n_steps:
            return
        assert isinstance(pl_module, Classifier)
        if isinstance(batch, Block):
            *_, batch = batch.batches()
        forward_context = trainer.precision_plugin.forward_context()
        with evaluating(pl_module.network), torch.no_grad(), forward_context:
            probabilities = pl_module.predict_step(batch, batch_idx)["probabilities"].mean(0)
        data = trainer.datamodule  # type: ignore[attr-defined]  # set by `fit`
        names = name_classes(getattr(data, "class_names", ()), len(probabilities))
        # In TensorBoard, a slash would open a group of its own.
        tags = [f"probabilities/{name.replace('/', ' or ')}" for name in names]
        values = dict(zip(tags, probabilities.tolist(), strict=True))
        log_metrics(pl_module, values, self._seen_step - 1)


class GPUMemoryLimit(Callback):
    """Limits the GPU memory of this process.

    Allocations beyond it fail with an out-of-memory error. The CUDA context itself, some hundreds
    of MB, is not counted. On a CPU this does nothing. In a Keras run, `digitlab fit` sets the limit
    in TensorFlow, before the model is made.

    Args:
        megabytes: Memory for tensors, in MB of 2²⁰ bytes (at least 1); 1024 in document B.

    Raises:
        ValueError: `megabytes` is below 1, or more than the GPU has.
    """

    def __init__(self, megabytes: int = 1024) -> None:
        check_at_least(1, megabytes=megabytes)
        self.megabytes = megabytes

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Set the limit, before the model moves to the GPU."""
        device = trainer.strategy.root_device
        if device.type != "cuda":
            return
        available = torch.cuda.get_device_properties(device).total_memory / 2**20
        if self.megabytes > available:
            raise ValueError(f"megabytes is {self.megabytes}: the GPU has {available:.0f}")
        torch.cuda.set_per_process_memory_fraction(self.megabytes / available, device)
