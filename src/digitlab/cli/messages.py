"""jsonargparse's errors, which list every type that was tried, condensed into one line."""

import re
from argparse import ArgumentError
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from inspect import isroutine, signature
from pydoc import locate
from typing import Any

from jsonargparse import ArgumentParser, Namespace
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.loggers import Logger
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from digitlab.classifier import Classifier
from digitlab.cli.allowed import actions_of
from digitlab.cli.options import ShortHelp
from digitlab.data import ImageDataModule
from digitlab.errors import InputError
from digitlab.files import expand_settings

BASES: dict[str, type] = {
    "model": Classifier,
    "data": ImageDataModule,
    "model.optimizer": Optimizer,
    "model.lr_scheduler": LRScheduler,
    "trainer.callbacks": Callback,
    "trainer.logger": Logger,
}
"""The base class of an option whose value is a class."""


def explain(message: str, options: Iterable[str]) -> str:
    """Condense a message of jsonargparse into a line, which proposes the nearest of `options`."""
    # jsonargparse tries the base class, too, which takes no options.
    base = (
        r"- Problem with given class_path 'lightning\.Callback':\s+Option '\w+' is not accepted\s"
    )
    message = re.sub(base, "", message)
    key = ""
    for name in dict.fromkeys(re.findall(r'Parser key "([^"]+)"', message)):
        key = name if not key or name.startswith(f"{key}.") else f"{key}.{name}"
    for pattern, describe in PATTERNS:
        if match := re.search(pattern, message, re.DOTALL):
            return describe(match, key, options)
    lines = [line.strip(" -") for line in message.splitlines() if "Parser key" not in line]
    return f"{key}: {lines[0]}" if key and lines else " ".join(message.split())


def word_parser(name: str, help: str) -> ArgumentParser:
    """Make the parser of a command of positional words, whose whole help is short."""
    settings: dict[str, Any] = {"formatter_class": ShortHelp, "exit_on_error": False}
    return ArgumentParser(prog=f"digitlab {name}", description=help, **settings)


def option_names(parser: ArgumentParser) -> list[str]:
    """List the names of a parser's options, without dashes."""
    actions = actions_of(parser).values()
    return [name.lstrip("-") for action in actions for name in action.option_strings]


def parse_words(parser: ArgumentParser, arguments: list[str], words: str) -> Namespace:
    """Parse a command line of positional words, such as `rows`, and options after them."""
    try:
        given: Namespace = expand_settings(parser.parse_args(arguments))
        return given
    except ArgumentError as error:
        if found := re.search(r"[Uu]nrecognized arguments: ([^-\s]\S*)", str(error)):
            raise InputError(f"{found[1]} comes after an option: name the {words} first") from error
        raise InputError(explain(str(error), option_names(parser))) from error


def _unknown_option(match: re.Match[str], key: str, options: Iterable[str]) -> str:
    name = ".".join(filter(None, (match.groupdict().get("group"), match["name"].lstrip("-"))))
    return f"there is no option {name!r}: {_nearest(name, options)}"


def _unknown_parameter(match: re.Match[str], key: str, options: Iterable[str]) -> str:
    owner = locate(match["owner"])
    if isroutine(owner):
        return f"{key} is {match['owner']}, which takes no {match['name']}: name a class"
    if match["name"] == "class_path":
        return f"{key} has settings beside class_path: put them into init_args"
    if not isinstance(owner, type):  # but `typing.Union`: the config names no class
        return f"{key} has {match['name']}, but no class: name it, by {key}.class_path"
    parameters = {
        name
        for ancestor in owner.__mro__
        for name in signature(ancestor.__init__).parameters  # type: ignore[misc]  # of a class
    }
    parameters -= {"self", "args", "kwargs", "network", "params"}
    name = f"{key}.{match['name']}"
    return f"there is no option {name!r}: {_nearest(name, parameters)}"


def _unknown_class(match: re.Match[str], key: str, options: Iterable[str]) -> str:
    base, name = BASES.get(key), match["name"].rstrip(".")
    if key == "model" and (way := _as_network(name)):
        return way
    if "module '__main__'" in match[0] or name.startswith("__main__."):
        script = "run that script, python SCRIPT fit ..., instead of digitlab"
        cell = "if a notebook does, run its cell first"
        return f"{key}: there is no {name!r} in __main__: if a script defines it, {script}; {cell}"
    if base is None:  # a class is one of several types that the value might have had
        return f"{key} is {name}: it must be {_rules(match.string)}"
    return f"{key}: there is no {base.__name__} {name!r}: {_nearest(name, _subclasses(base))}"


def _as_network(name: str) -> str | None:
    """Say how a module that is not a `Classifier` can be trained, if a name is one's."""
    found = locate(name) if "." in name else None
    if not isinstance(found, type) or not issubclass(found, nn.Module):
        return None
    if issubclass(found, LightningModule):
        remedy = "train it with a Trainer in Python, or make it a subclass of Classifier"
        return f"model is {name}, a LightningModule but not a Classifier: {remedy}"
    remedy = f"let a Classifier train it, --model Classifier --model.network {name}"
    return f"model is {name}, an nn.Module but not a Classifier: {remedy}"


def _missing(match: re.Match[str], key: str, options: Iterable[str]) -> str:
    if key:
        return f"{key} needs {match['name']}: set --{key}.{match['name']}"
    example = "name a config, such as --config digits/lenet5"
    return f"no {match['name']} is given: {example}, or set --model and --data"


def _wrong_value(match: re.Match[str], key: str, options: Iterable[str]) -> str:
    rules = _rules(match.string)
    if not rules and key in BASES:
        rules = f"the name of a subclass of {BASES[key].__name__}"
    return f"{key} is {match['value']}: {f'it must be {rules}' if rules else 'give another value'}"


PATTERNS: list[tuple[str, Callable[[re.Match[str], str, Iterable[str]], str]]] = [
    (r"Group '(?P<group>\S+)' does not accept option '(?P<name>\S+)'", _unknown_option),
    (r"[Uu]nrecognized arguments: (?P<name>[^\s=]+)", _unknown_option),
    # An optimizer's class path follows the option, a model's precedes it; the last one counts.
    (
        r"Option '(?P<name>\S+)' is not accepted.*Namespace\(class_path='(?P<owner>[\w.]+)'",
        _unknown_parameter,
    ),
    (
        r"class_path '(?P<owner>[\w.]+)':\s+Option '(?P<name>\S+)' is not accepted",
        _unknown_parameter,
    ),
    (r"Option '(?P<name>\S+)' is not accepted", _unknown_option),
    (r"dot import path string: (?P<name>\S+)", _unknown_class),
    (r"does not correspond to a subclass.*Given value: (?P<name>[^\n]+)", _unknown_class),
    (r"module '[\w.]+' has no attribute '(?P<name>\w+)'", _unknown_class),
    (
        r"(?P<line>Multiple subclasses with[^\n]+|No module named[^\n]+)",
        lambda match, key, _: f"{key}: {match['line']}",
    ),
    (r"arguments are required: (?P<name>\w+)", _missing),
    (
        r"Unable to load config '(?P<path>[^\n]+)'\s+- (?P<line>not valid YAML[^\n]+)",
        lambda match, *_: f"{match['path']} is {match['line']}",
    ),
    (r"(?:Given value|Got value): (?P<value>[^\n]+)", _wrong_value),
    (r"Not of type \w+: (?P<value>[^\n]+) does not conform to", _wrong_value),
    (r"(?:invalid literal for int.+|could not convert.+): '(?P<value>[^\n]*)'", _wrong_value),
]


_ELSEWHERE = {
    "lr": "model.optimizer.lr",
    "learning_rate": "model.optimizer.lr",
    "momentum": "model.optimizer.momentum",
    "weight_decay": "model.optimizer.weight_decay",
    "epochs": "trainer.max_epochs",
}
"""Options of a training by the names that other programs have for them."""


def _nearest(name: str, known: Iterable[str]) -> str:
    # Compared by the last part: the groups before it may be right, or left out.
    group, _, last = name.rpartition(".")
    by_last_part = {option.rpartition(".")[2]: option for option in sorted(known)}
    if last in _ELSEWHERE and {"model", "optimizer"} & by_last_part.keys():
        return f"did you mean {_ELSEWHERE[last]!r}?"
    if nearest := get_close_matches(last, by_last_part, n=1):
        full = by_last_part[nearest[0]]
        suggestion = full if "." in full or not group else f"{group}.{full}"
        return f"did you mean {suggestion!r}?"
    if not by_last_part:
        return "give a class with its module, as in package.module.Class"
    if len(by_last_part) > 12:
        return "--help lists them all"
    return f"choose from {', '.join(by_last_part)}"


def _subclasses(base: type) -> set[str]:
    children: list[type] = base.__subclasses__()
    names = {child.__name__ for child in children}.union(*map(_subclasses, children))
    return {name for name in names if not name.startswith("_")}


def _rules(message: str) -> str:
    r"""List the types that a value may have, without null and without types given by a class path.

    >>> _rules("- Expected a <class 'int'>\n- Expected a typing.Literal['torch', 'keras']")
    "int or one of 'torch', 'keras'"
    >>> _rules("- Not of type PositiveInt: does not conform to restriction v>0")
    '>0'
    """
    stems = r"Expected an? (?!path|dot)|restriction v|expression |literal for |string to "
    rules = re.findall(rf"(?:{stems})(.+?)(?:\. Got.*|\(\).*|: .*)?$", message, re.MULTILINE)
    text = " or ".join(rule for rule in dict.fromkeys(rules) if "NoneType" not in rule)
    text = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", text)
    text = re.sub(r"^\^", "of the form ^", text).replace(" and v", " and ")
    return re.sub(r"typing\.Literal\[([^\]]*)\]", r"one of \1", text)
