"""Pictures that tests draw."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from digitlab.data.photographs import prepare_digit


def seven(paper: object = 255, ink: object = 0, mode: str = "L", width: int = 12) -> Image.Image:
    """A seven, upright, whose box has other margins on each side."""
    image = Image.new(mode, (150, 200), paper)  # type: ignore[arg-type]  # a tone or a colour
    points = [(30, 40), (120, 40), (60, 170)]
    ImageDraw.Draw(image).line(points, fill=ink, width=width)  # type: ignore[arg-type]
    return image


SEVEN = prepare_digit(seven()).pixels


def likeness(pixels: NDArray[np.uint8], theirs: NDArray[np.uint8] = SEVEN) -> float:
    """The correlation of two images' pixels."""
    return float(np.corrcoef(pixels.ravel(), theirs.ravel())[0, 1])
