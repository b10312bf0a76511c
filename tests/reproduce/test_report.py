import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from digitlab.errors import InputError
from digitlab.reproduce import figures, results
from digitlab.reproduce.command import write_report
from digitlab.reproduce.rows import read_rows
from digitlab.reproduce.tables import rows_of
from tests.reproduce.samples import runs, runs_with_curves

ROWS = read_rows()
OTHER = [replace(run, val_curve=((1875, 0.93), (3750, 0.98))) for run in runs_with_curves("B3", 99)]


def legend(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """A folder with the results of two rows of the documents, and of two of one's own."""
    documents = runs_with_curves("B3", 98.7, 98.8, 98.9) + runs_with_curves("B7", 90.9, 91.2)
    own = runs("my/slow", 95.0, 95.6, config="digits/slow") + runs("my/fast", 97.0, 97.2)
    results.add(tmp_path / "results.csv", documents + own)
    return tmp_path


def test_a_report_is_tables_and_figures_beside_the_results(
    out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_report(out, ROWS)
    text = (out / "tables.md").read_text("utf-8")
    assert re.findall("^## (.*)", text, re.M) == ["accuracies", "differences", "devices"]
    assert "| CPU unrecorded, 1 thread | 9 |" in text
    for name in ("accuracies", "curves"):
        assert f"![{name}]({name}.png)" in text
        with Image.open(out / f"{name}.png") as image:
            assert min(image.size) > 380
    shown = capsys.readouterr().out
    assert all(line in shown for line in text.splitlines() if line.startswith("|"))


def test_a_report_of_one_s_own_rows_has_only_what_there_is(
    out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_report(out, ROWS, ["my/fast", "my/slow"], margin=1.0)
    assert {path.name for path in out.iterdir() if path.is_file()} == {
        *("results.csv", "tables.md", "accuracies.png")
    }
    text = (out / "tables.md").read_text("utf-8") + capsys.readouterr().out
    assert "4 runs" in text
    assert text.index("| `my/fast`") < text.index("| `my/slow`")  # in the order of the names
    for word in ("ublished", "Keras", "ocument", "B3", "nan", "inf", "curves"):
        assert word not in text


def test_a_row_without_results_is_refused_and_nothing_is_written(out: Path) -> None:
    with pytest.raises(InputError, match=r"results\.csv has no run of B1: it has "):
        write_report(out, ROWS, ["my/slow", "B1"])
    with pytest.raises(InputError, match="my/other"):
        write_report(out, ROWS, ["my/other"])
    assert not (out / "tables.md").exists()


def test_runs_can_be_judged_by_anybody_s_results(
    out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results.add(out / "new" / "results.csv", [replace(run, seed=100) for run in runs("B3", 98.8)])
    write_report(out / "new", ROWS, against=out / "results.csv")
    assert "1 of 1 inside" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"there are no results in .*none\.csv"):
        write_report(out, ROWS, against=out / "none.csv")


def test_a_long_table_is_written_and_not_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    many = [run for i in range(10) for run in runs(f"my/{i}", 80 + i, 81.5 + i)]
    results.add(tmp_path / "results.csv", many)
    write_report(tmp_path, ROWS)
    assert "differences: 49 lines, which --report writes to tables.md" in capsys.readouterr().out
    assert (tmp_path / "tables.md").read_text("utf-8").count(" − ") == 45


def test_the_figure_has_a_dot_for_each_run_and_a_mean_for_each_row() -> None:
    measured = runs("my/a", 95.0, 96.0) + runs("my/b", 97.0)
    figure = figures.draw_accuracies(rows_of(measured, ROWS), measured)
    (axes,) = figure.axes
    points = {it.get_marker(): list(it.get_xdata()) for it in axes.lines[:4]}  # type: ignore[arg-type]
    assert points["."] == pytest.approx([95.0, 96.0])
    assert points["o"] == pytest.approx([95.5])
    assert [label.get_text() for label in axes.get_yticklabels()] == ["my/a", "my/b"]
    intervals = ["95% interval of the mean", "95% prediction interval for one more run"]
    assert legend(figure) == ["PyTorch", "a run", *intervals]


def test_what_was_published_is_hollow_beside_the_mean_of_its_row() -> None:
    measured = runs_with_curves("B6", 88.9, 89.2, 89.5)
    figure = figures.draw_accuracies(ROWS, measured)
    (axes,) = figure.axes
    places = [np.asarray(line.get_xdata(), float) for line in axes.lines]
    assert sorted(x[0] for x in places if len(x) == 1) == pytest.approx([89.0, 89.2])
    assert legend(figure)[0] == "published"
    assert "published: more than" not in legend(figure)


def test_curves_are_means_in_a_band_from_the_lowest_to_the_highest_run() -> None:
    keras = runs_with_curves("B3", 98, framework="keras")
    measured = [*runs_with_curves("B3", 98), *OTHER, *keras, *runs("B3", 98.8)]
    torch, theirs = figures.draw_curves({"B3": ROWS["B3"]}, measured).axes
    assert torch.get_title() == "B3\nPyTorch, n = 2"
    assert theirs.get_title() == "B3\nKeras, n = 1"
    training, validation = torch.lines
    assert list(training.get_ydata()) == pytest.approx([95, 97])  # type: ignore[arg-type]
    assert list(validation.get_ydata()) == pytest.approx([94, 97.5])  # type: ignore[arg-type]
    band = np.asarray(torch.collections[1].get_paths()[0].vertices, float)
    assert {tuple(point) for point in np.round(band, 6)} == {(1, 93), (1, 95), (2, 97), (2, 98)}
