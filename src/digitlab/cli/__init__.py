"""The command table, help and exit codes; heavy imports happen only when a command runs.

Exit codes: 0 done, 1 a failed check or run, 2 bad input (one line on stderr; `--debug` adds the
traceback), 130 interrupted by Ctrl-C, 143 by SIGTERM.
"""

import logging
import os
import sys
import traceback
import types
import warnings
from collections.abc import Sequence
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path

from digitlab import __version__

COMMANDS = {
    "fit": "train a network: digitlab fit --config configs/digits/lenet5.yaml",
    "validate": "measure a run on its validation images: digitlab validate --run latest",
    "test": "measure a run on the test images: digitlab test --run latest",
    "predict": "classify the test images, or files: digitlab predict --run latest [photo.png ...]",
    "keras fit": "train the Keras twin: digitlab keras fit --config configs/digits/lenet5.yaml",
    "keras validate": "measure a Keras run on its validation images",
    "keras test": "measure a Keras run on the test images",
    "keras predict": "classify the test images, or files, with a Keras run",
    "convert": "convert a run to Keras, or back: digitlab convert RUN_DIR model.keras",
    "parity": "prove a network and its Keras twin equal: digitlab parity --config CONFIG",
    "reproduce": "measure the documents' figures over seeds: digitlab reproduce B1 B2 --seeds 3",
    "report": "write runs as one HTML page: digitlab report RUN_DIR [RUN_DIR ...]",
}
"""What each command does."""

MODULES = {
    "fit": "digitlab.cli.fit",
    "validate": "digitlab.cli.evaluate",
    "test": "digitlab.cli.evaluate",
    "predict": "digitlab.cli.evaluate",
    "keras fit": "digitlab.parity.fit",
    "keras validate": "digitlab.parity.evaluate",
    "keras test": "digitlab.parity.evaluate",
    "keras predict": "digitlab.parity.evaluate",
    "convert": "digitlab.parity.convert",
    "parity": "digitlab.parity.command",
    "reproduce": "digitlab.reproduce.command",
    "report": "digitlab.report.command",
}
"""The module of each command; its `prepare` checks the input and returns what is left to do."""

_COMMAND_LINES = "\n".join(f"  {name:15} {text}" for name, text in COMMANDS.items())
HELP = f"""usage: digitlab COMMAND [options]

The classic networks on MNIST and Fashion-MNIST, as a laboratory.

commands:
{_COMMAND_LINES}

options:
  -h, --help  show this text; `digitlab COMMAND --help` shows a command's options
  --version   show the version
  --debug     with a command: show the traceback of an error
"""


def main(args: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        args: The command line after the program's name; None takes the process's own.

    Returns:
        The exit code.
    """
    arguments = list(sys.argv[1:] if args is None else args)
    debug = "--debug" in arguments
    command, *options = [word for word in arguments if word != "--debug"] or ["--help"]
    if command == "keras" and options:
        command, *options = (f"keras {options[0]}".replace("keras -", "-"), *options[1:])
    if command in ("-h", "--help", "keras"):
        print(HELP, end="")
        return 0
    if command == "--version":
        print(f"digitlab {__version__}")
        return 0
    if command not in COMMANDS:
        nearest = get_close_matches(command, COMMANDS, n=1)
        hint = f"did you mean {nearest[0]!r}?" if nearest else f"choose from {', '.join(COMMANDS)}"
        return _refuse(f"there is no command {command!r}: {hint}")
    try:
        return _run(command, options, debug)
    except KeyboardInterrupt as interrupt:
        print(f"digitlab: interrupted: {interrupt}".rstrip(": "), file=sys.stderr)
        return 130


def _run(command: str, options: list[str], debug: bool) -> int:
    _settle_process()
    # torch and Lightning take seconds to import: only now, and only for a command.
    from digitlab.cli.parser import BAD_INPUT
    from digitlab.errors import RunError
    from digitlab.signals import Interrupted

    _silence()
    run = None
    try:
        module = import_module(MODULES[command])
        if hasattr(module, "run"):
            return int(module.run(command, COMMANDS[command], options))
        run = module.prepare(command, options)
        return run() or 0  # a check that failed gives 1
    except Interrupted as interrupt:
        print(f"digitlab: {interrupt}", file=sys.stderr)
        return interrupt.exit_code
    except RunError as error:
        return _refuse(str(error), debug, code=1)
    except (*BAD_INPUT, ImportError) as error:  # the last where an extra is not installed
        if run and isinstance(error, ImportError):
            raise
        # While it runs, a full disk, say: no fault of the input.
        return _refuse(str(error), debug, code=1 if run and isinstance(error, OSError) else 2)


def _refuse(message: str, debug: bool = False, code: int = 2) -> int:
    if debug:
        traceback.print_exc()
    print(f"digitlab: error: {' '.join(message.split())}", file=sys.stderr)
    return code


def _settle_process() -> None:
    """Set what must be set before torch, Lightning and TensorBoard are imported."""
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


def _silence() -> None:
    """Keep back what a user can do nothing about; to be called once Lightning is imported."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)  # announcements and advertisements
    logging.getLogger("lightning.pytorch.profilers").setLevel(logging.INFO)  # what was asked for
    for message in (
        r"`isinstance\(treespec, LeafSpec\)` is deprecated",  # Lightning's own use of torch
        r"Checkpoint directory .* exists and is not empty",  # where a run goes on
        r"The number of training batches .* is smaller than the logging interval",  # it logs still
        r"You requested to overfit but enabled .* dataloader shuffling",  # it is off already
    ):
        warnings.filterwarnings("ignore", message=message)
