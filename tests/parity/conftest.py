from importlib.util import find_spec
from pathlib import Path

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let one worker alone import TensorFlow; skip all without the extra `parity`."""
    skip = pytest.mark.skip(reason="needs the extra `parity`")
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.xdist_group("keras"))
            if not find_spec("tensorflow"):
                item.add_marker(skip)
