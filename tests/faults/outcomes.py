"""What a user sees of a data set's folder, from this process or from one that a fault strikes."""

import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from digitlab.data import MNISTDataModule
from digitlab.data.download import Split
from tests import tiny
from tests.tiny import TinyDataModule

NOBODY = 65534
# Whatever is imported is there already, also where the child may not read the files.
FORK = multiprocessing.get_context("fork")


def outcome(
    root: Path, data: type[MNISTDataModule] = TinyDataModule, split: Split | None = None
) -> str:
    """The one line that reading is refused with; empty where the true arrays are read."""
    truth: dict[Split, tuple[NDArray[np.uint8], NDArray[np.uint8]]] = {
        "train": tiny.TRAIN,
        "test": tiny.TEST,
    }
    module = data(root=str(root))
    try:
        read = {name: module.read(name) for name in ([split] if split else truth)}
    except (OSError, ValueError) as error:
        line = str(error)
        assert line
        assert len(line.splitlines()) == 1
        return line
    for name, (images, labels) in read.items():
        assert (images.dtype.name, labels.dtype.name) == ("uint8", "int64")
        np.testing.assert_array_equal(images, truth[name][0])
        np.testing.assert_array_equal(labels, truth[name][1])
    return ""


def in_child(function: Callable[..., Any], *args: Any) -> Any:
    """What a function of a module returns in a process of its own, which it may spoil."""
    with ProcessPoolExecutor(1, mp_context=FORK) as pool:
        return pool.submit(function, *args).result()


def in_children(count: int, function: Callable[[Any], Any]) -> list[Any]:
    """What a function returns in several processes that start it at the same moment."""
    barrier = FORK.Barrier(count)
    meeting = partial(_meet, barrier, function)
    queue = FORK.SimpleQueue()
    children = [FORK.Process(target=_answer, args=(queue, meeting, i)) for i in range(count)]
    for child in children:
        child.start()
    answers = [queue.get() for _ in children]
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0] * count
    return answers


def _meet(barrier: Any, function: Callable[[Any], Any], number: int) -> Any:
    barrier.wait(timeout=60)
    return function(number)


def _answer(queue: Any, function: Callable[[int], Any], number: int) -> None:
    try:
        queue.put(function(number))
    except BaseException as error:
        queue.put(repr(error))
        raise


def unprivileged(function: Callable[..., Any], *args: Any) -> Any:
    """Run as a user whom a folder's permissions bind; for a child."""
    if os.geteuid() == 0:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
    return function(*args)
