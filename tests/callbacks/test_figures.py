from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from digitlab.callbacks import History, SaveFigures
from digitlab.callbacks.logging import HistoryRow
from digitlab.callbacks.results import draw_curves
from tests.fitting import fit

ROWS: list[HistoryRow] = [
    {
        "epoch": epoch,
        "train_loss": 2.0 / epoch,
        "train_accuracy": 0.9 - 0.5 / epoch,
        "val_loss": None if epoch == 1 else 2.1 / epoch,
        "val_accuracy": None if epoch == 1 else 0.8 - 0.5 / epoch,
    }
    for epoch in (1, 2, 3)
]


def pixels(figure: Figure, path: Path) -> NDArray[np.uint8]:
    figure.savefig(path)
    return np.asarray(Image.open(path).convert("L"))


def test_a_fit_leaves_both_pictures(tmp_path: Path) -> None:
    history = History(tmp_path / "history.csv")
    fit(None, history, SaveFigures(tmp_path, history), max_epochs=2)
    sizes = {"samples.png": (376, 222), "curves.png": (900, 350)}
    for name, size in sizes.items():
        with Image.open(tmp_path / name) as picture:
            assert (picture.format, picture.size) == ("PNG", size)
            assert len(np.unique(np.asarray(picture.convert("L")))) > 20  # not blank


def test_equal_rows_give_equal_pictures(tmp_path: Path) -> None:
    first, second = (pixels(draw_curves(ROWS), tmp_path / "curves.png") for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_the_curves_are_the_rows_without_what_was_not_validated() -> None:
    figure = draw_curves(ROWS)
    assert [axes.get_ylabel() for axes in figure.axes] == ["accuracy", "loss"]
    for axes in figure.axes:
        quantity = axes.get_ylabel()
        lines = {line.get_label(): line.get_xydata() for line in axes.lines}
        for phase, rows in (("train", ROWS), ("val", ROWS[1:])):
            expected = np.array([[row["epoch"], row[f"{phase}_{quantity}"]] for row in rows])
            np.testing.assert_array_equal(lines[phase], expected)
        legend = axes.get_legend()
        assert legend is not None
        assert [text.get_text() for text in legend.get_texts()] == ["train", "val"]


@pytest.mark.parametrize("count", [1, 3])
def test_runs_without_validation_or_of_one_epoch_have_curves(tmp_path: Path, count: int) -> None:
    rows: list[HistoryRow] = [
        {**row, "val_loss": None, "val_accuracy": None} for row in ROWS[:count]
    ]
    figure = draw_curves(rows)
    assert [len(axes.lines) for axes in figure.axes] == [1, 1]
    assert len(np.unique(pixels(figure, tmp_path / "curves.png"))) > 20


def test_drawing_needs_no_display_and_leaves_no_figure_open() -> None:
    import matplotlib.pyplot as plt

    draw_curves(ROWS)
    assert plt.get_fignums() == []
