"""Show where the time of digitlab's optimizer steps goes.

    export DIGITLAB_DATA=data
    python -m benchmarks.step_profile [--models nn128 lenet5] [--out step_profile.json]

It trains as `digitlab fit` does, but without progress bar, logger and checkpoints, and times a few
functions from outside. The rest of a step is Lightning and Python.
"""

import json
from argparse import ArgumentParser
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any
from unittest.mock import patch

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from torch.nn.functional import cross_entropy

from benchmarks.machine import describe_machine, versions
from benchmarks.variants import MODELS, Model
from digitlab import classifier, execution, optimizers
from digitlab.cli.fit import FitCLI
from digitlab.data import ImageLoader
from digitlab.scores import RunningScore

PARTS = ("loader", "forward", "loss", "backward", "optimizer", "scores")
WARM_UP = 2
"""Blocks that are not counted."""


def main() -> None:
    """Run the command line."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument("--blocks", type=int, default=12, help="Blocks of steps that count.")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="JSON file.")
    parser.add_argument("--table", type=Path, help="Measure nothing: read this JSON file.")
    args = parser.parse_args()
    if args.table:
        print(table(json.loads(args.table.read_text("utf-8"))))
        return
    torch.set_num_threads(args.threads)
    torch.set_flush_denormal(True)  # as `digitlab fit` does
    result = {
        "machine": describe_machine(args.threads, "cpu"),
        "versions": versions(),
        "models": {name: measure(MODELS[name], args.blocks) for name in args.models},
    }
    print(table(result))
    if args.out:
        args.out.write_text(json.dumps(result, indent=2) + "\n", "utf-8")


def measure(model: Model, blocks: int) -> dict[str, float]:
    """Return each part's microseconds per optimizer step: the medians over blocks of steps."""
    options = ["--trainer.accelerator", "cpu", "--threads", str(torch.get_num_threads())]
    cli = FitCLI("fit", ["--config", str(model.path), *options])
    seed_everything(0, verbose=False)
    spent: dict[str, float] = defaultdict(float)
    clock = _Clock(spent)
    steps = (WARM_UP + blocks) * cli.model.steps_per_execution
    quiet: dict[str, Any] = {"logger": False, "enable_checkpointing": False}
    trainer = Trainer(
        accelerator="cpu",
        max_steps=steps,
        limit_val_batches=0,
        callbacks=[clock],
        enable_progress_bar=False,
        enable_model_summary=False,
        **quiet,
    )
    with _timed(cli, spent):
        trainer.fit(cli.model, cli.datamodule)
    rows = clock.rows[WARM_UP:]
    return {part: median(row[part] for row in rows) for part in (*PARTS, "rest", "all")}


class _Clock(Callback):
    """Records each part's microseconds per step, block by block."""

    def __init__(self, spent: dict[str, float]) -> None:
        self.spent = spent
        self.rows: list[dict[str, float]] = []
        self._last = (0.0, 0)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.spent.clear()
        self._last = (perf_counter(), 0)

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        now, step = perf_counter(), trainer.global_step
        before, first = self._last
        scale = 1e6 / (step - first)
        row = {part: scale * self.spent[part] for part in PARTS} | {"all": scale * (now - before)}
        self.rows.append(row | {"rest": row["all"] - sum(row[part] for part in PARTS)})
        self.spent.clear()
        self._last = (perf_counter(), step)


@contextmanager
def _timed(cli: FitCLI, spent: dict[str, float]) -> Iterator[None]:
    """Add up the seconds of each part of a step while in the `with` block."""

    def timing(part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            started = perf_counter()
            result = function(*args, **kwargs)
            spent[part] += perf_counter() - started
            return result

        return timed

    def fused_adam_step(optimizer: torch.optim.Optimizer) -> optimizers.Step:
        return timing("optimizer", optimizers.fused_adam_step(optimizer))

    network = cli.model.network
    with (
        patch.object(ImageLoader, "_gather", timing("loader", ImageLoader._gather)),
        patch.object(network, "forward", timing("forward", network.forward)),
        patch.object(classifier, "cross_entropy", timing("loss", cross_entropy)),
        patch.object(torch.Tensor, "backward", timing("backward", torch.Tensor.backward)),
        patch.object(execution, "fused_adam_step", fused_adam_step),
        patch.object(RunningScore, "add", timing("scores", RunningScore.add)),
    ):
        yield


def table(result: dict[str, Any]) -> str:
    """Make a Markdown table: a row for each model, a column for each part."""
    columns = (*PARTS, "rest", "all")
    lines = [f"| µs per step | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for name, parts in result["models"].items():
        cells = (f"{parts[part]:,.0f} ({parts[part] / parts['all']:.0%})" for part in columns)
        lines.append(f"| {MODELS[name].title} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
