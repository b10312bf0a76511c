"""What showing a run in TensorBoard costs of the run.

    DIGITLAB_DATA=data python -m benchmarks.tensorboard_price [--rounds 5] [--out FILE.json]

LeNet-5 is trained by turns, each time in a process of its own, while the calls that write for
TensorBoard are timed from outside: the logger's, and all hooks of the classes that draw.
The price is their wall time in per cent of the whole fit's, without imports. It is a share of the
same run, so that a machine that is slow for a while does no harm; runs with and without a logger
differ by more than the price from one time to the next.
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
from importlib import import_module
from pathlib import Path
from pydoc import locate
from statistics import mean, stdev
from time import perf_counter
from typing import Any, cast
from unittest.mock import patch

from benchmarks.machine import describe_machine, environment, versions
from digitlab import cli

RUNS = {
    "mnist/lenet5": "torch",
    "mnist/lenet5_keras_recipe": "keras",
    "digits/lenet5": "torch",
}
"""The configs that are trained, each in its framework; the first two are of five epochs."""
TARGET = 2.0
"""Per cent of a five-epoch run of LeNet-5, at most."""
METHODS = [("scalars", "log_metrics"), ("HPARAMS", "log_hyperparams")]
METHODS += [("writer", "save"), ("writer", "finalize")]
"""The logger's methods that are timed, with the part that they belong to."""
_CALLBACKS = (
    *("SaveConfig", "Throughput", "ConfusionMatrix", "WorstMistakes"),
    *("FirstLayerKernels", "ModelGraph", "Projector"),
)
PARTS = {
    "torch": [f"digitlab.callbacks.{name}" for name in _CALLBACKS],
    "keras": [
        "digitlab.parity.validation_pictures.ValidationPictures",
        "digitlab.parity.model_pictures.ModelPictures",
    ],
}
"""The classes whose hooks write for TensorBoard and for nothing else."""
FUNCTIONS = {
    "torch": ["digitlab.callbacks.results.show_picture"],
    "keras": ["digitlab.parity.fit.show_picture", "digitlab.parity.fit.show_text"],
}
"""What shows the start of a run."""


def main() -> None:
    """Do what the command line says."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="number of runs")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runs", nargs="+", default=list(RUNS), choices=RUNS)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--once", action="store_true", help="measure in this process")
    args = parser.parse_args()
    if args.once:
        print(json.dumps(measure(*args.runs)))
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
    """Measure in a process of its own, so that no run finds anything warm."""
    command = [sys.executable, "-m", "benchmarks.tensorboard_price", "--once", "--runs"]
    done = subprocess.run(
        [*command, run],
        env=environment(threads, "cpu"),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # TensorFlow's remarks
        text=True,
        check=True,
    )
    measured: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return measured


def measure(run: str) -> dict[str, Any]:
    """Train, and give the seconds of the whole fit and of each part."""
    cli._prepare_process()  # as the command does before it imports the rest
    from lightning.pytorch import Callback
    from lightning.pytorch.loggers import TensorBoardLogger

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    framework = RUNS[run]
    room = "digitlab.cli.fit" if framework == "torch" else "digitlab.parity.fit"
    prepare = import_module(room).prepare
    spent: dict[str, float] = defaultdict(float)
    with ExitStack() as stack, tempfile.TemporaryDirectory() as root:
        for path in PARTS[framework]:
            kind: Any = locate(path)
            for hook in (name for name in dir(kind) if name.startswith("on_")):
                if getattr(kind, hook) is getattr(Callback, hook, None):
                    continue  # it does nothing, and is not even called at each step
                timed = _timing(spent, kind.__name__, getattr(kind, hook))
                stack.enter_context(patch.object(kind, hook, timed))
        for name, method in METHODS:
            timed = _timing(spent, name, getattr(TensorBoardLogger, method))
            stack.enter_context(patch.object(TensorBoardLogger, method, timed))
        for function in FUNCTIONS[framework]:
            timed = _timing(spent, "start", cast("Callable[..., Any]", locate(function)))
            stack.enter_context(patch(function, timed))
        experiment: Any = TensorBoardLogger.experiment
        writer = _timing(spent, "writer", experiment.fget)
        stack.enter_context(patch.object(TensorBoardLogger, "experiment", property(writer)))
        place = ["--trainer.default_root_dir", root, "--trainer.accelerator", "cpu"]
        fit = prepare("fit", ["--config", f"configs/{run}.yaml", *place])
        started = perf_counter()
        fit()
        seconds = perf_counter() - started
    return {"seconds": seconds, "parts": dict(spent)}


_under_way: list[str] = []


def _timing(spent: dict[str, float], part: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Time a function, without what it calls that is timed by itself."""

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
    """Give the price of a run in per cent."""
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
