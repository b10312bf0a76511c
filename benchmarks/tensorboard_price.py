"""Measure the share of a run's time that writing for TensorBoard takes.

    DIGITLAB_DATA=data python -m benchmarks.tensorboard_price [--rounds 5] [--out FILE.json]

LeNet-5 is trained by turns, each time in a process of its own, while the calls that write for
TensorBoard are timed from outside: the logger's, and all hooks of the classes that draw.
The price is their wall time in per cent of that of `Trainer.fit`. A share of the same run hardly
depends on how busy the machine is; the times of runs with and without a logger vary by more than
the price.
"""

import json
import logging
import subprocess
import sys
import tempfile
from argparse import ArgumentParser
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from statistics import mean, stdev
from time import perf_counter
from typing import Any
from unittest.mock import patch

from benchmarks.machine import describe_machine, environment, versions
from digitlab import cli

RUNS = {"mnist/lenet5": "torch", "mnist/lenet5_keras_recipe": "keras", "digits/lenet5": "torch"}
"""The configs that are trained, each in its framework; the first two are of five epochs."""
TARGET = 2.0
"""Per cent of a five-epoch run of LeNet-5, at most."""
METHODS = [("scalars", "log_metrics"), ("HPARAMS", "log_hyperparams")]
METHODS += [("writer", "save"), ("writer", "finalize")]
"""The logger's methods that are timed, with the part that they belong to."""
CALLBACKS = ["SaveConfig", "Throughput", "ConfusionMatrix", "WorstMistakes"]
CALLBACKS += ["FirstLayerKernels", "ModelGraph", "Projector"]
"""The callbacks whose hooks write for TensorBoard and for nothing else."""


def main() -> None:
    """Run the command line."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="number of runs")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runs", nargs="+", default=list(RUNS), choices=RUNS)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--once", action="store_true", help="measure in this process")
    args = parser.parse_args()
    if args.once:
        print(json.dumps(measure(args.runs[0], args.threads)))
        return
    rounds: dict[str, list[Any]] = {run: [] for run in args.runs}
    for _ in range(args.rounds):
        for run, measured in rounds.items():
            measured.append(measure_apart(run, args.threads))
            print(f"{run}: {price(measured[-1]):.2f}% of {measured[-1]['seconds']:.1f} s")
    machine = describe_machine(args.threads, "cpu")
    result = {"machine": machine, "versions": versions(), "runs": rounds}
    print(table(result))
    if args.out:
        args.out.write_text(json.dumps(result, indent=2) + "\n", "utf-8")


def measure_apart(run: str, threads: int) -> dict[str, Any]:
    """Measure in a process of its own, so that no run profits from an earlier one."""
    command = [sys.executable, "-m", "benchmarks.tensorboard_price", "--once", "--runs", run]
    done = subprocess.run(
        [*command, "--threads", str(threads)],
        env=environment(threads, "cpu"),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # TensorFlow's remarks
        text=True,
        check=True,
    )
    measured: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return measured


def measure(run: str, threads: int) -> dict[str, Any]:
    """Train, and return the seconds of the whole fit and of each part."""
    cli.prepare_process()  # as the command does before it imports the rest
    from lightning.pytorch import Callback, Trainer
    from lightning.pytorch.loggers import TensorBoardLogger

    from digitlab import callbacks
    from digitlab.callbacks import results
    from digitlab.cli import fit

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    spent: dict[str, float] = defaultdict(float)
    timed: list[tuple[str, Any, str]] = [("rest", Trainer, "fit")]
    for kind in (getattr(callbacks, name) for name in CALLBACKS):
        hooks = (name for name in dir(kind) if name.startswith("on_"))
        # Without a hook of its own, it is not even called at each step.
        own = [hook for hook in hooks if getattr(kind, hook) is not getattr(Callback, hook, None)]
        timed += [(kind.__name__, kind, hook) for hook in own]
    timed += [(part, TensorBoardLogger, method) for part, method in METHODS]
    timed += [("start", results, "show_picture")]  # the samples
    with ExitStack() as stack, tempfile.TemporaryDirectory() as root:
        for part, owner, name in timed:
            function = _timing(spent, part, getattr(owner, name))
            stack.enter_context(patch.object(owner, name, function))
        experiment: Any = TensorBoardLogger.experiment
        writer = _timing(spent, "writer", experiment.fget)
        stack.enter_context(patch.object(TensorBoardLogger, "experiment", property(writer)))
        place = ["--trainer.default_root_dir", root, "--trainer.accelerator", "cpu"]
        place += ["--threads", str(threads)]
        options = ["--config", f"configs/{run}.yaml", "--framework", RUNS[run], *place]
        fit.run("fit", "", options)
    seconds = sum(spent.values())
    del spent["rest"]
    return {"seconds": seconds, "parts": dict(spent)}


_under_way: list[str] = []


def _timing(spent: dict[str, float], part: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Time a function, without the calls in it that are timed themselves."""

    def timed(*args: Any, **kwargs: Any) -> Any:
        started = perf_counter()
        _under_way.append(part)
        result = function(*args, **kwargs)
        _under_way.pop()
        taken = perf_counter() - started
        spent[part] += taken
        if _under_way:
            spent[_under_way[-1]] -= taken
        return result

    return timed


def price(measured: dict[str, Any]) -> float:
    """Return the price of a run in per cent."""
    return float(100 * sum(measured["parts"].values()) / measured["seconds"])


def table(result: dict[str, Any]) -> str:
    """Make a Markdown table of the parts' milliseconds a run and the price."""
    lines = ["| run | part | ms a run | % of the run |", "|---|---|---|---|"]
    for name, rounds in result["runs"].items():
        seconds = mean(it["seconds"] for it in rounds)
        run = f"`{name}` in {RUNS[name]}, {len(rounds)} runs of {seconds:.1f} s"
        for part in rounds[0]["parts"]:
            spent = mean(it["parts"][part] for it in rounds)
            share = mean(100 * it["parts"][part] / it["seconds"] for it in rounds)
            lines.append(f"| {run} | {part} | {1000 * spent:.0f} | {share:.2f} |")
            run = ""
        prices = [price(it) for it in rounds]
        deviation = f" ± {stdev(prices):.2f}" if len(prices) > 1 else ""
        spent = mean(sum(it["parts"].values()) for it in rounds)
        lines.append(f"| | all | {1000 * spent:.0f} | **{mean(prices):.2f}{deviation}** |")
    lines.append(f"| | target of the first two | | < {TARGET:.0f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
