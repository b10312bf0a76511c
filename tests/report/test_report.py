"""The page of a run, against the run's own files and NumPy."""

import json
import re
import shutil
import xml.etree.ElementTree as ET
from importlib.metadata import version
from pathlib import Path
from xml.etree.ElementTree import Element

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from numpy.typing import NDArray
from PIL import Image

from digitlab.cli import main
from digitlab.models import MLP
from digitlab.run_folder import read_metrics
from tests.commands import config_of, fit, refusal
from tests.report.pages import SLOW, curves_of, facts_of, page_of, picture, table_with, text, texts
from tests.tiny import TEST, TinyDataModule


def probabilities(folder: Path, checkpoint: str = "last") -> NDArray[np.float64]:
    """Reference: the network's, of all test images, scaled and through a softmax by NumPy."""
    path = folder / "checkpoints" / f"{checkpoint}.ckpt"
    model = MLP.load_from_checkpoint(path, map_location="cpu").eval()
    images = torch.from_numpy((TEST[0][:, None] / np.float32(255)).astype(np.float32))
    with torch.no_grad():
        exponentials = np.exp(model(images).numpy().astype(np.float64))
    return np.asarray(exponentials / exponentials.sum(1, keepdims=True))


@pytest.fixture(scope="module")
def page(trained: Path, tmp_path_factory: pytest.TempPathFactory, tiny_for_module: None) -> Element:
    """The page of the finished run."""
    return page_of(trained, out=tmp_path_factory.mktemp("page") / "page.html")


def test_a_page_is_the_same_each_time_and_stands_in_the_run_folder(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page_of(run, out=tmp_path / "first.html")
    capsys.readouterr()
    assert texts(page_of(run), "title") == ["tiny-mlp/version_0 — digitlab report"]
    assert (tmp_path / "first.html").read_bytes() == (run / "report.html").read_bytes()
    assert capsys.readouterr().out == f"Written to {run / 'report.html'}\n"


def test_the_figures_are_those_of_metrics_json(trained: Path, page: Element) -> None:
    metrics, facts = read_metrics(trained), facts_of(page)
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


def test_confusion_precision_and_recall_are_numpy_s(trained: Path, page: Element) -> None:
    predicted = probabilities(trained).argmax(1)
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
    assert f"{right.sum()} of 50 test images are classified right" in text(page)
    assert right.sum() == read_metrics(trained)["test"]["correct"]
    assert "metrics.json counts" not in text(page)


def test_the_worst_mistakes_are_the_surest_first(trained: Path, page: Element) -> None:
    said = probabilities(trained)
    predicted, surest = said.argmax(1), said.max(1)
    wrong = [i for i in range(50) if predicted[i] != TEST[1][i]]
    wrong.sort(key=lambda i: -surest[i])
    assert wrong
    assert texts(page, "figure") == [
        f"{TEST[1][i]} → {predicted[i]} {surest[i]:.2%}" for i in wrong[:24]
    ]
    for image, i in zip(page.iterfind(".//figure/img"), wrong, strict=False):
        assert image.get("alt") == f"test image {i}, of class {TEST[1][i]}"
        assert np.array_equal(np.asarray(picture(image)), TEST[0][i])


def test_the_curves_say_in_words_what_history_csv_has(trained: Path, page: Element) -> None:
    history = pd.read_csv(trained / "history.csv")
    drawings = curves_of(page)
    for drawing, quantity, form in zip(drawings, ("accuracy", "loss"), (".2%", ".4f"), strict=True):
        for phase, name in {"train": "training", "val": "validation"}.items():
            values = history[f"{phase}_{quantity}"]
            first, last = (format(values.iloc[i], form) for i in (0, -1))
            sentence = f"{name}: {first} after epoch 1, {last} after epoch 3."
            assert sentence in str(drawing.get("aria-label"))
        svg = ET.tostring(drawing, "unicode")
        assert svg.count("var(--run0)") >= 2, "training and validation"
        assert not re.search("#[0-9a-f]{6}", svg), "a colour that is not the page's"


def test_values_from_a_run_are_text_whatever_they_contain(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("<script>", "& </td>", *map(str, range(2, 10)))
    monkeypatch.setattr(TinyDataModule, "class_names", names)
    evil = '<script>alert("1")</script> $x_{$ " onload="'
    folder = Path(shutil.copytree(run, tmp_path / '<b>"evil"&amp; $x_{$ onload=' / "version_0"))
    config = config_of(folder) | {"class_names": [*names]}
    (folder / "config.yaml").write_text(yaml.safe_dump(config), "utf-8")
    metrics = read_metrics(folder)
    metrics |= {"model": evil, "dataset": evil, "device": evil, "phases": {evil: 1.0}}
    metrics["versions"] = {evil: evil}
    (folder / "metrics.json").write_text(json.dumps(metrics), "utf-8")
    page = page_of(folder)  # `parse` refuses a script and an event
    assert not texts(page, "b")
    assert texts(page, "h1") == ['<b>"evil"&amp; $x_{$ onload=/version_0']
    said = " ".join(evil.split())
    facts = facts_of(page)
    assert (facts["Network"], facts["Data"], facts[said]) == ([said], [said], [said])
    assert [row[0] for row in table_with(page, "Class")[1:]] == [*names]


def test_the_page_goes_from_curves_to_figures_to_circumstances(
    trained: Path, page: Element
) -> None:
    assert texts(page, "h2") == [
        *("Curves", "Figures", "Predictions", "Training images", "Layers", "Time"),
        "Circumstances",
    ]
    (samples,) = page.iterfind(".//img[@class='samples']")
    drawn = Image.open(trained / "samples.png")
    assert np.array_equal(np.asarray(picture(samples)), np.asarray(drawn))


@pytest.mark.parametrize("size", [0, 99])
def test_damaged_samples_are_left_out(run: Path, size: int) -> None:
    (run / "samples.png").write_bytes((run / "samples.png").read_bytes()[:size])
    assert "Training images" not in texts(page_of(run), "h2")


def test_a_convolution_s_kernels_are_shown(tmp_path: Path) -> None:
    page = page_of(fit(tmp_path, model="LeNet5"))
    assert "Kernels of conv1" in texts(page, "h3")
    (kernels,) = page.iterfind(".//img[@class='kernels']")
    assert picture(kernels).width > 300


def test_missing_predictions_are_said_on_the_screen(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / "checkpoints" / "last.ckpt").unlink()
    assert "No predictions could be made" in text(page_of(run))
    assert f"{run}: no predictions could be made: " in capsys.readouterr().out


def test_with_a_hold_out_the_test_split_is_not_read(tmp_path: Path, read_splits: list[str]) -> None:
    options = ["--data", "tests.tiny.SpiedDataModule", "--data.validation_size", "40"]
    folder = fit(tmp_path, *SLOW, *options, model="MLP")
    read_splits.clear()
    page = page_of(folder)
    assert read_splits == ["train"]
    score = read_metrics(folder)["val"]
    counts = f"{score['accuracy']:.2%} ({score['correct']}/40)"
    assert facts_of(page)["Validation accuracy"] == [counts]
    assert f"{score['correct']} of 40 validation images are classified right" in text(page)
    assert "no test" not in text(page)


def test_after_a_test_the_predictions_are_of_its_images_and_weights(run: Path) -> None:
    assert main(["test", "--run", str(run), "--checkpoint", "best"]) == 0
    page = page_of(run)
    correct = int((probabilities(run, "best").argmax(1) == TEST[1]).sum())
    assert f"{correct} of 50 test images are classified right, with checkpoint best" in text(page)
    (value,) = facts_of(page)["Test accuracy"]
    assert value.endswith(f"({correct}/50), checkpoint best, chosen on the test images")
    metrics = read_metrics(run)
    metrics["test"]["correct"] += 1
    (run / "metrics.json").write_text(json.dumps(metrics), "utf-8")
    assert f"metrics.json counts {correct + 1} right" in text(page_of(run))


def test_a_damaged_config_is_refused_in_one_line(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = (run / "config.yaml").read_text("utf-8")
    for damaged in ("model: [", "- 1", "model: {}", "a\0b", whole.replace("seed_", "")):
        (run / "config.yaml").write_text(damaged, "utf-8")
        assert "config.yaml is" in refusal(capsys, "report", str(run))
    assert not list(tmp_path.rglob("*.html"))
