"""Command table, help and exit codes; heavy imports happen only when a command runs.

Exit codes: 0 done, 1 a failed check or run, 2 bad input (one line on stderr; `--debug` adds the
traceback), 129 interrupted by SIGHUP, 130 by Ctrl-C, 143 by SIGTERM. Output that cannot be written
is dropped; `fit`, `parity` and `reproduce` have results elsewhere and exit as if it had been read.
Other commands then exit with 1, unless the reader of a pipe has closed it.
"""

import logging
import os
import sys
import threading
import traceback
import types
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout, suppress
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import Any

from digitlab import __version__
from digitlab.errors import InputError, Interrupted, RunError, describe_error, reading_input
from digitlab.terminal import Nowhere, one_line, printable, surviving_streams

COMMANDS = {
    "fit": ("cli.fit", "train a network: digitlab fit --config digits/lenet5"),
    "validate": ("cli.evaluate", "score a run on its validation images: --run latest"),
    "test": ("cli.evaluate", "score a run on the test images: --run latest"),
    "predict": ("cli.evaluate", "classify the test images, or files: --run latest [photo.png ...]"),
    "configs": (
        "cli.configs",
        "list configs, show or copy one: digitlab configs B3 --copy my.yaml",
    ),
    "convert": ("cli.convert", "write a run as ONNX, PyTorch or Keras: convert latest model.onnx"),
    "parity": (
        "cli.parity",
        "prove a network and its Keras twin equal: digitlab parity --config CONFIG",
    ),
    "reproduce": (
        "reproduce.command",
        "train configs over seeds, and compare them: digitlab reproduce B1 my.yaml",
    ),
    "report": (
        "report.command",
        "write runs as one HTML page: digitlab report RUN_DIR [RUN_DIR ...]",
    ),
}
"""The modules of the subcommands, and a line of help on each.

A module's `run(name, help, options)` does the work and returns the exit code, or raises InputError,
RunError or Interrupted.
"""

_WITHOUT_TORCH = {"configs"}
_SHORT_HELP = {"fit", "validate", "test", "predict", "parity"}

LOGGERS = {
    "lightning.pytorch": logging.WARNING,  # announcements and advertisements
    "lightning.fabric": logging.WARNING,
    "lightning.pytorch.profilers": logging.INFO,  # its results
}
"""Levels of loggers while a command runs."""

_LONG = {"fit", "parity", "reproduce"}
_LINES = "\n".join(f"  {name:10} {line}" for name, (_, line) in COMMANDS.items())
HELP = f"""usage: digitlab COMMAND [options]

The classic networks on MNIST and Fashion-MNIST, as a laboratory.

commands:
{_LINES}

options:
  -h, --help  show this text; `digitlab COMMAND --help` shows a command's options
  --version   show the version
  --debug     with a command: show the traceback of an error
  --print_completion bash|zsh
              print a script that lets the shell complete commands and options
"""


def main(args: Sequence[str] | None = None) -> int:
    """Run one command, by default the process's own; return the exit code."""
    arguments = list(sys.argv[1:] if args is None else args)
    with surviving_streams() as output:
        exit_code = _main(arguments)
    is_lost = output.error and not output.reader_left and _LONG.isdisjoint(arguments)
    return exit_code or int(bool(is_lost))


def _main(arguments: list[str]) -> int:
    debug = "--debug" in arguments
    name, *options = [word for word in arguments if word != "--debug"] or ["--help"]
    if name == "help":
        name, *options = [*options[:1], "--help"]
    if name in ("-h", "--help"):
        print(HELP, end="")
        return 0
    if name == "--version":
        print(f"digitlab {__version__}")
        return 0
    if name == "keras":
        old = next((it for it in options if not it.startswith("-")), "fit")
        is_run = old in ("validate", "test", "predict")
        new = f"{old} --run RUN_DIR" if is_run else "fit --framework keras"
        return _error(f"digitlab keras {old} is now: digitlab {new}")
    if name == "--print_completion" and (options and options[0]) not in ("bash", "zsh"):
        return _error(f"print_completion is {' '.join(options) or 'empty'}: give bash or zsh")
    if name not in (*COMMANDS, "--print_completion"):
        nearest = get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {nearest[0]!r}?" if nearest else f"choose from {', '.join(COMMANDS)}"
        return _error(f"there is no command {name!r}: {hint}")
    if name in _SHORT_HELP and {"-h", "--help"} & set(options):
        from digitlab.cli.options import short_parser

        short_parser(name, COMMANDS[name][1]).print_help()
        return 0
    try:
        return _run(name, options, debug)
    except KeyboardInterrupt:
        print("digitlab: interrupted by Ctrl-C", file=sys.stderr)
        return 130


def _run(name: str, options: list[str], debug: bool) -> int:
    prepare_process()
    _announce(name, options)
    module, help = COMMANDS.get(name, ("cli.completion", ""))
    try:
        with reading_input():  # some commands need an extra
            run = import_module(f"digitlab.{module}").run
        silence()
        options = ["--help" if word == "--help_all" else word for word in options]
        exit_code: int = run(name, help, options)
        return exit_code
    except Interrupted as interrupt:
        print(f"digitlab: {printable(interrupt)}", file=sys.stderr)
        return interrupt.exit_code
    except InputError as error:
        return _error(str(error), debug)
    except (RunError, OSError) as error:  # the latter where the disk is full, say
        return _error(describe_error(error), debug, code=1)


def _announce(name: str, options: list[str]) -> None:
    """Say what is loaded, which takes seconds: on a terminal, and beside the command's output."""
    if name not in _WITHOUT_TORCH and "torch" not in sys.modules and sys.stderr.isatty():
        keras = " and TensorFlow" * (name == "parity" or "keras" in options)
        print(f"digitlab {__version__}: loading PyTorch{keras} ...", file=sys.stderr)
        sys.stderr.flush()


def _error(message: str, debug: bool = False, code: int = 2) -> int:
    if debug:
        print(printable(traceback.format_exc(), keep="\n"), file=sys.stderr, end="")
    print(f"digitlab: error: {one_line(message)}", file=sys.stderr)
    return code


def prepare_process() -> None:
    """Set up the process before torch, Lightning and TensorBoard are imported."""
    has_gpu = any(any(Path("/dev").glob(name)) for name in ("nv*gpu*", "nvidia*", "dxg", "kfd"))
    if sys.platform == "linux" and not has_gpu:
        # A CUDA build of torch without a GPU otherwise retries to load NVIDIA's library at each
        # optimizer step, 0.3 to 1 ms a time.
        os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
    # A user's own classes can be named by class path, from modules in the current folder.
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    # TensorBoard's writer imports TensorFlow where it is installed (9.3 s instead of 2.6 s) unless
    # this module exists, which selects TensorBoard's own stub.
    sys.modules.setdefault("tensorboard.compat.notf", types.ModuleType("notf"))


def silence() -> None:
    """Hide messages that a user cannot act on; Lightning's import sets other levels."""
    for name, level in LOGGERS.items():
        logging.getLogger(name).setLevel(level)
    for message in (
        r"`isinstance\(treespec, LeafSpec\)` is deprecated",  # Lightning's own use of torch
        r"Checkpoint directory .* exists and is not empty",  # it does in a resumed run
        r"The number of training batches .* is smaller than the logging interval",  # it still logs
        r"You requested to overfit but enabled .* dataloader shuffling",  # it is off already
    ):
        warnings.filterwarnings("ignore", message=message)


@contextmanager
def restoring_flags() -> Iterator[None]:
    """Restore, after the `with` block, what a run sets in torch: its threads and TF32."""
    import torch

    threads = torch.get_num_threads()
    flags: dict[Any, bool] = {}
    backends: tuple[Any, ...] = (torch.backends.cudnn, torch.backends.cuda.matmul)
    for backend in backends:
        with suppress(RuntimeError):  # the caller has set it by both of torch's ways
            flags[backend] = backend.allow_tf32
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        for backend, allowed in flags.items():
            backend.allow_tf32 = allowed


_ONE_AT_A_TIME = threading.RLock()


@contextmanager
def in_callers_process(quiet: bool = False) -> Iterator[None]:
    """Do in the `with` block what a command does in its own process, and undo it afterwards.

    Threads wait for each other: all have the process's random numbers, seeds and streams.
    """
    import torch
    from lightning.pytorch.utilities.seed import isolate_rng

    with ExitStack() as stack:
        stack.enter_context(_ONE_AT_A_TIME)
        prepare_process()
        names = ("PL_GLOBAL_SEED", "PL_SEED_WORKERS")  # set by `seed_everything`
        seeds = {name: os.environ.pop(name) for name in names if name in os.environ}
        levels = {name: logging.getLogger(name).level for name in LOGGERS}
        flushes = not torch.tensor(2.0**-130).mul(1).item()  # denormal numbers, to zero
        stack.enter_context(isolate_rng())
        stack.enter_context(restoring_flags())
        stack.enter_context(warnings.catch_warnings())
        if quiet:
            stack.enter_context(redirect_stdout(Nowhere()))
            stack.enter_context(redirect_stderr(Nowhere()))
        silence()
        try:
            yield
        finally:
            torch.set_flush_denormal(flushes)
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)
            for name in names:
                os.environ.pop(name, None)
            os.environ.update(seeds)
