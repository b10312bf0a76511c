import json
import math
import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from digitlab.cli import main
from digitlab.cli import parity as command
from digitlab.data import MNISTDataModule
from digitlab.parity import proof
from digitlab.parity.report import HEADING, Check
from tests.commands import config_of, refusal
from tests.tiny import TinyDataModule

ADAM = "torch.optim.Adam"


def options(root: Path, *others: str, model: str = "LinearClassifier") -> list[str]:
    place = ["--trainer.default_root_dir", str(root)]
    data = ["--data", "tests.tiny.TinyDataModule", "--data.batch_size", "8", "--steps", "2"]
    return ["parity", "--model", model, *data, *place, *others]


def result_of(folder: Path) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((folder / "parity.json").read_text("utf-8"))
    return result


def test_a_config_is_proved_and_the_proof_is_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = ["--model.dropout", "0.4", "--model.hidden_features", "[16]"]
    assert main(options(tmp_path, *model, "--name", "mine", model="MLP")) == 0
    folder = tmp_path / "tiny-mine-parity" / "version_0"
    assert sorted(os.listdir(folder)) == ["parity.json", "parity.yaml"]  # it is no training run
    out, err = capsys.readouterr()
    assert err == ""
    result = result_of(folder)
    assert result["passed"] is True
    assert (result["steps"], result["seed"]) == (2, 0)
    assert result["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert set(result["versions"]) == {"torch", "keras", "tensorflow", "numpy"}
    rows = out.split("verdict\n")[1].split("\n\n")[0].splitlines()
    assert len(rows) == len(result["checks"]) == 8
    for row, check in zip(rows, result["checks"], strict=True):
        assert row.startswith(f"{check['name']}  ")
        assert f"{check['compared']:,}" in row
        assert check["passed"] is not check["informational"]
        assert row[HEADING.index("verdict") :].startswith("passed" if check["passed"] else "info")
    assert out.startswith("config: none\nMLP and its Keras twin, Adam, 2 steps of 8 images of tiny")
    assert "not compared" not in out
    assert out.endswith(
        f"All 7 checks passed: both compute the same\nWritten to {folder / 'parity.json'}\n"
    )
    settings: dict[str, Any] = config_of(folder, "parity.yaml")
    assert settings["steps"] == 2
    assert settings["model"]["init_args"]["dropout"] == 0.4


def test_a_check_that_fails_is_written_and_gives_exit_code_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proof, "exact_optimizer", lambda _, weights: torch.optim.Adam(weights))
    assert main(options(tmp_path)) == 1
    out = capsys.readouterr().out
    assert "\nFAILED: 1 of 7 checks, first 2 training steps, float64\n" in out
    (folder,) = tmp_path.glob("*/version_*")
    result = result_of(folder)
    assert result["passed"] is False
    failed = [c["name"] for c in result["checks"] if not c["passed"] and not c["informational"]]
    assert failed == ["2 training steps, float64"]


NOTHING = "nothing was compared"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], NOTHING),
        ([Check("stock", 1, 0.0, 1e-12, informational=True)], NOTHING),
        ([Check("empty", 0, 0.0, 1.0), Check("broken", 1, math.nan, 1.0)], "2 of 2 checks, first"),
    ],
)
def test_a_comparison_without_values_or_without_numbers_fails(
    rows: list[Check],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(command, "run_checks", lambda *others: iter(rows))
    assert main(options(tmp_path)) == 1
    assert f"\nFAILED: {message}" in capsys.readouterr().out
    (folder,) = tmp_path.glob("*/version_*")
    checks = result_of(folder)["checks"]
    assert not any(check["passed"] and not check["informational"] for check in checks)
    written = [None if math.isnan(row.difference) else row.difference for row in rows]
    assert [check["difference"] for check in checks] == written  # JSON has no NaN


def test_settings_that_are_not_compared_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "run_checks", lambda *others: iter([Check("one", 1, 0.0, 1.0)]))
    model = [
        *("--model.lr_scheduler", "StepLR", "--model.lr_scheduler.step_size", "1"),
        *("--model.gradient_clip_norm", "0.5", "--model.dropout_in_evaluation", "true"),
        *("--model.hidden_features", "[8]"),
    ]
    assert main(options(tmp_path, *model, model="MLP")) == 0
    assert (
        "\nnot compared: lr_scheduler (the learning rate stays at its first value), "
        "gradient_clip_norm, dropout_in_evaluation\n"
    ) in capsys.readouterr().out


@pytest.mark.parametrize(
    ("others", "message"),
    [
        (["--steps", "0"], "steps is 0: it must be >0"),
        (["--data.batch_size", "201"], "data.batch_size is 201: give at most .* images, 200"),
        (["--model.optimizer", "Adagrad"], "optimizer is Adagrad, which has no counterpart"),
        (
            ["--model.optimizer", ADAM, "--model.optimizer.weight_decay", "0.1"],
            r"weight_decay is 0\.1: Adam adds it to the gradient",
        ),
        (["--weights", "nowhere.ckpt"], "nowhere.ckpt"),
        (["--name", "a/b"], "name is a/b: "),
        (["--model.num_classes", "7"], "LinearClassifier gives logits"),
        (["--stepz", "3"], "stepz"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    others: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert re.search(message, refusal(capsys, *options(tmp_path, *others)))
    assert not list(tmp_path.iterdir())


def test_a_comparison_that_breaks_off_leaves_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*others: object) -> Any:
        yield Check("first", 1, 0.0, 1e-12)
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "run_checks", broken)
    assert main(options(tmp_path)) == 130
    assert not list(tmp_path.iterdir())


def test_without_the_extra_a_line_names_the_remedy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing() -> None:
        raise ImportError('keras cannot be imported: pip install "digitlab[parity]"')

    monkeypatch.setattr("digitlab.parity.twins.import_keras", missing)
    assert "digitlab[parity]" in refusal(capsys, *options(tmp_path))
    assert not list(tmp_path.iterdir())


def test_full_batches_continue_in_the_next_epochs_and_are_the_same_each_time() -> None:
    torch.manual_seed(3)
    loader = TinyDataModule(batch_size=60).train_dataloader()
    batches = command.FullBatches(loader, count=7)
    first = list(batches)
    assert [len(labels) for _, labels in first] == [60] * 7  # an epoch's last has 20 images
    expected = []
    for epoch in range(3):
        loader.sampler.set_epoch(epoch)
        expected += list(loader)[:3]
    for _ in range(2):
        for (ours, _), (theirs, _) in zip(batches, expected[:7], strict=True):
            assert torch.equal(ours, theirs)


def test_the_images_are_the_configs_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, real_data: Path
) -> None:
    seen: dict[str, torch.Tensor] = {}

    def spy(model: object, batches: Any, images: torch.Tensor, labels: Any, *others: Any) -> Any:
        seen["images"], seen["labels"] = images, labels
        seen["batch"] = next(iter(batches))[0]
        yield Check("seen", 1, 0.0, 0.0)

    monkeypatch.setattr(command, "run_checks", spy)
    place = ["--trainer.default_root_dir", str(tmp_path), "--data.eval_batch_size", "300"]
    assert main(["parity", "--config", "configs/mnist/pytorch_example_net.yaml", *place]) == 0
    data = MNISTDataModule(root=str(real_data), normalization="standard", eval_batch_size=1000)
    images, labels = next(iter(data.test_dataloader()))
    assert torch.equal(seen["images"], images)
    assert torch.equal(seen["labels"], labels)
    assert seen["batch"].shape == (64, 1, 28, 28)


SHIPPED = sorted(Path(__file__).parents[2].glob("configs/*/*.yaml"))


@pytest.mark.slow
@pytest.mark.parametrize("config", SHIPPED, ids=lambda path: f"{path.parent.name}-{path.stem}")
@pytest.mark.usefixtures("real_data")
def test_every_shipped_config_can_be_compared(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "_compare", lambda *others: [Check("logits", 1, 0.0, 1e-12)])
    place = ["--trainer.default_root_dir", str(tmp_path), "--weights", "null"]
    assert main(["parity", "--config", str(config), *place]) == 0
    (folder,) = tmp_path.glob("*/version_*")
    assert folder.parent.name.endswith(f"-{config.stem}-parity")
