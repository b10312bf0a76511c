import json
from pathlib import Path

import pytest
from filelock import FileLock

from digitlab import run_folder
from digitlab.cli import main
from digitlab.reproduce.explain import prepare_explain, read_explain
from digitlab.reproduce.queue import Queue
from digitlab.reproduce.results import read_lines
from tests.commands import refusal

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


@pytest.fixture
def pair(tmp_path: Path) -> str:
    """Two configs that differ in dropout in evaluation and in normalization."""
    paths = [tmp_path / "first.yaml", tmp_path / "second.yaml"]
    for path, text in zip(paths, (FIRST, SECOND), strict=True):
        path.write_text(text)
    return f"{paths[0]}:{paths[1]}"


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The commands that trained, in this process, which need not import everything again."""
    commands: list[list[str]] = []

    def train(self: Queue, command: list[str], log: Path, held: FileLock) -> bool:
        commands.append(command)
        return main(command[3:]) == 0

    monkeypatch.setattr(Queue, "_call", train)
    return commands


def explain(pair: str, out: Path, seeds: int) -> Path:
    assert prepare_explain(pair, {}, out, range(seeds), workers=1, threads=1)() == 0
    (folder,) = out.glob("explain-*")
    return folder


def test_every_combination_is_measured_and_the_evaluation_needs_no_training(
    pair: str, trained: list[list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = explain(pair, tmp_path / "out", seeds=2)
    assert len(trained) == 4  # with each normalization and each seed
    lines = read_lines(folder / "grid.csv")
    levels = {
        (line["dropout in evaluation"], line["normalization"], line["seed"]) for line in lines
    }
    assert len(levels) == len(lines) == 8
    shown = capsys.readouterr().out
    assert "2 ways to train × 2 seeds = 4 runs, each evaluated in 2 ways" in shown
    assert (folder / "effects.png").stat().st_size > 10_000
    assert all(table in shown for table in read_explain(folder).values())


def test_with_everything_switched_a_run_is_one_of_the_second_config(
    pair: str, trained: list[list[str]], tmp_path: Path
) -> None:
    folder = explain(pair, tmp_path / "out", seeds=1)
    second = pair.partition(":")[2]
    place = ["--trainer.default_root_dir", str(tmp_path / "alone")]
    assert main(["fit", "--config", second, *place]) == 0
    (run,) = (tmp_path / "alone").glob("*/version_0")
    (line,) = (
        line
        for line in read_lines(folder / "grid.csv")
        if line["dropout in evaluation"] == line["normalization"] == "1"
    )
    assert float(line["accuracy"]) == run_folder.read_metrics(run)["test"]["accuracy"]
    assert int(line["n"]) == 50


def test_an_interrupted_grid_goes_on_where_it_was(
    pair: str, trained: list[list[str]], tmp_path: Path
) -> None:
    folder = explain(pair, tmp_path / "out", seeds=1)
    first = read_lines(folder / "grid.csv")
    explain(pair, tmp_path / "out", seeds=2)
    assert len(trained) == 4
    assert read_lines(folder / "grid.csv")[: len(first)] == first


def test_dropout_in_evaluation_is_drawn_by_the_run_s_seed(
    pair: str, trained: list[list[str]], tmp_path: Path
) -> None:
    folders = [explain(pair, tmp_path / name, seeds=1) for name in ("one", "other")]
    ours, theirs = (read_lines(folder / "grid.csv") for folder in folders)
    assert ours == theirs
    off, on = (
        {line["accuracy"] for line in ours if line["dropout in evaluation"] == level}
        for level in "10"
    )
    assert off != on


def test_a_folder_of_other_settings_is_not_mixed_with_these(
    pair: str, trained: list[list[str]], tmp_path: Path
) -> None:
    explain(pair, tmp_path / "out", seeds=1)
    second = Path(pair.partition(":")[2])
    second.write_text(second.read_text().replace("max_epochs: 1", "max_epochs: 2"))
    with pytest.raises(ValueError, match=r"is of other settings than .* move .* away"):
        prepare_explain(pair, {}, tmp_path / "out", range(1), workers=1, threads=1)


def test_a_grid_without_a_whole_seed_is_no_explanation_yet(
    pair: str, trained: list[list[str]], tmp_path: Path
) -> None:
    folder = explain(pair, tmp_path / "out", seeds=1)
    lines = (folder / "grid.csv").read_text().splitlines()
    (folder / "grid.csv").write_text("\n".join(lines[:-1]) + "\n")
    with pytest.raises(ValueError, match=r"has no seed in all 4 cells: run the same"):
        read_explain(folder)
    factors = json.loads((folder / "factors.json").read_text("utf-8"))["factors"]
    assert [factor["name"] for factor in factors] == ["dropout in evaluation", "normalization"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("B1", "name two configs with a colon between, such as B1:B2"),
        ("B1:B1", "so name two configs"),
        ("B1:B99", "there is no row B99"),
        ("B1:none.yaml", "there is no file none.yaml"),
    ],
)
def test_bad_pairs_are_answered_in_one_line(
    words: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said in refusal(capsys, "reproduce", "--explain", words)
