"""Bad input to any command is one line that says what to do, and no file changes."""

import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import BatchSizeFinder

from digitlab import models
from digitlab.cli import COMMANDS, main, messages
from digitlab.models import LinearClassifier
from tests.commands import refusal
from tests.pictures import seven

HERE = "tests.cli.test_refusals"


class Small(LinearClassifier):
    """A user's network that adds nothing to what is logged."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)


class WithF1(Small):
    """A user's network that logs a value of its own."""

    def on_validation_epoch_end(self) -> None:
        super().on_validation_epoch_end()
        self.log("val/f1", 0.5)


class Logs(Callback):
    """A user's callback that logs a value of its own."""

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        pl_module.log("own", 1.0)


class OwnFinder(BatchSizeFinder):
    """A subclass of a callback that tries out settings."""


class Fails(Callback):
    """A user's callback that raises an error when training starts."""

    def __init__(self, error: str = "ValueError", at_step: int = 0) -> None:
        self.error: type[Exception] = {"ValueError": ValueError, "KeyError": KeyError}[error]
        self.at_step = at_step

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == self.at_step:
            raise self.error("planted")


SHORT = "--trainer.limit_train_batches 4 --trainer.max_epochs 1"
PLATEAU = "--model.lr_scheduler ReduceLROnPlateau --model.lr_scheduler.monitor"
PLATEAU = f"{SHORT} {PLATEAU.replace('ReduceLR', 'lightning.pytorch.cli.ReduceLR')}"
CALL = f"{SHORT} --trainer.callbacks"
STOP = f"{CALL} EarlyStopping --trainer.callbacks.monitor"
F1 = f"--model {HERE}.WithF1 --model.hidden_features"
A_RUN_BECOMES = "a run becomes a file that ends in .onnx, .pt2, .keras or .h5, and a Keras file"

FILES = {
    "net.yaml": "model: {class_path: MLP, init_args: {hidden_features: [16], dropout: 0.5}}\n"
    "data: {class_path: tests.tiny.TinyDataModule, init_args: {batch_size: 8}}\n"
    "trainer: {accelerator: cpu, max_epochs: 3}",
    "linear.yaml": "model: LinearClassifier\ndata: tests.tiny.TinyDataModule\n"
    "trainer: {accelerator: cpu, limit_train_batches: 4, max_epochs: 1}",
    "twice.yaml": "max_epochs: 1\nmax_epochs: 2",
    "wrong.yaml": "max_epochs: x",
    "unknown.yaml": "trainer: {max_epoch: 3}",
    "group.yaml": "modle: LeNet5",
    "droput.yaml": "model: {init_args: {droput: 3}}",
    "broken.yaml": "model: [1, {",
    "nested.yaml": "name: a\ntrainer: {max_epochs: 1,\n max_epochs: 2}",
    "devices.yaml": "trainer: {devices: null}",
    "interval.yaml": "model: {init_args: {lr_scheduler_interval: null}}",
    "empty.yaml": "",
    **{f"from_{i}.yaml": f"from_configs: {it}" for i, it in enumerate(("3", "text", "{a: b}"))},
    "mine/net.yaml": "model: LinearClassifier",
    "old.pt2": "old",
    "blocked": "a file",
}

ROWS = {
    "fit -c net.yaml": [
        ("--model LeNet6", "model: there is no Classifier 'LeNet6': did you mean 'LeNet5'?"),
        ("--framework tf", "framework is tf: it must be one of 'torch', 'keras'"),
        ("--threads 0", "threads is 0: it must be >0"),
        ("--threads x", "threads is x: it must be int"),
        ("--checkpoint_every_n_steps 0", "checkpoint_every_n_steps is 0: it must be >0"),
        ("--model nowhere.LeNet", "model: No module named 'nowhere'"),
        ("--model.optimizer SDG", "model.optimizer: there is no Optimizer 'SDG': did you mean"),
        ("--trainer.callbacks ClassProb", "did you mean 'ClassProbabilities'?"),
        ("--model.droput 0.2", "no option 'model.droput': did you mean 'model.dropout'"),
        ("--lr 0.1", "there is no option 'lr': did you mean 'model.optimizer.lr'?"),
        ("--model.learning_rate 0.1", "did you mean 'model.optimizer.lr'?"),
        ("--epochs 3", "there is no option 'epochs': did you mean 'trainer.max_epochs'?"),
        ("--model.optimizer '{class_path: Adam, lr: 1}'", "beside class_path: put them into init"),
        ("--trianer 3", "there is no option 'trianer': did you mean 'trainer'?"),
        ("--data.batch_size x", "data.batch_size is x: it must be int"),
        ("--data.batch_size 0", "batch_size is 0: it must be at least 1"),
        ("--model.dropout 2", "dropout probability has to be between 0 and 1, but got 2.0"),
        ("--model.optimizer.lr -1", "Invalid learning rate: -1.0"),
        ("--trainer.precision 17", "trainer.precision is 17: it must be one of"),
        ("--config no.yaml", "there is no config no.yaml: give the path of a config"),
        ("--weights no.ckpt", "there is no checkpoint no.ckpt"),
        ("--model.lr_scheduler StepLR", "lr_scheduler needs step_size: set --model"),
        ("--model.num_classes 5", "tiny has 10 classes, so give (1, 10), by --model"),
        ("--model.lr_scheduler ReduceLROnPlateau", "Multiple subclasses with name Reduc"),
        ("--trainer.callbacks Throughput", "Found more than one stateful callback of type"),
        ("--trainer.accelerator tpu", "torch_xla"),
        ("--trainer.max_epochs 0", "trainer.max_epochs is 0: leave at least one step to train"),
        ("--trainer.max_epochs null", "the run has no end: add --trainer.max_epochs 5, or max"),
        (f"--trainer.limit_train_batches 1{400 * '0'}", "a number in trainer is too large"),
        ("--trainer.check_val_every_n_epoch 0", "check_val_every_n_epoch is 0: it must be at"),
        ("--name ../x", "name is ../x: it must be of the form ^"),
        ("--seed_everything -1", "seed_everything is -1: it must be from 0 to 4294967295"),
        (f"--name {'a' * 300}", "a folder's name has at most 255"),
        ("--model __main__.Tiny", "run that script, python SCRIPT fit ..., instead of digitlab"),
        ("--model.optimizer null", "model.optimizer is None: it must be a class or a function"),
        ("--model.optimizer '{class_path: SGD, class_path: Adam}'", "no Optimizer '{class"),
        ("--model.network torch.nn.ReLU", "there is no option 'model.network'"),
        ("--trainer.val_check_interval 1000", "`val_check_interval` (1000) must be less than"),
        (
            "--model torch.nn.ReLU",
            "model is torch.nn.ReLU, an nn.Module but not a Classifier: let a Classifier train it, "
            "--model Classifier --model.network torch.nn.ReLU",
        ),
        (
            "--model lightning.pytorch.demos.boring_classes.BoringModel",
            "a LightningModule but not a Classifier: train it with a Trainer in Python, or make",
        ),
        ("--data.augmentation.shift -1", "augmentation.shift is -1: it must be at least 0"),
        ("--data.augmentation.shift 40", "augmentation.shift is 40: it must be less than 28"),
        ("--data.augmentation.erase 2", "augmentation.erase is 2.0: it must be from 0 to 1"),
        ("--data.augmentation.flip 0.5", "data.augmentation.flip is 0.5: it must be bool"),
        ("--data.augmentation.turn 5", "there is no option 'data.augmentation.turn'"),
        ("--trainer twice.yaml", "twice.yaml is not valid YAML: max_epochs is given twice, in l"),
        ("--trainer wrong.yaml", "trainer.max_epochs is x: it must be int"),
        (f"{STOP} f1 --trainer.callbacks.patience x", "callbacks.patience is x: it must be int"),
        ("-c unknown.yaml", "did you mean 'trainer.max_epochs'?"),
        ("-c group.yaml", "there is no option 'modle': did you mean 'model'?"),
        ("-c droput.yaml", "did you mean 'model.dropout'?"),
        ("-c broken.yaml", "broken.yaml is not valid YAML: "),
        ("-c nested.yaml", "max_epochs is given twice, in lin"),
        ("-c devices.yaml", "trainer.devices is None: it must be a list"),
        ("-c interval.yaml", "it must be epoch or step"),
        ("-c empty.yaml", "empty.yaml has no settings: write them as `name: value`"),
        ("--from_configs [x]", "from_configs is recorded by a run: name configs by --config"),
        *((f"-c from_{i}.yaml", "from_configs is ") for i in range(3)),
        ("-c digits/lenet", "there is no config digits/lenet: did you mean digits/lenet5?"),
        ("-c ''", "there is no config : give the path of a config, or a name that `digitlab conf"),
    ],
    # These show when training starts, or at the end of the first epoch.
    "fit -c linear.yaml": [
        (f"{STOP} valid_acc", "did you mean val/accuracy?"),
        (f"{STOP} f1", "monitor one of val/loss, val/accuracy, train/loss"),
        (f"--model {HERE}.Small {STOP} val-loss", "mean val/loss?"),
        (f"{PLATEAU} val_loss", "model.lr_scheduler monitors val_loss, which this run does not"),
        (f"{PLATEAU} val/loss --trainer.limit_val_batches 0", "validate each epoch, or monitor tr"),
        (f"--model {HERE}.WithF1 {STOP} val/f2", "one of val/loss, val/a"),
        (
            f"{CALL} {HERE}.Logs --trainer.callbacks+ ModelCheckpoint "
            "--trainer.callbacks.monitor owm",
            "train/accuracy, own",
        ),
        (f"--model {HERE}.WithF1 {PLATEAU} val/f2", "lr_scheduler monitors val/f2, which this"),
        (f"{CALL} {HERE}.OwnFinder", "OwnFinder changes settings that config.yaml has"),
        (f"{CALL} LearningRateFinder", "Tuner"),
        (f"{CALL} BackboneFinetuning", "BackboneFinetuning: 'LinearClassifier' object has no attr"),
        (f"{STOP} val/loss --trainer.callbacks.mode low", "`mode` can be min, max, got"),
        (f"{CALL} LearningRateMonitor --trainer.logger false", "Cannot use `LearningRateMonitor`"),
        (
            "--model.steps_per_execution 4 --trainer.val_check_interval 3",
            "validate after whole epochs, or set steps_per_exec",
        ),
        ("--trainer.strategy dpp", "invalid strategy name: `strategy='dpp'`"),
        ("--trainer.logger CSVLogger --trainer.logger.save_dir /dev/null/x", "'/dev/null/x'"),
        (f"{CALL} ModelCheckpoint --trainer.callbacks.dirpath /dev/null/x", "'/dev/null/x'"),
        ("--trainer.logger CSVLogger --trainer.logger.dir x", "no option 'trainer.logger.dir'"),
        (f"{CALL} {HERE}.Fails", "planted"),
    ],
    "fit": [("", "name a config, such as --config digits/lenet5")],
    "test --run run": [
        ("--data.validation_size 40", "data.validation_size is 40, but the run was trained"),
        ("--data DigitsDataModule", "DigitsDataModule, but the run was trained on tests.tiny"),
        ("--trainer.limit_test_batches 0", "trainer.limit_test_batches is 0"),
        ("--model.hidden_features [32]", "than MLP: its hidden_features is [16], not [32]"),
        ("--trainer.devices 2", "leave out torchrun"),
    ],
    "validate": [
        ("--run run --trainer.devices 2", "leave out torchrun"),
        ("-c digits/lenet5", "validate needs trained weights: name a run, --run RUN_DIR or latest"),
    ],
    "test": [
        ("--run", "argument --run: expected one argument"),
        ("-c digits/lenet5", "test needs trained weights: name a run, --run RUN_DIR or latest"),
    ],
    "predict": [("-c digits/lenet5", "predict needs trained weights: name a run")],
    "predict --run run": [
        ("--trainer.strategy ddp_spawn", "leave out torchrun"),
        ("--json rows.json", "json is rows.json, but there are no images: name their files"),
        ("seven.png --csv no/rows.csv", "csv is no/rows.csv: there is no folder no"),
        ("seven.png --json .", "json is ., a folder: give a file's name"),
        ("seven.png --jsn x", "there is no option 'jsn': did you mean 'json'?"),
    ],
    "convert": [
        ("run new.ONNX", f"run cannot become new.ONNX: {A_RUN_BECOMES}"),
        ("model.keras new.onnx", f"model.keras cannot become new.onnx: {A_RUN_BECOMES}"),
        ("run old.pt2", "old.pt2 exists: nothing is overwritten, so give another path"),
        ("run no/new.pt2", "there is no folder no: make it first"),
        ("run new.keras --raw_pixels", "--raw_pixels is for .onnx and .pt2, and new.keras is"),
        ("model.keras new --raw-pixels", "--raw_pixels is for .onnx and .pt2, and new is neither"),
        ("run new.pt2 --raw_pixel", "there is no option 'raw_pixel'"),
        ("run new.pt2 --checkpoint worst", "there is no checkpoint worst"),
        ("nowhere new.pt2", "there is no folder nowhere"),
    ],
    "configs": [
        ("digits/lenet", "there is no config digits/lenet: did you mean digits/lenet5?"),
        ("configs/digits/lenet5.yaml", "did you mean digits/lenet5?"),
        ("B33", "did you mean B3?"),
        ("mine/net", "did you mean mine/net.yaml?"),
        ("LeNet5", "did you mean digits/lenet5 or fashion_mnist/lenet5 or mnist/lenet5?"),
        ("xyzzy", "give the path of a config, or a name that `digitlab configs` lists"),
        ("--copy a.yaml", "copy is a.yaml: name the config to copy, too"),
        ("B3 --copy", "argument --copy: expected one argument: see digitlab configs --help"),
        ("B3 --cpoy x", "there is no option --cpoy: see digitlab configs --help"),
        ("B3 --copy blocked/a.yaml", "File exists: 'blocked'"),
        ("B3 --copy net.yaml", "net.yaml exists and is not overwritten: give another name"),
        ("B3 --copy link.yaml", "link.yaml exists and is not overwritten"),
        ("B3 --copy mine", "mine exists and is not overwritten"),
    ],
    "reproduce": [
        ("B12", "there is no config B12: did you mean B2?"),
        ("B1 --seeds 1 B2", "B2 comes after an option: name the rows first"),
        ("--seeds 0", "seeds is 0: it must be >0"),
        ("--sedes 1", "there is no option 'sedes': did you mean 'seeds'?"),
        ("B1_as_published --framework keras", "B1_as_published needs torch"),
        ("--report --out nowhere", "there are no results in nowhere/results.csv: train"),
        ("a.yaml --seeds=3 --report", "seeds is an option of the training, and --report"),
        ("--report --threads 2", "threads is an option of the training, and --report"),
        ("--against results.csv", "give it too"),
        ("B1 --margin 0", "margin is 0: it must be >0 and <=100"),
        ("B1 --margin nan", "margin is nan: it must be >0"),
        ("B1 --scheduler tcp://x:1 --workers 2", "leave --workers out"),
        ("B1 --fetch", "fetch copies from a cluster's workers: give --scheduler, too"),
    ],
    "report": [
        ("", "no run is named: give run folders, a folder of runs, or latest"),
        ("--out page.html", "no run is named"),
        ("run/checkpoints", "it is not a run folder"),
        ("run none", "there is no folder "),
        ("run --out page.txt", "give a file that ends in .html"),
        ("run --out no/page.html", "there is no folder"),
        ("run --out page.html runs/x", "name the runs first"),
        ("run --ouz x", "there is no option 'ouz'"),
    ],
    "": [
        ("keras fit --config x", "digitlab keras fit is now: digitlab fit --framework keras"),
        ("keras test --run x", "digitlab keras test is now: digitlab test --run RUN_DIR"),
        ("tset", "there is no command 'tset': did you mean 'test'?"),
        ("xyzzy", f"there is no command 'xyzzy': choose from {', '.join(COMMANDS)}"),
        ("help xyzzy", f"there is no command 'xyzzy': choose from {', '.join(COMMANDS)}"),
        ("--print_completion", "print_completion is empty: give bash or zsh"),
        ("--print_completion fish", "print_completion is fish: give bash or zsh"),
    ],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, finished_run: Path) -> Path:
    """A folder with a run, configs and a picture."""
    folder = tmp_path_factory.mktemp("refusals")
    shutil.copytree(finished_run, folder / "run")
    for name, text in FILES.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    seven().save(folder / "seven.png")
    (folder / "link.yaml").symlink_to("nowhere")
    (folder / "runs").mkdir()
    return folder


@pytest.fixture
def here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(folder)
    return folder


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() if path.is_file() else b"" for path in folder.rglob("*")}


@pytest.mark.parametrize(
    ("words", "message"),
    [(f"{command} {words}", said) for command, rows in ROWS.items() for words, said in rows],
)
def test_bad_input_is_refused_in_one_line_and_no_file_changes(
    words: str, message: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(here)
    assert message in refusal(capsys, *shlex.split(words))
    assert contents(here) == before


@pytest.mark.parametrize("value", ["MNISTDataModule", "tests.tiny.TinyDataModule"])
def test_a_class_of_another_kind_is_answered_with_all_that_there_are(
    value: str, here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Other tests' own classes count, too, once they are imported.
    monkeypatch.setattr(messages, "_subclasses", lambda _: set(models.__all__))
    choice = ", ".join(sorted(models.__all__))
    said = refusal(capsys, "fit", "--config", "net.yaml", "--model", value)
    assert said == f"model: there is no Classifier {value!r}: choose from {choice}"


@pytest.mark.skipif("__import__('torch').cuda.is_available()", reason="there is a GPU here")
def test_a_gpu_that_is_not_there_is_refused(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(here)
    shown = refusal(capsys, "fit", "--config", "net.yaml", "--config", "gpu")
    assert "trainer.accelerator is gpu: torch finds no such GPU" in shown
    assert "leave the config gpu out" in shown
    assert contents(here) == before


@pytest.mark.parametrize(
    "words",
    [
        f"--model {HERE}.WithF1 {STOP} val/f1",
        f"--model {HERE}.WithF1 {PLATEAU} val/f1",
        f"{CALL} {HERE}.Logs --trainer.callbacks+ ModelCheckpoint --trainer.callbacks.monitor own",
        f"{CALL} LearningRateMonitor --trainer.callbacks+ ModelCheckpoint "
        "--trainer.callbacks.monitor lr-Adam",
        f"{CALL} ModelCheckpoint --trainer.callbacks.monitor step --trainer.callbacks.mode max",
        f"{STOP} val_loss --trainer.callbacks.strict false",
        f"{PLATEAU} train/loss --trainer.limit_val_batches 0",
    ],
)
def test_a_monitor_that_something_logs_is_taken(words: str, here: Path, tmp_path: Path) -> None:
    place = ["--trainer.default_root_dir", str(tmp_path)]
    assert main(["fit", "--config", "linear.yaml", *words.split(), *place]) == 0


@pytest.mark.parametrize(("error", "step"), [("KeyError", 0), ("KeyError", 3), ("ValueError", 3)])
def test_a_user_s_own_bug_shows_its_traceback_and_keeps_what_was_trained(
    error: str, step: int, here: Path, tmp_path: Path
) -> None:
    words = f"{CALL} {HERE}.Fails --trainer.callbacks.error {error}"
    words += f" --trainer.callbacks.at_step {step} --trainer.default_root_dir {tmp_path}"
    with pytest.raises((KeyError, ValueError), match="planted") as raised:
        main(["fit", "--config", "linear.yaml", *words.split()])
    assert raised.value.__notes__ == [f"training failed after {step} steps"]
    assert bool(list(tmp_path.iterdir())) == bool(step)
