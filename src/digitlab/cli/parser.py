"""The command line parser: Lightning's, with configs before flags and errors of one line."""

import os
import re
import sys
from argparse import Action, ArgumentError
from argparse import ArgumentParser as PlainParser
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from pydoc import locate
from typing import Any

import numpy as np
import torch
import yaml
from jsonargparse import DefaultHelpFormatter, Namespace, get_loader, set_dumper, set_loader
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

# jsonargparse finds a class by its bare name only where its module was imported.
import digitlab.callbacks
import digitlab.models  # noqa: F401
from digitlab.callbacks import ProgressBar
from digitlab.classifier import Classifier
from digitlab.cli.allowed import actions_of, check_allowed, parser_of
from digitlab.cli.configs import find_config
from digitlab.cli.messages import explain, option_names
from digitlab.data import ImageDataModule
from digitlab.errors import InputError, describe_error
from digitlab.execution import NullProfiler
from digitlab.files import expand_settings, load_yaml
from digitlab.run_folder import read_settings


def _load_value(text: str) -> Any:
    """Read a config or an option's value as jsonargparse does, but refuse a key given twice."""
    if text.count(":") > 1:
        load_yaml(text)
    return get_loader("yaml")(text)


class _Dumper(yaml.SafeDumper):  # type: ignore[misc]  # PyYAML has no types
    """Writes a text that is a member of an enumeration, such as a callback's default, as text."""


_Dumper.add_multi_representer(str, lambda dumper, text: dumper.represent_str(str.__str__(text)))
_dump = partial(yaml.dump, Dumper=_Dumper, default_flow_style=False, allow_unicode=True)
set_loader("yaml of runs", _load_value, (yaml.YAMLError, ValueError))
set_dumper("yaml of runs", partial(_dump, sort_keys=False))


class _Help(DefaultHelpFormatter):
    """Shows the names that Sphinx's markup in a help text refers to, without the markup."""

    def _get_help_string(self, action: Action) -> str:
        text = re.sub(
            r":[\w:]+:`[~.]*([^`<]*?)(?: *<[^>]*>)?`", r"\1", super()._get_help_string(action)
        )
        text = re.sub(r"`([^`<]+) *<[^>]*>`_+", r"\1", text)  # a link
        return text.replace("``", "")


class _Parser(LightningArgumentParser):
    """A parser with such help; jsonargparse makes those of single classes of the same type."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"formatter_class": _Help, **kwargs})


class RunCLI(LightningCLI):
    """A command line, parsed into a model, a data module and the settings of a trainer.

    Flags win over configs wherever they stand, a later config over an earlier one, and both over
    `base`, a config as text. The trainer is made by `instantiate_trainer`, once there is a folder
    to write to.
    """

    def __init__(
        self, command: str, arguments: list[str], base: str = "{}", help: str = ""
    ) -> None:
        self.base = base
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
                "devices": 1,  # these networks are too small to gain from several
                "enable_model_summary": False,  # `PrintEpoch` also shows the tensors' shapes
                "num_sanity_val_steps": 0,
            },
            parser_class=_Parser,
            parser_kwargs={
                "prog": f"digitlab {command}",
                "description": f"{help}. --model.help CLASS shows a class's options.",
                "exit_on_error": False,
                "parser_mode": "yaml of runs",
                "allow_abbrev": False,
            },
        )

    def add_default_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the seed: a number, whereas Lightning's own option takes `true` for 0."""
        text = "Recorded in config.yaml: the configs that the settings come from."
        parser.add_argument("--from_configs", type=list[str], default=[], help=text)
        text = "Recorded in config.yaml: the names of the classes, in the order of their labels."
        parser.add_argument("--class_names", type=list[str], default=[], help=text)
        parser.add_argument(
            "--seed_everything",
            type=int,
            default=self.seed_everything_default,
            help="Seed of initial weights, order of images and dropout.",
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        given, flags = split_off(args, "--config", "-c")
        if any(word.startswith("--from_configs") for word in flags):
            raise ValueError("from_configs is recorded by a run: name configs by --config")
        if any(word.startswith("--class_names") for word in flags):
            raise ValueError("class_names is recorded by a run: the data has its names")
        found = [find_config(name) for name in given]
        self.config_files = [config.path for config in found]
        read = [_read_config(path) for path in self.config_files]
        texts = [self.base, *(text for text, _ in read)]
        configs = [word for config in texts for word in ("-c", config)]
        try:
            self.config = parser.parse_args(configs + flags)
        except ArgumentError as error:
            cause = _root(error)
            # jsonargparse passes a bug's bare key on, but its own such errors are sentences.
            if isinstance(cause, KeyError) and str(cause) == repr(cause.args[0]):
                raise ValueError(describe_error(cause)) from error
            message = explain(str(error), option_names(parser))
            try:
                parser.parse_args(configs[:2])
            except ArgumentError:
                if self.base != "{}":
                    message = f"the run's config.yaml is damaged: {message}"
            raise ValueError(message) from error
        origins = load_yaml(self.base).get("from_configs") or []
        for config, (_, settings) in zip(found, read, strict=True):
            origins += settings.get("from_configs") or [str(config)]
        self.config.from_configs = origins
        expand_settings(self.config)
        self.config.trainer.default_root_dir = self.config.trainer.default_root_dir or "runs"
        check_allowed(parser, self.config)
        if not 0 <= (seed := self.config.seed_everything) < 2**32:
            raise ValueError(f"seed_everything is {seed}: it must be from 0 to {2**32 - 1}")

    def instantiate_classes(self) -> None:
        try:
            self._follow_data()
            self.config_init = self.parser.instantiate(self.config)
        except ValueError as error:
            raise ValueError(describe_error(_root(error))) from error
        self.model: Classifier = self.config_init.model
        self.datamodule: ImageDataModule = self.config_init.data
        self._record_classes()

    def _record_classes(self) -> None:
        """Record the classes of the data; those of a run must be the same, in the same order."""
        names = list(map(str, self.datamodule.class_names))
        recorded = load_yaml(self.base).get("class_names") or names
        if names != recorded:
            raise ValueError(
                f"{self.datamodule.name} has the classes {', '.join(names)}, but the run was "
                f"trained on {', '.join(recorded)}: restore them, or train a new run"
            )
        self.config.class_names = names

    def _follow_data(self) -> None:
        """Give a network the number of classes in the data, unless the settings give another."""
        model = self.config.model
        kind: Any = locate(model.class_path)
        given = (model.get("init_args") or {}).get("num_classes")
        if given is not None and given == actions_of(parser_of(kind))["num_classes"].default:
            data = Namespace(data=self.config.data)  # type: ignore[no-untyped-call]
            model.init_args.num_classes = len(self.parser.instantiate(data).data.class_names)

    def before_instantiate_classes(self) -> None:
        """Set what even initial weights depend on; runs of version 0.1 leave threads to torch."""
        if threads := self.config.get("threads"):
            torch.set_num_threads(threads)
        tf32 = bool(self.config.get("allow_tf32"))
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = tf32

    def instantiate_trainer(self, *others: Callback, **kwargs: Any) -> Trainer:
        """Make the trainer, with callbacks added to the config's and settings that win over it."""
        accelerator = kwargs.get("accelerator", self.config.trainer.accelerator)
        found = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
        if not {"gpu": any(found.values()), **found}.get(accelerator, True):
            raise ValueError(
                f"trainer.accelerator is {accelerator}: torch finds no such GPU on this machine; "
                "leave the config gpu out, or set --trainer.accelerator auto"
            )
        bar = [] if self.config.trainer.enable_progress_bar is False else [ProgressBar()]
        self.trainer_defaults["callbacks"] = [*bar, *others]
        if self.config.trainer.profiler is None:
            kwargs["profiler"] = NullProfiler()
        try:
            return super().instantiate_trainer(**kwargs)
        except OverflowError as error:  # `limit_train_batches` of 400 digits, say
            raise ValueError(f"a number in trainer is too large ({error}): give less") from error
        except (RuntimeError, TypeError, ImportError) as error:  # how it refuses some settings
            raise ValueError(str(error)) from error

    @property
    def origin(self) -> str:
        """The configs that the settings come from, for a reader."""
        return ", ".join(self.config.from_configs) or "none"

    def dump(self) -> str:
        """Write all settings as YAML."""
        text: str = self.parser.dump(self.config, skip_unset=False)
        if how := self.datamodule.verification:
            text = re.sub(r"^data:", f"data:  # {how}", text, count=1, flags=re.MULTILINE)
        # A default that is an instance, such as a device, is dumped as a sentence; left out, the
        # argument takes that default again.
        return re.sub(r"^ *\w+: Unable to serialize instance.*\n", "", text, flags=re.MULTILINE)


def _root(error: BaseException) -> BaseException:
    """Find the first of a chain: jsonargparse wraps an error for every type that it tried."""
    while error.__cause__:
        error = error.__cause__
    return error


def _read_config(path: Path) -> tuple[str, dict[str, Any]]:
    """Check a config for errors that jsonargparse reports without the file's name.

    The result is its path, relative to which it can name other files, or a pipe's text; and its
    settings.
    """
    content = path.read_bytes()  # once: a pipe is empty then
    settings = read_settings(path, content)
    if "config" in settings:
        raise ValueError(f"{path} sets config: name further configs by --config")
    if not isinstance(trainer := settings.get("trainer", {}), dict):
        raise ValueError(f"{path} sets trainer to {trainer}: leave it out, or give it settings")
    return str(path) if path.is_file() else content.decode("utf-8-sig"), settings


def split_off(arguments: list[str], *names: str) -> tuple[list[str], list[str]]:
    """Separate an option's values from the other words of a command line.

    >>> split_off(["--a", "1", "--config", "x.yaml", "--config=y.yaml"], "--config")
    (['x.yaml', 'y.yaml'], ['--a', '1'])
    """
    parser = PlainParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument(*names, dest="values", action="append", default=[])
    try:
        known, others = parser.parse_known_args(arguments)
    except ArgumentError as error:
        raise ValueError(str(error)) from error
    return known.values, others


def flags_of(settings: Mapping[str, Any], group: str = "") -> Iterator[str]:
    """Write settings as a command line.

    >>> [*flags_of({"seed": 1, "trainer": {"max_epochs": 2}, "model.hidden_features": (8, 4)})]
    ['--seed_everything=1', '--trainer.max_epochs=2', '--model.hidden_features=[8, 4]']
    """
    for name, value in settings.items():
        key = f"{group}{name}" if name != "seed" else "seed_everything"
        if isinstance(value, Mapping) and value and "class_path" not in value:
            yield from flags_of(value, f"{key}.")
            continue
        text = _plain(value)
        if not isinstance(text, str):
            try:
                text = yaml.safe_dump(text, default_flow_style=True, width=sys.maxsize)
            except yaml.YAMLError as error:
                what = repr(value)
                if "\n" in what:  # a network's many lines
                    what = f"an object of {type(value).__name__}"
                rule = "give numbers, text, classes (not objects), or lists and dicts of them"
                raise InputError(f"{key} is {what}: {rule}") from error
            text = text.removesuffix("...\n").rstrip()  # which ends a YAML document
        yield f"--{key}={text}"


def _plain(value: Any) -> Any:
    """Name classes and paths, and make plain values of tuples and NumPy's numbers."""
    if isinstance(value, type):
        return f"{value.__module__}.{value.__qualname__}"
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        return value.item()
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def check_settings(cli: RunCLI) -> None:
    """Check rules that the options' types do not express."""
    for name in ("max_epochs", "max_steps", "limit_train_batches"):
        if cli.config.trainer[name] == 0:
            raise ValueError(f"trainer.{name} is 0: leave at least one step to train")
    if cli.config.trainer.check_val_every_n_epoch == 0:
        raise ValueError("trainer.check_val_every_n_epoch is 0: it must be at least 1, or null")
    if len(os.fsencode(cli.config.name)) > 200:  # the data set's name is added
        raise ValueError(
            f"name is {cli.config.name}: it must have at most 200 characters, as a folder's name "
            "has at most 255"
        )
    if cli.config.run:
        raise ValueError(
            f"run is {cli.config.run}: name the run to resume on the command line of digitlab fit, "
            "not in a config"
        )


def check_end(cli: RunCLI) -> None:
    """Refuse a training without an end: Lightning would stop it after 1000 epochs."""
    trainer = cli.config.trainer
    limits = (trainer.max_epochs, trainer.max_time, trainer.fast_dev_run or None)
    if limits == (None, None, None) and trainer.max_steps == -1:
        raise ValueError(
            "the run has no end: add --trainer.max_epochs 5, or max_steps or max_time; with "
            "--trainer.max_epochs=-1 it trains until it is stopped"
        )


def check_together(model: Classifier, data: ImageDataModule) -> None:
    """Check that model, optimizer and data fit together."""
    try:
        model.configure_optimizers()  # nothing has checked their settings yet
    except TypeError as error:
        raise ValueError(f"optimizer or lr_scheduler cannot be made: {error}") from error
    classes, side = len(data.class_names), data.image_size
    model.network.eval()  # without dropout, which would draw random numbers
    try:
        with torch.no_grad():
            logits = model(torch.zeros(1, 1, side, side))
    except RuntimeError as error:
        remedy = "" if side == 28 else "; most networks here need 28, so set --data.size 28"
        raise ValueError(
            f"{type(model).__name__} cannot take {data.name}'s images, (N, 1, {side}, {side}): "
            f"{error}{remedy}"
        ) from error
    model.network.train()
    if logits.shape != (1, classes):
        raise ValueError(
            f"{type(model).__name__} gives logits {tuple(logits.shape)} for an image: {data.name} "
            f"has {classes} classes, so give (1, {classes}), by --model.num_classes {classes}"
        )
