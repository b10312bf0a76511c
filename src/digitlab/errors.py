"""The errors that the command line turns into exit codes."""

from collections.abc import Iterator
from contextlib import contextmanager

from lightning.fabric.utilities.exceptions import MisconfigurationException


class InputError(ValueError):
    """Bad input: exit code 2. The message names the value, the rule and the remedy."""


class RunError(Exception):
    """Training failed after it had started: exit code 1. The message names the last checkpoint."""


@contextmanager
def reading_input() -> Iterator[None]:
    """Read and check a command's input in the `with` block.

    Raises:
        InputError: The input is bad, a file cannot be read, or an extra is not installed.
    """
    try:
        yield
    except InputError:
        raise
    except (ValueError, OSError, MisconfigurationException, ImportError) as error:
        raise InputError(str(error)) from error
