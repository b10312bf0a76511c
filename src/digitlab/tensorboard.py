"""What only TensorBoard shows: pictures and text. Other loggers get nothing, and no error.

Steps are counted from 0 on its axis, as Lightning counts them: what a run shows after n optimizer
steps stands at n - 1.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from PIL.Image import Image

if TYPE_CHECKING:  # it is slow to import, and a run without TensorBoard does without
    from torch.utils.tensorboard import SummaryWriter


def of_tensorboard(loggers: Iterable[Logger]) -> list[TensorBoardLogger]:
    """Give those of the loggers that are TensorBoard's; equally many in all processes."""
    return [logger for logger in loggers if isinstance(logger, TensorBoardLogger)]


def writers(loggers: Iterable[Logger]) -> list["SummaryWriter"]:
    """Give their writers, of which only the first process's write."""
    return [logger.experiment for logger in of_tensorboard(loggers)]


@contextmanager
def unless_it_fails(what: str) -> Iterator[None]:
    """Say why something cannot be shown, where a run that has trained would end without figures."""
    try:
        yield
    except OSError:  # a full disk, say, is nothing to be silent about
        raise
    except Exception as error:  # a network of one's own may do whatever it likes
        reason = str(error).partition("\n")[0]
        print(f"TensorBoard has no {what} of this network: {type(error).__name__}: {reason}")


def latest_step(trainer: Trainer) -> int:
    """Give the last optimizer step made, as it is counted on the axis; 0 before the first."""
    return max(trainer.global_step - 1, 0)


def show_picture(loggers: Iterable[Logger], tag: str, picture: Image, step: int) -> None:
    """Show an RGB picture under Images."""
    for writer in writers(loggers):
        writer.add_image(tag, np.asarray(picture), step, dataformats="HWC")


def show_graph(loggers: Iterable[Logger], graph: Any) -> None:
    """Show a `GraphDef` under Graphs."""
    from tensorboard.compat.proto.event_pb2 import Event

    for writer in writers(loggers):
        # Its public functions take a PyTorch network, or an ONNX file.
        file_writer = writer._get_file_writer()  # type: ignore[no-untyped-call]  # torch's
        file_writer.add_event(Event(graph_def=graph.SerializeToString()))


def show_text(loggers: Iterable[Logger], tag: str, text: str, step: int) -> None:
    """Show a text as it is, under Text."""
    indented = "".join(f"    {line}\n" for line in text.splitlines())  # Markdown's code
    for writer in writers(loggers):
        writer.add_text(tag, indented, step)
