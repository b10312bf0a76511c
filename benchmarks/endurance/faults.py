"""Every test of a fault, the long ones too, counted by its promise."""

from typing import Any

import pytest


class _Counter:
    """A plugin of pytest that notes what came of each test."""

    def __init__(self) -> None:
        self.outcomes: dict[str, list[str]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or report.outcome != "passed":
            name = report.nodeid.partition("[")[0].removeprefix("tests/faults/")
            self.outcomes.setdefault(name, []).append(report.outcome)


def inject_all(processes: int) -> dict[str, Any]:
    """Run `tests/faults`, and count by test: how often it was tried, held or could not be tried.

    Args:
        processes: Tests to run beside each other.
    """
    counter = _Counter()
    options = ["tests/faults", "-q", "-m", "slow or not slow", "-n", str(processes)]
    pytest.main(options, plugins=[counter])
    return {
        name: {
            "tried": len(outcomes) - outcomes.count("skipped"),
            "held": outcomes.count("passed"),
            "skipped": outcomes.count("skipped"),
        }
        for name, outcomes in sorted(counter.outcomes.items())
    }
