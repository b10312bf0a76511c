import io
import itertools
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
from lightning import Trainer
from tqdm import tqdm

from digitlab.callbacks import ProgressBar, logging
from tests.fitting import BATCHES, small_mlp, trainer
from tests.tiny import TinyDataModule


class Terminal(io.StringIO):
    """Stands for a terminal of 100 columns; `pictures` is what it showed, one after another."""

    def isatty(self) -> bool:
        return True

    def pictures(self) -> list[str]:
        return [text.strip() for text in self.getvalue().split("\r") if text.strip()]


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    stream = Terminal()
    monkeypatch.setattr(logging, "tqdm", partial(tqdm, file=stream))
    monkeypatch.setenv("COLUMNS", "100")
    return stream


def tick(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Lets the bar's clock go on by some seconds at each look."""
    clock: Iterator[float] = itertools.count(start=100.0, step=seconds)
    monkeypatch.setattr(logging, "monotonic", lambda: next(clock))


def run(**options: Any) -> Trainer:
    return trainer(enable_progress_bar=True, callbacks=[ProgressBar()], **options)


@pytest.mark.parametrize(
    ("seconds", "drawn"), [(0.25, [1, 2, 3, 4, 5, 6, 7]), (0.125, [1, 3, 5, 7]), (0.01, [1])]
)
def test_a_bar_is_drawn_at_most_four_times_a_second(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch, seconds: float, drawn: list[int]
) -> None:
    tick(monkeypatch, seconds)
    run(limit_val_batches=0).fit(small_mlp(), TinyDataModule())
    pictures = terminal.pictures()
    assert pictures[0].startswith("Epoch 1:   0%")
    shown = [int(text.split(f"/{BATCHES} ")[0].split()[-1]) for text in pictures[1:]]
    assert shown == drawn
    assert all("loss" in text and "accuracy" in text for text in pictures[1:])


def test_a_bar_shows_the_loss_and_accuracy_so_far(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    tick(monkeypatch, 1.0)
    model = small_mlp()
    run(limit_val_batches=0).fit(model, TinyDataModule())
    score = model.epoch_score("train")
    end = f"loss {score['loss']:.4f}, accuracy {score['accuracy']:.2%}]"
    assert terminal.pictures()[-1].endswith(end)


def test_every_epoch_has_a_bar_and_the_last_is_cleared(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    tick(monkeypatch, 1.0)
    run(max_epochs=2).fit(small_mlp(), TinyDataModule())
    pictures = terminal.pictures()
    assert {text.split(":")[0] for text in pictures} == {"Epoch 1", "Epoch 2"}
    assert sum("validating" in text for text in pictures) == 2
    last_line = terminal.getvalue().split("\n")[-1].rstrip("\r").split("\r")[-1]
    assert last_line.strip() == ""


@pytest.mark.parametrize(("method", "name"), [("validate", "Validation"), ("test", "Test")])
def test_an_evaluation_has_a_bar(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch, method: str, name: str
) -> None:
    tick(monkeypatch, 1.0)
    getattr(run(), method)(small_mlp(), TinyDataModule(eval_batch_size=20), verbose=False)
    pictures = terminal.pictures()
    assert {text.split(":")[0] for text in pictures} == {name}
    assert [text.split("/3 ")[0].split()[-1] for text in pictures] == ["0", "1", "2", "3"][-4:]


@pytest.mark.parametrize("method", ["fit", "validate", "test", "predict"])
def test_without_a_terminal_nothing_is_drawn(monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(logging, "tqdm", partial(tqdm, file=stream))
    tick(monkeypatch, 1.0)
    getattr(run(), method)(small_mlp(), TinyDataModule())
    assert stream.getvalue() == ""


def test_a_disabled_bar_draws_nothing(terminal: Terminal) -> None:
    bar = ProgressBar()
    bar.disable()
    trainer(enable_progress_bar=True, callbacks=[bar]).fit(small_mlp(), TinyDataModule())
    assert "Epoch" not in terminal.getvalue()
    bar.enable()
    trainer(enable_progress_bar=True, callbacks=[bar]).fit(small_mlp(), TinyDataModule())
    assert "Epoch 1" in terminal.getvalue()
