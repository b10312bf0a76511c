"""`fit`: in Python what `digitlab fit` does, in a process that is left as it was."""

import gc
import io
import logging
import os
import random
import re
import signal
import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from matplotlib.figure import Figure
from PIL import Image

from digitlab import InputError, Run, RunError, fit
from digitlab.data.download import Split
from digitlab.models import MLP
from tests import commands
from tests.commands import refusal
from tests.fitting import assert_bitwise_equal
from tests.tiny import SpiedDataModule, TinyDataModule

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
        ({"trainer": {"max_epoch": 2}}, ["--trainer.max_epoch", "2"]),
        ({"weights": "no\nsuch.ckpt"}, ["--weights", "no\nsuch.ckpt"]),
        ({"seed": -1}, ["--seed_everything", "-1"]),
        ({"run": "nowhere"}, ["--run", "nowhere"]),
    ],
)
def test_bad_input_raises_the_line_of_the_command(
    overrides: Any, options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
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


class Talking(Callback):
    """Prints to both streams."""

    def on_train_start(self, *_: Any) -> None:
        print("trains")
        print("warns", file=sys.stderr)


def test_a_quiet_fit_prints_nothing_and_a_plain_one_what_the_command_prints(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run(tmp_path, {"trainer.callbacks": "tests.test_fit.Talking"})
    assert capfd.readouterr() == ("", "")
    fit(TINY, {"trainer.default_root_dir": tmp_path})
    shown = capfd.readouterr().out
    assert re.search(r"^epoch +1 ", shown, re.M)
    assert "Results are in " in shown


@pytest.mark.parametrize("batches", [True, 2])
def test_a_fast_dev_run_says_what_it_did_and_gives_no_run(
    batches: int, tmp_path: Path, read_splits: list[Split], capsys: pytest.CaptureFixture[str]
) -> None:
    place = {"trainer.default_root_dir": tmp_path, "trainer.fast_dev_run": batches}
    data = {"data": SpiedDataModule, "data.validation_size": 40}
    assert fit(TINY, place | data) is None
    assert {*read_splits} == {"train", "test"}
    words = "2 batches" if batches == 2 else "1 batch"
    said = f"{words} of training, validation and test passed; nothing was written\n"
    assert capsys.readouterr().out.endswith(said)
    assert list(tmp_path.iterdir()) == []


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


def test_fits_in_threads_train_what_they_train_alone(tmp_path: Path) -> None:
    with ThreadPoolExecutor() as pool:
        together = [*pool.map(lambda seed: run(tmp_path, seed=seed).metrics, (1, 2, 3))]
    for seed, metrics in enumerate(together, start=1):
        alone = run(tmp_path, seed=seed).metrics
        assert (metrics["seed"], metrics["test"]) == (seed, alone["test"])
    assert len({metrics["test"]["loss"] for metrics in together}) == 3


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
        run(tmp_path, {"trainer.callbacks": "tests.test_fit.Interrupting"})
    stopped = Run(root=tmp_path)
    resumed = fit(run=stopped, trainer={"max_epochs": 2}, quiet=True)
    assert resumed is not None
    assert resumed.folder == stopped.folder
    assert (resumed.metrics["optimizer_steps"], len(resumed.history)) == (14, 2)


def test_a_training_that_fails_raises_run_error(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"^the loss is nan; nothing was saved$"):
        run(tmp_path, {"trainer.callbacks": [{"class_path": Failing}]})
