"""Pairs of PyTorch modules and Keras models with the verdict that `parity.check` must give.

Each module of `MODULES` has `TOPICS`: by title, a list of pairs. `python -m benchmarks.pairs`
checks them all.
"""

from functools import cache
from importlib import import_module
from typing import Any

MODULES = (
    "convolutions",
    "layers",
    "recurrent",
    "attention",
    "graphs",
    "features",
    "users",
    "subtle",
    "inputs",
)


@cache
def topics() -> dict[str, list[Any]]:
    """Return the pairs by topic."""
    modules = [import_module(f"benchmarks.pairs.{name}") for name in MODULES]
    return {title: list(pairs) for module in modules for title, pairs in module.TOPICS.items()}
