"""Options of the commands that train and evaluate, and their short help, without torch.

The short help has these options and the commonest of the model, the data and the trainer;
`--help_all` shows what the whole parser knows.
"""

import ast
from argparse import SUPPRESS, Action, HelpFormatter
from pathlib import Path
from typing import Any, Literal

from jsonargparse import ArgumentParser
from jsonargparse.typing import NonNegativeFloat, PositiveInt, restricted_string_type

RunName = restricted_string_type(
    "RunName", r"^[\w.+-]*\w[\w.+-]*$", docstring="Part of a folder's name."
)


ALLOW_TF32 = (
    "Let NVIDIA GPUs round factors of float32 products to 10 bits: faster, and a convolutional "
    "network's logits differ by some 0.001 of the largest."
)


def add_fit_options(parser: Any) -> None:
    """Add the options of `digitlab fit` that are not of the model, the data or the trainer."""
    add = parser.add_argument
    frameworks, outputs = Literal["torch", "keras"], Literal["logits", "softmax"]
    text = "Train the network in PyTorch, or its Keras twin in Keras."
    add("--framework", type=frameworks, default="torch", help=text)
    text = (
        "With --framework keras: end the network in logits, or, as document A does, in a "
        "softmax, with the cross-entropy of clipped probabilities."
    )
    add("--output", type=outputs, default="logits", help=text)
    text = (
        "Name of the run: its folder is <data set>-<name> under trainer.default_root_dir. "
        "Default: the first config's."
    )
    add("--name", metavar="NAME", type=RunName | None, default=None, help=text)
    text = "File with the initial weights: a checkpoint, a state dict or, in Keras, a model."
    add("--weights", metavar="FILE", type=str | None, default=None, help=text)
    text = (
        "Resume this run, a folder or latest, with its settings. A larger trainer.max_epochs "
        "lengthens it."
    )
    add("--run", metavar="RUN", type=str | None, default=None, help=text)
    text = (
        "With --run: accept settings that change the result. An unfinished epoch starts over, "
        "with the weights so far."
    )
    add("--allow_changes", type=bool, default=False, help=text)
    text = (
        "With --run: resume on another type of device, or with other threads, deterministic or "
        "precision flags of torch; metrics.json then says so."
    )
    add("--allow_inexact_resume", type=bool, default=False, help=text)
    text = (
        "CPU threads of PyTorch or TensorFlow. Another number rounds differently: part of what "
        "a seed gives."
    )
    add("--threads", metavar="N", type=PositiveInt, default=1, help=text)
    text = "Optimizer steps between two checkpoints inside an epoch. Default: none."
    add("--allow_tf32", type=bool, default=False, help=ALLOW_TF32)
    add("--checkpoint_every_n_steps", metavar="N", type=PositiveInt | None, help=text)
    text = "Minutes between two checkpoints inside an epoch; null for none."
    number = NonNegativeFloat | None
    add("--checkpoint_every_n_minutes", metavar="N", type=number, default=1.0, help=text)


def add_parity_options(parser: Any) -> None:
    """Add the options of `digitlab parity`."""
    add_fit_options(parser)
    text = "Steps; weights are compared after each."
    parser.add_argument("--steps", metavar="N", type=PositiveInt, default=50, help=text)


def add_evaluation_options(parser: Any) -> None:
    """Add the options of `digitlab validate` and `test`."""
    add = parser.add_argument
    add("--run", metavar="RUN", type=str, help="Run folder, or latest. Required.")
    add("--checkpoint", type=str, default="last", help="last, best, or a checkpoint's path.")
    text = "CPU threads. Default: the run's."
    add("--threads", metavar="N", type=PositiveInt | None, help=text)
    add("--allow_tf32", type=bool, default=False, help=ALLOW_TF32)


def add_prediction_options(parser: Any) -> None:
    """Add the options of `digitlab predict` for image files."""
    group = parser.add_argument_group(
        "Image files",
        "Words that are neither options nor their values are image files, as in digitlab "
        "predict --run latest photo.png more/*.jpg. They are classified instead of the test "
        "split, each prepared as the run's training images were. All words after -- are files.",
    )
    for kind in ("json", "csv"):
        text = f"{kind.upper()} file to write a row for each image to."
        group.add_argument(f"--{kind}", metavar="FILE", type=str, help=text)
    group.add_argument(
        *("--save_prepared", "--save-prepared"),
        metavar="FOLDER",
        type=str,
        help="Folder to write the prepared images to, as PNG files.",
    )


def _classes(package: str, ending: str = "") -> list[str]:
    """List the classes of a package to choose from, whose names end so, without importing it."""
    source = Path(__file__).parents[1].joinpath(package, "__init__.py").read_text("utf-8")
    (names,) = (
        ast.literal_eval(it.value)
        for it in ast.parse(source).body
        if isinstance(it, ast.Assign) and ast.unparse(it.targets[0]) == "__all__"
    )
    bases = ("ImageDataModule", "TorchvisionDataModule")  # of data sets of one's own
    return [it for it in names if it.endswith(ending) and it not in bases]


def _add_common_training(parser: ArgumentParser) -> None:
    models, data = _classes("models"), _classes("data", "DataModule")
    lines = {
        "config FILE": "Settings: a YAML file, or the name of a config. Later ones win over "
        "earlier ones, and options over all.",
        "model CLASS": f"Network: {', '.join(models)}, or your own, module.Class.",
        "model.help CLASS": "Show the options of a network and exit.",
        "model.optimizer CLASS": "Adam, SGD, ...; then its options, as --model.optimizer.lr 0.01.",
        "data CLASS": f"Data: {', '.join(data)}, or your own.",
        "data.help CLASS": "Show the options of a data module and exit.",
        "data.root FOLDER": "Folder of the data. Default: $DIGITLAB_DATA, or else data.",
        "data.batch_size N": "Images of an optimizer step.",
        "data.validation_size N": "Training images to hold out for validation; 0 validates on "
        "the test split.",
    }
    _add_lines(parser, "Network and data", lines, {"model": models, "data": data})
    lines = {
        "seed_everything SEED": "Seed of initial weights, order of images and dropout. Default: 0.",
        "trainer.max_epochs N": "Epochs; -1 trains until it is stopped.",
        "trainer.max_steps N": "Optimizer steps, if these are fewer.",
        "trainer.max_time TIME": "Time, as in 00:01:30:00 for 1.5 hours.",
        "trainer.accelerator NAME": "auto, cpu, gpu or mps. Default: auto.",
        "trainer.callbacks+ CLASS": "Add a callback, such as EarlyStopping.",
        "trainer.fast_dev_run true": "Try one batch of each split, and write nothing.",
    }
    _add_lines(parser, "Training", lines)


def _add_common_evaluation(parser: ArgumentParser) -> None:
    lines = {
        "data.root FOLDER": "Folder of the data.",
        "data.eval_batch_size N": "Images at a time.",
        "trainer.accelerator NAME": "auto, cpu, gpu or mps. Default: the run's.",
    }
    _add_lines(parser, "Data and device", lines)


def _add_lines(
    parser: ArgumentParser,
    title: str,
    lines: dict[str, str],
    choices: dict[str, list[str]] | None = None,
) -> None:
    """Add options that are shown and completed, but not parsed: `name VALUE`, and a help text."""
    group = parser.add_argument_group(title)
    for line, text in lines.items():
        name, value = line.split()
        action = group.add_argument(f"--{name}", metavar=value, default=SUPPRESS, help=text)
        action.choices = (choices or {}).get(name.removesuffix(".help"))


class ShortHelp(HelpFormatter):
    """Texts with defaults, and without the types that jsonargparse adds."""

    def _get_help_string(self, action: Action) -> str:
        says = f"{action.help} Default: %(default)s."
        return says if action.default not in (None, False, SUPPRESS, []) else str(action.help)


def short_parser(command: str, help: str) -> ArgumentParser:
    """Make a parser of a command's commonest options, for its help text alone."""
    settings: dict[str, Any] = {"formatter_class": ShortHelp, "print_config": None}
    usage = f"digitlab {command} [options]{' [FILE ...]' * (command == 'predict')}"
    parser = ArgumentParser(usage=usage, description=help, add_help=False, **settings)
    trains = command in ("fit", "parity")
    (_add_common_training if trains else _add_common_evaluation)(parser)
    add = {"fit": add_fit_options, "parity": add_parity_options}.get(
        command, add_evaluation_options
    )
    group = parser.add_argument_group("The run")
    add(group)
    if command == "predict":
        add_prediction_options(parser)
    text = "Show all options, and all of Lightning's trainer, and exit."
    group.add_argument("--help_all", action="store_true", default=SUPPRESS, help=text)
    return parser
