"""The options of `digitlab fit|validate|test|predict`: Lightning's parser, one-line errors."""

import re
from argparse import ArgumentError
from argparse import ArgumentParser as PlainParser
from collections.abc import Iterable
from difflib import get_close_matches
from importlib import import_module
from inspect import signature
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

# Imported whole, because a class's bare name is understood only once the class exists.
from digitlab import callbacks, data, models
from digitlab.classifier import Classifier
from digitlab.cli import COMMANDS
from digitlab.data import ImageDataModule

BAD_INPUT = (ValueError, OSError, MisconfigurationException)
"""What reading and checking the input of a command may raise; later it is a failed run."""


class RunCLI(LightningCLI):
    """A command line, parsed into a model, a data module and the settings of a trainer.

    Flags win over configs wherever they stand, and a later config over an earlier one. The trainer
    is made by `instantiate_trainer`, once there is a folder for what it writes.

    Args:
        command: The subcommand, for the help text.
        arguments: The command line after the subcommand.

    Raises:
        ValueError: The command line or a config is wrong; the message says in one line how.
    """

    def __init__(self, command: str, arguments: list[str]) -> None:
        super().__init__(
            Classifier,
            ImageDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            run=False,
            args=arguments,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,  # hyper-parameters are plain values already
            save_config_callback=None,
            seed_everything_default=0,
            trainer_defaults={
                "default_root_dir": "runs",
                "enable_model_summary": False,  # `Console` shows the parameter tensors too
                "num_sanity_val_steps": 0,
            },
            parser_kwargs={
                "prog": f"digitlab {command}",
                "description": f"{COMMANDS[command]}. --model.help CLASS shows a class's options.",
                "exit_on_error": False,
                "allow_abbrev": False,
            },
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse the configs, then the flags."""
        try:
            configs, flags = split_off(args, "--config", "-c")
            self.config_files = configs
            ordered = [word for config in configs for word in ("--config", config)] + flags
            self.config = parser.parse_args(ordered)
        except ArgumentError as error:
            raise ValueError(explain(str(error), _options(parser))) from error

    def instantiate_classes(self) -> None:
        """Make the model and the data module."""
        try:
            self.config_init = self.parser.instantiate(self.config)
        except ValueError as error:
            # jsonargparse wraps a constructor's own words in those of every type that it tried.
            while isinstance(error.__cause__, ValueError):
                error = error.__cause__
            raise error from None
        self.model: Classifier = self.config_init.model
        self.datamodule: ImageDataModule = self.config_init.data

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Make the trainer, with settings that win over the config's."""
        accelerator = self.config.trainer.accelerator
        if accelerator in ("gpu", "cuda") and not torch.cuda.is_available():
            raise ValueError(
                f"trainer.accelerator is {accelerator}: torch finds no such GPU on this machine; "
                "leave configs/gpu.yaml out, or set --trainer.accelerator auto"
            )
        return super().instantiate_trainer(**kwargs)

    def dump(self) -> str:
        """Write all settings as YAML."""
        text: str = self.parser.dump(self.config, skip_unset=False)
        return text


def split_off(arguments: list[str], *names: str) -> tuple[list[str], list[str]]:
    """Separate an option's values from the other words of a command line.

    >>> split_off(["--a", "1", "--config", "x.yaml", "--config=y.yaml"], "--config")
    (['x.yaml', 'y.yaml'], ['--a', '1'])
    """
    parser = PlainParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument(*names, dest="values", action="append", default=[])
    known, others = parser.parse_known_args(arguments)
    return known.values, others


def explain(message: str, options: Iterable[str] = ()) -> str:
    """Condense one of jsonargparse's messages into a line with value, rule and remedy.

    Args:
        message: What jsonargparse says, over many lines and of every type that it tried.
        options: The names that the parser knows, for the nearest one.
    """
    key = ".".join(re.findall(r'Parser key "([^"]+)"', message))
    if match := re.search(r"Group '(\S+)' does not accept option '(\S+)'", message):
        return _unknown_option(f"{match[1]}.{match[2]}", options)
    if match := re.search(r"[Uu]nrecognized arguments: (.*)", message):
        return _unknown_option(match[1].split()[0], options)
    if match := re.search(r"Option '(\S+)' is not accepted", message):
        if owner := re.findall(r"class_path[= ]'([\w.]+)'", message):
            return _unknown_option(f"{key}.{match[1]}".removeprefix("."), _parameters(owner[-1]))
        return _unknown_option(match[1], options)
    if match := re.search(r"dot import path string: (\S+)|no attribute '(\w+)'", message):
        name = match[1] or match[2]
        return f"{key}: there is no class {name!r}: {_nearest(name, _classes())}"
    if match := re.search(r"arguments are required: (\w+)", message):
        return (
            f"no {match[1]} is given: name a config, such as --config configs/digits/lenet5.yaml, "
            f"or set --{match[1]}"
        )
    if match := re.search(r"Problems parsing config: (.+)", message, re.S):
        return f"a config is no valid YAML: {' '.join(match[1].split())}"
    if match := re.search(r"File does not exist: '(.+)'", message):
        return f"there is no file {match[1]}: give the path of a config"
    if given := re.findall(r"(?:Given value|Got value): (.+)", message):
        rules = re.findall(r"Expected an? (.+?)(?:\. Got value.*)?$", message, re.M)
        return f"{key} is {given[0]}: it must be {_readable(rules)}"
    return " ".join(message.split())


def _unknown_option(name: str, known: Iterable[str]) -> str:
    name = name.lstrip("-")
    return f"there is no option {name!r}: {_nearest(name, known)}"


def _nearest(name: str, known: Iterable[str]) -> str:
    # Compared by the last part, since what stands before it may be right or left out.
    group, _, last = name.rpartition(".")
    by_last_part = {option.rpartition(".")[2]: option for option in sorted(known)}
    if nearest := get_close_matches(last, by_last_part, n=1):
        full = by_last_part[nearest[0]]
        return f"did you mean {full if '.' in full else f'{group}.{full}'.lstrip('.')!r}?"
    if len(by_last_part) > 12:
        return "--help lists what there is"
    return f"choose from {', '.join(by_last_part)}"


def _options(parser: LightningArgumentParser) -> list[str]:
    return [name.lstrip("-") for action in parser._actions for name in action.option_strings]


def _parameters(class_path: str) -> set[str]:
    module, _, name = class_path.rpartition(".")
    ancestors = getattr(import_module(module), name).__mro__
    names = {name for ancestor in ancestors for name in signature(ancestor.__init__).parameters}
    return names - {"self", "args", "kwargs", "network", "params"}


def _classes() -> list[str]:
    optimizers = [name for name in dir(torch.optim) if name[0].isupper()]
    return [*models.__all__, *data.__all__, *callbacks.__all__, *optimizers]


def _readable(rules: list[str]) -> str:
    """Say types as a person would; null is left out, as mostly it is not the value's own.

    >>> _readable(["<class 'int'>", "typing.Literal['torch', 'keras']", "<class 'NoneType'>"])
    "int or one of 'torch', 'keras'"
    """
    text = " or ".join(rule for rule in dict.fromkeys(rules) if "NoneType" not in rule)
    text = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", text)
    return re.sub(r"typing\.Literal\[([^\]]*)\]", r"one of \1", text)
