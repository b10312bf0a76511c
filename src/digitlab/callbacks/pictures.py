"""Pictures drawn by Pillow and matplotlib, and the callback that writes them into a run folder."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import matplotlib as mpl
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

SCALE = 3
"""Pixels of a picture, in each direction, for one of an image."""
COLUMNS = 4
"""Images side by side; TensorBoard shrinks pictures much wider than 350 pixels."""
_CELL = 34  # pixels of a confusion matrix's cell, enough for four digits
_TILE, _KERNEL = 16, 84  # of a kernel's pixel, and of a kernel, at most
_MARGIN = 8
_LINE = 15  # height of a line of text
_INK, _WRONG, _PAPER = (40, 40, 40), (178, 24, 43), (255, 255, 255)
_RIGHT, _FRAME = (33, 102, 172), (200, 200, 200)


def draw_images(
    images: NDArray[np.uint8], names: Sequence[str], predicted: Sequence[str] = ()
) -> Image.Image:
    """Draw images in rows of four, each with its class and, below that, the predicted class.

    Args:
        images: uint8 `(N, 28, 28)`, N at least 1.
        names: The names of the images' classes, N.
        predicted: The names of the predicted classes, written in red; N, or none.

    Returns:
        An RGB picture.
    """
    lines = [names, predicted] if predicted else [names]
    side = SCALE * images.shape[1]
    width = max(side, *(_width(word) for line in lines for word in line)) + _MARGIN
    height = side + len(lines) * _LINE + _MARGIN
    rows = -(-len(images) // COLUMNS)
    columns = min(COLUMNS, len(images))
    picture = Image.new("RGB", (columns * width + _MARGIN, rows * height + _MARGIN), _PAPER)
    draw = ImageDraw.Draw(picture)
    for place, pixels in enumerate(images):
        left = _MARGIN + place % COLUMNS * width
        top = _MARGIN + place // COLUMNS * height
        enlarged = Image.fromarray(pixels).resize((side, side), Image.Resampling.NEAREST)
        middle = left + (width - _MARGIN) // 2
        picture.paste(enlarged, (middle - side // 2, top))
        for line, (words, color) in enumerate(zip(lines, (_INK, _WRONG), strict=False)):
            below = (middle, top + side + line * _LINE + _LINE // 2)
            draw.text(below, words[place], color, _font(), anchor="mm")
    return picture


def draw_confusion_matrix(counts: NDArray[np.int64], names: Sequence[str]) -> Image.Image:
    """Draw how many images of a row's class were predicted as a column's.

    The colour is the share of the row's images: blue for correct predictions, red for mistakes.
    The share of mistakes is drawn by its square root, or a good network's would not be visible.

    Args:
        counts: `(K, K)`, at least 0.
        names: Of the classes, K.

    Returns:
        An RGB picture.
    """
    label = max(map(_width, names)) + _MARGIN
    foot = _LINE if label <= _CELL else label  # long names are written upwards
    left, top = _LINE + _MARGIN + label, _MARGIN
    side = len(names) * _CELL
    size = (left + side + _MARGIN, top + side + _MARGIN + foot + _LINE + _MARGIN)
    picture = Image.new("RGB", size, _PAPER)
    draw = ImageDraw.Draw(picture)
    _draw_cells(draw, counts, left, top)
    for k, name in enumerate(names):
        place = k * _CELL + _CELL // 2
        draw.text((left - _MARGIN, top + place), name, _INK, _font(), anchor="rm")
        x, y = left + place, top + side + _MARGIN
        if foot == _LINE:
            draw.text((x, y + _LINE // 2), name, _INK, _font(), anchor="mm")
        else:
            _write_upwards(picture, name, (x, y))
    middle, last_line = left + side // 2, size[1] - _MARGIN - _LINE // 2
    draw.text((middle, last_line), "predicted", _INK, _font(), anchor="mm")
    _write_upwards(picture, "true class", (_LINE // 2 + 2, top + side // 2), centred=True)
    return picture


def _draw_cells(draw: ImageDraw.ImageDraw, counts: NDArray[np.int64], left: int, top: int) -> None:
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    for (i, j), count in np.ndenumerate(counts):
        share = float(shares[i, j] if i == j else shares[i, j] ** 0.5)
        x, y = left + j * _CELL, top + i * _CELL
        fill = _mix(_RIGHT if i == j else _WRONG, share)
        draw.rectangle((x, y, x + _CELL - 2, y + _CELL - 2), fill)
        if count:
            middle = (x + _CELL // 2, y + _CELL // 2)
            ink = _PAPER if share > 0.55 else _INK
            draw.text(middle, str(count), ink, _font(), anchor="mm")


def draw_kernels(kernels: NDArray[np.float32]) -> Image.Image:
    """Draw a convolution's kernels in rows of four: blue is below 0, red above, and white is 0.

    All have one scale, so that strong kernels look strong.

    Args:
        kernels: `(N, height, width)`, N at least 1.

    Returns:
        An RGB picture.
    """
    highest = max(float(np.abs(np.nan_to_num(kernels)).max()), 1e-12)
    rows, columns = -(-len(kernels) // COLUMNS), min(COLUMNS, len(kernels))
    tile = max(1, min(_TILE, _KERNEL // max(kernels.shape[1:])))
    height, width = (tile * side for side in kernels.shape[1:])
    size = (columns * (width + _MARGIN) + _MARGIN, rows * (height + _MARGIN) + _MARGIN)
    picture = Image.new("RGB", size, _PAPER)
    for place, kernel in enumerate(np.nan_to_num(kernels) / highest):
        signs = np.where(kernel[..., None] < 0, _RIGHT, _WRONG)
        colors = 255 - np.abs(kernel)[..., None] * (255 - signs)
        small = Image.fromarray(colors.round().astype(np.uint8))
        enlarged = small.resize((width, height), Image.Resampling.NEAREST)
        left = place % COLUMNS * (width + _MARGIN) + _MARGIN
        top = place // COLUMNS * (height + _MARGIN) + _MARGIN
        # A frame, since a kernel near 0 is as white as the background.
        picture.paste(_FRAME, (left - 1, top - 1, left + width + 1, top + height + 1))
        picture.paste(enlarged, (left, top))
    return picture


def _mix(color: tuple[int, int, int], share: float) -> tuple[int, int, int]:
    """Mix a colour with white."""
    red, green, blue = (round(255 - share * (255 - value)) for value in color)
    return red, green, blue


@cache
def _font() -> ImageFont.FreeTypeFont:
    # matplotlib's own, which has more alphabets than Pillow's.
    path = Path(mpl.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")
    return ImageFont.truetype(path, 11, layout_engine=ImageFont.Layout.BASIC)  # the fast one


def _width(word: str) -> int:
    return round(_font().getlength(word))


def _write_upwards(
    picture: Image.Image, word: str, at: tuple[int, int], centred: bool = False
) -> None:
    """Write a word rotated by 90 degrees, starting below a point or centred on it."""
    line = Image.new("RGB", (max(_width(word), 1), _LINE), _PAPER)
    ImageDraw.Draw(line).text((0, _LINE // 2), word, _INK, _font(), anchor="lm")
    turned = line.rotate(90, expand=True)
    top = at[1] - turned.height // 2 if centred else at[1]
    picture.paste(turned, (at[0] - turned.width // 2, top))
