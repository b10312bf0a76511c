"""The classic networks on MNIST and Fashion-MNIST, as a laboratory.

Train from the command line (`digitlab fit --config …`), train the same in Python, or import parts::

    from digitlab import Run, fit
    from digitlab.data import MNISTDataModule
    from digitlab.models import LeNet5

This module imports nothing heavy, so that `digitlab --help` answers at once.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from digitlab.errors import InputError, RunError
    from digitlab.run import Run, fit

__version__ = "0.1.0"
__all__ = ["InputError", "Run", "RunError", "fit"]

_MODULES = {"InputError": "errors", "Run": "run", "RunError": "errors", "fit": "run"}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"digitlab.{_MODULES[name]}"), name)
