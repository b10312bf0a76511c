"""Which classes and functions a config may name: those that its settings are for, and no others.

jsonargparse takes any function as the `class_path` of an optimizer, and any object of any module as
the value of a callable, such as `lr_lambda: os._exit`. So the parsed settings are checked before
the first of them is called. To be resolved, a name's module is imported, which runs the module.
"""

import inspect
import os
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, is_dataclass
from functools import partial
from operator import attrgetter
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from jsonargparse import ArgumentParser, Namespace
from jsonargparse._util import import_object  # private, but it decides which object is called
from lightning.pytorch import Callback
from lightning.pytorch.loggers import Logger
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from digitlab.errors import InputError, describe_error
from digitlab.files import load_yaml

BASES = (Optimizer, LRScheduler, nn.Module, Callback, Logger)
"""A setting whose type names no class takes classes below these."""

MODULES = (
    *("torch.nn.functional", "torch.nn.init", "torchvision.transforms"),
    *("digitlab.classifier", "digitlab.data", "digitlab.models", "digitlab.optimizers"),
)
"""Functions and, in settings whose type names no class, classes of these modules are taken, too."""


_NO_BASES = ("builtins", "collections.abc", "types", "typing")


def check_allowed(parser: ArgumentParser, config: Namespace) -> None:
    """Check all classes and functions that parsed settings name, before any of them is called.

    A class must be below the class that its setting's type names. A function must be defined in one
    of `MODULES`, or in the module of the config's own model or data class.
    """
    named = [import_object(config[part]["class_path"]) for part in ("model", "data")]
    own = {it.__module__ for it in named}  # jsonargparse has compared their classes with the types
    modules = *MODULES, *sorted(it for it in own if not it.startswith("digitlab."))
    _Check(modules).check_group(config, actions_of(parser), "", "")


def find_unimported(settings: Any) -> str | None:
    """Find a name in settings, as YAML has them, whose module is not imported yet.

    >>> find_unimported({"a": [1, "torch.nn.ReLU"], "b": "{class_path: mine.Net}"})
    'mine.Net'
    """
    if isinstance(settings, dict | list):
        items = settings.values() if isinstance(settings, dict) else settings
        return next(filter(None, map(find_unimported, items)), None)
    if not isinstance(settings, str):
        return None
    if os.path.isfile(os.path.expanduser(settings)):  # jsonargparse reads settings from it
        return settings
    if all(map(str.isidentifier, settings.split("."))):
        module, _, name = settings.rpartition(".")
        unknown = module and name not in getattr(sys.modules.get(module), "__dict__", ())
        return settings if unknown else None
    with suppress(ValueError):
        if (inner := load_yaml(settings)) != settings:  # jsonargparse reads YAML in a text, too
            return find_unimported(inner)
    return None


@dataclass
class _Check:
    """A walk over settings."""

    modules: tuple[str, ...]  # where functions may be defined

    def check_group(
        self, given: Namespace, actions: Mapping[str, Any], group: str, shown: str
    ) -> None:
        """Check a group; `group` precedes its names in `actions`, and `shown` in messages."""
        for name, value in vars(given).items():
            action = actions.get(group + name)
            hint = getattr(action, "_typehint", None)  # a group's action has none
            if hint is None and isinstance(value, Namespace) and "class_path" not in value:
                self.check_group(value, actions, f"{group}{name}.", f"{shown}{name}.")
            elif action is None or not _is_default(value, action.default):
                if value is None and not _takes_null(hint):  # jsonargparse takes it for any type
                    raise InputError(f"{shown}{name} is None: it must be {_describe(hint)}")
                self._value(f"{shown}{name}", value, hint or Any)

    def _value(self, key: str, value: Any, hint: Any) -> None:
        if isinstance(value, Namespace | dict):
            plain = next(filter(is_dataclass, _classes(hint)), None)
            if "class_path" in value:
                self._class_path(key, value, hint)
            elif plain and isinstance(value, Namespace):  # its arguments, without its name
                self.check_group(value, actions_of(parser_of(plain)), "", f"{key}.")
            else:
                items = vars(value) if isinstance(value, Namespace) else value
                for name, item in items.items():
                    self._value(f"{key}.{name}", item, hint)
        elif isinstance(value, list | tuple | set):
            for item in value:
                self._value(key, item, hint)
        # jsonargparse's own paths are callable.
        elif not isinstance(value, os.PathLike) and callable(value):
            named = value if hasattr(value, "__qualname__") else type(value)
            self._require(value, key, f"{named.__module__}.{named.__qualname__}", hint)

    def _class_path(self, key: str, spec: Namespace | dict[str, Any], hint: Any) -> None:
        path = spec["class_path"]
        try:
            found = import_object(path)
        except Exception as error:  # its module's own, too
            why = describe_error(error)
            raise InputError(f"{key}: {path} cannot be imported: {why}") from error
        self._require(found, key, path, hint)
        arguments = spec.get("init_args")
        if isinstance(arguments, Namespace):
            self.check_group(arguments, actions_of(parser_of(found)), "", f"{key}.")
        else:  # not parsed
            self._value(key, arguments, Any)
        self._value(key, spec.get("dict_kwargs"), Any)

    def _is_allowed(self, value: Any, hint: Any) -> bool:
        if isinstance(value, partial):
            value = value.func
        if isinstance(value, type):
            # Not `issubclass`: anything that can be called is below `collections.abc.Callable`.
            if any(base in value.__mro__ for base in (*_classes(hint), *BASES)):
                return True
            return self._is_in_modules(value.__module__)
        if inspect.isbuiltin(value):  # `torch.nn.functional.conv2d`, say, which torch defines in C
            return any(value is it for it in vars(nn.functional).values())
        if not inspect.isfunction(value):
            return isinstance(value, nn.Module)
        # What else is in these modules, such as what they import, is not theirs.
        if not self._is_in_modules(value.__module__):
            return False
        module = sys.modules[value.__module__]
        for name in (value.__name__, value.__qualname__):
            with suppress(AttributeError):  # a function within a function
                if attrgetter(name)(module) is value:
                    return True
        return False

    def _is_in_modules(self, name: str) -> bool:
        return any(name == module or name.startswith(f"{module}.") for module in self.modules)

    def _require(self, value: Any, key: str, path: str, hint: Any) -> None:
        if self._is_allowed(value, hint):
            return
        classes = sorted(base.__name__ for base in (_classes(hint) or BASES))
        raise InputError(
            f"{key} is {path}: it must be a subclass of {' or '.join(classes)}, or a function "
            f"defined in {', '.join(self.modules)}; define your own in your model's module"
        )


def _classes(hint: Any) -> set[type]:
    """Find the classes that a type names; those that a callable returns, but not its arguments.

    >>> from collections.abc import Callable
    >>> sorted(it.__name__ for it in _classes(Callable[[Namespace], Optimizer] | list[Callback]))
    ['Callback', 'Optimizer']
    """
    origin, arguments = get_origin(hint) or hint, get_args(hint)
    if getattr(origin, "__module__", "").startswith("collections.abc"):
        arguments = arguments[-1:]
    found = {origin} if isinstance(origin, type) else set()
    found = found.union(*map(_classes, arguments))
    return {it for it in found if it.__module__ not in _NO_BASES}


def _takes_null(hint: Any) -> bool:
    origin = get_origin(hint) or hint
    if origin in (Union, UnionType):
        return any(map(_takes_null, get_args(hint)))
    return origin in (Any, NoneType) or not (origin is Literal or isinstance(origin, type))


def _describe(hint: Any) -> str:
    """Describe a type that takes no null."""
    origin, arguments = get_origin(hint) or hint, get_args(hint)
    if origin in (Literal, Union, UnionType):
        return " or ".join(str(it) if origin is Literal else _describe(it) for it in arguments)
    return "a class or a function" if origin is Callable else f"a {origin.__name__}"


def _is_default(value: Any, default: Any) -> bool:
    """Return whether a value is an argument's default, which the code names, not the config."""
    if callable(value) and isinstance(default, str):
        with suppress(ImportError, AttributeError, ValueError):
            default = import_object(default)
    return value is default


def parser_of(found: Any) -> ArgumentParser:
    """Make a parser of the arguments of a class or a function."""
    parser = ArgumentParser(exit_on_error=False)
    is_class = isinstance(found, type)
    add = parser.add_class_arguments if is_class else parser.add_function_arguments
    add(found, fail_untyped=False)
    return parser


def actions_of(parser: ArgumentParser) -> dict[str, Any]:
    """Return a parser's arguments by their names, such as `trainer.max_epochs`."""
    return {action.dest: action for action in parser._actions}
