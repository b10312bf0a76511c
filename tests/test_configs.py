import math
import re
from pathlib import Path

import pytest
import torch
import yaml

from digitlab import models
from digitlab.cli import main
from digitlab.cli.fit import FitCLI
from digitlab.cli.parser import RunCLI, check_settings, check_together
from digitlab.run_folder import read_metrics

CONFIGS = sorted(Path("configs").glob("*/*.yaml"))
OVERLAYS = sorted(Path("configs").glob("*.yaml"))


def identify(path: Path) -> str:
    return f"{path.parent.name}/{path.stem}"


def architecture(path: Path) -> str:
    name: str = yaml.safe_load(path.read_text("utf-8"))["model"]["class_path"]
    return name


FIRST = {architecture(path): path for path in reversed(CONFIGS)}
"""One config for each architecture."""


@pytest.mark.parametrize("path", CONFIGS, ids=identify)
def test_a_config_parses_and_is_written_back_the_same(path: Path, tmp_path: Path) -> None:
    cli = FitCLI("fit", ["--config", str(path)])
    check_settings(cli)
    check_together(cli.model, cli.datamodule)
    (tmp_path / "config.yaml").write_text(cli.dump())
    again = FitCLI("fit", ["--config", str(tmp_path / "config.yaml")])
    assert again.dump() == cli.dump()


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, marks=[] if path in FIRST.values() else pytest.mark.slow)
        for path in CONFIGS
    ],
    ids=identify,
)
def test_a_config_trains(path: Path, tmp_path: Path) -> None:
    options = ["--data", "tests.tiny.TinyDataModule", "--data.train_images", "null"]
    if path.parent.name == "digits":
        options = []
    if "weights" in yaml.safe_load(path.read_text("utf-8")):
        model = models.LeNet1(padding="same")
        torch.save(model.state_dict(), tmp_path / "weights.pth")
        options += ["--weights", str(tmp_path / "weights.pth")]
    root = tmp_path / "runs"
    place = ["--trainer.default_root_dir", str(root), "--trainer.accelerator", "cpu"]
    short = ["--trainer.max_epochs", "-1", "--trainer.max_steps", "3"]
    assert main(["fit", "--config", str(path), *options, *place, *short]) == 0
    (folder,) = root.glob(f"*-{path.stem}/version_0")
    metrics = read_metrics(folder)
    assert metrics["optimizer_steps"] == 3
    assert math.isfinite(metrics["train"]["loss"])
    assert list(folder.glob("events*"))


@pytest.mark.parametrize("path", [*CONFIGS, *OVERLAYS], ids=identify)
def test_a_config_begins_with_what_it_is(path: Path) -> None:
    text = path.read_text("utf-8")
    comment = " ".join(re.findall(r"^# (.*)$", text.partition("\n\n")[0], re.M))
    assert text.startswith("# ")
    if path in CONFIGS:
        assert re.search(r"[Pp]ublished", comment)
        if path.parent.name != "digits":
            assert re.match(rf"([AB]\d+(_as_published)?|linear|{path.stem})\b", comment)


@pytest.mark.parametrize("path", OVERLAYS, ids=identify)
def test_an_overlay_changes_the_trainer_alone(path: Path) -> None:
    plain = yaml.safe_load(RunCLI("fit", ["--config", str(CONFIGS[0])]).dump())
    overlaid = RunCLI("fit", ["--config", str(CONFIGS[0]), "--config", str(path)])
    changed = yaml.safe_load(overlaid.dump())
    assert [key for key in plain if changed[key] != plain[key]] == ["from_configs", "trainer"]


EPOCH = ["--trainer.max_epochs", "1"]
WHOLE = ["--seed_everything", "4"]


# The bands are two-sided, since too good is wrong too; they are wider than the seeds' spread.
@pytest.mark.parametrize(
    ("config", "options", "low", "high"),
    [
        ("digits/linear", [], 0.90, 0.999),
        pytest.param("digits/lenet5", [], 0.95, 0.999, marks=pytest.mark.slow),
        ("mnist/linear", EPOCH, 0.90, 0.92),
        pytest.param("mnist/linear", WHOLE, 0.915, 0.928, marks=pytest.mark.slow),
        pytest.param("mnist/nn128", WHOLE, 0.960, 0.976, marks=pytest.mark.slow),
        pytest.param("mnist/nn128_as_published", WHOLE, 0.945, 0.963, marks=pytest.mark.slow),
        pytest.param("mnist/nn128_keras_recipe", WHOLE, 0.973, 0.982, marks=pytest.mark.slow),
        pytest.param("fashion_mnist/nn128", WHOLE, 0.850, 0.885, marks=pytest.mark.slow),
    ],
)
def test_a_run_on_real_images_ends_in_its_band(
    config: str,
    options: list[str],
    low: float,
    high: float,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    if not config.startswith("digits"):
        request.getfixturevalue("real_data")
    place = ["--trainer.default_root_dir", str(tmp_path), "--trainer.accelerator", "cpu"]
    assert main(["fit", "--config", f"configs/{config}.yaml", *place, *options]) == 0
    (folder,) = tmp_path.glob("*/version_0")
    score = read_metrics(folder)["test"]
    assert score["n"] == (360 if config.startswith("digits") else 10_000)
    assert low <= score["accuracy"] <= high
