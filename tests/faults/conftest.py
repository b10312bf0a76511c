"""What several files of faults need."""

from pathlib import Path

import pytest

from tests.faults.runs_of_tiny import COMMAND, fit, left_alone

collect_ignore = ["warm.py"]  # it is no test, but for processes that are forked


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, tiny_for_module: None) -> Path:
    """A run of `COMMAND` that nothing happens to."""
    place = tmp_path_factory.mktemp("alone")
    return left_alone(fit(COMMAND, place), place)
