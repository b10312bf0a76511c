import io
import itertools
import os
import re
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
from lightning import Callback, Trainer
from lightning.pytorch.callbacks import LambdaCallback

from digitlab.callbacks import ProgressBar, progress
from tests.fitting import BATCHES, small_mlp, trainer
from tests.tiny import TinyDataModule

pytestmark = pytest.mark.filterwarnings("ignore:The number of training batches .* is smaller")


class Terminal(io.StringIO):
    """Stands for a terminal; `lines` is what it showed, one after another."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True

    def fileno(self) -> int:
        return 2

    def lines(self) -> list[str]:
        return [text.strip() for text in self.getvalue().split("\r") if text.strip()]


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Standard error, 80 columns wide; a second passes at each look at the clock."""
    stream = Terminal()
    monkeypatch.setattr(progress, "sys", SimpleNamespace(stderr=stream))  # pytest sets sys.stderr
    monkeypatch.setenv("TERM", "xterm")
    set_columns(monkeypatch, 80)
    tick(monkeypatch, 1.0)
    return stream


def set_columns(monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    monkeypatch.setattr(os, "get_terminal_size", lambda *_: os.terminal_size((columns, 24)))


def with_bar(*others: Callback, **options: Any) -> Trainer:
    return trainer(enable_progress_bar=True, callbacks=[ProgressBar(), *others], **options)


def tick(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Advances the bar's clock by some seconds at each look."""
    clock: Iterator[float] = itertools.count(start=100.0, step=seconds)
    monkeypatch.setattr(progress, "monotonic", lambda: next(clock))


@pytest.mark.parametrize(
    ("steps", "seconds", "drawn"),
    [
        (1, 0.25, [1, 2, 3, 4, 5, 6, 7]),
        (1, 0.125, [1, 3, 5, 7]),
        (1, 0.01, [1]),
        (3, 1.0, [3, 6, 7]),  # batches, not blocks
    ],
)
def test_a_bar_counts_batches_and_is_drawn_at_most_four_times_a_second(
    terminal: Terminal,
    monkeypatch: pytest.MonkeyPatch,
    steps: int,
    seconds: float,
    drawn: list[int],
) -> None:
    tick(monkeypatch, seconds)
    model = small_mlp(steps_per_execution=steps)
    reads = Mock(side_effect=model.running_score)
    monkeypatch.setattr(model, "running_score", reads)
    with_bar(limit_val_batches=0).fit(model, TinyDataModule())
    lines = terminal.lines()
    assert re.fullmatch(r"Epoch 1/1 ─{30,} 0% \?, \? batches/s", lines[0])
    shares = [line.split("%")[0].split()[-1] for line in lines if "acc" in line]
    assert [*dict.fromkeys(shares)] == [f"{100 * n / BATCHES:.0f}" for n in drawn]
    assert reads.call_count == len(drawn)  # reading a score would stall a GPU
    if drawn[-1] == BATCHES:
        score = model.epoch_score("train")
        assert f" 00:00, loss={score['loss']:.3f}, acc={score['accuracy']:.1%}, " in lines[-1]


@pytest.mark.parametrize("columns", [80, 60, 30])
def test_a_line_is_no_longer_than_a_terminal_is_wide(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    set_columns(monkeypatch, columns)
    with_bar(limit_val_batches=0).fit(small_mlp(), TinyDataModule())
    shown = r"Epoch 1/1 ━+[╾━]?─* \d+% \d\d:\d\d, loss=\d.\d{3}, acc=[\d.]+%, +[\d.]+ batches/s"
    if columns == 80:
        assert re.fullmatch(shown, terminal.lines()[-1])
    assert max(map(len, terminal.lines())) <= columns


def test_a_value_that_a_module_logs_for_the_bar_is_on_it(terminal: Terminal) -> None:
    norm = LambdaCallback(
        on_train_batch_end=lambda _, module, *__: module.log("norm", 1.23456, prog_bar=True)
    )
    with_bar(norm, limit_val_batches=0).fit(small_mlp(), TinyDataModule())
    assert " norm=1.23" in terminal.lines()[-1]


def test_an_epoch_s_bar_is_cleared_and_says_when_it_validates(terminal: Terminal) -> None:
    left: list[str] = []
    watch = LambdaCallback(
        on_train_epoch_end=lambda *_: left.append(terminal.getvalue().split("\r")[-2])
    )
    run = with_bar(watch, num_sanity_val_steps=0, max_epochs=2)
    run.fit(small_mlp(), TinyDataModule())
    assert {line[:9] for line in terminal.lines()} == {"Epoch 1/2", "Epoch 2/2"}
    validating = [line[:9] for line in terminal.lines() if " validating" in line]
    assert [*dict.fromkeys(validating)] == ["Epoch 1/2", "Epoch 2/2"]
    assert [text.strip() for text in left] == ["", ""]
    assert "\n" not in terminal.getvalue()


def test_a_bar_is_cleared_before_an_error(terminal: Terminal) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("here")

    with pytest.raises(RuntimeError, match="here"):
        with_bar(LambdaCallback(on_train_batch_end=fail)).fit(small_mlp(), TinyDataModule())
    assert terminal.getvalue().endswith("\r")
    assert terminal.getvalue().split("\r")[-2].strip() == ""


@pytest.mark.parametrize(
    ("method", "size", "name"),
    [
        ("validate", 0, "Validation (test split)"),
        ("validate", 50, "Validation"),
        ("test", 0, "Testing"),
        ("predict", 0, "Predicting"),
    ],
)
def test_an_evaluation_has_a_bar_that_names_the_split(
    terminal: Terminal, method: str, size: int, name: str
) -> None:
    data = TinyDataModule(eval_batch_size=20, validation_size=size)
    getattr(with_bar(), method)(small_mlp(), data)
    lines = [line for line in terminal.lines() if "%" in line]
    assert {re.split(" [─╾━]|  ", line)[0] for line in lines} == {name}
    shares = dict.fromkeys(line.split("%")[0].split()[-1] for line in lines)
    assert [*shares] == ["0", "33", "67", "100"]
    assert terminal.getvalue().split("\r")[-2].strip() == ""


@pytest.mark.parametrize("method", ["fit", "validate", "test", "predict"])
@pytest.mark.parametrize(
    ("stream", "term"),
    [(io.StringIO(), "xterm"), (None, "xterm"), (Terminal(), "off"), (Terminal(), "dumb")],
    ids=["file", "closed", "off", "dumb"],
)
def test_without_a_terminal_or_disabled_nothing_is_drawn_or_read(
    monkeypatch: pytest.MonkeyPatch, method: str, stream: io.StringIO | None, term: str
) -> None:
    monkeypatch.setattr(progress, "sys", SimpleNamespace(stderr=stream))
    monkeypatch.setenv("TERM", term)
    model, run = small_mlp(), with_bar()
    model.running_score = None  # type: ignore[assignment]
    if term == "off":
        run.progress_bar_callback.disable()  # type: ignore[union-attr]
    getattr(run, method)(model, TinyDataModule())
    assert stream is None or stream.getvalue() == ""
