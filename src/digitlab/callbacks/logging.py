"""What a run prints and logs: progress bar, epoch lines, history, throughput, settings."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from math import prod
from pathlib import Path
from time import monotonic, perf_counter
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar as LightningProgressBar
from torch import Tensor, nn
from tqdm import tqdm

from digitlab.batches import Block
from digitlab.callbacks.tensorboard import show_text
from digitlab.classifier import Classifier
from digitlab.data import ImageLoader
from digitlab.execution import epoch_end_step, learning_rate, log_metrics
from digitlab.files import write_csv, write_text
from digitlab.scores import Score, evaluating, name_classes

REFRESH_SECONDS = 0.25


class Bar:
    """A bar that is drawn at most four times a second, and on a terminal only.

    Args:
        description: What is under way.
        total: Number of batches to come.
        enabled: Whether to draw at all.
    """

    def __init__(self, description: str, total: int | float, enabled: bool = True) -> None:
        self._drawn_at = 0.0
        self._tqdm: tqdm[Any] = tqdm(
            desc=description,
            total=total,
            unit="batch",
            leave=False,
            dynamic_ncols=True,
            disable=None if enabled else True,  # None: where there is no terminal
        )

    def show(self, done: int, score: Callable[[], Score] | None = None) -> None:
        """Show how many batches are done, and the score so far, if it is time to."""
        now = monotonic()
        if self._tqdm.disable or now - self._drawn_at < REFRESH_SECONDS:
            return
        self._drawn_at = now
        self._tqdm.n = done
        if score:
            so_far = score()
            text = f"loss {so_far['loss']:.4f}, accuracy {so_far['accuracy']:.2%}"
            self._tqdm.set_postfix_str(text, refresh=False)
        self._tqdm.refresh()

    def say(self, text: str) -> None:
        """Show at once why the bar stands still."""
        self._tqdm.set_postfix_str(text)

    def close(self) -> None:
        """Clear the bar, which makes room for a line."""
        self._tqdm.close()


class ProgressBar(LightningProgressBar):
    """Shows how far an epoch is, with its loss and accuracy so far, at most four times a second.

    Lightning's own bars are refreshed by the batch and cost up to half a step of a small network.
    Where standard error is no terminal, nothing is drawn.
    """

    def __init__(self) -> None:
        super().__init__()
        self._enabled = True
        self._bar = Bar("", 0, enabled=False)

    def disable(self) -> None:
        """Draw nothing; Lightning calls this in all processes but the first."""
        self._enabled = False

    def enable(self) -> None:
        """Draw again."""
        self._enabled = True

    def _open(self, description: str, batches: int | float) -> None:
        self._bar = Bar(description, batches, self._enabled)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open a bar for the rest of an epoch, whose start does not come again."""
        if trainer.fit_loop.restarted_mid_epoch:
            self.on_train_epoch_start(trainer, pl_module)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the epoch's bar."""
        total = self.total_train_batches
        if blocks := self._blocks():
            total = blocks.batches
        self._open(f"Epoch {trainer.current_epoch + 1}", total)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Show how far the epoch is."""
        assert isinstance(pl_module, Classifier)
        blocks = self._blocks()
        done = blocks.state_dict()["batches"] if blocks else batch_idx + 1
        self._bar.show(done, partial(pl_module.running_score, "train"))

    def _blocks(self) -> ImageLoader | None:
        """Give the training loader if Lightning's own numbers count blocks of several batches."""
        loader = self.trainer.train_dataloader
        return (
            loader if isinstance(loader, ImageLoader) and loader.steps_per_execution > 1 else None
        )

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Clear the epoch's bar, which makes room for a line about it."""
        self._bar.close()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Clear the bar, or what is said of the end would stand behind it."""
        self._bar.close()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say why the epoch's bar stands still, or open a bar for a validation on its own."""
        if trainer.state.fn == "fit":
            self._bar.say("validating")
        else:
            self._open("Validation", sum(trainer.num_val_batches))

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Show how far a validation on its own is."""
        if trainer.state.fn != "fit":
            self._bar.show(batch_idx + 1)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Clear the bar of a validation on its own."""
        if trainer.state.fn != "fit":
            self._bar.close()

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open a bar."""
        self._open("Test", sum(trainer.num_test_batches))

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Show how far the test is."""
        self._bar.show(batch_idx + 1)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Clear the bar."""
        self._bar.close()


HistoryRow = dict[str, int | float | None]


class History(Callback):
    """Keeps an epoch's scores as a row, and all rows in `history.csv`.

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
        """Give the rows, and what is known of the one under way, for a checkpoint."""
        return {
            "rows": self.rows,
            "validation": self._validation,
            "learning_rate": self._learning_rate,
            "seconds": perf_counter() - self._started,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint: after an epoch, or inside one, whose start was before."""
        self.rows = state_dict["rows"]
        self._validation = state_dict["validation"]
        self._learning_rate = state_dict["learning_rate"]
        self._started = perf_counter() - state_dict["seconds"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take back the rows of what is trained again."""
        if self._learning_rate is None:  # no checkpoint has told of the epoch's start
            self.on_train_epoch_start(trainer, pl_module)
        if self.path.exists() and self.rows and trainer.is_global_zero:
            write_csv(self.path, self.rows)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start an epoch's row."""
        self._validation = None
        self._started = perf_counter()
        # A scheduler has set the next epoch's by this one's end.
        self._learning_rate = learning_rate(trainer.optimizers[0])

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the latest validation of the epoch."""
        assert isinstance(pl_module, Classifier)
        self._validation = pl_module.epoch_score("val")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Finish the epoch's row and write all rows."""
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


def describe_epoch(row: HistoryRow) -> str:
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


def _score(row: HistoryRow, phase: str) -> str:
    return f"loss {row[f'{phase}_loss']:.4f} accuracy {row[f'{phase}_accuracy']:.2%}"


class Stopwatch(Callback):
    """Measures how long training and validation take; other phases are timed with `time`.

    `seconds` maps a phase to its wall time so far, in seconds; `images` counts the images that this
    process has trained on.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.images = 0
        self._started: float | None = None  # while no training is timed

    @contextmanager
    def time(self, phase: str) -> Iterator[None]:
        """Add what happens in the `with` block to a phase."""
        started = perf_counter()
        yield
        self.seconds[phase] += perf_counter() - started

    def trained(self) -> tuple[int, float]:
        """Give the images, and the seconds of training without validation, while it goes on."""
        running = 0.0 if self._started is None else perf_counter() - self._started
        return self.images, self.seconds["training"] + running

    def rate_since(self, mark: tuple[int, float]) -> float:
        """Give this process's images per second since `trained` gave a mark."""
        images, seconds = self.trained()
        # An epoch that goes on may have nothing left but its end.
        return (images - mark[0]) / max(seconds - mark[1], 1e-9)

    def state_dict(self) -> dict[str, Any]:
        """Give what was measured so far, for a checkpoint."""
        running = {} if self._started is None else {"training": perf_counter() - self._started}
        seconds = {
            phase: self.seconds.get(phase, 0.0) + running.get(phase, 0.0)
            for phase in (*self.seconds, *running)
        }
        return {"seconds": seconds, "images": self.images}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint; what this process has measured is added."""
        for phase, seconds in state_dict["seconds"].items():
            self.seconds[phase] += seconds
        self.images = state_dict["images"]

    def start(self) -> None:
        """Start the clock of the phases that follow each other."""
        self._started = perf_counter()

    def finish(self, phase: str) -> None:
        """Add the time since the clock was started, or a phase finished, to this phase."""
        if self._started is None:  # a sanity check, or a validation on its own
            return
        now = perf_counter()
        self.seconds[phase] += now - self._started
        self._started = now

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self.start()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the images."""
        self.images += len(batch[1])

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Change from training to validation."""
        self.finish("training")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Change from validation to training."""
        self.finish("validation")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock."""
        self.finish("training")
        self._started = None


class Rates(Callback):
    """Logs images per second, and the learning rate of each epoch.

    The scalars are `train/images_per_second_step`, every `log_every_n_steps` optimizer steps and
    over these, `train/images_per_second` over an epoch, and `train/learning_rate`, that of the
    epoch's start. Validations do not count, and all processes' images do. A step's learning rate is
    logged with its loss.

    Args:
        history: Knows the learning rate.
        stopwatch: Measures; both must come before this among the trainer's callbacks.
    """

    def __init__(self, history: History, stopwatch: Stopwatch) -> None:
        self.history = history
        self.stopwatch = stopwatch
        self._seen_step = 0
        self._epoch_mark = self._step_mark = (0, 0.0)  # images and seconds

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start to measure; of an epoch that goes on, it is the rest."""
        self._seen_step = trainer.global_step
        self._epoch_mark = self._step_mark = self.stopwatch.trained()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start an epoch."""
        self._epoch_mark = self._step_mark = self.stopwatch.trained()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log the steps' rate, if it is time."""
        seen, step = self._seen_step, trainer.global_step
        self._seen_step = step
        every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]  # set at run time
        if every and step // every > seen // every:
            rate = trainer.world_size * self.stopwatch.rate_since(self._step_mark)
            log_metrics(pl_module, {"train/images_per_second_step": rate}, step - 1)
            self._step_mark = self.stopwatch.trained()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the epoch's rates."""
        rate = trainer.world_size * self.stopwatch.rate_since(self._epoch_mark)
        values = {"train/images_per_second": rate}
        learning_rate = self.history.rows[-1]["learning_rate"]
        if learning_rate is not None:
            values["train/learning_rate"] = learning_rate
        log_metrics(pl_module, values, epoch_end_step(trainer))


class SaveConfig(Callback):
    """Writes the settings that a run is trained with, and shows them in TensorBoard under Text.

    A run that goes on may have others than at its start. They take the old ones' place once they
    have proved to fit the checkpoint, and TensorBoard shows both, each at its first step.

    Args:
        path: The run's `config.yaml`.
        settings: What it is trained with, as YAML.
    """

    def __init__(self, path: Path, settings: str) -> None:
        self.path = path
        self.settings = settings

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write and show them, if they are new."""
        if not trainer.is_global_zero:
            return
        is_known = self.path.is_file() and self.path.read_text("utf-8") == self.settings
        if not is_known:
            write_text(self.path, self.settings)
        if trainer.global_step == 0 or not is_known:
            show_text(trainer.loggers, "config", self.settings, trainer.global_step)


class ClassProbabilities(Callback):
    """Logs the probability that the network gives to each class, as a mean over the batch.

    A network that has learned nothing gives each class its share; one that has collapsed gives all
    to one class. The scalars are `probabilities/<class name>`. They are computed anew in evaluation
    mode, so that neither the weights nor the random numbers of the run are touched.

    Args:
        every_n_steps: Optimizer steps between two records (at least 1); 50 in document A. With
            several steps per execution, the record is of the last that is made with the one due.

    Raises:
        ValueError: `every_n_steps` is below 1.
    """

    def __init__(self, every_n_steps: int = 50) -> None:
        if every_n_steps < 1:
            raise ValueError(f"every_n_steps is {every_n_steps}: it must be at least 1")
        self.every_n_steps = every_n_steps
        self._seen_step = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start to count, from the step that a run goes on from."""
        self._seen_step = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log the probabilities, if it is time."""
        # Several batches may belong to a step, or several steps to what is called a batch here.
        seen, step = self._seen_step, trainer.global_step
        self._seen_step = step
        if step // self.every_n_steps == seen // self.every_n_steps:
            return
        assert isinstance(pl_module, Classifier)
        if isinstance(batch, Block):
            *_, batch = batch.batches()
        forward_context = trainer.precision_plugin.forward_context()
        with evaluating(pl_module.network), torch.no_grad(), forward_context:
            probabilities = pl_module.predict_step(batch, batch_idx)["probabilities"].mean(0)
        data = trainer.datamodule  # type: ignore[attr-defined]  # set by `fit`
        names = name_classes(getattr(data, "class_names", ()), len(probabilities))
        for logger in trainer.loggers:
            # A step's number on this axis is from 0, as Lightning's are.
            logger.log_metrics(probability_scalars(names, probabilities), step=step - 1)


def probability_scalars(names: Iterable[str], probabilities: Tensor) -> dict[str, float]:
    """Name the probabilities `(num_classes,)` as they are logged."""
    return {
        # A slash would open a group of its own in TensorBoard.
        f"probabilities/{name.replace('/', ' or ')}": probability
        for name, probability in zip(names, probabilities.tolist(), strict=True)
    }


class GPUMemoryLimit(Callback):
    """Lets this process take only so much of a GPU's memory, to leave the rest to others.

    What exceeds it fails with torch's out-of-memory error. The CUDA context itself, some hundreds
    of MB, is not counted. On a CPU there is nothing to limit.

    Args:
        megabytes: Memory for tensors, in MB of 2²⁰ bytes (at least 1); document B's program has
            1024.

    Raises:
        ValueError: `megabytes` is below 1, or above what the GPU has.
    """

    def __init__(self, megabytes: int = 1024) -> None:
        if megabytes < 1:
            raise ValueError(f"megabytes is {megabytes}: it must be at least 1")
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
