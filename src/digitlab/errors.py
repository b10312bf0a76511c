"""The errors that the command line turns into exit codes, and their messages."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from lightning.fabric.utilities.exceptions import MisconfigurationException


class InputError(ValueError):
    """Bad input: exit code 2. The message names the value, the rule and the remedy."""


class RunError(Exception):
    """Training failed after it had started: exit code 1. The message names the last checkpoint."""


_ROOM = "make room there, or give another folder"
_RIGHTS = "give a folder in which you may read and write"
_LOCKS = "the file system has no locks, so give a folder on another one"
_REMEDIES = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), _ROOM),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), _RIGHTS),
    **dict.fromkeys((errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP), _LOCKS),
    errno.ENAMETOOLONG: "give a shorter name",
}


def describe_error(error: BaseException) -> str:
    """Describe an error, one of the operating system with a remedy."""
    remedy = _REMEDIES.get(error.errno or 0) if isinstance(error, OSError) else None
    return f"{error}; {remedy}" if remedy else str(error)


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
        raise InputError(describe_error(error)) from error
