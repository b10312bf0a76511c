"""The page of a run, against the run's own files and NumPy."""

import csv
import io
import json
import shutil
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from numpy.typing import NDArray
from PIL import Image

from digitlab.cli import main
from digitlab.models import MLP
from tests.commands import config_of, fit, refusal
from tests.report.pages import SLOW, content, facts_of, metrics_of, page_of, table_with
from tests.tiny import TEST, TinyDataModule


def probabilities(folder: Path, checkpoint: str = "last") -> NDArray[np.float64]:
    """Reference: the network's, of all test images, scaled and through a softmax by NumPy."""
    path = folder / "checkpoints" / f"{checkpoint}.ckpt"
    model = MLP.load_from_checkpoint(path, map_location="cpu").eval()
    images = torch.from_numpy((TEST[0][:, None] / np.float32(255)).astype(np.float32))
    with torch.no_grad():
        exponentials = np.exp(model(images).numpy().astype(np.float64))
    return np.asarray(exponentials / exponentials.sum(1, keepdims=True))


def test_the_figures_are_those_of_metrics_json_each_time(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page_of(run, out=tmp_path / "first.html")
    capsys.readouterr()
    page = page_of(run)
    assert (tmp_path / "first.html").read_bytes() == (run / "report.html").read_bytes()
    assert capsys.readouterr().out == f"Written to {run / 'report.html'}\n"
    metrics, facts = metrics_of(run), facts_of(page)
    for name, phase in {"Test": "test", "Training": "train"}.items():
        score = metrics[phase]
        counts = f"{score['accuracy']:.2%} ({score['correct']}/{score['n']})"
        assert facts[f"{name} accuracy"] == [counts]
        assert facts[f"{name} loss"] == [f"{score['loss']:.4f}"]
    assert "Validation accuracy" not in facts
    expected = {
        "Network": "MLP",
        "Parameters": f"{28 * 28 * 16 + 16 + 16 * 10 + 10:,}",
        "Data": "tiny",
        "Framework": "PyTorch",
        "Seed": "0",
        "Optimizer": "SGD",
        "Learning rate": "0.01",
        "Batch size": "32",
        "Epochs": "3",
        "Optimizer steps": "21",
        "Time": f"{metrics['wall_time']:.1f} s",
        "Training throughput": f"{metrics['images_per_second']:,.0f} images/s",
        "Machine": metrics["device"],
        "torch": version("torch"),
    }
    assert {name: facts[name] for name in expected} == {k: [v] for k, v in expected.items()}
    phases = {row[0]: row[1] for row in table_with(page, "Phase")[1:]}
    assert phases == {name: f"{value:.1f} s" for name, value in metrics["phases"].items()}
    layers = table_with(page, "Layer")
    assert ["fc1", "Linear", "weight 16×784, bias 16", "12,560"] in layers
    assert layers[-1] == ["Total", "", "", "12,730"]
    (title,) = page.every("title")
    assert title.text == "tiny-mlp/version_0 — digitlab report"


def test_confusion_precision_and_recall_are_numpy_s(run: Path) -> None:
    page = page_of(run)
    predicted = probabilities(run).argmax(1)
    counts = np.zeros((10, 10), int)
    np.add.at(counts, (TEST[1], predicted), 1)
    confusion = table_with(page, "true ↓ predicted →")
    assert [[int(cell) for cell in row[1:]] for row in confusion[1:]] == counts.tolist()
    right, images, taken = np.diag(counts), counts.sum(1), counts.sum(0)
    assert 0 in taken, "no class is never predicted, so nothing is proved of that case"
    assert table_with(page, "Class")[1:] == [
        [
            str(i),
            f"{right[i] / images[i]:.2%}",
            f"{right[i]}/{images[i]}",
            f"{right[i] / taken[i]:.2%}" if taken[i] else "—",
            f"{right[i]}/{taken[i]}",
        ]
        for i in range(10)
    ]
    assert f"{right.sum()} of 50 test images are classified right" in page.text
    assert right.sum() == metrics_of(run)["test"]["correct"]
    assert "metrics.json counts" not in page.text


def test_the_worst_mistakes_are_the_surest_first(run: Path) -> None:
    page = page_of(run)
    said = probabilities(run)
    predicted, surest = said.argmax(1), said.max(1)
    wrong = [i for i in range(50) if predicted[i] != TEST[1][i]]
    wrong.sort(key=lambda i: -surest[i])
    assert wrong
    figures = page.every("figure")
    assert [figure.text for figure in figures] == [
        f"{TEST[1][i]} → {predicted[i]} {surest[i]:.2%}" for i in wrong[:24]
    ]
    for figure, i in zip(figures, wrong, strict=False):
        (image,) = figure.every("img")
        assert image.attributes["alt"] == f"test image {i}, of class {TEST[1][i]}"
        pixels = Image.open(io.BytesIO(content(image.attributes["src"])))
        assert np.array_equal(np.asarray(pixels), TEST[0][i])


def test_the_curves_say_in_words_what_history_csv_has(run: Path) -> None:
    page = page_of(run)
    with (run / "history.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    pictures = page.every("picture")
    assert len(pictures) == 2
    for picture, quantity, form in zip(pictures, ("accuracy", "loss"), (".2%", ".4f"), strict=True):
        (image,), (source,) = picture.every("img"), picture.every("source")
        for phase, name in {"train": "training", "val": "validation"}.items():
            first, last = (format(float(rows[i][f"{phase}_{quantity}"]), form) for i in (0, -1))
            sentence = f"{name}: {first} after epoch 1, {last} after epoch 3."
            assert sentence in str(image.attributes["alt"])
        light, dark = content(image.attributes["src"]), content(source.attributes["srcset"])
        assert light.startswith(b"<?xml")
        assert light != dark


def test_values_from_a_run_are_text_whatever_they_contain(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("<script>", "& </td>", *map(str, range(2, 10)))
    monkeypatch.setattr(TinyDataModule, "class_names", names)
    evil = '<script>alert("1")</script> $x_{$ " onload="'
    folder = Path(shutil.copytree(run, tmp_path / '<b>"evil"&amp; $x_{$ onload=' / "version_0"))
    config = config_of(folder) | {"class_names": [*names]}
    (folder / "config.yaml").write_text(yaml.safe_dump(config), "utf-8")
    metrics = metrics_of(folder)
    metrics |= {"model": evil, "dataset": evil, "device": evil, "phases": {evil: 1.0}}
    metrics["versions"] = {evil: evil}
    (folder / "metrics.json").write_text(json.dumps(metrics), "utf-8")
    page = page_of(folder)  # `parse` refuses a script, an event and another element
    assert not page.every("b")
    assert page.every("h1")[0].text == '<b>"evil"&amp; $x_{$ onload=/version_0'
    text = " ".join(evil.split())
    facts = facts_of(page)
    assert (facts["Network"], facts["Data"], facts[text]) == ([text], [text], [text])
    assert evil.split(" ", maxsplit=1)[0] in page.text
    assert [row[0] for row in table_with(page, "Class")[1:]] == [*names]


def test_the_page_goes_from_curves_to_figures_to_circumstances(run: Path, tmp_path: Path) -> None:
    page = page_of(run)
    headings = [heading.text for heading in page.every("h2")]
    assert headings == [
        *("Curves", "Figures", "Predictions", "Training images", "Layers", "Time"),
        "Circumstances",
    ]
    (samples,) = [i for i in page.every("img") if i.attributes.get("class") == "samples"]
    shown, drawn = (
        np.asarray(Image.open(source))
        for source in (io.BytesIO(content(samples.attributes["src"])), run / "samples.png")
    )
    assert np.array_equal(shown, drawn)
    for damage in (b"", b"GIF89a", (run / "samples.png").read_bytes()[:99]):
        (run / "samples.png").write_bytes(damage)
        assert "Training images" not in [heading.text for heading in page_of(run).every("h2")]


def test_a_convolution_s_kernels_are_shown(tmp_path: Path) -> None:
    page = page_of(fit(tmp_path, model="LeNet5"))
    assert "Kernels of conv1" in [heading.text for heading in page.every("h3")]
    (kernels,) = [i for i in page.every("img") if i.attributes.get("class") == "kernels"]
    assert Image.open(io.BytesIO(content(kernels.attributes["src"]))).size[0] > 300


def test_a_run_of_one_s_own_config_file_has_predictions(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.yaml").write_text("trainer: {max_epochs: 1}\n", "utf-8")
    run = fit(tmp_path / "runs", "--config", str(tmp_path / "mine.yaml"))
    assert "of 50 test images are classified right" in page_of(run).text
    assert "no predictions" not in capsys.readouterr().out


def test_missing_predictions_are_said_on_the_screen(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / "checkpoints" / "last.ckpt").unlink()
    assert "No predictions could be made" in page_of(run).text
    assert f"{run}: no predictions could be made: " in capsys.readouterr().out


def test_with_a_hold_out_the_test_split_is_not_read(tmp_path: Path, read_splits: list[str]) -> None:
    options = ["--data", "tests.tiny.SpiedDataModule", "--data.validation_size", "40"]
    folder = fit(tmp_path, *SLOW, *options, model="MLP")
    read_splits.clear()
    page = page_of(folder)
    assert read_splits == ["train"]
    score = metrics_of(folder)["val"]
    counts = f"{score['accuracy']:.2%} ({score['correct']}/40)"
    assert facts_of(page)["Validation accuracy"] == [counts]
    assert f"{score['correct']} of 40 validation images are classified right" in page.text
    assert "no test" not in page.text


def test_after_a_test_the_predictions_are_of_its_images_and_weights(run: Path) -> None:
    assert main(["test", "--run", str(run), "--checkpoint", "best"]) == 0
    page = page_of(run)
    correct = int((probabilities(run, "best").argmax(1) == TEST[1]).sum())
    assert f"{correct} of 50 test images are classified right, with checkpoint best" in page.text
    (value,) = facts_of(page)["Test accuracy"]
    assert value.endswith(f"({correct}/50), checkpoint best, chosen on the test images")
    metrics = metrics_of(run)
    metrics["test"]["correct"] += 1
    (run / "metrics.json").write_text(json.dumps(metrics), "utf-8")
    assert f"metrics.json counts {correct + 1} right" in page_of(run).text


def test_bad_input_is_refused_in_one_line(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words, said in {
        (): "no run is named: give run folders, a folder of runs, or latest",
        ("--out", "page.html"): "no run is named",
        (str(run / "checkpoints"),): "it is not a run folder",
        (str(run), str(tmp_path / "none")): "there is no folder ",
        (str(run), "--out", str(tmp_path / "page.txt")): "give a file that ends in .html",
        (str(run), "--out", str(tmp_path / "no" / "page.html")): "there is no folder",
        (str(run), "--out", str(tmp_path / "page.html"), "runs/x"): "name the runs first",
        (str(run), "--ouz", "x"): "there is no option 'ouz'",
    }.items():
        assert said in refusal(capsys, "report", *words)
    whole = (run / "config.yaml").read_text("utf-8")
    for damaged in ("model: [", "- 1", "model: {}", "a\0b", whole.replace("seed_", "")):
        (run / "config.yaml").write_text(damaged, "utf-8")
        assert "config.yaml is" in refusal(capsys, "report", str(run))
    assert not list(tmp_path.rglob("*.html"))
