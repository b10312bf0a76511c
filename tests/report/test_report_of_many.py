"""Several runs on a page, and runs with missing or damaged files."""

import itertools
import json
import shutil
import xml.etree.ElementTree as ET
from importlib.util import find_spec
from pathlib import Path

import pytest

from digitlab.cli import main
from digitlab.run_folder import read_metrics
from tests.commands import config_of, fit, refusal
from tests.report.pages import SLOW, curves_of, facts_of, page_of, rows, table_with, text, texts


def test_runs_stand_side_by_side_with_the_settings_that_differ(run: Path, tmp_path: Path) -> None:
    options = ["--seed_everything", "7", "--model.optimizer.lr", "0.02", "--model.dropout", "0.5"]
    other = fit(tmp_path / "other", *SLOW, *options, model="MLP")
    again = run / ".." / "version_0"  # a run is shown once
    page = page_of(again, run, other, out=tmp_path / "both.html")
    names = [f"tiny-mlp/{folder.name}" for folder in (run, other)]
    assert names[0] == names[1], "both have one name, so that the paths tell them apart"
    assert texts(page, "title") == [f"{run}, {other} — digitlab report"]
    both = [read_metrics(run), read_metrics(other)]
    assert texts(page, "h2")[:2] == ["Differences", "Curves"]
    differing = {row[0]: row[1:] for row in table_with(page, str(run)) if len(row) > 1}
    assert differing["Seed"] == ["0", "7"]
    assert differing["Learning rate"] == ["0.01", "0.02"]
    assert differing["Test accuracy"] == [
        f"{m['test']['accuracy']:.2%} ({m['test']['correct']}/50)" for m in both
    ]
    settings = {name: values for name, values in differing.items() if "." in name}
    assert settings.pop("trainer.default_root_dir")[1] == str(tmp_path / "other")
    assert settings == {"model.init_args.dropout": ["0.2", "0.5"]}
    shared = facts_of(page)
    assert [shared[name] for name in ("Network", "Epochs", "torch")] == [
        *(["MLP"], ["3"], [read_metrics(run)["versions"]["torch"]])
    ]
    assert not {"Network", "Epochs", "torch"} & differing.keys(), "what is equal is shown once"
    assert len(curves_of(page)) == 2
    for drawing in curves_of(page):
        words = str(drawing.get("aria-label"))
        assert words.count("after epoch 3") == 4
        assert words.index(f"{run}, training:") < words.index(f"{other}, validation:")
        assert {f"var(--run{i})" in ET.tostring(drawing, "unicode") for i in (0, 1)} == {True}
    assert len([table for table in page.iter("table") if "Recall" in rows(table)[0]]) == 2


def test_a_folder_stands_for_the_runs_in_it_in_the_order_of_their_numbers(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in (2, 10):
        shutil.copytree(run, run.with_name(f"version_{number}"))
    shutil.copytree(run, tmp_path / "runs" / "another" / "version_0")
    page = page_of(tmp_path / "runs", out=tmp_path / "page.html")
    assert texts(page, "title") == [
        "another/version_0, tiny-mlp/version_0, tiny-mlp/version_2, tiny-mlp/version_10 "
        "— digitlab report"
    ]
    assert texts(page_of(run.parent, run, out=tmp_path / "page.html"), "h1") == ["3 runs"]
    (tmp_path / "empty").mkdir()
    assert "it is not a run folder" in refusal(capsys, "report", str(tmp_path / "empty"))


def test_a_learning_rate_is_short_and_drawn_where_it_changes(run: Path, tmp_path: Path) -> None:
    options = ["--model.optimizer.lr", "0.005797658631826679"]
    schedule = ["--model.lr_scheduler", "ExponentialLR", "--model.lr_scheduler.gamma", "0.1"]
    other = fit(tmp_path / "other", *SLOW, *options, *schedule, model="MLP")
    page = page_of(other)
    assert facts_of(page)["Learning rate"] == ["0.005798 → 5.798e-05"]
    _, _, rates = curves_of(page)
    words = str(rates.get("aria-label"))
    assert "learning rate" in words
    assert "0.005798 after epoch 1, 5.798e-05 after epoch 3" in words
    page = page_of(run, other, out=tmp_path / "page.html")
    assert facts_of(page)["Learning rate"] == ["0.01", "0.005798 → 5.798e-05"]


def test_the_legend_says_where_validation_is_on_the_test_split(run: Path, tmp_path: Path) -> None:
    held_out = fit(tmp_path / "other", *SLOW, "--data.validation_size", "40", model="MLP")
    mixed = "validation (the test split where there is no hold-out)"
    for runs, label in {
        (run,): "validation (test split)",
        (held_out,): "validation",
        (run, held_out): mixed,
    }.items():
        page = page_of(*runs, out=tmp_path / "page.html")
        *_, legend = page.iter("ul")
        assert texts(legend, "li")[0] == f"{label}, after each epoch"
        assert [line.get("stroke-dasharray") for line in page.iter("line")] == ["", "5 3"]


def test_an_unfinished_run_is_shown_without_final_figures(run: Path, tmp_path: Path) -> None:
    (run / "metrics.json").unlink()
    page = page_of(run)
    assert "There is no metrics.json: the run has not ended" in text(page)
    assert facts_of(page)["Network"] == ["MLP"]
    assert "Test accuracy" not in facts_of(page)
    assert "no final figures" in text(page)
    assert "of 50 test images are classified right" in text(page), "its checkpoint is there"
    assert len(curves_of(page)) == 2
    finished = fit(tmp_path / "other", *SLOW, model="MLP")
    page = page_of(run, finished, out=tmp_path / "both.html")
    differing = {row[0] for row in rows(next(page.iter("table")))}
    assert "Test accuracy" in differing
    assert not {"Machine", "torch", "Epochs"} & differing, "it only has not recorded them yet"
    (run / "history.csv").unlink()
    shutil.rmtree(run / "checkpoints")
    page = page_of(run)
    assert "There is no history.csv: no epoch was finished" in text(page)
    assert not curves_of(page)
    assert not texts(page, "figure")
    assert f"there is no checkpoint {run / 'checkpoints' / 'last.ckpt'}" in text(page)


def test_damaged_files_are_named_and_the_rest_is_shown(run: Path) -> None:
    for name in ("metrics.json", "history.csv"):
        (run / name).write_bytes(b"\xff\xfe")
    page = page_of(run)
    assert "metrics.json is damaged" in text(page)
    assert "history.csv is damaged" in text(page)
    assert "of 50 test images are classified right" in text(page)


def test_entries_of_a_wrong_type_are_left_out(run: Path) -> None:
    values = itertools.cycle([None, "many", [1], {"accuracy": "high"}, True])
    names = [*read_metrics(run), "test", "phases", "versions", "weights", "wall_time"]
    for shift in range(5):
        next(values)
        metrics = dict(zip(names, values, strict=False))
        (run / "metrics.json").write_text(json.dumps(metrics), "utf-8")
        page = page_of(run)
        assert "Test accuracy" not in facts_of(page), shift
        assert texts(page, "figure")


def test_without_the_data_the_page_gives_the_reason_and_the_rest(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DIGITLAB_DATA", str(tmp_path / "none"))
    page = page_of(run)
    assert "No predictions could be made:" in text(page)
    assert str(tmp_path / "none") in text(page)
    assert texts(page, "figure") == []
    assert table_with(page, "Layer")[-1][-1] == "12,730"
    score = read_metrics(run)["test"]
    assert f"({score['correct']}/50)" in facts_of(page)["Test accuracy"][0]
    assert len(curves_of(page)) == 2


def test_a_run_of_a_gpu_is_read_on_a_machine_without_one(run: Path) -> None:
    config = (run / "config.yaml").read_text("utf-8")
    assert config_of(run)["trainer"]["accelerator"] == "cpu"
    config = config.replace("accelerator: cpu", "accelerator: cuda")
    (run / "config.yaml").write_text(config.replace("32-true", "bf16-mixed"), "utf-8")
    assert "of 50 test images are classified right" in text(page_of(run))


def test_a_loss_that_is_no_number_is_left_out_of_the_curve(run: Path) -> None:
    lines = (run / "history.csv").read_text("utf-8").splitlines()
    columns = lines[0].split(",")
    cells = [line.split(",") for line in lines[1:]]
    cells[0][columns.index("val_loss")] = ""
    cells[2][columns.index("val_loss")] = "nan"
    text = "\n".join([lines[0], *map(",".join, cells)])
    (run / "history.csv").write_text(text, "utf-8")
    _, drawing = curves_of(page_of(run))
    loss = float(cells[1][columns.index("val_loss")])
    said = f"validation: {loss:.4f} after epoch 2, {loss:.4f} after epoch 2."
    assert said in str(drawing.get("aria-label"))
    assert "nan" not in ET.tostring(drawing, "unicode").lower()


@pytest.mark.slow  # tests/test_old_runs.py reports on a Keras run by default
@pytest.mark.xdist_group("keras")
@pytest.mark.skipif(not find_spec("tensorflow"), reason="needs the extra `parity`")
def test_a_keras_run_stands_beside_one_of_pytorch(run: Path, tmp_path: Path) -> None:
    place = ["--trainer.default_root_dir", str(tmp_path / "keras")]
    words = ["--model", "MLP", *SLOW, "--data", "tests.tiny.TinyDataModule", *place]
    assert main(["fit", "--framework", "keras", *words]) == 0
    (keras,) = (tmp_path / "keras").glob("*/version_*")
    page = page_of(run, keras, out=tmp_path / "page.html")
    both = [read_metrics(folder) for folder in (run, keras)]
    assert facts_of(page)["Framework"] == ["PyTorch", "Keras"]
    assert facts_of(page)["keras"][0] == "—"
    for metrics in both:
        sentence = f"{metrics['test']['correct']} of 50 test images are classified right"
        assert sentence in text(page)
    matrices = [rows(it) for it in page.iter("table") if rows(it)[0][0].startswith("true")]
    right = [sum(int(row[i + 1]) for i, row in enumerate(m[1:])) for m in matrices]
    assert right == [metrics["test"]["correct"] for metrics in both]
    assert "metrics.json counts" not in text(page)

    (keras / "metrics.json").unlink()  # as long as it has not ended
    (keras / "checkpoints" / "best.keras").unlink()
    assert facts_of(page_of(keras))["Framework"] == ["Keras"]
    (keras / "model.keras").write_bytes(b"no model")
    assert "model.keras is damaged" in text(page_of(keras))
