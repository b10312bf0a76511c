"""Every test of a fault, the long ones too, counted by its promise."""

import os
from typing import Any

import pytest

from benchmarks.endurance.promises import PROMISES

_TESTS = ("tests/faults", "tests/test_resume.py", "tests/data")


class _Notes:
    """A plugin of pytest that notes the promises of each test, and its outcomes."""

    def __init__(self) -> None:
        self.promises: dict[str, list[str]] = {}
        self.outcomes: dict[str, list[str]] = {}

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        for item in session.items:
            keys = [mark.args[0] for mark in item.iter_markers("promise")]
            self.promises[_name(item.nodeid)] = keys

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or report.outcome != "passed":
            self.outcomes.setdefault(_name(report.nodeid), []).append(report.outcome)


def collect(which: str = "promise") -> dict[str, list[str]]:
    """List the promises that each test names, without running any.

    Args:
        which: A `-m` expression of pytest.
    """
    notes = _Notes()
    pytest.main([*_TESTS, "-q", "-m", which, "-n0", "--collect-only"], plugins=[notes])
    return notes.promises


def inject_all(processes: int) -> dict[str, Any]:
    """Run the tests that name a promise, and count by promise: tried, held, and not possible here.

    Args:
        processes: Tests to run beside each other.
    """
    os.environ["DIGITLAB_ENDURANCE"] = "1"  # more random examples
    notes, promises = _Notes(), collect()
    pytest.main([*_TESTS, "-q", "-m", "promise", "-n", str(processes)], plugins=[notes])
    counts = {}
    for key in dict.fromkeys(promise.key for promise in PROMISES):
        names = [name for name, keys in promises.items() if key in keys]
        outcomes = [outcome for name in names for outcome in notes.outcomes.get(name, [])]
        if outcomes:
            skipped = outcomes.count("skipped")
            held = outcomes.count("passed")
            counts[key] = {"tried": len(outcomes) - skipped, "held": held, "skipped": skipped}
    return counts


def _name(node: str) -> str:
    """Return a test's name without the group that xdist appends."""
    return node.partition("@")[0]
