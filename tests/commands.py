"""The `digitlab` command in this process, on the tiny data."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from digitlab.cli import main

SHORT = [
    *("--data", "tests.tiny.TinyDataModule", "--trainer.accelerator", "cpu"),
    *("--trainer.max_epochs", "1"),
]


def fit(root: Path, *options: str, model: str = "LinearClassifier") -> Path:
    """Train for an epoch, and return the run folder, the only one below `root`."""
    place = ["--trainer.default_root_dir", str(root)]
    assert main(["fit", "--model", model, *SHORT, *place, *options]) == 0
    (folder,) = root.glob("*/version_*")
    return folder


def refusal(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    """Give bad input, and return the one line that it is answered with."""
    assert main(args) == 2
    error = capsys.readouterr().err
    match = re.fullmatch(r"digitlab: error: (.+)\n", error)
    assert match, f"not one line: {error}"
    return match[1]


def config_of(folder: Path, name: str = "config.yaml") -> dict[str, Any]:
    """Read a config of a run folder."""
    config: dict[str, Any] = yaml.safe_load((folder / name).read_text("utf-8"))
    return config
