"""Pictures of images, confusion matrices and kernels by Pillow; curves by matplotlib."""

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

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
_RIGHT, _FRAME = (33, 102, 172), (200, 200, 200)


def draw_images(
    images: NDArray[np.uint8],
    names: Sequence[str],
    predicted: Sequence[str] = (),
    scale: int = SCALE,
) -> Image.Image:
    """Draw images in rows of four, each with its class and, below that, the predicted class.

    Args:
        images: uint8 `(N, 28, 28)`, N at least 1.
        names: The names of the images' classes, N.
        predicted: The names of the predicted classes, written in red; N, or none.
        scale: Pixels of the picture, in each direction, for one of an image; names grow with it.

    Returns:
        An RGB picture.
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


def draw_confusion_matrix(
    counts: NDArray[np.int64], names: Sequence[str], scale: int = SCALE
) -> Image.Image:
    """Draw how many images of a row's class were predicted as a column's.

    The colour is the share of the row's images: blue for correct predictions, red for mistakes.
    The share of mistakes is drawn by its square root, or a good network's would not be visible.

    Args:
        counts: `(K, K)`, at least 0.
        names: Of the classes, K.
        scale: As in `draw_images`.

    Returns:
        An RGB picture.
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
        fill = _mix(_RIGHT if i == j else _WRONG, share)
        draw.rectangle((x, y, x + cell - 2, y + cell - 2), fill)
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
            _write_upwards(picture, name, (x, y), font)
    middle, last_line = left + side // 2, size[1] - margin - line // 2
    draw.text((middle, last_line), "predicted", _INK, font, anchor="mm")
    _write_upwards(picture, "true class", (line // 2 + 2, top + side // 2), font, centred=True)
    return picture


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
def _font(size: int = 11) -> ImageFont.FreeTypeFont:
    # matplotlib's own, which has more alphabets than Pillow's.
    path = Path(mpl.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")
    return ImageFont.truetype(path, size, layout_engine=ImageFont.Layout.BASIC)  # the fast one


def _write_upwards(
    picture: Image.Image,
    word: str,
    at: tuple[int, int],
    font: ImageFont.FreeTypeFont,
    centred: bool = False,
) -> None:
    """Write a word rotated by 90 degrees, starting below a point or centred on it."""
    height = round(font.size * 1.4)
    line = Image.new("RGB", (max(round(font.getlength(word)), 1), height), _PAPER)
    ImageDraw.Draw(line).text((0, height // 2), word, _INK, font, anchor="lm")
    turned = line.rotate(90, expand=True)
    top = at[1] - turned.height // 2 if centred else at[1]
    picture.paste(turned, (at[0] - turned.width // 2, top))


# For readers with any colour vision: Okabe and Ito's, and lighter ones for dark pages.
LIGHT = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b8860b", "#555555")
DARK = ("#56b4e9", "#ff8a4c", "#2bc49a", "#e39cc4", "#f2b632", "#b0b0b0")
MARKERS = "os^DvP"
"""matplotlib's, a run's first; with the colours, the first 36 runs differ."""
PHASES: dict[str, tuple[str, Literal["--", "-"]]] = {
    "train": ("training", "--"),
    "val": ("validation", "-"),
}
"""The name and line style of each phase."""
_INKS = {False: "#444444", True: "#bbbbbb"}

Columns = Mapping[str, Any]
"""The columns of a history.csv by name: lists, arrays, or a DataFrame."""


def style(place: int) -> tuple[int, str]:
    """Choose the index of a run's colour, and its marker."""
    return place % len(LIGHT), MARKERS[(place + place // len(LIGHT)) % len(MARKERS)]


def validation_label(is_test: bool) -> str:
    """Name what the curves of the validation are of.

    >>> validation_label(True)
    'validation (test split)'
    """
    return "validation (test split)" if is_test else "validation"


def curves(history: Columns, quantity: str) -> dict[str, NDArray[np.float64]]:
    """Return a quantity's points `(epochs, 2)`, epoch and value, for each phase that has any.

    Args:
        history: The columns; None and values that are not finite are left out.
        quantity: `accuracy`, `loss` or `learning_rate`, whose only phase is `train`.
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


def draw_curves(
    histories: Mapping[str, Columns],
    quantities: Sequence[str] = ("accuracy", "loss"),
    validation: str = PHASES["val"][0],
    dark: bool = False,
    plain: bool = False,
) -> Figure:
    """Draw the curves of one run or several over the epochs, beside each other for each quantity.

    A run has a colour and a marker; the lines of training are dashed, those of validation solid.

    Args:
        histories: The columns of history.csv by the run's name.
        quantities: Of `accuracy`, `loss` and `learning_rate`.
        validation: What the legend calls the validation, see `validation_label`.
        dark: Whether the ground will be dark.
        plain: Leave out title and legend, for a page that has its own.
    """
    ink = _INKS[dark]
    inked = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
    with mpl.rc_context(dict.fromkeys(inked, ink) | {"font.size": 9}):  # type: ignore[arg-type]
        size = (4.6 * len(quantities), 3.1 if plain else 3.6)
        figure = Figure(figsize=size, dpi=150, layout="constrained")
        grid = figure.subplots(1, len(quantities), squeeze=False)[0]
        for axes, quantity in zip(grid, quantities, strict=True):
            _draw_quantity(axes, histories, quantity, DARK if dark else LIGHT)
            axes.grid(color=ink, alpha=0.2, linewidth=0.6)
        if plain:
            return figure
        # Names of folders: no formulas, and no characters that the font may lack.
        names = [printable(name).encode("ascii", "backslashreplace").decode() for name in histories]
        colors, is_one = DARK if dark else LIGHT, len(names) == 1
        handles = [
            Line2D([], [], color=colors[0] if is_one else ink, linestyle=PHASES[phase][1])
            for phase in ("val", "train")
        ]
        labels = [validation, PHASES["train"][0]]
        if is_one:
            figure.suptitle(names[0], x=0.01, ha="left", fontsize=11, parse_math=False)
        else:
            labels += [f" {name}" for name in names]  # matplotlib hides one that begins with _
            for index, marker in map(style, range(len(names))):
                handles.append(Line2D([], [], color=colors[index], marker=marker))
        legend = figure.legend(
            handles, labels, loc="outside lower left", ncols=2 if is_one else 3, frameon=False
        )
        for text in legend.get_texts():
            text.set_parse_math(False)
    return figure


def _draw_quantity(
    axes: Axes, histories: Mapping[str, Columns], quantity: str, colors: Sequence[str]
) -> None:
    for place, history in enumerate(histories.values()):
        index, marker = style(place)
        for phase, points in curves(history, quantity).items():
            axes.plot(
                *points.T,
                color=colors[index],
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
