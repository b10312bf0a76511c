"""jsonargparse's messages, which tell of every type that was tried, as lines for a person."""

import re
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from importlib import import_module
from inspect import signature

from lightning.pytorch import Callback
from lightning.pytorch.loggers import Logger
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from digitlab.classifier import Classifier
from digitlab.data import ImageDataModule

KINDS: dict[str, type] = {
    "model": Classifier,
    "data": ImageDataModule,
    "model.optimizer": Optimizer,
    "model.lr_scheduler": LRScheduler,
    "trainer.callbacks": Callback,
    "trainer.logger": Logger,
}
"""What the class that is an option's value must be."""


def explain(message: str, options: Iterable[str]) -> str:
    """Condense a message of jsonargparse into a line with value, rule and remedy.

    Args:
        message: What jsonargparse says, over many lines.
        options: The names that the parser knows, for the nearest one.
    """
    key = ".".join(re.findall(r'Parser key "([^"]+)"', message))
    for pattern, say in RULES:
        if match := re.search(pattern, message, re.DOTALL):
            return say(match, key, options)
    return " ".join(message.split())


def _unknown_option(match: re.Match[str], key: str, options: Iterable[str]) -> str:
    parts = match.groupdict()
    name = ".".join(filter(None, (parts.get("group"), parts["name"].lstrip("-"))))
    return f"there is no option {name!r}: {_nearest(name, options)}"


def _unknown_parameter(match: re.Match[str], key: str, options: Iterable[str]) -> str:
    module, _, name = match["owner"].rpartition(".")
    owner = getattr(import_module(module), name)
    if not isinstance(owner, type):  # but `typing.Union`: no class is named yet
        return f"{key} has {match['name']}, but no class: name it, by {key}.class_path"
    ancestors = owner.__mro__
    known = {
        name
        for ancestor in ancestors
        for name in signature(ancestor.__init__).parameters  # type: ignore[misc]  # of a class
    }
    known -= {"self", "args", "kwargs", "network", "params"}
    name = f"{key}.{match['name']}"
    return f"there is no option {name!r}: {_nearest(name, known)}"


def _unknown_class(match: re.Match[str], key: str, options: Iterable[str]) -> str:
    base, name = KINDS.get(key), match["name"].rstrip(".")
    if base is None:  # a class was one of the types that were tried, but is not what is meant
        return f"{key} is {name}: it must be {_rules(match.string)}"
    return f"{key}: {name!r} is no {base.__name__}: {_nearest(name, _subclasses(base))}"


def _unknown_attribute(match: re.Match[str], key: str, options: Iterable[str]) -> str:
    module, name = match["module"], match["name"]
    known = [name for name in dir(import_module(module)) if name[0].isupper()]
    return f"{key}: there is no class {name!r} in {module}: {_nearest(name, known)}"


def _not_importable(match: re.Match[str], key: str, options: Iterable[str]) -> str:
    return f"{key}: {match['name']} cannot be imported ({match['why']}): name a class that can be"


def _missing(match: re.Match[str], key: str, options: Iterable[str]) -> str:
    if key:
        return f"{key} needs {match['name']}: set --{key}.{match['name']}"
    example = "name a config, such as --config configs/digits/lenet5.yaml"
    return f"no {match['name']} is given: {example}, or set --model and --data"


def _wrong_value(match: re.Match[str], key: str, options: Iterable[str]) -> str:
    return f"{key} is {match['value']}: it must be {_rules(match.string)}"


def _ambiguous_class(match: re.Match[str], key: str, options: Iterable[str]) -> str:
    return f"{key}: there are several classes {match['name']}: give the path, {match['paths']}"


RULES: list[tuple[str, Callable[[re.Match[str], str, Iterable[str]], str]]] = [
    (r"Group '(?P<group>\S+)' does not accept option '(?P<name>\S+)'", _unknown_option),
    (r"[Uu]nrecognized arguments: (?P<name>\S+)", _unknown_option),
    # An optimizer's class path stands behind the option, a model's before it; the last one counts.
    (
        r"Option '(?P<name>\S+)' is not accepted.*Namespace\(class_path='(?P<owner>[\w.]+)'",
        _unknown_parameter,
    ),
    (
        r"class_path '(?P<owner>[\w.]+)':\s+Option '(?P<name>\S+)' is not accepted",
        _unknown_parameter,
    ),
    (r"Option '(?P<name>\S+)' is not accepted", _unknown_option),
    (r"Multiple subclasses with name (?P<name>\w+)\..*?: (?P<paths>[^\n]+)", _ambiguous_class),
    (r"dot import path string: (?P<name>\S+)", _unknown_class),
    (r"does not correspond to a subclass.*Given value: (?P<name>[^\n]+)", _unknown_class),
    (r"module '(?P<module>[\w.]+)' has no attribute '(?P<name>\w+)'", _unknown_attribute),
    (r"class_path '(?P<name>[\w.]+)':\s+(?P<why>No module [^\n]+)", _not_importable),
    (r"arguments are required: (?P<name>\w+)", _missing),
    (r"(?:Given value|Got value): (?P<value>[^\n]+)", _wrong_value),
]


def _nearest(name: str, known: Iterable[str]) -> str:
    # Compared by the last part, since what stands before it may be right or left out.
    group, _, last = name.rpartition(".")
    by_last_part = {option.rpartition(".")[2]: option for option in sorted(known)}
    if nearest := get_close_matches(last, by_last_part, n=1):
        full = by_last_part[nearest[0]]
        suggestion = full if "." in full or not group else f"{group}.{full}"
        return f"did you mean {suggestion!r}?"
    if len(by_last_part) > 12:
        return "--help lists what there is"
    return f"choose from {', '.join(by_last_part)}"


def _subclasses(base: type) -> set[str]:
    children: list[type] = base.__subclasses__()
    names = {child.__name__ for child in children}.union(*map(_subclasses, children))
    return {name for name in names if not name.startswith("_")}


def _rules(message: str) -> str:
    # Not those of types that are given by a path, which no plain value is meant to be.
    return _readable(re.findall(r"Expected an? (?!path|dot)(.+?)(?:\. Got.*)?$", message, re.M))


def _readable(rules: list[str]) -> str:
    """Say types as a person would; null is left out, as mostly it is not the value's own.

    >>> _readable(["<class 'int'>", "typing.Literal['torch', 'keras']", "<class 'NoneType'>"])
    "int or one of 'torch', 'keras'"
    """
    text = " or ".join(rule for rule in dict.fromkeys(rules) if "NoneType" not in rule)
    text = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", text)
    return re.sub(r"typing\.Literal\[([^\]]*)\]", r"one of \1", text)
