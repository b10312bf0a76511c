"""`digitlab parity`: prove that a config's network and its Keras twin compute the same."""

import json
import math
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

from digitlab import files
from digitlab.callbacks.logging import Bar
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
from digitlab.parity.documents import documented
from digitlab.parity.keras_files import load_initial_weights
from digitlab.parity.optimizers import exact_optimizer, to_keras_optimizer
from digitlab.parity.trajectory import Batch, MakeOptimizer, optimizer_steps, trajectory
from digitlab.parity.weights import build_twin, to_keras

# Rounding adds up: in float32 a longer trajectory tells less with every step.
STEPS_IN_FLOAT32 = 5
# And it may turn a rectifier on on one side only. A unit that was off for all images gets its first
# gradient so, which Adam makes a whole step: 3e-3 of a layer, at 1 in 50 trajectories of 5 steps
# (measured over all architectures). A fault shows in float64, which gets no second start.
_STARTS_IN_FLOAT32 = 3
# As many as differ in every class; their gradients in float64 take seconds in the largest network.
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

    Parameters, round trip of the weights, logits, loss and gradients, single optimizer steps, and
    a trajectory: in float64, and what float32 can tell in float32 too. Where PyTorch's own
    optimizer steps otherwise than Keras's, the exact one is put in its place, and what its own
    comes to is a check for information.

    Args:
        model: One of `digitlab.models`; it stays as it is, copies are compared. Its optimizer is
            used, at the first learning rate of a scheduler; gradients are not clipped.
        batches: What to train on, at least `steps`: a list, or what else can be iterated anew.
        images: Normalized, float32 `(N, C, H, W)`; the gradients are those of the first 100.
        labels: Int64 `(N,)`.
        steps: Length of the trajectory, at least 1.
        seed: Of dropout and of the weights and gradients of the single steps.
        progress: Is given the batches of a trajectory, what it is and its length, and yields the
            batches on.

    Yields:
        The checks.

    Raises:
        ValueError: There is no twin for this class, or its optimizer has no counterpart in Keras;
            there are fewer batches than steps, they can be iterated only once, or no images.
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
    yield parameter_counts(double, twin, documented(model))
    yield round_trip(double, twin)
    yield logits(double, twin, images)
    yield logits(single, single_twin, images)
    yield from gradients(double, twin, images[:_GRADIENT_IMAGES], labels[:_GRADIENT_IMAGES])
    optimizer = double.optimizer(double.parameters())
    yield from optimizer_steps(optimizer, seed=seed)

    make, substitution = partial(exact_optimizer, optimizer), _substitution(optimizer)
    make_keras = partial(to_keras_optimizer, optimizer)
    walk = partial(
        trajectory, double, twin, make_keras_optimizer=make_keras, steps=steps, seed=seed
    )
    check = walk(progress(batches, "Trajectory in float64", steps), make)
    yield _annotate(check, substitution)
    check = _in_float32(single, single_twin, batches, make, make_keras, steps, seed)
    yield _annotate(check, substitution)
    if substitution:
        stock = f"stock {type(optimizer).__name__}"
        check = walk(progress(batches, stock, steps), model.optimizer)
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
    """Walk a short trajectory, from another batch on if rounding spoils the first."""
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
    """Say what stands in place of a config's own optimizer; nothing where it is itself exact."""
    exact = exact_optimizer(stock, [nn.Parameter(torch.zeros(1))])
    if type(exact) is not type(stock):
        return f"{type(exact).__name__} in place of {type(stock).__name__}"
    ours, theirs = (group.param_groups[0].get("momentum") for group in (stock, exact))
    return "" if ours == theirs else f"momentum {ours} rounded to float32, as Keras does"


_IMAGES = 1000


class ParityCLI(FitCLI):
    """The options of `digitlab parity`."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the length of the trajectory."""
        super().add_arguments_to_parser(parser)
        parser.add_argument(
            "--steps",
            type=int,
            default=50,
            help="Training steps after each of which all weights are compared, at least 1.",
        )


def prepare(command: str, options: list[str]) -> Callable[[], int]:
    """Check all input of a comparison, and return what is then left to do.

    That gives the exit code: 0 where everything agrees, and 1 where something does not.

    Raises:
        ValueError, OSError: The input is bad.
    """
    cli = ParityCLI(command, options)
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
    return partial(_run, cli, batches, new_run_dir(cli, suffix="-parity"))


@dataclass
class FullBatches:
    """The first batches that a config trains on, of as many epochs as it takes.

    An epoch's last batch is left out if it is smaller: it would be another size to trace.

    Args:
        loader: The config's own loader of training images.
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


def _run(cli: ParityCLI, batches: FullBatches, folder: Path) -> int:
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
    images, labels = (torch.cat(parts)[:_IMAGES] for parts in zip(*_test_batches(cli), strict=True))
    enabled = cli.config.trainer.enable_progress_bar is not False
    progress = partial(_show, enabled=enabled)
    steps, seed = cli.config.steps, cli.config.seed_everything
    checks = []
    # A GPU would round products of float32 to 10 bits.
    with import_tensorflow().device("CPU"):
        for check in run_checks(cli.model, batches, images, labels, steps, seed, progress):
            print(format_check(check), flush=True)
            checks.append(check)
    return checks


def _test_batches(cli: ParityCLI) -> Iterator[Batch]:
    loader = cli.datamodule.test_dataloader()
    return islice(loader, -(-_IMAGES // loader.batch_size))


def _show(batches: Iterable[Batch], description: str, steps: int, enabled: bool) -> Iterator[Batch]:
    """Yield batches on, and show how many of them have been taken."""
    bar = Bar(description, steps, enabled)
    try:
        for done, batch in enumerate(batches):
            bar.show(done)
            yield batch
    finally:
        bar.close()


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
    if others := _not_compared(cli):
        lines.append(f"not compared: {', '.join(others)}")
    return "\n".join((*lines, "", HEADING))


def _not_compared(cli: ParityCLI) -> list[str]:
    """Name the settings of a config that change its training, but not what is compared."""
    model = cli.model
    settings = {
        "lr_scheduler (the learning rate stays at its first value)": model.lr_scheduler,
        "gradient_clip_norm": model.gradient_clip_norm,
        "label_smoothing": model.label_smoothing,
        "dropout_in_evaluation": model.dropout_in_evaluation,
        "accumulate_grad_batches": cli.config.trainer.accumulate_grad_batches != 1,
        "precision": str(cli.config.trainer.precision or "32-true") not in ("32-true", "32"),
    }
    return [name for name, is_set in settings.items() if is_set]


def _judge(checks: list[Check]) -> tuple[bool, str]:
    required = [check for check in checks if not check.informational]
    failed = [check for check in required if not check.passed]
    if not required:
        return False, "FAILED: nothing was compared"
    if failed:
        return False, f"FAILED: {len(failed)} of {len(required)} checks, first {failed[0].name}"
    return True, f"All {len(required)} checks passed: both compute the same"


def run(name: str, help: str, options: list[str]) -> int:
    """Read the input and do the work; give the exit code."""
    with reading_input():
        work = prepare(name, options)
    return work() or 0
