"""Pictures of images, confusion matrices and kernels by Pillow; curves by matplotlib."""

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw, ImageFont
from torchvision.utils import make_grid

from digitlab.terminal import printable

SCALE = 3
"""Pixels of a picture, in each direction, for one of an image."""
LARGE = 8
"""The same for a picture that is read from the last row of a lecture room."""
COLUMNS = 4
"""Images side by side; TensorBoard shrinks pictures much wider than 350 pixels."""
_CELL = 34  # pixels of a confusion matrix's cell, enough for four digits
_TILE, _KERNEL = 16, 84  # of a kernel's pixel, and of a kernel, at most
_MARGIN = 8
_LINE = 15  # height of a line of text
_INK, _WRONG, _PAPER = (40, 40, 40), (178, 24, 43), (255, 255, 255)
_RIGHT, _FRAME = (33, 102, 172), 200


def draw_images(
    images: NDArray[np.uint8],
    names: Sequence[str],
    predicted: Sequence[str] = (),
    scale: int = SCALE,
) -> Image.Image:
    """Draw images `(N, 28, 28)` in rows of four, with their classes and, in red, predicted ones.

    `scale` is how many pixels wide a pixel of an image becomes; names grow with it.
    """
    lines = [names, predicted] if predicted else [names]
    side, margin, line_height = (size * scale // SCALE for size in (SCALE * 28, _MARGIN, _LINE))
    font = _font(11 * scale // SCALE)
    widest = max(round(font.getlength(word)) for line in lines for word in line)
    width = max(side, widest) + margin
    height = side + len(lines) * line_height + margin
    rows = -(-len(images) // COLUMNS)
    columns = min(COLUMNS, len(images))
    picture = Image.new("RGB", (columns * width + margin, rows * height + margin), _PAPER)
    draw = ImageDraw.Draw(picture)
    for place, pixels in enumerate(images):
        left = margin + place % COLUMNS * width
        top = margin + place // COLUMNS * height
        enlarged = Image.fromarray(pixels).resize((side, side), Image.Resampling.NEAREST)
        middle = left + (width - margin) // 2
        picture.paste(enlarged, (middle - side // 2, top))
        for line, (words, color) in enumerate(zip(lines, (_INK, _WRONG), strict=False)):
            below = (middle, top + side + line * line_height + line_height // 2)
            draw.text(below, words[place], color, font, anchor="mm")
    return picture


def draw_mistakes(
    images: NDArray[np.uint8], mistakes: Mapping[str, Any], names: Sequence[str], scale: int = SCALE
) -> Image.Image:
    """Draw misclassified images, each with its class, and the predicted one with its probability.

    `mistakes` has columns `label`, `class` and `probability`.
    """
    pairs = zip(mistakes["class"], mistakes["probability"], strict=True)
    predicted = [f"{names[number]} ({certainty:.0%})" for number, certainty in pairs]
    return draw_images(images, [names[label] for label in mistakes["label"]], predicted, scale)


def count_confusion(labels: ArrayLike, predicted: ArrayLike, classes: int) -> NDArray[np.int64]:
    """Count images `(classes, classes)`: rows are true classes, columns predicted ones."""
    counts = np.zeros((classes, classes), np.int64)
    np.add.at(counts, (np.asarray(labels), np.asarray(predicted)), 1)
    return counts


def draw_confusion_matrix(
    counts: NDArray[np.int64], names: Sequence[str], scale: int = SCALE
) -> Image.Image:
    """Draw how many images of a row's class were predicted as a column's.

    The colour is the share of the row's images: blue for correct predictions, red for mistakes.
    The share of mistakes is drawn by its square root, or a good network's would not be visible.
    """
    cell, margin, line = (size * scale // SCALE for size in (_CELL, _MARGIN, _LINE))
    font = _font(11 * scale // SCALE)
    label = max(round(font.getlength(name)) for name in names) + margin
    foot = line if label <= cell else label  # long names are written upwards
    left, top = line + margin + label, margin
    side = len(names) * cell
    size = (left + side + margin, top + side + margin + foot + line + margin)
    picture = Image.new("RGB", size, _PAPER)
    draw = ImageDraw.Draw(picture)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    for (i, j), count in np.ndenumerate(counts):
        share = float(shares[i, j] if i == j else shares[i, j] ** 0.5)
        x, y = left + j * cell, top + i * cell
        fill = [round(255 - share * (255 - it)) for it in (_RIGHT if i == j else _WRONG)]
        draw.rectangle((x, y, x + cell - 2, y + cell - 2), tuple(fill))
        if count:
            ink = _PAPER if share > 0.55 else _INK
            draw.text((x + cell // 2, y + cell // 2), str(count), ink, font, anchor="mm")
    for k, name in enumerate(names):
        place = k * cell + cell // 2
        draw.text((left - margin, top + place), name, _INK, font, anchor="rm")
        x, y = left + place, top + side + margin
        if foot == line:
            draw.text((x, y + line // 2), name, _INK, font, anchor="mm")
        else:
            _write_upwards(draw, name, (x, y), font)
    middle, last_line = left + side // 2, size[1] - margin - line // 2
    draw.text((middle, last_line), "predicted", _INK, font, anchor="mm")
    length = round(font.getlength("true class"))
    _write_upwards(draw, "true class", (line // 2 + 2, top + (side - length) // 2), font)
    return picture


def draw_kernels(kernels: NDArray[np.float32]) -> Image.Image:
    """Draw kernels `(N, height, width)` in rows of four: blue below 0, red above, white at 0.

    All have one scale, so that strong kernels look strong.
    """
    shares = np.nan_to_num(kernels)[..., None]
    shares = shares / max(float(np.abs(shares).max()), 1e-12)
    colors = 255 - np.abs(shares) * (255 - np.where(shares < 0, _RIGHT, _WRONG))
    tile = max(1, min(_TILE, _KERNEL // max(kernels.shape[1:])))
    tiles = colors.round().astype(np.uint8).repeat(tile, 1).repeat(tile, 2).transpose(0, 3, 1, 2)
    grid = make_grid(torch.from_numpy(tiles), COLUMNS, _MARGIN, pad_value=_FRAME)
    return Image.fromarray(grid.permute(1, 2, 0).numpy())


@cache
def _font(size: int = 11) -> ImageFont.FreeTypeFont:
    # matplotlib's own, which has more alphabets than Pillow's.
    path = Path(mpl.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")
    return ImageFont.truetype(path, size, layout_engine=ImageFont.Layout.BASIC)  # the fast one


def _write_upwards(
    draw: ImageDraw.ImageDraw, word: str, top: tuple[int, int], font: ImageFont.FreeTypeFont
) -> None:
    """Write a word rotated by 90 degrees, below a point."""
    turned = ImageFont.TransposedFont(font, Image.Transpose.ROTATE_90)
    width = turned.getbbox(word)[2]
    draw.text((top[0] - width / 2, top[1]), word, _INK, turned)


COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b8860b", "#555555")
"""For readers with any colour vision: Okabe and Ito's blue, orange and green, and others."""
MARKERS = "os^DvP"
"""matplotlib's, a run's first; with the colours, the first 36 runs differ."""
PHASES: dict[str, tuple[str, Literal["--", "-"]]] = {
    "train": ("training", "--"),
    "val": ("validation", "-"),
}
"""The name and line style of each phase."""

Columns = Mapping[str, Any]
"""The columns of a history.csv by name: lists, arrays, or a DataFrame."""


def style(place: int) -> tuple[int, str]:
    """Choose the index of a run's colour, and its marker."""
    return place % len(COLORS), MARKERS[(place + place // len(COLORS)) % len(MARKERS)]


def validation_label(is_test: bool) -> str:
    """Name what the curves of the validation are of.

    >>> validation_label(True)
    'validation (test split)'
    """
    return "validation (test split)" if is_test else "validation"


def curves(history: Columns, quantity: str) -> dict[str, NDArray[np.float64]]:
    """Return a quantity's finite points, epoch and value `(epochs, 2)`, for phases that have any.

    The quantity is `accuracy`, `loss` or `learning_rate`, whose only phase is `train`.
    """
    columns = {phase: f"{phase}_{quantity}" for phase in PHASES}
    if quantity == "learning_rate":
        columns = {"train": quantity}
    found: dict[str, NDArray[np.float64]] = {}
    for phase, column in columns.items():
        if column in history:
            points = np.array([history["epoch"], history[column]], float).T
            points = points[np.isfinite(points).all(1)]
            found |= {phase: points} if len(points) else {}
    return found


def draw_curves(history: Columns, name: str, validation: str) -> Figure:
    """Draw a run's accuracy and loss over the epochs; the legend calls the validation so."""
    figure = Figure(figsize=(9.2, 3.6), dpi=150, layout="constrained")
    for axes, quantity in zip(figure.subplots(1, 2), ("accuracy", "loss"), strict=True):
        draw_quantity(axes, [history], quantity)
    # A folder's name: no formula, and no characters that the font may lack.
    title = printable(name).encode("ascii", "backslashreplace").decode()
    figure.suptitle(title, x=0.01, ha="left", fontsize=11, parse_math=False)
    names = {"val": validation, "train": PHASES["train"][0]}
    handles = [
        Line2D([], [], color=COLORS[0], linestyle=PHASES[it][1], label=names[it]) for it in names
    ]
    figure.legend(handles=handles, loc="outside lower left", ncols=2, frameon=False)
    return figure


def draw_quantity(axes: Axes, histories: Iterable[Columns], quantity: str) -> None:
    """Draw the curves of runs into axes: training dashed, validation solid.

    Each run has its colour and marker, see `style`.
    """
    for place, history in enumerate(histories):
        color, marker = style(place)
        for phase, points in curves(history, quantity).items():
            axes.plot(
                *points.T,
                color=COLORS[color],
                marker=marker,
                linestyle="-" if quantity == "learning_rate" else PHASES[phase][1],
                linewidth=1.4,
                markersize=3.5,
                markevery=max(1, len(points) // 12),
                label=phase,
            )
    axes.set(xlabel="epoch", ylabel=quantity.replace("_", " "))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if quantity == "accuracy":
        axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="black", alpha=0.2, linewidth=0.6)
