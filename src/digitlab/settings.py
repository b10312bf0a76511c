"""Settings compared with the signature of their class: one rule for Python and for configs."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from inspect import Parameter, signature
from os import PathLike
from types import NoneType, UnionType
from typing import (
    Any,
    Literal,
    Self,
    SupportsFloat,
    SupportsIndex,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

import numpy as np

_PLAIN: dict[Any, tuple[str, tuple[type, ...]]] = {
    int: ("a whole number", (SupportsIndex,)),
    float: ("a number", (SupportsFloat,)),
    bool: ("true or false", (bool, np.bool_)),
    str: ("text", (str, PathLike)),
    NoneType: ("null", (NoneType,)),
}


class CheckedSettings:
    """Base of classes whose arguments are checked before their `__init__` uses them."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Check the arguments; pickle gives none."""
        names = list(signature(cls.__init__).parameters)[1:]
        check_types(cls, {**dict(zip(names, args, strict=False)), **kwargs})
        return super().__new__(cls)


def check_types(owner: type, settings: Mapping[str, Any]) -> None:
    """Refuse values that are not of the types in the signature of a class.

    These are checked: None, choices, numbers, text, callables, and lists of them. Other types are
    left to the class, and so are names that its signature lacks.

    Raises:
        ValueError: A value breaks a rule; the message names the setting, the value and the rule.

    Examples:
        >>> class Net:
        ...     def __init__(self, width: int = 8, mode: Literal["a", "b"] | None = None): ...
        >>> check_types(Net, {"width": 3, "mode": None})
        >>> check_types(Net, {"mode": "c"})
        Traceback (most recent call last):
        ValueError: mode is 'c': it must be a or b, or null
    """
    for name, annotation, default in parameters(owner):
        value = settings.get(name, default)
        if value is not default:
            check_type(name, value, annotation)


def check_type(name: str, value: Any, annotation: Any) -> None:
    """Refuse a value that is not of a type.

    Raises:
        ValueError: The message names the setting, the value and the rule.
    """
    rule, allows = _rule(annotation)
    if not allows(value):
        raise ValueError(f"{name} is {value!r}: it must be {rule}")


def parameters(owner: type) -> Iterator[tuple[str, Any, Any]]:
    """Yield names, types and defaults, also of the base classes that `**kwargs` are passed to."""
    seen = set()
    for base in owner.__mro__:
        if "__init__" not in vars(base):
            continue
        parameters = signature(base.__init__).parameters.values()  # type: ignore[misc]
        try:
            types = get_type_hints(base.__init__)  # type: ignore[misc]
        except (NameError, TypeError):  # names that were imported for type checkers only
            types = {}
        for it in parameters:
            if it.annotation is not Parameter.empty and it.name not in seen:
                yield it.name, types.get(it.name, it.annotation), it.default
            seen.add(it.name)
        if not any(it.kind is Parameter.VAR_KEYWORD for it in parameters):
            return


def _rule(annotation: Any) -> tuple[str, Callable[[Any], bool]]:
    """Describe a type, and make its check."""
    origin, args = get_origin(annotation), get_args(annotation)
    if annotation in _PLAIN:
        words, types = _PLAIN[annotation]
        return words, lambda value: isinstance(value, types)
    if origin is Literal:
        *first, last = map(str, args)
        words = f"{', '.join(first)} or {last}" if first else last
        return words, lambda value: isinstance(value, str | int) and value in args
    if origin in (Union, UnionType):
        rules = [_rule(one) for one in args if one is not NoneType]
        words, null = " or ".join(rule for rule, _ in rules), NoneType in args
        return (
            f"{words}{', or null' * null}",
            lambda value: (null and value is None) or any(allows(value) for _, allows in rules),
        )
    if origin is Callable:
        return "a class or a function", callable
    if args and origin in (tuple, list, Sequence):
        rule, allows = _rule(args[0])
        length = len(args) if origin is tuple and args[-1] is not Ellipsis else 0
        return (
            f"a list{f' of {length}' if length else ''}, each value {rule}",
            lambda values: (
                isinstance(values, Collection)
                and not isinstance(values, str)
                and len(values) == (length or len(values))
                and all(map(allows, values))
            ),
        )
    kind = origin or annotation
    takes_null = annotation is Any or not isinstance(kind, type)
    return f"a {getattr(kind, '__name__', kind)}", lambda value: value is not None or takes_null


def check_at_least(least: int, **values: float | None) -> None:
    """Refuse smaller values and NaN, by their names; None is no value."""
    for name, value in values.items():
        if value is not None and not value >= least:
            raise ValueError(f"{name} is {value}: it must be at least {least}")
