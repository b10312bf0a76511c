"""The `digitlab` command in this process, on the tiny data."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from digitlab.cli import main

SHORT = [
    *("--data", "tests.tiny.TinyDataModule", "--trainer.accelerator", "cpu"),
    *("--trainer.max_epochs", "1"),
]


def words(root: Path, *options: str, model: str = "LinearClassifier") -> list[str]:
    """The command that trains for an epoch below `root`; options replace what it says."""
    return ["fit", "--model", model, *SHORT, "--trainer.default_root_dir", str(root), *options]


def fit(root: Path, *options: str, model: str = "LinearClassifier") -> Path:
    """Train for an epoch, and return the run folder, the only one below `root`."""
    assert main(words(root, *options, model=model)) == 0
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


def checkpoint(folder: Path, name: str = "last") -> dict[str, Any]:
    """Read a checkpoint of a run folder as PyTorch does."""
    path = folder / "checkpoints" / f"{name}.ckpt"
    content: dict[str, Any] = torch.load(path, weights_only=True)
    return content
