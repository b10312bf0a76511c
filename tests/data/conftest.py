from pathlib import Path

import pytest

from tests import tiny


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """The archives' folder of a data set of the test's own, below `tmp_path`."""
    return tiny.write(tmp_path)
