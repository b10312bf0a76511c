import json
import shutil
from pathlib import Path

import pytest

from digitlab import run_folder
from digitlab.cli import main
from digitlab.errors import InputError
from digitlab.reproduce import results
from digitlab.reproduce.explain import explain_difference, explanation_tables
from digitlab.reproduce.results import read_table
from tests.commands import refusal
from tests.reproduce.inline import Inline
from tests.reproduce.samples import RESULT

FIRST = """
model:
  class_path: MLP
  init_args:
    hidden_features: [16]
    dropout: 0.5
    dropout_in_evaluation: true
data:
  class_path: tests.tiny.TinyDataModule
  init_args:
    normalization: symmetric
trainer:
  max_epochs: 1
  accelerator: cpu
"""
SECOND = FIRST.replace("dropout_in_evaluation: true", "dropout_in_evaluation: false").replace(
    "normalization: symmetric", "normalization: unit"
)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Two configs that differ in dropout in evaluation and in normalization."""
    folder = tmp_path_factory.mktemp("pair")
    paths = [folder / "first.yaml", folder / "second.yaml"]
    for path, text in zip(paths, (FIRST, SECOND), strict=True):
        path.write_text(text)
    return f"{paths[0]}:{paths[1]}"


def explain(pair: str, out: Path, seeds: int) -> tuple[Path, int]:
    """Explain, training in this process; give the folder and the number of trained runs."""
    commands = []

    def train(command: list[str]) -> int:
        commands.append(command)
        return main(command)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("digitlab.reproduce.executors.Processes", Inline)
        patch.setattr("digitlab.reproduce.worker.main", train)
        assert explain_difference(pair, {}, out, range(seeds), workers=1, threads=1) == 0
    (folder,) = out.glob("explain-*")
    return folder, len(commands)


@pytest.fixture(scope="module")
def finished(pair: str, tmp_path_factory: pytest.TempPathFactory, tiny_for_module: None) -> Path:
    """The folder of a grid of one seed, to be copied."""
    return explain(pair, tmp_path_factory.mktemp("finished"), seeds=1)[0]


@pytest.fixture
def folder(finished: Path, tmp_path: Path) -> Path:
    """The grid of one seed, of a test's own."""
    return Path(shutil.copytree(finished, tmp_path / "out" / finished.name))


def test_every_combination_is_measured_and_the_evaluation_needs_no_training(
    folder: Path, pair: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = read_table(folder / "grid.csv").to_dict("records")
    _, trained = explain(pair, folder.parent, seeds=2)
    assert trained == 2  # of the second seed alone: the first is resumed from the folder
    grid = read_table(folder / "grid.csv")
    assert grid.to_dict("records")[: len(before)] == before
    assert len(grid[["dropout in evaluation", "normalization", "seed"]].drop_duplicates()) == 8
    shown = capsys.readouterr().out
    assert "2 ways to train × 2 seeds = 4 runs, each evaluated in 2 ways" in shown
    assert (folder / "effects.png").stat().st_size > 10_000
    assert all(table in shown for table in explanation_tables(folder).values())


def test_with_everything_switched_a_run_is_one_of_the_second_config(
    folder: Path, pair: str, tmp_path: Path
) -> None:
    second = pair.partition(":")[2]
    place = ["--trainer.default_root_dir", str(tmp_path / "alone")]
    assert main(["fit", "--config", second, *place]) == 0
    (run,) = (tmp_path / "alone").glob("*/version_0")
    lines = read_table(folder / "grid.csv").set_index(["dropout in evaluation", "normalization"])
    line = lines.loc[("1", "1")]
    assert float(line["accuracy"]) == run_folder.read_metrics(run)["test"]["accuracy"]
    assert int(line["n"]) == 50


def test_dropout_in_evaluation_is_drawn_by_the_run_s_seed(
    folder: Path, pair: str, tmp_path: Path
) -> None:
    other, _ = explain(pair, tmp_path / "other", seeds=1)
    grid = read_table(folder / "grid.csv")
    assert grid.equals(read_table(other / "grid.csv"))
    accuracies = grid.groupby("dropout in evaluation")["accuracy"].agg(set)
    assert accuracies["0"] != accuracies["1"]


@pytest.mark.parametrize(
    ("name", "old", "new", "said"),
    [
        ("configs/0.yaml", "max_epochs: 1", "max_epochs: 2", "has other settings than .* move "),
        ("grid.csv", "accuracy", "acuracy", r"grid\.csv is damaged or of another kind"),
    ],
)
def test_a_folder_of_other_settings_or_damaged_is_named_before_anything_is_trained(
    name: str, old: str, new: str, said: str, folder: Path, pair: str
) -> None:
    (folder / name).write_text((folder / name).read_text().replace(old, new))
    with pytest.raises(InputError, match=said):
        explain_difference(pair, {}, folder.parent, range(2), workers=1, threads=1)


def test_a_grid_without_a_complete_seed_is_no_explanation_yet(folder: Path) -> None:
    lines = (folder / "grid.csv").read_text().splitlines()
    (folder / "grid.csv").write_text("\n".join(lines[:-1]) + "\n")
    for _ in range(2):
        with pytest.raises(InputError, match=r"has no seed in all 4 cells: run the same"):
            explanation_tables(folder)
        (folder / "grid.csv").unlink(missing_ok=True)  # before the first run has ended
    factors = json.loads((folder / "factors.json").read_text("utf-8"))["factors"]
    assert [factor["name"] for factor in factors] == ["dropout in evaluation", "normalization"]


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("grid.csv", "\n0,", "\n2,"),
        ("grid.csv", ",0.", ",7."),
        ("grid.csv", "", "\x00"),
        ("factors.json", '"first"', '"one"'),
        ("factors.json", '"factors": [', '"factors": 1, "more": ['),
    ],
)
def test_a_damaged_grid_is_named_in_one_line(
    name: str, old: str, new: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results.add(folder.parent / "results.csv", [RESULT])
    text = (folder / name).read_text("utf-8")
    (folder / name).write_text(text.replace(old, new) if old else new, "utf-8")
    said = refusal(capsys, "reproduce", "--report", "--out", str(folder.parent))
    assert said.startswith(f"{folder / name} is damaged or of another kind: ")
    assert not (folder.parent / "tables.md").exists()
