"""What several files of faults need."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from tests.faults.processes import Fault, fit, left_alone

collect_ignore = ["warm.py"]  # it is no test, but for processes that are forked

Alone = Callable[..., Path]
"""Gives the finished run of a model, which tests only read: `alone(model, ranks=2)`."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let one worker run these tests: its fork server and its finished runs serve them all."""
    for item in items:
        if item.path.parent == Path(__file__).parent and not item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.xdist_group("faults"))


@pytest.fixture(scope="session")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Alone:
    """Trains a model to the end without a fault, once a session."""

    @cache
    def train(model: str, ranks: int, framework: str, always: Fault | None) -> Path:
        place = tmp_path_factory.mktemp("alone")
        return left_alone(fit(model, place, framework=framework), place, ranks, always)

    def alone(
        model: str, ranks: int = 0, framework: str = "torch", always: Fault | None = None
    ) -> Path:
        return train(model, ranks, framework, always)

    return alone
