"""Ctrl-C, SIGTERM and SIGHUP end a run at a step, and what was trained is kept."""

import runpy
import signal
from functools import partial
from pathlib import Path

import pytest
import torch

from digitlab import signals
from digitlab.callbacks import LastCheckpoint
from digitlab.classifier import Classifier
from tests.faults.conftest import Alone
from tests.faults.runs_of_tiny import COMMAND, MLP, at_call, fit, folder_of, log_of, resume, send
from tests.faults.victims import Fault, differences, run
from tests.fitting import trainer

CODES = {signal.SIGTERM: (143, "SIGTERM"), signal.SIGINT: (130, "Ctrl-C")}
CODES |= {signal.SIGHUP: (129, "SIGHUP")}
slow = partial(pytest.param, marks=pytest.mark.slow)


def at_step(step: int, *numbers: int) -> Fault:
    return at_call_of(Classifier, "on_before_optimizer_step", step, *numbers)


def at_call_of(owner: type, name: str, call: int, *numbers: int) -> Fault:
    """A fault: the process gets signals in the `call`-th call of a method."""
    return partial(at_call, owner, name, call, partial(send, *numbers))


def saved_step(folder: Path) -> int:
    step: int = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["global_step"]
    return step


@pytest.mark.parametrize(
    ("number", "model", "step", "saved"),
    [
        *((number, COMMAND, 30, 33) for number in CODES),  # blocks of four end at 25, 29, 33
        slow(signal.SIGTERM, MLP, 30, 30),
        slow(signal.SIGINT, f"{MLP} --trainer.accumulate_grad_batches 3", 5, 5),
        slow(signal.SIGTERM, MLP, 25, 25),  # the epoch's last, which its validation follows
        slow(signal.SIGINT, f"{MLP} --trainer.val_check_interval 10", 10, 11),
    ],
)
def test_the_step_in_hand_is_finished_and_saved(
    tmp_path: Path, alone: Alone, number: signal.Signals, model: str, step: int, saved: int
) -> None:
    command, log = fit(f"{model} --checkpoint_every_n_steps 1000", tmp_path), log_of(tmp_path)
    code, name = CODES[number]
    assert run(command, log, at_step(step, number)) == code
    folder = folder_of(tmp_path)
    last = folder / "checkpoints" / "last.ckpt"
    said = f"digitlab: interrupted by {name}: saved {last} at step {saved}; "
    assert log.read_text().endswith(f"{said}resume with: digitlab fit --run {folder}\n")
    assert saved_step(folder) == saved
    assert "Traceback" not in log.read_text()
    resume(folder)
    assert differences(folder, alone(model)) == []


def nohup() -> None:
    """A fault: the process is started to ignore SIGHUP, which it gets at a step."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    at_step(3, signal.SIGHUP)()


def test_a_hangup_that_is_ignored_at_the_start_stays_so(tmp_path: Path) -> None:
    assert run(fit(COMMAND, tmp_path, 1), log_of(tmp_path), nohup) == 0
    assert "stopping" not in log_of(tmp_path).read_text()


def test_the_signals_that_windows_lacks_are_not_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SIGHUP", "SIGUSR1"):
        monkeypatch.delattr(signal, name)
    there = runpy.run_path(signals.__file__)
    with pytest.raises(there["Interrupted"]) as raised, there["StopSignals"](trainer()).handled():
        send(signal.SIGTERM)
    assert not raised.value.asks_to_requeue


def test_a_second_ctrl_c_stops_at_once_and_harms_nothing(tmp_path: Path, alone: Alone) -> None:
    command, log = f"{COMMAND} --checkpoint_every_n_steps 10", log_of(tmp_path)
    assert run(fit(command, tmp_path), log, at_step(18, signal.SIGINT, signal.SIGINT)) == 130
    folder = folder_of(tmp_path)
    assert saved_step(folder) == 12
    last = folder / "checkpoints" / "last.ckpt"
    assert f"interrupted by Ctrl-C: {last} was saved at step 12; " in log.read_text()
    assert "Traceback" not in log.read_text()
    resume(folder)
    assert differences(folder, alone(COMMAND)) == []


@pytest.mark.slow
def test_a_second_ctrl_c_while_it_saves_leaves_a_whole_checkpoint(tmp_path: Path) -> None:
    fault = at_call_of(LastCheckpoint, "save", 9, signal.SIGINT, signal.SIGINT)
    assert run(fit(MLP, tmp_path), log_of(tmp_path), fault) == 130
    folder = folder_of(tmp_path)
    assert [path.name for path in folder.rglob(".*") if path.name != ".lock"] == []
    resume(folder)


@pytest.mark.parametrize("number", [slow(signal.SIGTERM), slow(signal.SIGINT), signal.SIGHUP])
def test_after_training_a_signal_ends_the_evaluation_at_once(
    tmp_path: Path, alone: Alone, number: signal.Signals
) -> None:
    fault = at_call_of(Classifier, "evaluate", 1, number)
    assert run(fit(MLP, tmp_path), log_of(tmp_path), fault) == CODES[number][0]
    folder = folder_of(tmp_path)
    assert not (folder / "metrics.json").exists()
    resume(folder)
    assert differences(folder, alone(MLP)) == []


@pytest.mark.parametrize("number", CODES)
def test_an_evaluation_stops_at_once(
    tmp_path: Path, finished_run: Path, number: signal.Signals
) -> None:
    log = tmp_path / "test.log"
    fault = at_call_of(Classifier, "test_step", 1, number)
    assert run(["test", "--run", str(finished_run)], log, fault) == CODES[number][0]
    assert log.read_text() == f"digitlab: interrupted by {CODES[number][1]}\n"
