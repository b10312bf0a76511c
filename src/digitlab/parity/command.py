"""`digitlab parity`: prove that a config's network and its Keras twin compute the same."""

import json
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.cli import LightningArgumentParser

from digitlab import runs
from digitlab.callbacks.progress import Bar
from digitlab.checks import check_settings, check_together
from digitlab.claim import claim, release
from digitlab.data import ImageLoader
from digitlab.fit import FitCLI
from digitlab.parity.backend import import_tensorflow
from digitlab.parity.compare import HEADING, Check, format_check
from digitlab.parity.network import load_initial_weights
from digitlab.parity.recipe import to_keras_optimizer
from digitlab.parity.stairs import staircase
from digitlab.parity.training import Batch
from digitlab.parity.weights import build_twin

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
    return partial(_run, cli, batches, claim(cli, suffix="-parity"))


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
        release(folder)
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
    runs.write_text(folder / "parity.yaml", cli.dump())
    runs.write_text(folder / "parity.json", json.dumps(result, indent=2, allow_nan=False) + "\n")
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
        for check in staircase(cli.model, batches, images, labels, steps, seed, progress):
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
