import os
import sys
from pathlib import Path
from threading import Thread

import jsonargparse
import pytest
from torch import nn

from digitlab import models
from digitlab.cli import main, messages
from digitlab.cli.fit import FitCLI, read_fit
from digitlab.cli.parser import RunCLI
from digitlab.models import MLP
from tests.commands import refusal

CONFIG = """
model: {class_path: MLP, init_args: {hidden_features: [16], dropout: 0.5}}
data: {class_path: tests.tiny.TinyDataModule, init_args: {batch_size: 8}}
trainer: {accelerator: cpu, max_epochs: 3}
"""


@pytest.fixture
def config(tmp_path: Path) -> str:
    path = tmp_path / "config.yaml"
    path.write_text(CONFIG)
    return str(path)


@pytest.mark.parametrize("config_is_last", [True, False])
def test_flags_beat_configs_wherever_they_stand_and_later_configs_earlier_ones(
    config: str, config_is_last: bool, tmp_path: Path
) -> None:
    overlay = tmp_path / "overlay.yaml"
    overlay.write_text("data: {init_args: {batch_size: 16, eval_batch_size: 5}}")
    flags = ["--data.batch_size", "64", "--model.dropout=0.3"]
    configs = ["--config", config, "-c", str(overlay)]
    cli = RunCLI("fit", [*flags, *configs] if config_is_last else [*configs, *flags])
    assert (cli.datamodule.batch_size, cli.datamodule.eval_batch_size) == (64, 5)
    assert cli.model.hparams["dropout"] == 0.3
    assert cli.model.hparams["hidden_features"] == [16]
    assert cli.config.trainer.max_epochs == 3


def test_optimizers_and_schedulers_take_bare_names_and_short_flags(config: str) -> None:
    options = ["--model.optimizer", "SGD", "--model.optimizer.lr", "0.1"]
    options += ["--model.optimizer.momentum", "0.5", "--config", config]
    options += ["--model.lr_scheduler", "StepLR", "--model.lr_scheduler.step_size", "2"]
    configured = RunCLI("fit", options).model.configure_optimizers()
    optimizer = configured["optimizer"]
    assert type(optimizer).__name__ == "SGD"
    assert (optimizer.defaults["lr"], optimizer.defaults["momentum"]) == (0.1, 0.5)
    assert configured["lr_scheduler"]["scheduler"].step_size == 2


def test_settings_written_as_yaml_are_read_back_the_same(config: str, tmp_path: Path) -> None:
    cli = RunCLI("fit", ["--config", config, "--seed_everything", "5"])
    written = tmp_path / "written.yaml"
    written.write_text(cli.dump())
    again = RunCLI("fit", ["--config", str(written)])
    assert again.config.as_dict() | {"config": None} == cli.config.as_dict() | {"config": None}
    assert cli.dump().count(str(tmp_path)) == 1  # in `from_configs`


def test_a_default_that_cannot_be_written_is_taken_again(config: str, tmp_path: Path) -> None:
    averaging = ["--trainer.callbacks", "StochasticWeightAveraging"]
    cli = RunCLI("fit", ["--config", config, *averaging, "--trainer.callbacks.swa_lrs", "0.1"])
    with pytest.warns(UserWarning, match="Unable to serialize instance cpu"):
        text = cli.dump()
    written = tmp_path / "written.yaml"
    written.write_text(text)
    (callback,) = RunCLI("fit", ["--config", str(written)]).config_init.trainer.callbacks
    assert type(callback).__name__ == "StochasticWeightAveraging"


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--model", "LeNet6", "model: there is no Classifier 'LeNet6': did you mean 'LeNet5'?"),
        ("--framework", "tf", "framework is tf: it must be one of 'torch', 'keras'"),
        ("--threads", "0", "threads is 0: it must be >0"),
        ("--checkpoint_every_n_steps", "0", "checkpoint_every_n_steps is 0: it must be >0"),
        ("--model", "nowhere.LeNet", "model: No module named 'nowhere'"),
        ("--model.optimizer", "SDG", "model.optimizer: there is no Optimizer 'SDG': did you mean"),
        ("--trainer.callbacks", "ClassProb", "did you mean 'ClassProbabilities'?"),
        ("--model.droput", "0.2", "no option 'model.droput': did you mean 'model.dropout'"),
        ("--lr", "0.1", "there is no option 'lr': did you mean 'model.optimizer.lr'?"),
        ("--model.learning_rate", "0.1", "did you mean 'model.optimizer.lr'?"),
        ("--epochs", "3", "there is no option 'epochs': did you mean 'trainer.max_epochs'?"),
        ("--model.optimizer", "{class_path: Adam, lr: 1}", "beside class_path: put them into init"),
        ("--trianer", "3", "there is no option 'trianer': did you mean 'trainer'?"),
        ("--data.batch_size", "x", "data.batch_size is x: it must be int"),
        ("--data.batch_size", "0", "batch_size is 0: it must be at least 1"),
        ("--model.dropout", "2", "dropout probability has to be between 0 and 1, but got 2.0"),
        ("--model.optimizer.lr", "-1", "Invalid learning rate: -1.0"),
        ("--trainer.precision", "17", "trainer.precision is 17: it must be one of"),
        ("--config", "no.yaml", "there is no config no.yaml: give the path of a config"),
        ("--weights", "no.ckpt", "there is no checkpoint no.ckpt"),
        ("--model.lr_scheduler", "StepLR", "lr_scheduler needs step_size: set --model"),
        ("--model.num_classes", "5", "tiny has 10 classes, so give (1, 10), by --model"),
        ("--model.lr_scheduler", "ReduceLROnPlateau", "Multiple subclasses with name Reduc"),
        ("--trainer.callbacks", "Throughput", "Found more than one stateful callback of type"),
        ("--trainer.accelerator", "tpu", "torch_xla"),
        ("--trainer.max_epochs", "0", "trainer.max_epochs is 0: leave at least one step to train"),
        ("--trainer.max_epochs", "null", "the run has no end: add --trainer.max_epochs 5, or max"),
        ("--trainer.limit_train_batches", "1" + 400 * "0", "a number in trainer is too large"),
        ("--trainer.check_val_every_n_epoch", "0", "check_val_every_n_epoch is 0: it must be at"),
        ("--name", "../x", "name is ../x: it must be of the form ^"),
        ("--seed_everything", "-1", "seed_everything is -1: it must be from 0 to 4294967295"),
        ("--name", "a" * 300, "a folder's name has at most 255"),
        ("--model", "__main__.Tiny", "run that script, python SCRIPT fit ..., instead of digitlab"),
        ("--model.optimizer", "null", "model.optimizer is None: it must be a class or a function"),
        ("--model.optimizer", "{class_path: SGD, class_path: Adam}", "no Optimizer '{class"),
        ("--model.network", "torch.nn.ReLU", "there is no option 'model.network'"),
        ("--trainer.val_check_interval", "1000", "`val_check_interval` (1000) must be less than"),
    ],
)
def test_a_bad_option_is_refused_in_one_line_and_leaves_nothing(
    option: str,
    value: str,
    message: str,
    config: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert message in refusal(capsys, "fit", "--config", config, option, value)
    assert list(tmp_path.glob("**/version_*")) == []


@pytest.mark.parametrize("value", ["MNISTDataModule", "tests.tiny.TinyDataModule"])
def test_a_class_of_another_kind_is_answered_with_all_that_there_are(
    value: str, config: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Other tests' own classes count, too, once they are imported.
    monkeypatch.setattr(messages, "_subclasses", lambda _: set(models.__all__))
    choice = ", ".join(sorted(models.__all__))
    said = refusal(capsys, "fit", "--config", config, "--model", value)
    assert said == f"model: there is no Classifier {value!r}: choose from {choice}"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (
            "torch.nn.ReLU",
            "an nn.Module but not a Classifier: let a Classifier train it, --model "
            "Classifier --model.network torch.nn.ReLU",
        ),
        (
            "lightning.pytorch.demos.boring_classes.BoringModel",
            "a LightningModule but not a "
            "Classifier: train it with a Trainer in Python, or make it a subclass of Classifier",
        ),
    ],
)
def test_a_module_that_is_not_a_classifier_is_answered_with_the_way_to_train_it(
    value: str, message: str, config: str, capsys: pytest.CaptureFixture[str]
) -> None:
    said = refusal(capsys, "fit", "--config", config, "--model", value)
    assert said == f"model is {value}, {message}"


def test_any_network_is_trained_by_a_classifier(config: str, tmp_path: Path) -> None:
    network = ["--model", "Classifier", "--model.network", "tests.cli.test_parser.PlainNet"]
    place = ["--trainer.default_root_dir", str(tmp_path), "--trainer.max_epochs", "1"]
    assert main(["fit", "--config", config, *network, *place]) == 0


class PlainNet(nn.Sequential):
    """A network as one has it before one knows of digitlab."""

    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Linear(784, 10))


class Keyless(MLP):
    """A model with a bug."""

    def __init__(self) -> None:
        widths: dict[str, int] = {}
        super().__init__([widths["args"]])


def test_a_key_error_of_a_model_s_code_names_its_place(
    config: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = Path(__file__)
    line = path.read_text().splitlines().index('        super().__init__([widths["args"]])') + 1
    bare = ["--model", "tests.cli.test_parser.Keyless", "--data", "tests.tiny.TinyDataModule"]
    said = refusal(capsys, "fit", *bare, "--trainer.max_epochs", "1")
    assert said == f"KeyError 'args' in {path}, line {line}; --debug shows more"


def test_a_key_error_while_a_command_line_is_parsed_names_its_place(
    config: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise KeyError("args")

    monkeypatch.setattr(jsonargparse.ArgumentParser, "_parse_common", fail)
    said = refusal(capsys, "fit", "--config", config)
    assert said.startswith(f"KeyError 'args' in {__file__}, line ")


@pytest.mark.parametrize(
    "end",
    [
        ["--trainer.max_epochs=-1"],
        ["--trainer.max_steps", "3"],
        ["--trainer.max_time", "00:00:00:01"],
        ["--trainer.fast_dev_run", "true"],
    ],
)
def test_each_limit_is_an_end_and_so_is_an_explicit_minus_one(end: list[str]) -> None:
    bare = ["--model", "LinearClassifier", "--data", "tests.tiny.TinyDataModule"]
    with pytest.raises(ValueError, match="the run has no end"):
        read_fit("fit", bare)
    assert read_fit("fit", [*bare, *end])[1] is None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--trainer", "a.yaml"], "a.yaml is not valid YAML: max_epochs is given twice, in lines"),
        (["--trainer", "b.yaml"], "trainer.max_epochs is x: it must be int"),
        (
            ["--trainer.callbacks", "EarlyStopping", "--trainer.callbacks.patience", "x"],
            "trainer.callbacks.patience is x: it must be int",
        ),
    ],
)
def test_a_setting_in_a_part_s_own_file_or_of_a_callback_is_named(
    words: list[str],
    message: str,
    config: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.yaml").write_text("max_epochs: 1\nmax_epochs: 2")
    Path("b.yaml").write_text("max_epochs: x")
    assert refusal(capsys, "fit", "--config", config, *words).startswith(message)


def test_an_option_without_its_value_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert refusal(capsys, "test", "--run") == "argument --run: expected one argument"


def test_a_user_s_class_is_found_in_the_current_folder(
    config: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine_alone.py").write_text("from digitlab.models import MLP as Mine")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [path for path in sys.path if path])
    place = ["--trainer.default_root_dir", str(tmp_path)]
    assert main(["fit", "--config", config, "--model", "mine_alone.Mine", *place]) == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("trainer: {max_epoch: 3}", "did you mean 'trainer.max_epochs'?"),
        ("modle: LeNet5", "there is no option 'modle': did you mean 'model'?"),
        ("model: {init_args: {droput: 3}}", "did you mean 'model.dropout'?"),
        ("model: [1, {", "bad.yaml is not valid YAML: "),
        ("name: a\ntrainer: {max_epochs: 1,\n max_epochs: 2}", "max_epochs is given twice, in lin"),
        ("trainer: {devices: null}", "trainer.devices is None: it must be a list"),
        ("model: {init_args: {lr_scheduler_interval: null}}", "it must be epoch or step"),
        ("", "bad.yaml has no settings: write them as `name: value`"),
    ],
)
def test_a_bad_config_is_refused_in_one_line(
    text: str, message: str, config: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text(text)
    shown = refusal(capsys, "fit", "--config", config, "--config", str(bad))
    assert message in shown


@pytest.mark.parametrize("trainer", ["{default_root_dir: ~}", "{callbacks: null, logger: null}"])
def test_null_is_taken_where_it_means_the_default(
    trainer: str, config: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "nulls.yaml").write_text(f"trainer: {trainer}")
    cli = RunCLI("fit", ["--config", config, "--config", str(tmp_path / "nulls.yaml")])
    assert cli.config.trainer.default_root_dir == "runs"


def test_a_config_can_come_through_a_pipe(config: str, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = Thread(target=pipe.write_text, args=(CONFIG.replace("epochs: 3", "epochs: 7"),))
    writer.start()
    cli = FitCLI("fit", ["--config", str(pipe), "--data.batch_size", "9"])
    writer.join()
    assert cli.config.trainer.max_epochs == 7
    assert cli.config.data.init_args.batch_size == 9
    assert cli.config.name == "mlp"  # not the pipe's


def test_a_callback_s_default_that_is_an_enumeration_is_written_as_text(config: str) -> None:
    timer = ["--trainer.callbacks", "Timer", "--trainer.callbacks.duration", "00:00:10:00"]
    cli = RunCLI("fit", ["--config", config, *timer])
    assert "interval: step\n" in cli.dump()


@pytest.mark.parametrize(
    ("words", "message"),
    [("test --run", "argument --run: expected one argument"), ("fit", "--config digits/lenet5")],
)
def test_an_incomplete_command_line_is_refused(
    words: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in refusal(capsys, *words.split())


@pytest.mark.skipif("__import__('torch').cuda.is_available()", reason="there is a GPU here")
def test_a_gpu_that_is_not_there_is_refused(
    config: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--config", config, "--config", "gpu"]
    place = ["--trainer.default_root_dir", str(tmp_path / "runs")]
    shown = refusal(capsys, "fit", *options, *place)
    assert "trainer.accelerator is gpu: torch finds no such GPU" in shown
    assert "leave the config gpu out" in shown
    assert list(tmp_path.glob("runs/*")) == []
