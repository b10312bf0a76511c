"""`digitlab parity`: prove that a config's network and its Keras twin compute the same."""

import json
import math
import sys
from collections.abc import Callable, Iterable, Iterator
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.cli import LightningArgumentParser
from torch import Tensor, nn
from tqdm import tqdm

from digitlab import files
from digitlab.classifier import Classifier
from digitlab.cli.fit import FitCLI, new_run_dir, remove
from digitlab.cli.parser import check_settings, check_together
from digitlab.data import ImageLoader
from digitlab.errors import reading_input
from digitlab.parity.backend import import_tensorflow, keras_dtype
from digitlab.parity.checks import (
    HEADING,
    Check,
    format_check,
    gradients,
    logits,
    parameter_counts,
    round_trip,
)
from digitlab.parity.keras_files import load_initial_weights
from digitlab.parity.optimizers import exact_optimizer, to_keras_optimizer
from digitlab.parity.trajectory import Batch, MakeOptimizer, trajectory
from digitlab.parity.weights import build_twin, to_keras

# Rounding errors accumulate, so a longer trajectory in float32 would tell less.
STEPS_IN_FLOAT32 = 5
# Rounding can switch a ReLU on in one framework only, and Adam turns the unit's tiny gradient into
# a full step: 3e-3 of a layer, in 1 of 50 trajectories of 5 steps (over all architectures).
# A real fault shows in float64 too, where there is no second start.
_STARTS_IN_FLOAT32 = 3
_IMAGES = 1000
# Enough to have all classes; in float64 the gradients of the largest network take seconds.
_GRADIENT_IMAGES = 100

Progress = Callable[[Iterable[Batch], str, int], Iterable[Batch]]


def run_checks(
    model: Classifier,
    batches: Iterable[Batch],
    images: Tensor,
    labels: Tensor,
    steps: int = 50,
    seed: int = 0,
    progress: Progress = lambda batches, description, steps: batches,
) -> Iterator[Check]:
    """Compare a model with its Keras twin, and yield each check as soon as it is made.

    Parameters, round trip of the weights, logits, loss and gradients, and a trajectory: in float64,
    and logits and five training steps in float32 too. If PyTorch's own optimizer has another
    formula than Keras's, the exact one replaces it, and the result of PyTorch's own is a check for
    information.

    Args:
        model: One of `digitlab.models`, or a class that names its twin; copies are compared. Its
            optimizer is used, at the first learning rate of a scheduler; gradients are not clipped.
        batches: Training batches, at least `steps`: a list, or another iterable that can be
            iterated several times.
        images: Normalized, float32 `(N, C, H, W)`; gradients are compared on the first 100.
        labels: Int64 `(N,)`.
        steps: Length of the trajectory, at least 1.
        seed: Seed of the dropout masks.
        progress: Called with the batches of a trajectory, a description and its length; yields the
            batches.

    Yields:
        The checks.

    Raises:
        ValueError: The class has no twin, or its optimizer no counterpart in Keras; there are fewer
            batches than steps, they can be iterated only once, or there are no images.
        ImportError: The extra `parity` is not installed.
    """
    if iter(batches) is batches:
        raise ValueError("batches are an iterator, and are iterated several times: give a list")
    if not len(images):
        raise ValueError("images are empty, so nothing would be compared: give at least one")
    single, double = deepcopy(model).float(), deepcopy(model).double()
    with keras_dtype("float32"):
        single_twin = to_keras(single)
    twin = to_keras(double)
    yield parameter_counts(double, twin)
    yield round_trip(double, twin)
    yield logits(double, twin, images)
    yield logits(single, single_twin, images)
    yield from gradients(double, twin, images[:_GRADIENT_IMAGES], labels[:_GRADIENT_IMAGES])

    optimizer = double.optimizer(double.parameters())
    make, note = partial(exact_optimizer, optimizer), _substitution(optimizer)
    make_keras = partial(to_keras_optimizer, optimizer)
    train = partial(
        trajectory, double, twin, make_keras_optimizer=make_keras, steps=steps, seed=seed
    )
    check = train(progress(batches, "Trajectory in float64", steps), make)
    yield _annotate(check, note)
    check = _in_float32(single, single_twin, batches, make, make_keras, steps, seed)
    yield _annotate(check, note)
    if note:
        stock = f"stock {type(optimizer).__name__}"
        check = train(progress(batches, stock, steps), model.optimizer)
        yield replace(check, name=f"{check.name}, {stock}", informational=True)


def _in_float32(
    single: Classifier,
    twin: Any,
    batches: Iterable[Batch],
    make: MakeOptimizer,
    make_keras: Callable[[], Any],
    steps: int,
    seed: int,
) -> Check:
    """Compare a short trajectory, and start again from the next batch if rounding spoils it."""
    length = min(steps, STEPS_IN_FLOAT32)
    starts = min(_STARTS_IN_FLOAT32, steps - length + 1)
    few = list(islice(batches, length + starts - 1))
    note = ""
    for start in range(starts):
        check = _annotate(
            trajectory(single, twin, few[start:], make, make_keras, length, seed), note
        )
        if check.passed:
            break
        note += f"from batch {start + 1} on {check.difference:.1e}; "
    return check


def _annotate(check: Check, note: str) -> Check:
    return replace(check, note="; ".join(part for part in (note.rstrip("; "), check.note) if part))


def _substitution(stock: torch.optim.Optimizer) -> str:
    """Name what replaces a config's optimizer; nothing if it is exact itself."""
    exact = exact_optimizer(stock, [nn.Parameter(torch.zeros(1))])
    if type(exact) is not type(stock):
        return f"{type(exact).__name__} in place of {type(stock).__name__}"
    ours, theirs = (group.param_groups[0].get("momentum") for group in (stock, exact))
    return "" if ours == theirs else f"momentum {ours} rounded to float32, as Keras does"


class ParityCLI(FitCLI):
    """The options of `digitlab parity`."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the length of the trajectory."""
        super().add_arguments_to_parser(parser)
        parser.add_argument(
            "--steps",
            type=int,
            default=50,
            help="Training steps, at least 1; all weights are compared after each.",
        )


@dataclass
class FullBatches:
    """The first batches of a config's training, over as many epochs as needed.

    An epoch's last batch is left out if it is smaller.

    Args:
        loader: The config's loader of training images.
        count: Number of batches, at least 1.

    Raises:
        ValueError: There are fewer training images than a batch has.
    """

    loader: ImageLoader
    count: int

    def __post_init__(self) -> None:
        if len(self.loader.sampler) < self.loader.batch_size:
            raise ValueError(
                f"data.batch_size is {self.loader.batch_size}: give at most the number of training "
                f"images, {len(self.loader.sampler)}"
            )

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches, the same ones each time."""
        of_epoch = len(self.loader.sampler) // self.loader.batch_size
        for first in range(0, self.count, of_epoch):
            self.loader.sampler.set_epoch(first // of_epoch)
            yield from islice(self.loader, min(of_epoch, self.count - first))


def run(name: str, help: str, options: list[str]) -> int:
    """Compare a config's network with its twin, and print and write the table.

    Returns:
        The exit code: 0 if everything agrees, else 1.

    Raises:
        InputError: The input is bad.
    """
    with reading_input():
        cli = ParityCLI(name, options, help=help)
        check_settings(cli)
        if cli.config.steps < 1:
            raise ValueError(f"steps is {cli.config.steps}: compare at least 1")
        cli.datamodule.setup("fit")
        cli.datamodule.setup("test")
        check_together(cli.model, cli.datamodule)
        if cli.config.weights:
            load_initial_weights(cli.model, Path(cli.config.weights))
        batches = FullBatches(cli.datamodule.train_dataloader(), cli.config.steps)
        build_twin(cli.model)
        to_keras_optimizer(cli.model.optimizer(cli.model.parameters()))
        folder = new_run_dir(cli, suffix="-parity")
    try:
        checks = _compare(cli, batches)
    except BaseException:
        remove(folder)
        raise
    passed, verdict = _judge(checks)
    result = {
        "passed": passed,
        "config": cli.config_files,
        "steps": cli.config.steps,
        "seed": cli.config.seed_everything,
        "versions": _versions(),
        "checks": [_entry(check) for check in checks],
    }
    files.write_text(folder / "parity.yaml", cli.dump())
    files.write_text(folder / "parity.json", json.dumps(result, indent=2, allow_nan=False) + "\n")
    print(f"\n{verdict}\nWritten to {folder / 'parity.json'}")
    return 0 if passed else 1


def _compare(cli: ParityCLI, batches: FullBatches) -> list[Check]:
    """Make all checks, and print each as soon as it is made."""
    print(_describe(cli), flush=True)
    loader = cli.datamodule.test_dataloader()
    test_batches = islice(loader, -(-_IMAGES // loader.batch_size))
    images, labels = (torch.cat(parts)[:_IMAGES] for parts in zip(*test_batches, strict=True))
    progress = partial(_show, enabled=cli.config.trainer.enable_progress_bar is not False)
    steps, seed = cli.config.steps, cli.config.seed_everything
    checks = []
    with import_tensorflow().device("CPU"):  # a GPU would round products of float32 to 10 bits
        for check in run_checks(cli.model, batches, images, labels, steps, seed, progress):
            print(format_check(check), flush=True)
            checks.append(check)
    return checks


def _show(batches: Iterable[Batch], description: str, steps: int, enabled: bool) -> Any:
    """Show a progress bar on a terminal while the batches are iterated."""
    disable = not enabled or not sys.stderr or not sys.stderr.isatty()
    looks: dict[str, Any] = {"unit": "batch", "leave": False, "dynamic_ncols": True}
    return tqdm(batches, description, steps, mininterval=0.25, disable=disable, **looks)


def _versions() -> dict[str, str]:
    return {name: version(name) for name in ("torch", "keras", "tensorflow", "numpy")}


def _entry(check: Check) -> dict[str, Any]:
    # JSON has neither infinity nor NaN.
    difference = check.difference if math.isfinite(check.difference) else None
    return {**asdict(check), "difference": difference, "passed": check.passed}


def _describe(cli: ParityCLI) -> str:
    model, data = cli.model, cli.datamodule
    optimizer = type(model.optimizer(model.parameters())).__name__
    steps = f"{cli.config.steps} step{'s' * (cli.config.steps > 1)}"
    lines = [
        f"{', '.join(cli.config_files) or 'no config'}: {type(model).__name__} and its Keras twin, "
        f"{optimizer}, {steps} of {data.batch_size} images of {data.name}, "
        f"seed {cli.config.seed_everything}",
        ", ".join(f"{name} {number}" for name, number in _versions().items()),
    ]
    # Settings of a config that change its training, but not what is compared.
    trainer = cli.config.trainer
    settings = {
        "lr_scheduler (the learning rate stays at its first value)": model.lr_scheduler,
        "gradient_clip_norm": model.gradient_clip_norm,
        "label_smoothing": model.label_smoothing,
        "dropout_in_evaluation": model.dropout_in_evaluation,
        "accumulate_grad_batches": trainer.accumulate_grad_batches != 1,
        "precision": str(trainer.precision or "32-true") not in ("32-true", "32"),
    }
    if others := [name for name, is_set in settings.items() if is_set]:
        lines.append(f"not compared: {', '.join(others)}")
    return "\n".join((*lines, "", HEADING))


def _judge(checks: list[Check]) -> tuple[bool, str]:
    required = [check for check in checks if not check.informational]
    failed = [check for check in required if not check.passed]
    if not required:
        return False, "FAILED: nothing was compared"
    if failed:
        return False, f"FAILED: {len(failed)} of {len(required)} checks, first {failed[0].name}"
    return True, f"All {len(required)} checks passed: both compute the same"
