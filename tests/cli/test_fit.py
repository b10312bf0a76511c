import hashlib
import os
import socket
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from digitlab.cli import main, restoring_flags
from digitlab.cli.fit import FitCLI, remove
from digitlab.cli.trainer import wait_for_events
from digitlab.data.download import Split
from digitlab.models import LinearClassifier
from digitlab.run_folder import read_metrics
from tests.commands import SHORT, checkpoint, config_of, fit, refusal, words
from tests.fitting import assert_bitwise_equal
from tests.tiny import TinyDataModule


@pytest.mark.parametrize("run", ["finished_run", "finished_blocks_run"])
def test_a_run_folder_holds_settings_checkpoints_curves_and_scores(
    run: str, request: pytest.FixtureRequest
) -> None:
    folder: Path = request.getfixturevalue(run)
    assert folder.parts[-2:] == ("tiny-mlp", "version_0")
    names = {path.name for path in folder.iterdir()}
    (events,) = [name for name in names if name.startswith("events.out.tfevents.")]
    written = {"config.yaml", "checkpoints", "history.csv", "metrics.json", "projector"}
    written |= {"projector_config.pbtxt", "samples.png", "curves.png", ".lock", events}
    assert names == written
    checkpoints = {path.name for path in folder.glob("checkpoints/*")}
    assert checkpoints == {"last.ckpt", "previous.ckpt", "best.ckpt"}
    metrics = read_metrics(folder)
    assert [metrics[split]["checkpoint"] for split in ("train", "test")] == ["last", "last"]
    for picture, width in (("samples.png", 1001), ("curves.png", 1380)):
        with Image.open(folder / picture) as image:
            assert image.width == width


def test_the_saved_config_trains_the_same_run_again_in_another_folder(tmp_path: Path) -> None:
    first = fit(tmp_path, "--data.batch_size", "50", "--name", "mine")
    before = {path: path.stat().st_mtime_ns for path in first.rglob("*")}
    assert main(["fit", "--config", str(first / "config.yaml")]) == 0
    assert {path: path.stat().st_mtime_ns for path in first.rglob("*")} == before
    again = first.with_name("version_1")
    assert again.parent == tmp_path / "tiny-mine"
    for key in ("model", "data", "seed_everything", "framework"):
        assert config_of(again)[key] == config_of(first)[key]
    assert_bitwise_equal(*(checkpoint(folder)["state_dict"] for folder in (first, again)))


def test_a_run_is_named_after_its_config_or_its_network(tmp_path: Path) -> None:
    config = tmp_path / "My config.yaml"
    config.write_text("model: MLP\ndata: tests.tiny.TinyDataModule")
    assert FitCLI("fit", ["--config", str(config)]).config.name == "my_config"
    assert FitCLI("fit", ["--model", "MLP", *SHORT]).config.name == "mlp"


def test_no_path_of_this_machine_lands_in_the_config(finished_run: Path) -> None:
    assert config_of(finished_run)["data"]["init_args"]["root"] is None
    text = (finished_run / "config.yaml").read_text().replace(str(finished_run.parents[1]), "")
    assert os.environ["DIGITLAB_DATA"] not in text
    assert str(Path.cwd()) not in text


def test_only_rank_0_removes_a_run_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "version_0").mkdir()
    monkeypatch.setenv("RANK", "1")
    remove(tmp_path / "version_0")
    assert (tmp_path / "version_0").exists()
    monkeypatch.setenv("RANK", "0")
    remove(tmp_path / "version_0")
    assert not (tmp_path / "version_0").exists()


def test_a_hold_out_is_evaluated_instead_of_the_test_split_now_and_later(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], read_splits: list[Split]
) -> None:
    options = ["--data", "tests.tiny.SpiedDataModule", "--data.validation_size", "40"]
    folder = fit(tmp_path, *options, "--seed_everything", "3")
    metrics = read_metrics(folder)
    assert (metrics["train"]["n"], metrics["val"]["n"]) == (160, 40)
    assert "test" not in metrics
    assert "validation accuracy" in capsys.readouterr().out
    assert main(["validate", "--run", str(folder)]) == 0
    again = read_metrics(folder)["val"]
    assert again == metrics["val"] | {"split": "validation"}
    assert set(read_splits) == {"train"}


def test_initial_weights_alone_are_taken_over_and_recorded(
    tmp_path: Path, finished_run: Path
) -> None:
    file = finished_run / "checkpoints" / "last.ckpt"
    nothing_learned = ["--model.optimizer", "SGD", "--model.optimizer.lr", "0"]
    options = ["--model.hidden_features", "[16]", "--weights", str(file), *nothing_learned]
    folder = fit(tmp_path, *options, model="MLP")
    assert_bitwise_equal(*(checkpoint(it)["state_dict"] for it in (folder, finished_run)))
    metrics = read_metrics(folder)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    assert metrics["weights"] == {"file": str(file), "sha256": digest}
    assert (metrics["epochs"], metrics["optimizer_steps"]) == (1, 7)  # training starts anew
    assert config_of(folder)["weights"] == str(file)


@pytest.mark.parametrize("logger", ["false", "CSVLogger"])
def test_a_run_works_without_tensorboard(logger: str, tmp_path: Path) -> None:
    options = ["--trainer.logger", logger]
    if logger == "CSVLogger":
        options += ["--trainer.logger.save_dir", str(tmp_path / "elsewhere")]
    folder = fit(tmp_path / "runs", *options, "--trainer.callbacks", "ClassProbabilities")
    assert read_metrics(folder)["epochs"] == 1
    assert not list(folder.glob("events*"))


@pytest.mark.parametrize(("options", "threads"), [((), 1), (("--threads", "2"), 2)])
def test_the_threads_are_those_of_the_setting_whatever_the_process_has(
    options: tuple[str, ...], threads: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    draw, validate = torch.nn.Linear.reset_parameters, LinearClassifier.validation_step

    def see(then: Any, *args: Any) -> Any:
        seen.append(torch.get_num_threads())
        return then(*args)

    monkeypatch.setattr(torch.nn.Linear, "reset_parameters", lambda *it: see(draw, *it))
    monkeypatch.setattr(LinearClassifier, "validation_step", lambda *it: see(validate, *it))
    torch.set_num_threads(3)
    try:
        folder = fit(tmp_path, *options)
        assert torch.get_num_threads() == 3
        assert main(["validate", "--run", str(folder)]) == 0
    finally:
        torch.set_num_threads(1)
    assert set(seen) == {threads}
    assert config_of(folder)["threads"] == threads
    assert f"\nthreads: {threads}\n" in checkpoint(folder)["exact_resume"]["settings"]


@pytest.mark.parametrize(("options", "allowed"), [((), False), (("--allow_tf32", "true"), True)])
def test_float32_is_tf32_only_where_the_setting_allows_it(
    options: tuple[str, ...], allowed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bool] = []
    validate = LinearClassifier.validation_step

    def see(*args: Any) -> Any:
        seen.extend((torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32))
        return validate(*args)

    monkeypatch.setattr(LinearClassifier, "validation_step", see)
    before = torch.backends.cudnn.allow_tf32
    folder = fit(tmp_path, *options)
    assert torch.backends.cudnn.allow_tf32 == before
    with restoring_flags():
        assert main(["validate", "--run", str(folder)]) == 0
    assert set(seen) == {allowed}
    assert config_of(folder)["allow_tf32"] == allowed


@pytest.mark.xdist_group("keras")
def test_a_second_keras_run_with_other_threads_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = fit(tmp_path / "first", "--framework", "keras")
    assert read_metrics(folder)["device"] == "cpu (1 thread)"
    capsys.readouterr()
    again = words(tmp_path / "b", "--framework", "keras", "--threads", "2")
    assert refusal(capsys, *again).startswith("threads is 2, but TensorFlow's threads in this")
    assert not (tmp_path / "b").exists()


def test_averaged_weights_are_evaluated_and_kept(tmp_path: Path) -> None:
    averaging = ["--trainer.callbacks", "StochasticWeightAveraging"]
    averaging += ["--trainer.callbacks.swa_lrs", "0.5", "--trainer.callbacks.swa_epoch_start", "1"]
    averaging += ["--trainer.callbacks.device", "cpu"]
    folder = fit(tmp_path, *averaging, "--trainer.max_epochs", "3")
    model = LinearClassifier.load_from_checkpoint(folder / "checkpoints" / "last.ckpt")
    measured = model.evaluate(TinyDataModule().test_dataloader())
    assert read_metrics(folder)["test"]["loss"] == pytest.approx(measured["loss"])


def test_without_validation_there_is_no_best_checkpoint(tmp_path: Path) -> None:
    options = ["--trainer.limit_val_batches", "0", "--trainer.max_epochs", "-1"]
    folder = fit(tmp_path, *options, "--trainer.max_steps", "10")
    assert {path.name for path in folder.glob("checkpoints/*")} == {"last.ckpt", "previous.ckpt"}
    assert checkpoint(folder)["global_step"] == 10  # inside the second epoch


@pytest.mark.parametrize("steps", ["1", "4"])
def test_a_fast_dev_run_leaves_no_folder(steps: str, tmp_path: Path) -> None:
    options = ["--trainer.fast_dev_run", "true", "--model.steps_per_execution", steps]
    assert main(words(tmp_path, *options)) == 0
    assert list(tmp_path.iterdir()) == []


def test_a_run_without_checkpoints_proposes_no_test(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = fit(tmp_path, "--trainer.enable_checkpointing", "false")
    assert read_metrics(folder)["test"]["checkpoint"] is None
    assert "digitlab test" not in capsys.readouterr().out


def test_a_fit_prints_data_layers_epochs_times_scores_and_next_steps(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = fit(tmp_path)
    shown = capsys.readouterr().out
    score = read_metrics(folder)["test"]
    for part in (
        "tiny: 200 training images, 50 test images",
        "LinearClassifier on cpu (1 thread), precision 32-true, seed 0",
        "(10,)   weight (10, 784), bias (10,)",
        "7,850 parameters in 2 tensors",
        "\n           train loss  accuracy  val (test split) loss  accuracy\nepoch   1  ",
        f"test accuracy {score['accuracy']:.2%} ({score['correct']}/50)",
        ", training ",
        f"digitlab test --run {folder}\n",
        f"digitlab predict --run {folder}\n",
        f"tensorboard --logdir {folder}\n",
    ):
        assert part in shown


def test_a_run_resumed_within_a_second_has_the_later_event_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # TensorBoard sorts the names, in which a process number is a text.
    second = int(time.time())
    before = f"events.out.tfevents.{second:010d}.{socket.gethostname()}.99999999.0"
    (tmp_path / before).touch()
    wait_for_events(tmp_path)
    assert int(time.time()) > second
    monkeypatch.setattr(time, "sleep", lambda _: pytest.fail("it waits although none is later"))
    wait_for_events(tmp_path)
