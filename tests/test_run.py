"""`Run`: a run folder as an object; test_fit.py has `fit`."""

import io
import json
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, Literal

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from digitlab import InputError, Run
from digitlab.callbacks.pictures import LARGE, draw_confusion_matrix
from digitlab.models import MLP
from tests import commands
from tests.fitting import assert_bitwise_equal, weights, whole
from tests.tiny import TinyDataModule


@pytest.fixture
def finished(finished_run: Path) -> Run:
    return Run(finished_run)


def test_importing_the_package_imports_nothing_heavy_and_lists_what_it_has() -> None:
    code = (
        "import sys, digitlab; print(sorted(sys.modules.keys() & "
        "{'torch', 'lightning', 'pandas', 'matplotlib', 'numpy'}), digitlab.__all__)"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout == "[] ['InputError', 'Run', 'RunError', 'fit']\n"


def test_a_run_has_the_settings_scores_and_history_of_its_files(finished: Run) -> None:
    assert finished.config == commands.config_of(finished.folder)
    assert finished.metrics == json.loads((finished.folder / "metrics.json").read_text("utf-8"))
    assert finished.metrics["test"]["n"] == 50
    file = pd.read_csv(finished.folder / "history.csv", index_col="epoch")
    pd.testing.assert_frame_equal(finished.history, file, check_dtype=False, check_like=True)
    assert finished.name == "tiny-mlp/version_0"


@pytest.mark.parametrize("checkpoint", ["last", "best", "path"])
def test_the_model_has_the_run_s_class_and_the_chosen_weights_and_evaluates(
    checkpoint: str, finished_run: Path
) -> None:
    name = checkpoint.replace("path", "previous")
    path = finished_run / "checkpoints" / f"{name}.ckpt"
    model = Run(finished_run, str(path) if checkpoint == "path" else checkpoint).model
    assert type(model) is MLP
    assert not any(module.training for module in model.modules())
    assert_bitwise_equal(weights(model), commands.checkpoint(finished_run, name)["state_dict"])


def test_the_data_module_has_the_run_s_settings(trained: Any) -> None:
    options = ["--data.normalization", "symmetric", "--data.validation_size", "40"]
    run = Run(trained("LinearClassifier", *options))
    assert isinstance(run.data, TinyDataModule)
    assert (run.data.normalization, run.data.validation_size) == ("symmetric", 40)
    images, _ = next(iter(run.data.test_dataloader()))
    assert images.min() < -0.9
    assert len(run.predictions()) == 40
    assert len(run.predictions("train")) == 160


def test_predictions_are_the_network_s_of_all_images_of_a_split(finished: Run) -> None:
    network = MLP.load_from_checkpoint(finished.folder / "checkpoints" / "last.ckpt").eval()
    splits: list[Literal["train", "test"]] = ["train", "test"]
    for split in splits:
        rows = finished.predictions(split)
        images, labels = whole(split)
        with torch.no_grad():
            expected = network(images).softmax(1).numpy()
        assert rows["label"].tolist() == labels.tolist()
        assert rows["class"].tolist() == expected.argmax(1).tolist()
        np.testing.assert_allclose(np.stack(rows["probabilities"]), expected, rtol=1e-5)
        np.testing.assert_allclose(rows["probability"], expected.max(1), rtol=1e-5)
        assert rows["class_name"].tolist() == [str(number) for number in rows["class"]]
        assert rows.index.name == "index"
    rows = finished.predictions()
    assert (rows["class"] == rows["label"]).sum() == finished.metrics["test"]["correct"]
    rows["class"] = 0  # a reader's own copy
    assert finished.predictions()["class"].any()


def pixels_of(figure: Figure) -> np.ndarray:
    """The figure as a notebook shows it, RGB."""
    content: bytes = figure._repr_png_()  # type: ignore[attr-defined]
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


def test_figures_show_curves_confusion_mistakes_and_kernels_without_tensorboard(
    trained: Any,
) -> None:
    options = ["--trainer.logger", "false", "--trainer.limit_train_batches", "2"]
    run = Run(trained("LeNet5", *options))
    assert not list(run.folder.glob("events*"))
    for figure in (
        run.plot_curves(),
        run.plot_confusion(),
        run.plot_mistakes("train", count=4),
        run.plot_kernels(),
    ):
        assert isinstance(figure, Figure)
        shown = pixels_of(figure)
        assert shown.shape[1] > 800
        assert shown.std() > 10  # it is not empty
    wrong = 50 - run.metrics["test"]["correct"]
    rows = run.predictions()
    counts = np.zeros((10, 10), int)
    for label, predicted in zip(rows["label"], rows["class"], strict=True):
        counts[label, predicted] += 1
    assert (counts != counts.T).any()
    (axes,) = run.plot_confusion().axes
    expected = np.asarray(draw_confusion_matrix(counts, run.data.class_names, LARGE))
    np.testing.assert_array_equal(axes.images[0].get_array(), expected)
    assert axes.get_title(loc="left") == f"{run.name}: {wrong} of 50 test images misclassified"
    assert mpl.pyplot.get_fignums() == [] if "matplotlib.pyplot" in sys.modules else True


def test_a_perfect_network_has_a_figure_without_mistakes(finished: Run) -> None:
    rows = finished.predictions()
    finished._predicted["test"] = rows.assign(**{"class": rows["label"]})
    (axes,) = finished.plot_mistakes().axes
    assert axes.get_title(loc="left") == f"{finished.name}: 0 of 50 test images misclassified"


def test_what_cannot_be_drawn_or_classified_is_refused_in_one_line(finished: Run) -> None:
    with pytest.raises(InputError, match=r"^MLP has no convolution: plot_kernels"):
        finished.plot_kernels()
    with pytest.raises(InputError, match=r"^split is val: it must be train, validation, test$"):
        finished.predictions("val")  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"^count is 0: draw at least 1"):
        finished.plot_mistakes(count=0)


class TableReader(HTMLParser):
    """Collects the text of a table's cells, and fails where one has another element."""

    def __init__(self) -> None:
        super().__init__()
        self.words: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in ("p", "strong", "table", "tr", "th", "td")

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_a_run_introduces_itself_as_text_and_as_a_table(finished_run: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(finished_run, tmp_path / "<b>" / "version_0"))
    score = Run(folder).metrics["test"]
    metrics = Run(folder).metrics | {"model": "<i>\x1b[31mNet"}
    (folder / "metrics.json").write_text(json.dumps(metrics), "utf-8")
    shown = f"{score['accuracy']:.2%} ({score['correct']} of 50)"
    said = repr(Run(folder))
    assert said.startswith(rf"<Run {folder}: <i>\x1b[31mNet on tiny, seed 0, epochs 3, ")
    assert said.endswith(f"test accuracy {shown}>")
    reader = TableReader()
    reader.feed(Run(folder)._repr_html_())
    cells = dict(zip(reader.words[1::2], reader.words[2::2], strict=True))
    assert cells["Test accuracy"] == shown
    assert cells["Data"] == "tiny"
    for damaged in ("{", '{"test": [1]}', '{"test": "<b>"}', '{"wall_time": 1.0}'):
        (folder / "metrics.json").write_text(damaged)
        assert "cannot be read" in repr(Run(folder))
        assert Run(folder)._repr_html_().startswith("<p>&lt;Run ")
    (folder / "config.yaml").write_text("model: 3\n")
    with pytest.raises(InputError, match=r"it lacks model.class_path, which every run has"):
        Run(folder).plot_curves()


def test_a_run_stays_itself_in_another_current_folder(
    finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(finished_run.parent)
    found = Run(finished_run.name)
    assert repr(found).startswith(f"<Run {finished_run.name}: ")
    monkeypatch.chdir(tmp_path)
    assert found.metrics == Run(finished_run).metrics != {}
    assert repr(found).startswith(f"<Run {finished_run}: ")
    with pytest.raises(InputError, match=r"^there is no run in runs: train one with digitlab fit$"):
        Run()


def test_a_run_that_was_killed_in_its_first_epoch_has_settings_and_no_network(
    copied_run: Path,
) -> None:
    for name in ("metrics.json", "history.csv"):
        (copied_run / name).unlink()
    shutil.rmtree(copied_run / "checkpoints")
    killed = Run(copied_run)
    assert (killed.metrics, killed.history.empty) == ({}, True)
    assert killed.data.normalization == "unit"
    with pytest.raises(InputError, match=r"^there is no checkpoint .+/last.ckpt: resume the run, "):
        killed.model  # noqa: B018
    with pytest.raises(InputError, match=r"has no finished epoch"):
        killed.plot_curves()
    assert repr(killed).endswith("epochs 0, not finished>")


@pytest.mark.parametrize("version", ["0.10.0", "0.1.0"])
def test_a_run_of_a_newer_version_says_so_where_it_cannot_be_read(
    version: str, copied_run: Path
) -> None:
    text = (copied_run / "config.yaml").read_text("utf-8")
    newer = text.replace("hidden_features:", "neurons:")
    (copied_run / "config.yaml").write_text(newer, "utf-8")
    metrics = Run(copied_run).metrics | {"versions": {"digitlab": version}}
    (copied_run / "metrics.json").write_text(json.dumps(metrics), "utf-8")
    with pytest.raises(InputError, match=r"^[^\n]*there is no option 'model.neurons'.*$") as caught:
        Run(copied_run).model  # noqa: B018
    assert ("; digitlab 0.10.0 wrote " in str(caught.value)) == (version == "0.10.0")


@pytest.mark.xdist_group("keras")
def test_a_keras_run_shows_the_kernels_of_its_keras_model(trained: Any) -> None:
    options = ["--framework", "keras", "--trainer.limit_train_batches", "2"]
    run = Run(trained("LeNet5", *options))
    network: Any = run.model.network
    kernel = network.keras_model.get_layer("conv1").kernel.numpy()
    name, ours = network.first_kernels()
    assert name == "conv1"
    np.testing.assert_array_equal(ours, kernel.transpose(3, 2, 0, 1))
    assert pixels_of(run.plot_kernels()).std() > 10
