"""A run's events, read back as TensorBoard reads them."""

import io
import logging
import sys
from operator import attrgetter
from pathlib import Path
from types import ModuleType

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

# TensorBoard then uses its own stub for TensorFlow, which takes seconds to import.
sys.modules.setdefault("tensorboard.compat.notf", ModuleType("notf"))


def read(folder: Path) -> EventAccumulator:
    """All events of a run."""
    logging.getLogger("tensorboard").setLevel(logging.ERROR)  # it warns of resumed runs
    kinds = ("scalars", "images", "tensors")
    events = EventAccumulator(str(folder), size_guidance=dict.fromkeys(kinds, 0))
    events.Reload()
    return events


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Step and value of each point of the curves."""
    events = read(folder)
    return {
        tag: [(event.step, event.value) for event in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
    }


def pictures(folder: Path) -> dict[str, list[tuple[int, NDArray[np.uint8]]]]:
    """Step and pixels of each picture."""
    events = read(folder)
    return {
        tag: [
            (event.step, np.asarray(Image.open(io.BytesIO(event.encoded_image_string))))
            for event in events.Images(tag)
        ]
        for tag in events.Tags()["images"]
    }


def texts(folder: Path, tag: str) -> list[tuple[int, str]]:
    """Step and content of each text."""
    found = read(folder).Tensors(f"{tag}/text_summary")
    found = sorted(found, key=attrgetter("wall_time"))  # files of one second are not in order
    return [(event.step, event.tensor_proto.string_val[0].decode()) for event in found]
