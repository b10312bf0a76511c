"""A checkpoint whose bytes were changed is refused in a line, or gives what was written."""

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from digitlab.checkpoints import load_weights, read_checkpoint
from digitlab.models import MLP
from tests.faults.processes import THOROUGH, equal
from tests.fitting import weights

# The same examples in every run, so that a failure is of the change that is being tested.
many = settings(deadline=None, max_examples=10_000 if THOROUGH else 1000, derandomize=True)
pytestmark = pytest.mark.promise("bytes")


@pytest.fixture(scope="module")
def checkpoint(finished_run: Path) -> Path:
    return finished_run / "checkpoints" / "last.ckpt"


@st.composite
def changes(draw: st.DrawFn) -> Callable[[bytes], bytes]:
    """A change of a file's bytes: some flipped, a part cut out, doubled or overwritten."""
    kind = draw(st.sampled_from(["flip", "cut", "drop", "repeat", "overwrite"]))
    # Parts of the file by their place, so that an example fits any length.
    first, second = draw(st.floats(0, 1)), draw(st.floats(0, 1))
    some = draw(st.binary(min_size=1, max_size=64))

    def change(content: bytes) -> bytes:
        start, end = sorted(int(part * (len(content) - 1)) for part in (first, second))
        if kind == "flip":
            mask = some[0] or 1
            return content[:start] + bytes([content[start] ^ mask]) + content[start + 1 :]
        if kind == "cut":
            return content[:start]
        if kind == "drop":
            return content[:start] + content[end:]
        if kind == "repeat":
            return content[:end] + content[start:]
        return content[:start] + some + content[start + len(some) :]

    return change


def check_change(path: Path, place: Path, change: Callable[[bytes], bytes]) -> None:
    spoilt = place / "spoilt.ckpt"
    spoilt.write_bytes(change(path.read_bytes()))
    try:
        content = read_checkpoint(spoilt)
    except ValueError as error:
        message = str(error)
    else:
        assert equal(content, torch.load(path, weights_only=True))
        return
    assert "\n" not in message
    assert message.startswith(f"{spoilt} is damaged, or not a checkpoint of plain tensors: give")
    ours = MLP([16])
    before = weights(ours)
    with pytest.raises(ValueError, match="is damaged, or not a checkpoint"):
        load_weights(ours, spoilt)
    assert equal(weights(ours), before)


@pytest.mark.slow
def test_changed_bytes_are_refused_or_do_no_harm(checkpoint: Path, tmp_path: Path) -> None:
    @many
    @given(change=changes())
    def spoil(change: Callable[[bytes], bytes]) -> None:
        check_change(checkpoint, tmp_path, change)

    spoil()


def test_every_bit_counts(checkpoint: Path, tmp_path: Path) -> None:
    """torch alone reads most of these files, and gives other weights."""
    content = checkpoint.read_bytes()
    spoilt = tmp_path / "spoilt.ckpt"
    start = content.index(
        torch.load(checkpoint, weights_only=True)["state_dict"]["network.fc1.weight"]
        .numpy()
        .tobytes()[:64]
    )
    spoilt.write_bytes(content[:start] + bytes([content[start] ^ 1]) + content[start + 1 :])
    torch.load(spoilt, weights_only=True)
    with pytest.raises(ValueError, match="is damaged"):
        read_checkpoint(spoilt)


class Hidden:
    """Code that would run when it is unpickled."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> Any:
        return os.system, (self.command,)


@pytest.mark.parametrize("how", ["torch", "pickle"])
def test_code_in_a_checkpoint_is_never_run(tmp_path: Path, how: str) -> None:
    path, proof = tmp_path / "hidden.ckpt", tmp_path / "it ran"
    content = {"state_dict": {}, "extra": Hidden(f"touch '{proof}'")}
    if how == "torch":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content))
    with pytest.raises(ValueError, match="not a checkpoint of plain tensors"):
        read_checkpoint(path)
    assert not proof.exists()
    torch.load(path, weights_only=False) if how == "torch" else pickle.loads(path.read_bytes())
    assert proof.exists(), "the code was none"
