import re
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from digitlab.checkpoints import AtomicCheckpointIO, load_weights
from digitlab.classifier import Classifier
from digitlab.models import MLP, LeNet1, LeNet5
from tests.fitting import assert_bitwise_equal, checkpoint_of, small_mlp, weights


class DocumentLeNet(nn.Module):
    """Reference: the layers of document B's LeNet, under B's names."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 6, 5, padding=2)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.fc1 = nn.Linear(400, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, 10)


def refusal(model: Classifier, path: Path) -> str:
    """The one-line message of a refusal, which leaves the model as it was."""
    before = weights(model)
    with pytest.raises(ValueError, match=re.escape(str(path))) as caught:
        load_weights(model, path)
    assert_bitwise_equal(weights(model), before)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "before torch 1.6"])
def test_what_document_b_saves_loads_by_its_own_names(tmp_path: Path, legacy: bool) -> None:
    theirs, ours, path = DocumentLeNet(), LeNet5(), tmp_path / "torch_nn.pth"
    torch.save(theirs.state_dict(), path, _use_new_zipfile_serialization=not legacy)
    load_weights(ours, path)
    assert_bitwise_equal(ours.network.state_dict(), dict(theirs.state_dict()))


@pytest.mark.parametrize("whole", [True, False])
def test_a_checkpoint_or_a_model_s_state_dict_gives_its_weights_and_nothing_else(
    tmp_path: Path, whole: bool
) -> None:
    saved = MLP([8], dropout=0.5, gradient_clip_norm=1.0, initialization="keras")
    ours, path = MLP([8], dropout=0.1), tmp_path / "saved.ckpt"
    if whole:
        checkpoint_of(saved, path)
    else:
        torch.save(saved.state_dict(), path)
    load_weights(ours, path)
    assert_bitwise_equal(weights(ours), weights(saved))
    assert (ours.hparams["dropout"], ours.gradient_clip_norm) == (0.1, None)


@pytest.mark.parametrize(
    ("saved", "ours", "difference"),
    [
        (LeNet5(), LeNet1(), "its network.conv1.weight is (6, 1, 5, 5), not (32, 1, 3, 3)"),
        (MLP([8]), MLP([9]), "its hidden_features is [8], not [9]"),
        (LeNet1(padding=2), LeNet1(padding="same"), "its padding is 2, not same"),
    ],
)
def test_a_checkpoint_of_another_architecture_is_refused(
    tmp_path: Path, saved: Classifier, ours: Classifier, difference: str
) -> None:
    path = checkpoint_of(saved, tmp_path / "other.ckpt")
    assert refusal(ours, path) == (
        f"{path} is of another architecture than {type(ours).__name__}: {difference}; "
        "give a checkpoint of this architecture, or the --model that it was made with"
    )


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ({"fc2.bias": None}, "it has no network.fc2.bias, but fc1.bias"),
        ({"fc2.bias": 1.0}, "it has no network.fc2.bias, but fc1.bias"),
        ({"fc2.bias": torch.zeros(7)}, "its network.fc2.bias is (7,), not (10,)"),
        ({"fc9.bias": torch.zeros(7)}, "it has fc9.bias, which is unknown"),
        ({"module.fc2.bias": torch.zeros(10)}, "has fc2.bias and module.fc2.bias, as if of two"),
    ],
)
def test_a_state_dict_that_does_not_fit_names_the_first_difference(
    tmp_path: Path, change: dict[str, Any], difference: str
) -> None:
    path = tmp_path / "changed.pt"
    changed = {**small_mlp().network.state_dict(), **change}
    torch.save({name: value for name, value in changed.items() if value is not None}, path)
    assert difference in refusal(small_mlp(), path)


NETWORK = small_mlp().network.state_dict()


def named(prefix: str, weights: dict[str, Tensor] = NETWORK) -> dict[str, Any]:
    return {prefix + name: value for name, value in weights.items()}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (named(""), ""),
        (named("network."), ""),
        (named("_orig_mod."), "stripped _orig_mod. from their names"),
        (named("module.model.network."), "stripped module.model.network. from their names"),
        (
            {**NETWORK, "fc2._orig_mod.bias": NETWORK["fc2.bias"], "fc2.bias": None},
            "stripped _orig_mod. from their names",
        ),
        ({"model": named(""), "epoch": 3}, "took the weights under model"),
        (
            {"model_state_dict": named("module."), "optimizer": {"state": {}}},
            "took the weights under model_state_dict and stripped module. from their names",
        ),
        ({"model": {"state_dict": named("")}}, "took the weights under model.state_dict"),
    ],
)
def test_what_other_programs_wrap_around_weights_is_stripped_in_one_printed_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: Any, said: str
) -> None:
    path, ours = tmp_path / "theirs.pt", MLP([16])
    torch.save({key: value for key, value in content.items() if value is not None}, path)
    load_weights(ours, path)
    assert_bitwise_equal(ours.network.state_dict(), NETWORK)
    assert capsys.readouterr().out == (f"{path}: {said}\n" if said else "")


def test_a_model_that_compiles_its_network_gives_and_takes_weights(tmp_path: Path) -> None:
    class Compiled(MLP):
        def __init__(self, **kwargs: Any) -> None:
            super().__init__([16], **kwargs)
            self.network: Any = torch.compile(self.network)

    saved, compiled = small_mlp(), Compiled()
    load_weights(compiled, checkpoint_of(saved, tmp_path / "plain.ckpt"))
    ours = MLP([16])
    load_weights(ours, checkpoint_of(compiled, tmp_path / "compiled.ckpt"))
    assert_bitwise_equal(weights(ours), weights(saved))


def test_weights_of_two_models_are_refused_as_ambiguous(tmp_path: Path) -> None:
    path = tmp_path / "two.pt"
    torch.save({"model": named(""), "state_dict": named("module.")}, path)
    assert "holds weights under state_dict and model: save" in refusal(small_mlp(), path)
    torch.save({**named("model."), **named("module.")}, path)
    assert "has model.fc1.weight and module.fc1.weight, as if of two" in refusal(small_mlp(), path)


DAMAGED, NO_WEIGHTS = "is damaged, or not a checkpoint", "holds no state dict: give a checkpoint or"
OTHER_FILES: dict[str, tuple[Any, str]] = {
    "empty": (b"", DAMAGED),
    "no value": (b"\x80\x02.", DAMAGED),  # leads the unpickler to pop from an empty list
    "IDX": (struct.pack(">IIII", 0x803, 1, 28, 28), DAMAGED),
    "empty dict": ({}, NO_WEIGHTS),
    "list": ([], NO_WEIGHTS),
    "tensor": (torch.zeros(3), NO_WEIGHTS),
    "numbered": ({1: torch.zeros(3)}, NO_WEIGHTS),
    "listed": ({"state_dict": [1]}, NO_WEIGHTS),
    "empty checkpoint": ({"state_dict": {}}, NO_WEIGHTS),
    "model.keras": (b"", "is a Keras model: convert it to a run, digitlab convert"),
    "model.h5": (b"", "is a Keras model: convert it to a run, digitlab convert"),
}


@pytest.mark.parametrize("name", OTHER_FILES)
def test_a_file_without_weights_is_refused(name: str, tmp_path: Path) -> None:
    content, said = OTHER_FILES[name]
    if isinstance(content, bytes):
        (tmp_path / name).write_bytes(content)
    else:
        torch.save(content, tmp_path / name)
    assert said in refusal(small_mlp(), tmp_path / name)


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "before torch 1.6"])
def test_a_file_is_refused_wherever_it_is_cut(tmp_path: Path, legacy: bool) -> None:
    path = tmp_path / "cut.pth"
    torch.save(small_mlp().state_dict(), path, _use_new_zipfile_serialization=not legacy)
    content = path.read_bytes()
    for end in range(0, len(content), len(content) // 40):
        path.write_bytes(content[:end])
        assert DAMAGED in refusal(small_mlp(), path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "missing.ckpt", tmp_path):
        assert "there is no" in refusal(small_mlp(), path)


def test_weights_of_another_precision_are_rounded_to_the_models(tmp_path: Path) -> None:
    saved: dict[str, Tensor] = small_mlp().network.double().state_dict()
    torch.save(saved, tmp_path / "double.pt")
    ours = MLP([16])
    load_weights(ours, tmp_path / "double.pt")
    assert_bitwise_equal(weights(ours), weights(small_mlp()))


def test_a_trainer_s_checkpoints_are_written_atomically_and_read_back(tmp_path: Path) -> None:
    path = checkpoint_of(small_mlp(), tmp_path / "last.ckpt")
    inode = path.stat().st_ino
    io = AtomicCheckpointIO()
    io.save_checkpoint({"weights": torch.ones(3)}, path)
    assert path.stat().st_ino != inode  # another file has taken its place
    assert torch.equal(io.load_checkpoint(path)["weights"], torch.ones(3))
    with pytest.raises(ValueError, match="would hold more than tensors and plain values"):
        AtomicCheckpointIO().save_checkpoint({"path": Path("/")}, path)
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]
