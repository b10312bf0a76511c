"""A config runs no function that is not what its setting is for; `ran` files would show it."""

import json
import os
import pickle
import shutil
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch.cli import OptimizerCallable
from torch import nn

from digitlab.cli import main
from digitlab.cli.fit import FitCLI
from digitlab.models import MLP

Settings = dict[str, Any]


@dataclass
class Options:
    function: Callable[..., Any] = torch.relu
    width: int = 3


class Own(MLP):
    """A user's class, with an argument of each kind that can hold a callable."""

    def __init__(  # type: ignore[no-untyped-def]
        self,
        activation: Callable[..., Any] = torch.tanh,
        several: list[Callable[..., Any]] | None = None,
        anything: Any = None,
        untyped=None,  # noqa: ANN001
        mapping: dict[str, Any] | None = None,
        layer: nn.Module | None = None,
        kind: type | None = None,
        options: Options | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__([4], **kwargs)
        self.given = (activation, several, anything, untyped, mapping, layer, kind, options)


class Strict(MLP):
    """A user's class that must be given an optimizer."""

    def __init__(self, optimizer: OptimizerCallable, **kwargs: Any) -> None:
        super().__init__([16], optimizer=optimizer, **kwargs)


def halve(weight: torch.Tensor) -> torch.Tensor:
    return weight / 2


def make_sgd(lr: float) -> Callable[..., torch.optim.Optimizer]:
    return lambda params: torch.optim.SGD(params, lr)


def spec(class_path: str, /, **arguments: Any) -> Settings:
    return {"class_path": class_path, "init_args": arguments}


TOUCH = "touch ran"
PAYLOAD = pickle.dumps(type("Payload", (), {"__reduce__": lambda self: (os.system, (TOUCH,))})())
CODE = "open('ran', 'w').close()"
GADGETS: dict[str, Settings] = {
    # What each runs is given as its arguments.
    "os.system": spec("os.system", command=TOUCH),
    "posix.system": spec("posix.system", command=TOUCH),
    "subprocess.run": {
        "class_path": "subprocess.run",
        "dict_kwargs": {"args": TOUCH, "shell": True},
    },
    "subprocess.Popen": spec("subprocess.Popen", args=["touch", "ran"]),
    "builtins.exec": spec("builtins.exec", source=CODE),
    "builtins.open": spec("builtins.open", file="ran", mode="w"),
    "pickle.loads": {"class_path": "pickle.loads", "dict_kwargs": {"data": PAYLOAD}},
    "torch.load": spec("torch.load", f="payload.pkl", weights_only=False),
    "torch.hub.load": spec("torch.hub.load", repo_or_dir=".", model="run", source="local"),
    "torch.from_file": spec("torch.from_file", filename="ran", shared=True, size=1),
    "shutil.rmtree": spec("shutil.rmtree", path="kept"),
    "pathlib.Path.touch": spec("pathlib.Path.touch", self="ran"),
    "functools.partial": spec("functools.partial", func="os.system"),
    "load_from_checkpoint": spec(
        "digitlab.models.LeNet5.load_from_checkpoint",
        checkpoint_path="payload.pkl",
        weights_only=False,
    ),
    # Re-exported by modules whose functions are taken, or in digitlab, but for other purposes.
    "torch.nn.functional.importlib.import_module": spec(
        "torch.nn.functional.importlib.import_module", name="antigravity"
    ),
    "digitlab.data.download.sys.exit": spec("digitlab.data.download.sys.exit"),
    "tests.cli.test_allowed.os.system": spec("tests.cli.test_allowed.os.system", command=TOUCH),
    "digitlab.run_folder.remove_run_dir": spec("digitlab.run_folder.remove_run_dir", folder="kept"),
    "digitlab.files.write_text": spec("digitlab.files.write_text", path="ran", text=""),
    "digitlab.cli.main": spec("digitlab.cli.main", args=["fit"]),
}
STEP = spec("torch.optim.lr_scheduler.LambdaLR", lr_lambda=None)
LAMBDA = "lightning.pytorch.callbacks.LambdaCallback"


def at_each_place(gadget: Settings) -> dict[str, Settings]:
    """A config for each place that takes classes or functions, with the gadget there."""
    own, path = f"{__name__}.Own", gadget["class_path"]
    model = {
        "optimizer": spec("MLP", optimizer=gadget),
        "optimizer as text": spec("MLP", optimizer=path),
        "scheduler": spec("MLP", lr_scheduler=gadget),
        "lr_lambda": spec("MLP", lr_scheduler=STEP | {"init_args": {"lr_lambda": path}}),
        "lr_lambda in a list": spec(
            "MLP", lr_scheduler=STEP | {"init_args": {"lr_lambda": [path]}}
        ),
        "lr_lambda as class": spec("MLP", lr_scheduler=STEP | {"init_args": {"lr_lambda": gadget}}),
        "network": spec("digitlab.classifier.Classifier", network=gadget),
        "dict_kwargs": {"class_path": own, "dict_kwargs": {"anything": gadget}},
        "unknown in dict_kwargs": {"class_path": own, "dict_kwargs": {"lambd": gadget}},
        "model": gadget,
        "activation as text": spec(own, activation=path),
        "kind as text": spec(own, kind=path),
    }
    model |= {
        name: spec(own, **{name: gadget}) for name in ("activation", "anything", "untyped", "layer")
    }
    model["several"] = spec(own, several=[path])
    model["dataclass"] = spec(own, options={"function": path})
    model["mapping"] = spec(own, mapping={"a": {"b": [gadget]}})
    model["nested"] = spec(own, anything=spec(own, anything=spec(own, activation=path)))
    model["transform"] = spec(own, anything=spec("torchvision.transforms.v2.Lambda", lambd=path))
    configs = {place: {"model": value} for place, value in model.items()}
    configs["data"] = {"data": gadget}
    for place in ("callbacks", "logger", "plugins", "strategy", "profiler"):
        configs[place] = {"trainer": {place: gadget}}
    # The classes are of another kind than asked for, and a function returns a module.
    configs["class"] = {"model": spec(own, kind="subprocess.Popen")}
    configs["factory"] = {"model": spec(own, layer=spec("torchvision.models.alexnet"))}
    configs["callbacks in a list"] = {"trainer": {"callbacks": [gadget]}}
    configs["callback"] = {"trainer": {"callbacks": [spec(LAMBDA, on_fit_start=path)]}}
    return configs


SOME_PLACES = ["optimizer", "lr_lambda", "activation", "anything"]
PLACES = at_each_place(GADGETS["os.system"])


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with files that gadgets read or remove."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "payload.pkl").write_bytes(PAYLOAD)
    (tmp_path / "hubconf.py").write_text(CODE)
    (tmp_path / "kept").mkdir()
    monkeypatch.setattr("sys.path", [*sys.path])
    monkeypatch.setitem(sys.modules, "antigravity", None)  # its import would open a browser
    return tmp_path


def assert_nothing_ran(place: Path) -> None:
    assert (place / "kept").exists()
    assert not (place / "ran").exists()


def write(path: Path, changes: Settings) -> str:
    config = {
        "model": spec("MLP", hidden_features=[4]),
        "data": {"class_path": "tests.tiny.TinyDataModule", "init_args": {}},
        "trainer": {"max_epochs": 1, "accelerator": "cpu"},
    }
    path.write_text(yaml.safe_dump(config | changes))
    return str(path)


def refusal_of(config: str) -> str:
    with pytest.raises(ValueError, match=r".") as refused:
        FitCLI("fit", ["--config", config])
    return str(refused.value)


@pytest.mark.parametrize("gadget", GADGETS)
@pytest.mark.parametrize(
    "where",
    ["activation as text", *(pytest.param(it, marks=pytest.mark.slow) for it in SOME_PLACES)],
)
def test_no_gadget_is_run(gadget: str, where: str, place: Path) -> None:
    refusal_of(write(place / "config.yaml", at_each_place(GADGETS[gadget])[where]))
    assert_nothing_ran(place)


@pytest.mark.parametrize("where", PLACES)
def test_nowhere_in_a_config_is_a_gadget_run(where: str, place: Path) -> None:
    message = refusal_of(write(place / "config.yaml", PLACES[where]))
    assert "system" in message or "Popen" in message or "alexnet" in message
    assert_nothing_ran(place)


def test_parsing_runs_nothing(place: Path) -> None:
    """Help, and values of flags, are read before there are settings to check."""
    config = write(place / "config.yaml", {})
    for words in (
        ["--model.optimizer", "os.system", "--model.optimizer.command", TOUCH],
        ["--model.optimizer=os.system"],
        ["--trainer.callbacks+=os.system"],
        ["--trainer.logger", yaml.safe_dump(GADGETS["os.system"], default_flow_style=True)],
        ["--model.help", "os.system"],
        ["--model.optimizer.help", "os.system"],
        ["--model", f"{__name__}.Own", "--model.activation", "os.system"],
        ["--model", f"{__name__}.Own", "--model.anything", json.dumps(GADGETS["os.system"])],
        ["--config", yaml.safe_dump(PLACES["optimizer"])],
    ):
        assert main(["fit", "--config", config, *words]) == 2, words
        assert_nothing_ran(place)
    printing = [*("--config", write(place / "config.yaml", PLACES["optimizer"])), "--print_config"]
    with suppress(SystemExit):
        main(["fit", *printing])
    assert_nothing_ran(place)


def run_with(finished: Path, to: Path, changes: Settings) -> Path:
    """A copy of a finished run with other settings in its config.yaml."""
    run = Path(shutil.copytree(finished, to / "runs" / "tiny-mlp" / "version_0"))
    config = yaml.safe_load((run / "config.yaml").read_text())
    for part, values in changes.items():
        own = part != "model" or values["class_path"] != "MLP"
        config[part] = values if own and part != "trainer" else deep_merge(config[part], values)
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    return run


def deep_merge(first: Settings, second: Settings) -> Settings:
    merged = first | second
    for name in first.keys() & second.keys():
        if name in ("init_args", "trainer"):
            merged[name] = deep_merge(first[name], second[name])
    return merged | ({"class_path": first["class_path"]} if "class_path" in first else {})


COMMANDS = [
    *("fit --config FILE", "parity --config FILE", "convert m.keras new --config FILE"),
    *("fit --run RUN", "validate --run RUN", "test --run RUN", "predict --run RUN"),
    *("report RUN", "convert RUN m.keras"),
]
ALL = pytest.mark.slow
READ = [
    pytest.param(command, where, marks=[] if where == "optimizer" else ALL)
    for command in COMMANDS
    for where in PLACES
]


@pytest.mark.parametrize(("command", "where"), READ)
def test_no_command_that_reads_a_config_runs_a_gadget(
    command: str, where: str, finished_run: Path, place: Path
) -> None:
    config = write(place / "config.yaml", PLACES[where])
    run = str(run_with(finished_run, place, PLACES[where]))
    code = main(command.replace("FILE", config).replace("RUN", run).split())
    assert_nothing_ran(place)
    assert code == 2 or not command.startswith(("fit", "parity", "convert m"))


def test_a_callback_writes_no_text_of_a_config_where_the_config_says(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    callback = spec("SaveConfig", path="ran", settings=CODE)
    config = write(place / "config.yaml", {"trainer": {"max_epochs": 1, "callbacks": [callback]}})
    assert main(["fit", "--config", config]) == 2
    assert "SaveConfig, which digitlab fit adds to each run" in capsys.readouterr().err
    assert_nothing_ran(place)


def test_no_gadget_in_a_checkpoint_s_hyper_parameters_is_run(
    finished_run: Path, place: Path
) -> None:
    checkpoint = torch.load(finished_run / "checkpoints" / "last.ckpt", weights_only=True)
    checkpoint["hyper_parameters"] |= {
        "_instantiator": "lightning.pytorch.cli.instantiate_module",
        "optimizer": GADGETS["os.system"],
    }
    torch.save(checkpoint, "evil.ckpt")
    with pytest.raises(TypeError, match="'dict' object is not callable"):
        MLP.load_from_checkpoint("evil.ckpt").configure_optimizers()
    assert_nothing_ran(place)


@pytest.mark.parametrize("network", ["MLP", f"{__name__}.Strict"])
def test_an_evaluation_makes_no_optimizer_scheduler_callback_or_logger_of_the_run(
    network: str, finished_run: Path, place: Path
) -> None:
    model = spec(network, optimizer=spec("nowhere.A"), lr_scheduler=spec("nowhere.B"))
    trainer = {"callbacks": [spec("nowhere.C")], "logger": spec("nowhere.D")}
    run = run_with(finished_run, place, {"model": model, "trainer": trainer})
    for command in ("validate", "test", "predict"):
        assert main([command, "--run", str(run)]) == 0
        settings = yaml.safe_load((run / f"{command}.yaml").read_text())
        assert "optimizer" not in settings["model"]["init_args"]
    assert main(["report", str(run)]) == 0
    assert "No predictions" not in (run / "report.html").read_text()


@pytest.mark.parametrize(
    "changes",
    [
        {"model": spec("mailed.Net")},
        {"model": spec("MLP", activation="mailed.Net")},
        {"model": spec("MLP", activation='"{class_path: \\"mailed\\x2eNet\\"}"')},
        {"model": spec("MLP", activation="./mailed.py")},
        {"model": spec("MLP", activation="~/mailed.py")},
        # `object` has these names, too.
        {"model": spec("mailed.__class__")},
        {"data": spec("mailed.Data.__init__")},
        {"data": spec("mailed.Data")},
    ],
)
def test_a_report_imports_no_module_that_a_run_names_unless_asked(
    changes: Settings, finished_run: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (place / "mailed.py").write_text(CODE)
    monkeypatch.setenv("HOME", str(place))
    sys.modules.pop("mailed", None)
    run = run_with(finished_run, place, changes)
    assert main(["report", str(run)]) == 0
    assert_nothing_ran(place)
    assert "--import_modules true" in (run / "report.html").read_text()
    if changes["model" if "model" in changes else "data"]["class_path"].startswith("mailed"):
        assert main(["report", str(run), "--import_modules", "true"]) == 0
        assert (place / "ran").exists()


@pytest.mark.parametrize(
    "model",
    [
        spec(f"{__name__}.Own", activation=f"{__name__}.halve", several=["torch.nn.init.zeros_"]),
        spec(f"{__name__}.Own", activation="torch.nn.functional.max_pool2d", kind="torch.nn.ReLU"),
        spec(f"{__name__}.Own", anything=spec("torchvision.transforms.v2.RandomErasing", p=0.1)),
        spec(f"{__name__}.Own", activation=spec("torch.nn.ReLU"), untyped=spec("torch.nn.Tanh")),
        spec(f"{__name__}.Own", options={"width": 5}),
        spec(f"{__name__}.Own", optimizer=spec(f"{__name__}.make_sgd", lr=0.1)),
        spec("MLP", lr_scheduler=spec("lightning.pytorch.cli.ReduceLROnPlateau", monitor="x")),
        spec("MLP", optimizer=spec("torch.optim.LBFGS", lr=0.1)),
    ],
)
@pytest.mark.filterwarnings("ignore:.*")  # such as jsonargparse's, on classes without a type
def test_classes_and_functions_that_a_setting_is_for_are_taken(
    model: Settings, place: Path
) -> None:
    cli = FitCLI("fit", ["--config", write(place / "config.yaml", {"model": model})])
    (place / "again.yaml").write_text(cli.dump())
    assert FitCLI("fit", ["--config", str(place / "again.yaml")]).dump() == cli.dump()
