from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from digitlab.callbacks import pictures


def pixel(picture: Image.Image, x: int, y: int) -> tuple[int, ...]:
    value = picture.getpixel((x, y))
    assert isinstance(value, tuple)
    return value


def test_images_stand_in_rows_of_four_with_their_names_below() -> None:
    images = np.zeros((6, 28, 28), np.uint8)
    images[3], images[5] = 255, 100
    picture = pictures.draw_images(images, list("abcdef"))
    # An image has 84 pixels, a line of text 15, margins 8.
    assert picture.size == (4 * 92 + 8, 2 * (84 + 15 + 8) + 8)
    first = [pixel(picture, 50 + 92 * column, 50)[0] for column in range(4)]
    assert first == [0, 0, 0, 255]
    second = [pixel(picture, 50 + 92 * column, 157)[0] for column in range(3)]
    assert second == [0, 100, 255]  # the last place is empty
    below = np.asarray(picture.convert("L"))[92:107, 8:92]
    assert below.min() < 128 < below.max()  # a name


def test_what_an_image_was_taken_for_is_red() -> None:
    images = np.zeros((1, 28, 28), np.uint8)
    plain = np.asarray(pictures.draw_images(images, ["cat"]), int)
    both = np.asarray(pictures.draw_images(images, ["cat"], ["dog"]), int)
    assert both.shape[0] == plain.shape[0] + 15
    redness = both[..., 0] - both[..., 1]
    assert redness[107:].max() > 100
    assert redness[:107].max() == 0


@pytest.mark.parametrize("name", ["$5$", "a\nb", "", "Ankle boot", "Ж"])
def test_any_name_can_be_drawn(name: str) -> None:
    images = np.zeros((2, 28, 28), np.uint8)
    pictures.draw_images(images, [name] * 2)
    pictures.draw_confusion_matrix(np.eye(2, dtype=np.int64), [name] * 2)


def test_a_confusion_matrix_is_blue_where_right_and_red_where_wrong() -> None:
    counts = np.array([[3, 1, 0], [0, 0, 0], [0, 0, 7]])
    picture = pictures.draw_confusion_matrix(counts, list("abc"))
    left, top = picture.width - 3 * 34 - 8, 8
    corners = [
        [pixel(picture, left + 34 * j + 3, top + 34 * i + 3) for j in range(3)] for i in range(3)
    ]
    white = (255, 255, 255)
    blue, red = (33, 102, 172), (178, 24, 43)
    half_red = tuple(round(255 - 0.5 * (255 - value)) for value in red)  # the root of a quarter
    part_blue = tuple(round(255 - 0.75 * (255 - value)) for value in blue)
    assert corners == [[part_blue, half_red, white], [white] * 3, [white, white, blue]]


def test_kernels_are_red_above_zero_blue_below_and_white_at_zero_or_without_a_number() -> None:
    kernels = np.zeros((5, 2, 3), np.float32)
    kernels[0], kernels[1], kernels[4] = 0.5, -0.25, 0.25
    picture = pictures.draw_kernels(kernels)
    # A kernel's pixel has 16, and the margin 8.
    assert picture.size == (4 * (3 * 16 + 8) + 8, 2 * (2 * 16 + 8) + 8)
    assert pixel(picture, 20, 20) == (178, 24, 43)
    assert pixel(picture, 76, 20) == tuple(round(255 - 0.5 * (255 - v)) for v in (33, 102, 172))
    assert pixel(picture, 132, 20) == (255, 255, 255)
    assert pixel(picture, 20, 60) == tuple(round(255 - 0.5 * (255 - v)) for v in (178, 24, 43))
    assert pixel(pictures.draw_kernels(np.full((2, 2, 2), np.nan, np.float32)), 20, 20)[0] == 255
    assert pixel(pictures.draw_kernels(np.zeros((2, 2, 2), np.float32)), 20, 20)[0] == 255


HISTORY: dict[str, Any] = {
    "epoch": [1, 2, 3],
    "train_loss": [2.0, 1.0, 0.5],
    "train_accuracy": [0.4, 0.65, 0.75],
    "val_loss": [None, 1.05, float("nan")],
    "val_accuracy": [None, 0.55, 0.65],
    "learning_rate": [0.1, 0.01, 0.001],
}


def test_the_curves_are_the_rows_without_what_was_not_validated() -> None:
    figure = pictures.draw_curves(HISTORY, "tiny/version_0", "validation (test split)")
    assert [axes.get_ylabel() for axes in figure.axes] == ["accuracy", "loss"]
    accuracy, loss = (
        {str(line.get_label()): np.asarray(line.get_xydata()).tolist() for line in axes.lines}
        for axes in figure.axes
    )
    assert accuracy == {"train": [[1, 0.4], [2, 0.65], [3, 0.75]], "val": [[2, 0.55], [3, 0.65]]}
    assert loss == {"train": [[1, 2], [2, 1], [3, 0.5]], "val": [[2, 1.05]]}
    styles = {line.get_label(): line.get_linestyle() for line in figure.axes[0].lines}
    assert styles == {"train": "--", "val": "-"}
    (legend,) = figure.legends
    labels = [text.get_text() for text in legend.get_texts()]
    assert labels == ["validation (test split)", "training"]
    assert [handle.get_linestyle() for handle in legend.get_lines()] == ["-", "--"]
    assert figure.get_suptitle() == "tiny/version_0"
    assert plt.get_fignums() == []  # none is left open


def test_a_folder_may_have_any_name() -> None:
    for name in ("_run $x_{$", "a\x1b数"):
        pictures.draw_curves({}, name, "").draw_without_rendering()


def test_each_run_has_a_colour_and_marker_of_its_own() -> None:
    axes = Figure().subplots()
    pictures.draw_quantity(axes, [HISTORY] * 7, "learning_rate")
    assert len({(line.get_color(), line.get_marker()) for line in axes.lines}) == 7
    assert len({*map(pictures.style, range(36))}) == 36
