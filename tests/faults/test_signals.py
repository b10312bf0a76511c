"""Signals outside training; test_scenarios.py sends them to runs that train."""

import runpy
import signal
from functools import partial
from pathlib import Path

import pytest

from digitlab import signals
from digitlab.classifier import Classifier
from tests.faults.plants import at_call, send
from tests.faults.processes import run, said, slow
from tests.fitting import trainer

pytestmark = pytest.mark.promise("signals")


def test_the_signals_that_windows_lacks_are_not_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SIGHUP", "SIGUSR1"):
        monkeypatch.delattr(signal, name)
    there = runpy.run_path(signals.__file__)
    with pytest.raises(there["Interrupted"]) as raised, there["StopSignals"](trainer()).handled():
        send(signal.SIGTERM)
    assert not raised.value.asks_to_requeue


@pytest.mark.parametrize(
    ("number", "code", "name"),
    [
        slow(signal.SIGTERM, 143, "SIGTERM"),
        (signal.SIGINT, 130, "Ctrl-C"),
        slow(signal.SIGHUP, 129, "SIGHUP"),
    ],
)
def test_an_evaluation_stops_at_once(
    tmp_path: Path, finished_run: Path, number: int, code: int, name: str
) -> None:
    fault = partial(at_call, Classifier, "test_step", 1, partial(send, number))
    assert run(["test", "--run", str(finished_run)], tmp_path, fault) == [code]
    assert said(tmp_path) == f"digitlab: interrupted by {name}\n"
