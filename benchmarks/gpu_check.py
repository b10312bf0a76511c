"""Check on a GPU what cannot be checked without one, and measure it, in one process.

    DIGITLAB_DATA=data python -m benchmarks.gpu_check [--seconds 420] [--out gpu_check.json]

The file is rewritten after each part. A part that fails is reported, and the next one starts; what
does not fit in the time is left out. Exit code: 0 if all parts passed, 1 if one failed, 2 without
the device, 3 if none failed and some were left out. `--device cpu` rehearses it without a GPU.

It needs Python 3.11 or later, PyPI's torch (2.11 or later) with its torchvision, lightning 2.6,
torchmetrics, numpy and tensorboard, as many machines with a GPU have, and these, which can be
carried there as wheels: jsonargparse with docstring_parser and typeshed_client; matplotlib with
contourpy, cycler, fonttools, kiwisolver and pyparsing; pandas with python-dateutil and six; and
pytest with iniconfig, pluggy and pygments. digitlab itself is installed with `pip install
--no-deps`, or used from its source tree by `PYTHONPATH=src`. The data are the archives of MNIST
(12 MB) and, for row B10, of Fashion-MNIST (31 MB).
"""

import json
import platform
import signal
import subprocess
import sys
import time
import traceback
from argparse import ArgumentParser
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from hashlib import sha256
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any
from unittest import mock
from xml.etree import ElementTree

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from benchmarks.machine import describe_machine

if TYPE_CHECKING:
    from benchmarks.callbacks import StepClock

# Parts import digitlab and Lightning themselves: the preflight reports before that.

STARTED = time.monotonic()
PACKAGES = ("torch", "torchvision", "lightning", "torchmetrics", "numpy", "tensorboard", "keras")
PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")
KEPT = ("state_dict", "optimizer_states", "lr_schedulers", "MixedPrecision", "global_step")
CLOCK = "--trainer.callbacks+=benchmarks.callbacks.StepClock"
Result = dict[str, Any]


class Check:
    """What the parts share: the device, `cuda` or `cpu`, a folder, the deadline, and training."""

    def __init__(self, device: str, folder: Path, seconds: float) -> None:
        self.device, self.folder = device, folder
        self.seconds, self.deadline = seconds, STARTED + seconds
        self.is_gpu = device == "cuda"
        self.precisions = PRECISIONS if self.is_gpu else PRECISIONS[:2]  # a CPU has no 16-mixed

    @property
    def clock(self) -> "type[StepClock]":
        """What has measured the last fit with the option `CLOCK`."""
        from benchmarks.callbacks import StepClock

        return StepClock

    def left(self) -> float:
        """Return the seconds until the deadline."""
        return self.deadline - time.monotonic()

    def fit(self, config: str, name: str, *options: str) -> Path:
        """Train in this process as `digitlab fit` does, and return the run folder."""
        place = ["--trainer.default_root_dir", str(self.folder / name), "--trainer.devices", "1"]
        device = ["--trainer.accelerator", "gpu" if self.is_gpu else "cpu"]
        short = [] if self.is_gpu else ["--data.train_images", "[0,8192]"]
        return self.train("--config", config, *place, *device, *short, *options)

    def train(self, *options: str) -> Path:
        """Call `digitlab fit` in this process."""
        from digitlab import cli

        cli.prepare_process()
        from digitlab.cli.fit import train

        cli.silence()
        with open(self.folder / "log", "a") as log, redirect_stdout(log), redirect_stderr(log):
            folder = train(list(options))
        assert folder
        return folder

    def time(self, config: str, name: str, *options: str) -> float:
        """Train, and return the microseconds of a step after the first ones."""
        first, last = (512, 1792) if self.is_gpu else (128, 256)
        clock = [CLOCK, f"--trainer.callbacks.first_step={first}", f"--trainer.max_steps={last}"]
        self.fit(config, name, "--trainer.limit_val_batches=0", *clock, *options)
        return 1e6 * self.clock.seconds / self.clock.steps


def preflight(device: str) -> Result:
    """Describe the machine; make a fused step on the device, and read its result back."""
    found: Result = {
        "machine": describe_machine(torch.get_num_threads(), device),
        "nodes": sorted(it.name for it in Path("/dev").glob("nvidia*")),
        "driver": _driver(),
        "python": platform.python_version(),
        "versions": {it: version(it) if find_spec(it) else None for it in PACKAGES},
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
    }
    if device == "cuda":
        found["memory_gib"] = round(torch.cuda.get_device_properties(0).total_memory / 2**30, 1)
    weight = nn.Parameter(torch.ones(1000, device=device))
    optimizer = torch.optim.Adam([weight], lr=0.001, fused=True)
    weight.sum().backward()
    optimizer.step()
    found["weight"] = weight[0].item()
    assert abs(found["weight"] - 0.999) < 1e-6, found["weight"]
    return found


def _driver() -> str | None:
    query = "timeout 4 nvidia-smi --query-gpu=driver_version --format=csv,noheader"
    return subprocess.getoutput(f"{query} 2>/dev/null") or None


def equal_bits(check: Check) -> Result:
    """Train LeNet-5 twice from one seed, as it is and with `deterministic`."""
    result: dict[str, Any] = {}
    for kind, flag in ("as it is", "false"), ("deterministic", "true"):
        names = [f"bits-{flag}-{i}" for i in (1, 2)]
        times = [check.time("mnist/lenet5", it, f"--trainer.deterministic={flag}") for it in names]
        equal = len({digest(next(check.folder.glob(f"{it}/*/*"))) for it in names}) == 1
        result[kind] = {"equal": equal, "us_per_step": min(times)}
    said = [f"{kind}: {it['equal']}, {it['us_per_step']:.0f} µs" for kind, it in result.items()]
    return {**result, "passed": result["deterministic"]["equal"], "text": "; ".join(said)}


def digest(folder: Path) -> str:
    """Compute the SHA-256 of a run's weights, optimizer, schedules, scaler and random numbers."""
    content = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    kept = [content.get(name) for name in KEPT]
    hashed = sha256()
    for leaf in tree_leaves([kept, content["exact_resume"]["processes"]]):
        is_tensor = isinstance(leaf, Tensor)
        hashed.update(leaf.cpu().numpy().tobytes() if is_tensor else repr(leaf).encode())
    return hashed.hexdigest()


class Killed(Exception):  # noqa: N818
    """Ends a run."""


def resume(check: Check) -> Result:
    """Kill a run after a checkpoint, resume it, and compare it with one that was not killed."""
    from digitlab.callbacks import LastCheckpoint

    save, equal = LastCheckpoint.save, {}

    def killing(*args: Any) -> None:
        save(*args)
        raise Killed

    options = ["--trainer.deterministic=true", "--checkpoint_every_n_steps=96"]
    options += [f"--trainer.max_steps={320 if check.is_gpu else 160}"]
    for precision in check.precisions:
        run = ["mnist/lenet5", f"killed-{precision}", *options, f"--trainer.precision={precision}"]
        try:
            with mock.patch.object(LastCheckpoint, "save", killing):
                check.fit(*run)
        except Killed:
            (killed,) = check.folder.glob(f"killed-{precision}/*/*")
        check.train("--run", str(killed))
        equal[precision] = digest(killed) == digest(check.fit(*run))
    text = ", ".join(f"{precision} {is_equal}" for precision, is_equal in equal.items())
    return {"equal": equal, "passed": all(equal.values()), "text": f"equal bits: {text}"}


def tf32(check: Check) -> Result:
    """Compare LeNet-5's logits with the CPU's, with TF32 off and on."""
    from digitlab.models import LeNet5

    torch.manual_seed(0)
    network, images = LeNet5().network.eval(), torch.rand(1000, 1, 28, 28)
    apart: dict[str, float] = {}
    with torch.no_grad():
        expected = network(images)
        network, images = network.to(check.device), images.to(check.device)
        for name, allowed in ("on", True), ("off", False):  # which stays
            torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = allowed
            difference = (network(images).cpu() - expected).abs().max() / expected.abs().max()
            apart[name] = difference.item()
    text = "logits apart from the CPU's, of the largest: off {off:.1e}, on {on:.1e}"
    return {"apart": apart, "passed": apart["off"] < 1e-5, "text": text.format(**apart)}


def reads(check: Check) -> Result:
    """List what makes the host wait for the GPU in 64 steps, by torch's own mode for it."""
    from benchmarks.callbacks import NoteReads

    found: dict[str, dict[str, int]] = {}
    for steps in (1, 32):
        NoteReads.found.clear()
        options = ["--trainer.callbacks+=benchmarks.callbacks.NoteReads", "--trainer.max_steps=192"]
        options += [f"--model.steps_per_execution={steps}"]
        check.fit("mnist/lenet5", f"reads-{steps}", *options)
        found[f"K = {steps}"] = dict(NoteReads.found)
    total = {name: sum(places.values()) for name, places in found.items()}
    # One or two of the log's intervals end there, and losses are looked at twice.
    text = f"in 64 steps: {total}" if check.is_gpu else "only CUDA tells"
    return {"found": found, "passed": max(total.values()) <= 6, "text": text}


def step_times(check: Check) -> Result:
    """Measure microseconds a step of a raw loop and of digitlab."""
    from benchmarks import raw_steps

    found: dict[str, dict[str, float]] = {}
    for config, last in ("mnist/nn128", False), ("mnist/lenet5", False), ("mnist/lenet5", True):
        for precision in check.precisions:
            row = found[f"{config} {precision}{' channels_last' * last}"] = {}
            options = [f"--model.channels_last={last}", f"--trainer.precision={precision}"]
            for variant in ("raw", "graph", "1", "32", "128"):
                graph, no_graph = variant == "graph", precision == "16-mixed" or not check.is_gpu
                if check.left() < check.seconds / 4 or (
                    graph and no_graph
                ):  # parts follow; scalers have none
                    continue
                if graph or variant == "raw":
                    row[variant] = raw_steps.measure(config, check.device, precision, last, graph)
                else:
                    blocks = f"--model.steps_per_execution={variant}"
                    name = f"steps-{len(found)}-{variant}"
                    row[f"K = {variant}"] = check.time(config, name, *options, blocks)
    lines = (
        f"{name}: {', '.join(f'{it} {us:.0f}' for it, us in row.items())}"
        for name, row in found.items()
    )
    return {"us_per_step": found, "text": "µs:<br>" + "<br>".join(lines)}


def accuracy(config: str, least: float) -> Callable[[Check], Result]:
    """Make the part that trains a config in each precision, to at least so many per cent."""

    def measure(check: Check) -> Result:
        runs: dict[str, dict[str, float]] = {}
        for precision in check.precisions:
            options = [CLOCK, f"--trainer.precision={precision}"]
            options += [] if check.is_gpu else ["--trainer.max_steps=64"]
            folder = check.fit(config, f"{least}-{precision}", *options)
            scores = json.loads((folder / "metrics.json").read_text("utf-8"))["test"]
            runs[precision] = {"accuracy": 100 * scores["accuracy"], "seconds": check.clock.seconds}
        says = "{0} {accuracy:.2f}% in {seconds:.2f} s"
        text = ", ".join(says.format(precision, **run) for precision, run in runs.items())
        passed = not check.is_gpu or all(run["accuracy"] >= least for run in runs.values())
        return {"runs": runs, "least": least, "passed": passed, "text": text}

    return measure


def gpu_tests(check: Check) -> Result:
    """Run the tests marked `gpu`, by file."""
    files = [str(it) for it in Path("tests").rglob("test_*.py") if "mark.gpu" in it.read_text()]
    if not files:
        return {"text": "there is no folder tests here"}
    report = check.folder / "tests.xml"
    command = [sys.executable, "-m", "pytest", "-q", "-o", "addopts=", "-p", "no:cacheprovider"]
    command += ["-m", "gpu", f"--junitxml={report}", *files]
    done = subprocess.run(command, capture_output=True, text=True, timeout=max(check.left() - 3, 1))
    if not report.exists():
        raise RuntimeError(f"pytest wrote no report: {(done.stdout + done.stderr)[-300:]}")
    suite = ElementTree.parse(report).getroot().find("testsuite")
    assert suite is not None
    counts = {name: int(suite.attrib[name]) for name in ("tests", "failures", "errors", "skipped")}
    ran = counts["tests"] > counts["skipped"] or not check.is_gpu
    text = ", ".join(f"{count} {name}" for name, count in counts.items())
    passed = ran and not counts["failures"] + counts["errors"]
    return {"output": done.stdout[-4000:], "passed": passed, "text": text}


PARTS: dict[str, tuple[float, Callable[[Check], Result]]] = {
    "equal bits": (30, equal_bits),
    "kill and resume": (30, resume),
    "TF32": (3, tf32),
    "host reads": (15, reads),
    "step times": (120, step_times),
    # The least accuracies are four standard deviations below the README's means.
    "B3": (15, accuracy("mnist/lenet5", 98.0)),
    "B10": (30, accuracy("fashion_mnist/lenet1_keras_recipe", 89.8)),
    "fast99": (8, accuracy("mnist/fast99", 98.5)),
    "GPU tests": (30, gpu_tests),
}
"""Each part by its name, in order, with the least seconds that it needs on a GPU."""


def stop(*_: object) -> None:
    """Handle the deadline's alarm."""
    raise TimeoutError("the time is over")


def run_part(check: Check, needed: float, part: Callable[[Check], Result]) -> Result:
    """Run a part, whatever it raises; return its result with `status`, `text` and `seconds`."""
    if check.left() < needed:
        return {"status": "left out", "text": f"{check.left():.0f} s left, {needed:.0f} needed"}
    started = time.monotonic()
    try:
        signal.setitimer(signal.ITIMER_REAL, check.left())
        result = part(check)
        status = "passed" if result.pop("passed", True) else "FAILED"
    except Exception as error:
        status = "left out" if isinstance(error, TimeoutError) else "FAILED"
        line = str(error).partition("\n")[0]
        result = {"text": f"{type(error).__name__}: {line}", "traceback": traceback.format_exc()}
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return {"status": status, "seconds": round(time.monotonic() - started, 1), **result}


def tabulate(parts: dict[str, Result]) -> str:
    """Make a Markdown table of the parts."""
    lines = [
        f"| {name} | {it['status']} | {it.get('seconds', '')} | {it['text']} |"
        for name, it in parts.items()
    ]
    return "\n".join(["| part | status | seconds | result |", "|---|---|---|---|", *lines])


def main() -> int:
    """Run the command line; return the exit code."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=420, help="Most seconds to take.")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--out", type=Path, default=Path("gpu_check.json"), help="JSON file.")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        print(f"gpu_check: error: torch finds no CUDA device; driver {_driver()}", file=sys.stderr)
        return 2
    result: dict[str, Any] = {"preflight": preflight(args.device), "parts": {}}
    print(json.dumps(result["preflight"]), flush=True)
    signal.signal(signal.SIGALRM, stop)
    beside = args.out.with_name(f".{args.out.name}")
    with TemporaryDirectory() as folder:
        check = Check(args.device, Path(folder), args.seconds)
        for name in args.parts:
            done = result["parts"][name] = run_part(check, *PARTS[name])
            beside.write_text(json.dumps(result, indent=1) + "\n", "utf-8")
            beside.replace(args.out)
            print(f"{name}: {done['status']}, {done['text']}", flush=True)
    print(tabulate(result["parts"]))
    statuses = {it["status"] for it in result["parts"].values()}
    return 1 if "FAILED" in statuses else 3 if "left out" in statuses else 0


if __name__ == "__main__":
    sys.exit(main())
