"""`digitlab parity`: prove that a config's network and its Keras twin compute the same."""

import json
import math
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.cli import LightningArgumentParser
from tqdm import tqdm

from digitlab import files
from digitlab.cli.fit import FitCLI, new_run_dir, remove
from digitlab.cli.options import add_parity_options
from digitlab.cli.parser import check_settings, check_together
from digitlab.data import ImageLoader
from digitlab.errors import reading_input
from digitlab.parity.backend import import_tensorflow
from digitlab.parity.keras_files import load_initial_weights
from digitlab.parity.optimizers import to_keras_optimizer
from digitlab.parity.proof import run_checks
from digitlab.parity.report import HEADING, Check, format_check
from digitlab.parity.trajectory import Batch
from digitlab.parity.twins import build_twin
from digitlab.terminal import printable

_IMAGES = 1000  # of the test split


class ParityCLI(FitCLI):
    """The options of `digitlab parity`."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        add_parity_options(parser)


@dataclass
class FullBatches:
    """The first `count` full batches of a config's training, over as many epochs as needed."""

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
    """Compare a config's network with its twin, and print and write the table."""
    with reading_input():
        cli = ParityCLI(name, options, help=help)
        check_settings(cli)
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
        "config": cli.config.from_configs,
        "steps": cli.config.steps,
        "seed": cli.config.seed_everything,
        "versions": _versions(),
        "checks": [_entry(check) for check in checks],
    }
    files.write_text(folder / "parity.yaml", cli.dump())
    files.write_text(folder / "parity.json", json.dumps(result, indent=2, allow_nan=False) + "\n")
    print(f"\n{verdict}\nWritten to {printable(folder / 'parity.json')}")
    return 0 if passed else 1


def _compare(cli: ParityCLI, batches: FullBatches) -> list[Check]:
    """Make all checks, and print each as soon as it is made."""
    print(printable(_describe(cli), keep="\n"), flush=True)
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
        f"config: {cli.origin}\n{type(model).__name__} and its Keras twin, "
        f"{optimizer}, {steps} of {data.batch_size} images of {data.name}, "
        f"seed {cli.config.seed_everything}",
        ", ".join(f"{name} {number}" for name, number in _versions().items()),
    ]
    # Settings that change a config's training, but are not part of the comparison.
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
