import os
import sys
from pathlib import Path
from threading import Thread

import jsonargparse
import pytest
from torch import nn

from digitlab.cli import main
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


def test_a_user_s_class_is_found_in_the_current_folder(
    config: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine_alone.py").write_text("from digitlab.models import MLP as Mine")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [path for path in sys.path if path])
    place = ["--trainer.default_root_dir", str(tmp_path)]
    assert main(["fit", "--config", config, "--model", "mine_alone.Mine", *place]) == 0


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
