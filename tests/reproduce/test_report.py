from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from digitlab.errors import InputError
from digitlab.reproduce import figures, results
from digitlab.reproduce.command import fill, read_tables, write_report
from digitlab.reproduce.rows import read_rows
from tests.reproduce.samples import runs, runs_with_curves

ROWS = read_rows()
OTHER = [replace(run, val_curve=((1875, 0.93), (3750, 0.98))) for run in runs_with_curves("B3", 99)]


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """A folder with the results of two rows, and of one with other seeds."""
    measured = runs_with_curves("B3", 98.7, 98.8, 98.9) + runs_with_curves("B7", 90.9, 91.2)
    results.add(tmp_path / "results.csv", measured)
    rerun = [replace(run, seed=100) for run in runs("B3", 98.8)]
    results.add(tmp_path / "rerun" / "results.csv", rerun)
    return tmp_path


def test_a_report_is_tables_and_figures_beside_the_results(out: Path) -> None:
    write_report(out, ROWS)
    text = (out / "tables.md").read_text("utf-8")
    assert all(f"## {name}\n" in text for name in read_tables(out, ROWS))
    assert "1 of 1 inside" in read_tables(out, ROWS)["rerun"]
    for name in ("published", "curves", "gap", "curves/B3", "curves/B7"):
        with Image.open(out / f"{name}.png") as image:
            assert min(image.size) > 380


def test_tables_go_between_their_marks_and_the_rest_of_a_page_stays(out: Path) -> None:
    page = out / "page.md"
    page.write_text("# Before\n\n<!-- table results -->\nold\n<!-- /table -->\n\nafter\n")
    write_report(out, ROWS, [page])
    once = page.read_text("utf-8")
    table = read_tables(out, ROWS)["results"]
    marked = f"<!-- table results -->\n{table}\n<!-- /table -->"
    assert once == f"# Before\n\n{marked}\n\nafter\n"
    write_report(out, ROWS, [page])
    assert page.read_text("utf-8") == once


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("<!-- table reslts -->\n<!-- /table -->\n", "page.md has a table reslts: choose from"),
        ("<!-- table results -->\n", "page.md has a table without an end"),
        ("<!-- table a -->\n<!-- table results -->\n<!-- /table -->", "without an end"),
    ],
)
def test_a_page_with_a_wrong_mark_is_refused(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        fill(text, {"results": "table"}, Path("page.md"))


def test_nothing_is_written_where_one_of_the_pages_is_wrong(out: Path) -> None:
    good, bad = out / "good.md", out / "bad.md"
    good.write_text("<!-- table results -->\n<!-- /table -->\n")
    for text, said in ((b"<!-- table no -->\n<!-- /table -->", "a table no:"), (b"\xff", "UTF-8")):
        bad.write_bytes(text)
        with pytest.raises(InputError, match=f"bad.md .*{said}"):
            write_report(out, ROWS, [good, bad])
    assert good.read_text("utf-8").count("\n") == 2
    assert not (out / "tables.md").exists()


def test_an_explanation_under_way_leaves_the_rest_of_the_report(
    out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (out / "explain-B1-B2").mkdir()
    (out / "explain-B1-B2" / "grid.csv").write_text("a,seed,accuracy\n")
    assert "results" in read_tables(out, ROWS)
    assert "has no factors.json" in capsys.readouterr().out


def test_runs_can_be_judged_by_anybody_s_results(
    out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_report(out / "rerun", ROWS, against=out / "results.csv")
    assert "1 of 1 inside" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"there are no results in .*none\.csv"):
        write_report(out, ROWS, against=out / "none.csv")


def test_each_data_set_has_axes_with_its_rows_from_the_top() -> None:
    linear = runs_with_curves("linear", 92.4, 92.5, 92.6)
    measured = [*runs_with_curves("B7", 91.0, 91.2), *linear, *runs_with_curves("B1", 96, 96.2)]
    axes = figures.draw_published(ROWS, measured).axes
    assert [it.get_title(loc="left") for it in axes] == ["MNIST, linear", "MNIST", "Fashion-MNIST"]
    assert [label.get_text() for label in axes[1].get_yticklabels()] == ["B1 nn128"]
    assert axes[0].get_ylim()[0] > axes[0].get_ylim()[1]


def test_the_point_of_a_row_is_its_mean_and_the_hollow_one_what_was_published() -> None:
    (axes,) = figures.draw_published(ROWS, runs_with_curves("B6", 88.9, 89.2, 89.5)).axes
    places = [np.asarray(line.get_xdata(), float) for line in axes.lines]
    assert sorted(x[0] for x in places if len(x) == 1) == pytest.approx([89.0, 89.2])


def test_curves_are_means_by_epoch_of_the_runs_that_have_one() -> None:
    measured = [*runs_with_curves("B3", 98), *OTHER, *runs("B3", 98.8)]
    (axes,) = figures.draw_validation_curves(ROWS, measured).axes
    (line,) = axes.lines
    assert list(line.get_xdata()) == [1, 2]  # type: ignore[arg-type]
    assert list(line.get_ydata()) == pytest.approx([94.0, 97.5])  # type: ignore[arg-type]
    assert line.get_label() == "PyTorch, n = 2"


def test_the_gap_is_of_the_training_split_over_the_test_split() -> None:
    (axes,) = figures.draw_gap(ROWS, runs_with_curves("B3", 98.0, 98.0)).axes
    dots = next(line for line in axes.lines if line.get_marker() == ".")
    assert list(dots.get_xdata()) == pytest.approx([0.5, 0.5])  # type: ignore[arg-type]


def test_the_curves_of_an_experiment_reach_from_its_lowest_to_its_highest_run() -> None:
    keras = runs_with_curves("B3", 98, framework="keras")
    measured = [*runs_with_curves("B3", 98), *OTHER, *keras]
    figure = figures.draw_experiment({"B3": ROWS["B3"]}, measured)
    assert figure
    torch, theirs = figure.axes
    assert torch.get_title() == "B3\nPyTorch, n = 2"
    assert theirs.get_title() == "B3\nKeras, n = 1"
    training, validation = torch.lines
    assert list(training.get_ydata()) == pytest.approx([95, 97])  # type: ignore[arg-type]
    assert list(validation.get_ydata()) == pytest.approx([94, 97.5])  # type: ignore[arg-type]
    band = np.asarray(torch.collections[1].get_paths()[0].vertices, float)
    assert {tuple(point) for point in np.round(band, 6)} == {(1, 93), (1, 95), (2, 97), (2, 98)}


def test_without_curves_or_rows_of_a_document_nothing_is_drawn() -> None:
    assert figures.draw_experiment(ROWS, runs("B3", 98.8)) is None
    for draw in (figures.draw_published, figures.draw_validation_curves, figures.draw_gap):
        assert not draw(ROWS, runs_with_curves("digits/lenet5", 97.0)).axes
