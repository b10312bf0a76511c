import csv
from pathlib import Path
from typing import Any

import pytest
from lightning import Callback, Trainer
from torch.optim.lr_scheduler import StepLR

from digitlab.callbacks import History, PrintEpoch
from digitlab.callbacks.logging import describe_layers
from digitlab.models import LeNet5
from tests.fitting import BATCHES, Recording, fit, small_mlp, trainer
from tests.tiny import TinyDataModule

COLUMNS = [
    "epoch", "step", "train_loss", "train_accuracy", "val_loss", "val_accuracy", "learning_rate",
    "seconds",
]  # fmt: skip


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("options", [{}, {"val_check_interval": 3}], ids=["end", "middle too"])
def test_a_row_has_the_epochs_logged_scores(tmp_path: Path, options: dict[str, Any]) -> None:
    history, logger = History(tmp_path / "history.csv"), Recording()
    fit(None, history, logger=logger, max_epochs=3, log_every_n_steps=BATCHES, **options)
    assert [row["epoch"] for row in history.rows] == [1, 2, 3]
    assert [row["step"] for row in history.rows] == [BATCHES, 2 * BATCHES, 3 * BATCHES]
    for phase in ("train", "val"):
        for quantity in ("loss", "accuracy"):
            # An epoch's last validation counts.
            logged = [value for _, value in logger.series(f"{phase}/{quantity}")]
            last = logged[len(logged) // 3 - 1 :: len(logged) // 3]
            assert [row[f"{phase}_{quantity}"] for row in history.rows] == pytest.approx(
                last, rel=1e-6  # logged as float32
            )  # fmt: skip
    assert all(0 < (row["seconds"] or 0) < 60 for row in history.rows)


def test_the_file_has_the_rows(tmp_path: Path) -> None:
    history = History(tmp_path / "history.csv")
    fit(None, history, max_epochs=2)
    rows = read(tmp_path / "history.csv")
    assert list(rows[0]) == COLUMNS
    assert [{key: float(value) for key, value in row.items()} for row in rows] == history.rows
    assert b"\r" not in (tmp_path / "history.csv").read_bytes()


def test_an_epoch_without_validation_has_none(tmp_path: Path) -> None:
    history = History(tmp_path / "history.csv")
    fit(None, history, max_epochs=3, check_val_every_n_epoch=2, num_sanity_val_steps=2)
    validated = [row["val_loss"] is not None for row in history.rows]
    assert validated == [False, True, False]
    assert [row["val_accuracy"] != "" for row in read(history.path)] == validated


def test_a_validation_score_of_zero_is_a_score(tmp_path: Path) -> None:
    history = History(tmp_path / "history.csv")
    history._validation = {"loss": 0.0, "accuracy": 0.0, "correct": 0, "n": 50}
    history.on_train_epoch_start = lambda *_: None  # type: ignore[method-assign] # keeps the score
    fit(None, history, limit_val_batches=0)
    assert (history.rows[0]["val_loss"], history.rows[0]["val_accuracy"]) == (0.0, 0.0)


def test_the_learning_rate_is_that_of_the_epoch(tmp_path: Path) -> None:
    history = History(tmp_path / "history.csv")
    model = small_mlp(lr_scheduler=lambda optimizer: StepLR(optimizer, step_size=1, gamma=0.5))
    fit(model, history, max_epochs=3)
    rates = [row["learning_rate"] for row in history.rows]
    assert rates == pytest.approx([0.001, 0.0005, 0.00025])


def test_a_run_that_goes_on_inside_an_epoch_has_a_row_for_its_rest(tmp_path: Path) -> None:
    path = tmp_path / "inside.ckpt"

    class Saver(Callback):
        def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
            if trainer.global_step == 3:
                trainer.save_checkpoint(path)

    fit(None, Saver())
    history = History(tmp_path / "history.csv")
    run = trainer(callbacks=[history])
    run.fit(small_mlp(), TinyDataModule(), ckpt_path=path, weights_only=True)
    [row] = history.rows
    assert (row["epoch"], row["step"], row["learning_rate"]) == (1, BATCHES, 0.001)
    assert 0 < (row["seconds"] or 0) < 60  # and not the machine's uptime


def test_the_console_shows_layers_and_a_line_for_each_epoch(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    history = History(tmp_path / "history.csv")
    fit(None, history, PrintEpoch(history), max_epochs=2, check_val_every_n_epoch=2)
    *layers, first, second = capsys.readouterr().out.splitlines()
    assert layers == describe_layers(small_mlp().network).splitlines()
    rows = history.rows
    train = "loss {train_loss:.4f} accuracy {train_accuracy:.2%}"
    val = "loss {val_loss:.4f} accuracy {val_accuracy:.2%}"
    end = "  {seconds:.1f} s"
    assert first == "epoch   1  train " + (train + end).format(**rows[0])
    assert second == "epoch   2  train " + (train + "  val " + val + end).format(**rows[1])


def test_the_table_of_layers_has_every_parameter_tensor() -> None:
    network = LeNet5().network
    lines = describe_layers(network).splitlines()
    assert len(lines) == 1 + len(list(network.children())) + 1
    assert lines[1].split() == [
        "conv1", "Conv2d", "weight", "(6,", "1,", "5,", "5),", "bias", "(6,)", "156",
    ]  # fmt: skip
    assert lines[-1] == "61,706 parameters in 10 tensors"
    assert len({len(line) for line in lines[:-1]}) == 1
