"""`Run` and `fit`: a run folder as an object, and training from Python."""

import gc
import io
import json
import logging
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stdout
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from matplotlib.figure import Figure
from PIL import Image

from digitlab import InputError, Run, RunError, fit
from digitlab.callbacks.pictures import LARGE, draw_confusion_matrix
from digitlab.data.download import Split
from digitlab.models import MLP
from tests import commands
from tests.commands import refusal
from tests.fitting import assert_bitwise_equal, weights
from tests.tiny import TEST, TRAIN, SpiedDataModule, TinyDataModule

OLD_RUNS = Path(__file__).parent / "old_runs"
TINY = {
    "model": "LinearClassifier",
    "data": TinyDataModule,
    "trainer": {"accelerator": "cpu", "max_epochs": 1},
}


def run(root: Path, overrides: dict[str, Any] | None = None, **options: Any) -> Run:
    """Train on the tiny data below `root`, and print nothing."""
    place = {"trainer.default_root_dir": root}
    trained = fit(TINY, place | (overrides or {}), quiet=True, **options)
    assert trained is not None
    return trained


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
    file = pd.read_csv(finished.folder / "history.csv")
    assert finished.history.index.tolist() == [1, 2, 3]
    assert {*finished.history} == {*file} - {"epoch"}
    for name, column in finished.history.items():
        assert column.tolist() == file[name].tolist()
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


def test_the_data_module_has_the_run_s_settings(tmp_path: Path) -> None:
    trained = run(tmp_path, {"data.normalization": "symmetric", "data.validation_size": 40})
    assert isinstance(trained.data, TinyDataModule)
    assert (trained.data.normalization, trained.data.validation_size) == ("symmetric", 40)
    images, _ = next(iter(trained.data.test_dataloader()))
    assert images.min() < -0.9
    assert len(trained.predictions()) == 40
    assert len(trained.predictions("train")) == 160


def test_predictions_are_the_network_s_of_all_images_of_a_split(finished: Run) -> None:
    for split, (pixels, labels) in {"train": TRAIN, "test": TEST}.items():
        rows = finished.predictions(split)  # type: ignore[arg-type]
        images = torch.from_numpy((pixels[:, None] / np.float32(255)).astype(np.float32))
        path = finished.folder / "checkpoints" / "last.ckpt"
        with torch.no_grad():
            expected = MLP.load_from_checkpoint(path).eval()(images).softmax(1).numpy()
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
    tmp_path: Path,
) -> None:
    options = {"model": "LeNet5", "trainer.logger": False, "trainer.limit_train_batches": 2}
    trained = run(tmp_path, options)
    assert not list(trained.folder.glob("events*"))
    for figure in (
        trained.plot_curves(),
        trained.plot_confusion(),
        trained.plot_mistakes("train", count=4),
        trained.plot_kernels(),
    ):
        assert isinstance(figure, Figure)
        shown = pixels_of(figure)
        assert shown.shape[1] > 800
        assert shown.std() > 10  # it is not empty
    wrong = 50 - trained.metrics["test"]["correct"]
    rows = trained.predictions()
    counts = np.zeros((10, 10), int)
    for label, predicted in zip(rows["label"], rows["class"], strict=True):
        counts[label, predicted] += 1
    assert (counts != counts.T).any()
    (axes,) = trained.plot_confusion().axes
    expected = np.asarray(draw_confusion_matrix(counts, trained.data.class_names, LARGE))
    np.testing.assert_array_equal(axes.images[0].get_array(), expected)
    assert axes.get_title(loc="left") == f"{trained.name}: {wrong} of 50 test images misclassified"
    assert mpl.pyplot.get_fignums() == [] if "matplotlib.pyplot" in sys.modules else True


def test_a_single_mistake_is_drawn_as_large_as_many(finished: Run) -> None:
    scales = set()
    for count in (1, 16):
        figure = finished.plot_mistakes("train", count=count)
        (axes,) = figure.axes
        figure.draw_without_rendering()
        scales.add(round(float(axes.transData.get_matrix()[0, 0]), 2))
    assert len(scales) == 1


def test_a_perfect_network_has_a_figure_without_mistakes(tmp_path: Path) -> None:
    trained = run(tmp_path, {"trainer.max_epochs": 8})
    assert trained.metrics["train"]["accuracy"] == 1
    (axes,) = trained.plot_mistakes("train").axes
    assert axes.get_title(loc="left") == f"{trained.name}: 0 of 200 train images misclassified"


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
    assert repr(Run(folder)).startswith(
        rf"<Run {folder}: <i>\x1b[31mNet on tiny, seed 0, epochs 3, "
    )
    assert repr(Run(folder)).endswith(f"test accuracy {shown}>")
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


def test_a_run_that_is_not_there_is_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"^there is no run in runs: train one with digitlab fit$"):
        Run()
    with pytest.raises(
        InputError, match=r"^there is no folder nowhere: give the folder that digitlab fit"
    ):
        Run("nowhere")
    with pytest.raises(InputError, match=r"has no config.yaml, so it is not a run folder: give"):
        Run(tmp_path)


def test_latest_is_the_run_that_was_started_last(tmp_path: Path) -> None:
    first, second = run(tmp_path), run(tmp_path, name="other")
    os.utime(first.folder / "config.yaml", (1, 1))
    assert Run(root=tmp_path).folder == second.folder


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


def test_a_run_of_a_newer_version_says_so_where_it_cannot_be_read(copied_run: Path) -> None:
    text = (copied_run / "config.yaml").read_text("utf-8")
    newer = text.replace("hidden_features:", "neurons:")
    assert newer != text
    (copied_run / "config.yaml").write_text(newer, "utf-8")
    metrics = Run(copied_run).metrics
    for version, expected in {"0.10.0": "; digitlab 0.10.0 wrote ", "0.1.0": ""}.items():
        metrics["versions"]["digitlab"] = version
        (copied_run / "metrics.json").write_text(json.dumps(metrics), "utf-8")
        with pytest.raises(InputError) as caught:
            Run(copied_run).model  # noqa: B018
        assert "there is no option 'model.neurons'" in str(caught.value)
        assert ("digitlab 0.10.0 wrote" in str(caught.value)) == bool(expected)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name", ["torch", pytest.param("keras", marks=pytest.mark.xdist_group("keras"))]
)
def test_a_run_of_an_older_version_is_read_in_either_framework(name: str) -> None:
    old = Run(OLD_RUNS / name)
    rows = old.predictions("test")
    assert (rows["class"] == rows["label"]).sum() == old.metrics["test"]["correct"]
    assert pixels_of(old.plot_confusion()).std() > 10
    best = Run(OLD_RUNS / name, "best").predictions("test")
    assert (best["class"] == best["label"]).mean() == old.history["val_accuracy"].max()


@pytest.mark.xdist_group("keras")
def test_a_keras_run_shows_the_kernels_of_its_keras_model(tmp_path: Path) -> None:
    options = {"model": "LeNet5", "trainer.limit_train_batches": 2, "framework": "keras"}
    trained = run(tmp_path, options)
    network: Any = trained.model.network
    kernel = network.keras_model.get_layer("conv1").kernel.numpy()
    name, ours = network.first_kernels()
    assert name == "conv1"
    np.testing.assert_array_equal(ours, kernel.transpose(3, 2, 0, 1))
    assert pixels_of(trained.plot_kernels()).std() > 10


# fit


def test_fit_trains_what_the_command_trains(tmp_path: Path) -> None:
    options = ["--seed_everything", "5", "--model.optimizer", "SGD", "--model.optimizer.lr", "0.1"]
    command = commands.fit(tmp_path / "command", *options)
    overrides = {"model.optimizer": {"class_path": "SGD", "init_args": {"lr": 0.1}}}
    ours = run(tmp_path / "python", overrides, seed=5)
    for name in ("last", "best"):
        states = (commands.checkpoint(run, name)["state_dict"] for run in (ours.folder, command))
        assert_bitwise_equal(*states)
    settings = [commands.config_of(folder) for folder in (command, ours.folder)]
    for config in settings:
        del config["trainer"]["default_root_dir"]
    assert settings[0] == settings[1]


def test_overrides_are_flags_groups_classes_and_plain_values(tmp_path: Path) -> None:
    config = tmp_path / "my.yaml"
    config.write_text("model: {class_path: MLP}\ntrainer: {max_epochs: 7}\n", "utf-8")
    overrides = {
        "model.hidden_features": (4,),
        "model.optimizer": torch.optim.SGD,
        "model.optimizer.lr": np.float64(0.5),
        "data": {"class_path": TinyDataModule, "init_args": {"batch_size": np.int64(100)}},
        "trainer": {"max_epochs": 1, "accelerator": "cpu", "callbacks": None},
        "trainer.default_root_dir": tmp_path / "a folder",
    }
    trained = fit(config, overrides, quiet=True, name="1", seed=3)
    assert trained is not None
    model, data = (trained.config[key]["init_args"] for key in ("model", "data"))
    assert model["hidden_features"] == [4]
    assert model["optimizer"]["class_path"] == "torch.optim.SGD"
    assert model["optimizer"]["init_args"]["lr"] == 0.5
    assert data["batch_size"] == 100
    assert len(trained.history) == 1
    assert trained.folder == tmp_path / "a folder" / "tiny-1" / "version_0"
    assert trained.metrics["seed"] == 3


@pytest.mark.parametrize(
    ("overrides", "options"),
    [
        ({"trainer.max_epoch": 2}, ["--trainer.max_epoch", "2"]),
        ({"trainer": {"max_epochs": 0}}, ["--trainer.max_epochs", "0"]),
        ({"model": "LeNet"}, ["--model", "LeNet"]),
        ({"weights": "no\nsuch.ckpt"}, ["--weights", "no\nsuch.ckpt"]),
        ({"config": "nothing.yaml"}, ["--config", "nothing.yaml"]),
        ({"seed": -1}, ["--seed_everything", "-1"]),
        ({"run": "nowhere"}, ["--run", "nowhere"]),
    ],
)
def test_bad_input_raises_the_line_of_the_command(
    overrides: dict[str, Any],
    options: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    expected = refusal(capsys, *commands.words(tmp_path, *options))
    with pytest.raises(InputError) as caught:
        run(tmp_path, overrides)
    assert str(caught.value) == expected
    assert capsys.readouterr() == ("", "")
    assert not list(tmp_path.iterdir())


def test_a_value_that_no_config_can_have_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^trainer.callbacks is \[<.+: give numbers, text"):
        run(tmp_path, {"trainer.callbacks": [Callback()]})
    with pytest.raises(InputError, match=r"^overrides is 'trainer.max_epochs=3': give a dict"):
        fit("digits/lenet5", "trainer.max_epochs=3")  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"^model is an object of MLP: give .+ \(not objects\)"):
        run(tmp_path, {"model": MLP()})


def test_a_cell_s_module_that_is_no_classifier_is_refused_with_what_can_train_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Cell(LightningModule):
        pass

    monkeypatch.setattr(sys.modules["__main__"], "Cell", Cell, raising=False)
    Cell.__module__, Cell.__qualname__ = "__main__", "Cell"
    with pytest.raises(InputError, match=r"^model is __main__\.Cell, a LightningModule but not"):
        run(tmp_path, {"model": Cell})


def test_a_notebook_shows_bad_input_by_the_caller_s_line_and_the_message() -> None:
    shell = pytest.importorskip("IPython.core.interactiveshell").InteractiveShell()
    cell = "import digitlab\ndef lesson(): digitlab.Run('no\\nsuch')\nlesson()"
    with redirect_stdout(io.StringIO()) as output:
        shell.run_cell(cell)
    where, code, *_, message = output.getvalue().splitlines()
    assert where.endswith("line 2, in lesson")
    assert code.strip() == r"def lesson(): digitlab.Run('no\nsuch')"
    assert message.startswith("InputError: there is no folder no")


def test_a_quiet_fit_prints_nothing_and_a_plain_one_what_the_command_prints(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run(tmp_path, {"trainer.callbacks": "tests.test_run.Talking"})
    assert capfd.readouterr() == ("", "")
    fit(TINY, {"trainer.default_root_dir": tmp_path})
    shown = capfd.readouterr().out
    assert re.search(r"^epoch +1 ", shown, re.M)
    assert "Results are in " in shown


@pytest.mark.parametrize("batches", [True, 2])
def test_a_fast_dev_run_says_what_it_did_and_gives_no_run(
    batches: bool | int,
    tmp_path: Path,
    read_splits: list[Split],
    capsys: pytest.CaptureFixture[str],
) -> None:
    place = {"trainer.default_root_dir": tmp_path, "trainer.fast_dev_run": batches}
    data = {"data": SpiedDataModule, "data.validation_size": 40}
    assert fit(TINY, place | data) is None
    assert {*read_splits} == {"train", "test"}
    words = "2 batches" if batches == 2 else "1 batch"
    said = f"{words} of training, validation and test passed; nothing was written\n"
    assert capsys.readouterr().out.endswith(said)
    assert list(tmp_path.iterdir()) == []


def test_a_run_is_resumed_and_made_longer(tmp_path: Path) -> None:
    short = run(tmp_path)
    longer = fit(run=short, trainer={"max_epochs": 3}, quiet=True)
    assert longer is not None
    assert (longer.folder, len(longer.history)) == (short.folder, 3)
    assert_bitwise_equal(
        weights(longer.model), weights(run(tmp_path, {"trainer.max_epochs": 3}).model)
    )


def state_of_process() -> dict[str, Any]:
    """What a caller would notice if `fit` or `Run` changed it."""
    return {
        "numbers": [torch.initial_seed(), torch.get_rng_state().sum().item(), random.getstate()[1]],
        "numpy": np.random.get_state()[1].tolist(),  # type: ignore[index]  # noqa: NPY002
        "threads": torch.get_num_threads(),
        "tf32": (torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32),
        "denormal": torch.tensor(2.0**-130).mul(1).item(),
        "seed": os.environ.get("PL_GLOBAL_SEED"),
        "warnings": list(warnings.filters),
        "levels": [logging.getLogger(f"lightning.{name}").level for name in ("pytorch", "fabric")],
        "signals": [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)],
        "streams": (sys.stdout, sys.stderr),
        "folder": Path.cwd(),
    }


def test_the_caller_s_process_is_left_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PL_GLOBAL_SEED", "77")
    random.seed(1)
    before = state_of_process()
    trained = run(tmp_path, {"threads": 2}, seed=9)
    assert state_of_process() == before
    trained.predictions()
    assert state_of_process() == before
    with pytest.raises(InputError):
        run(tmp_path, {"model": "LeNet"})
    assert state_of_process() == before


def test_seeds_are_independent_of_what_was_trained_or_drawn_before(tmp_path: Path) -> None:
    first = run(tmp_path, seed=1).metrics
    other = run(tmp_path, seed=2).metrics
    torch.manual_seed(123)
    again = run(tmp_path, seed=1).metrics
    assert again["test"] == first["test"]
    assert other["test"]["loss"] != first["test"]["loss"]


def test_fits_in_threads_train_what_they_train_alone(tmp_path: Path) -> None:
    with ThreadPoolExecutor() as pool:
        together = [*pool.map(lambda seed: run(tmp_path, seed=seed).metrics, (1, 2, 3))]
    for seed, metrics in enumerate(together, start=1):
        assert (metrics["seed"], metrics["test"]) == (
            seed,
            run(tmp_path, seed=seed).metrics["test"],
        )


@pytest.mark.slow  # counts all objects of the process five times
def test_many_fits_leave_no_files_threads_or_objects_behind(tmp_path: Path) -> None:
    def train() -> tuple[int, int, int]:
        run(tmp_path)
        gc.collect()
        kinds = LightningModule, Trainer, Figure, Image.Image, Run
        # Not `isinstance`, which reads a property of deprecated objects.
        objects = sum(issubclass(type(it), kinds) for it in gc.get_objects())
        return len(os.listdir("/proc/self/fd")), threading.active_count(), objects

    train()
    counts = [train() for _ in range(4)]
    assert counts == [counts[0]] * 4


class Talking(Callback):
    """Prints to both streams."""

    def on_train_start(self, *_: Any) -> None:
        print("trains")
        print("warns", file=sys.stderr)


class Interrupting(Callback):
    """Presses Ctrl-C at the third step."""

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == 3:
            signal.raise_signal(signal.SIGINT)


class Failing(Callback):
    """Ends training as a network that diverges does."""

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        raise FloatingPointError("the loss is nan")


def test_ctrl_c_is_a_keyboard_interrupt_that_says_how_to_resume(tmp_path: Path) -> None:
    expected = r"^interrupted by Ctrl-C: saved .+ at step 3; resume with: digitlab fit --run "
    with pytest.raises(KeyboardInterrupt, match=expected):
        run(tmp_path, {"trainer.callbacks": "tests.test_run.Interrupting"})
    resumed = fit(run=Run(root=tmp_path).folder, quiet=True)
    assert resumed is not None
    assert resumed.metrics["optimizer_steps"] == 7


def test_a_training_that_fails_raises_run_error(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"^the loss is nan; nothing was saved$"):
        run(tmp_path, {"trainer.callbacks": [{"class_path": Failing}]})
