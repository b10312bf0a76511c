"""`digitlab convert` to ONNX and PyTorch; to and from Keras, see tests/parity/test_convert.py."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from digitlab.cli import main
from digitlab.models import MLP
from tests.commands import refusal
from tests.tiny import TEST, TinyDataModule

OLD_KERAS_RUN = Path(__file__).parents[1] / "old_runs" / "keras"
SAID = "50 of 50 test images get the same class, and the outputs differ by at most "


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("checkpoint", ["last", "best"])
def test_a_run_becomes_a_file_of_pixels_that_says_where_it_is_from(
    checkpoint: str, finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "file.pt2"
    options = ["--checkpoint", checkpoint, "--raw-pixels"]
    assert main(["convert", str(finished_run), str(target), *options]) == 0
    said, written = capsys.readouterr().out.splitlines()
    assert said.startswith(SAID)
    assert written == f"Written to {target}"
    extra = {"metadata.json": ""}
    logits = torch.export.load(target, extra_files=extra).module()(
        torch.from_numpy(TEST[0])[:, None]
    )
    path = finished_run / "checkpoints" / f"{checkpoint}.ckpt"
    model = MLP.load_from_checkpoint(path).eval()
    ((images, _),) = TinyDataModule().test_dataloader()
    torch.testing.assert_close(logits, model(images).detach())
    metadata = json.loads(extra["metadata.json"])
    run = f"{finished_run.parent.name}/{finished_run.name}"
    assert (metadata["run"], metadata["checkpoint"]) == (run, checkpoint)
    accuracy = model.evaluate(TinyDataModule().test_dataloader())["accuracy"]
    assert float(metadata["test_accuracy"]) == pytest.approx(accuracy)


@pytest.mark.xdist_group("keras")
def test_a_keras_run_becomes_a_file_through_the_same_network_in_pytorch(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(OLD_KERAS_RUN, tmp_path / "run")
    assert main(["convert", str(run), str(tmp_path / "file.pt2")]) == 0
    in_torch, in_file, _ = capsys.readouterr().out.splitlines()
    assert in_torch.startswith("In PyTorch, 360 of 360 test images get the same class")
    assert in_file.startswith("360 of 360 test images get the same class")


@pytest.mark.parametrize(
    ("damage", "reason"),
    [("cut", "is damaged, or not a checkpoint"), ("NaN", "MLP gives outputs that are not finite")],
)
def test_a_damaged_checkpoint_and_lost_weights_are_refused_in_one_line(
    damage: str, reason: str, copied_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    last = copied_run / "checkpoints" / "last.ckpt"
    content = torch.load(last, weights_only=True)
    content["state_dict"]["network.fc1.weight"][0] = torch.nan
    torch.save(content, last)
    if damage == "cut":
        last.write_bytes(last.read_bytes()[:-100])
    target = tmp_path / "file.pt2"
    assert reason in refusal(capsys, "convert", str(copied_run), str(target))
    assert names_in(tmp_path) == ["runs"]


def test_a_full_disk_leaves_nothing_and_exits_with_1(
    finished_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", fail)
    assert main(["convert", str(finished_run), str(tmp_path / "file.pt2")]) == 1
    assert "No space left on device" in capsys.readouterr().err
    assert names_in(tmp_path) == []
