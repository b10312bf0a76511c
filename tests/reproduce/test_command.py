import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from digitlab import run_folder
from digitlab.cli import main
from digitlab.reproduce import command, results
from digitlab.reproduce.worker import Item
from tests.commands import refusal
from tests.reproduce.inline import Inline
from tests.reproduce.samples import RESULT

ROOT = Path(__file__).parents[2]


@pytest.fixture
def laboratory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with configs of two rows that train in no time."""
    configs = tmp_path / "configs" / "tiny"
    configs.mkdir(parents=True)
    short = "data: tests.tiny.TinyDataModule\ntrainer:\n  max_epochs: 2\n  accelerator: cpu\n"
    (configs / "linear.yaml").write_text(f"model: LinearClassifier\n{short}")
    (configs / "nn.yaml").write_text(
        "# nn: A network. Published: 12.5%\u202e.\nmodel:\n  class_path: MLP\n"
        f"  init_args:\n    hidden_features: [16]\n{short}"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{ROOT / 'src'}")  # for tests.tiny
    return tmp_path


def done(laboratory: Path) -> list[tuple[str, str, int]]:
    """The runs that are in the results."""
    return [result.key for result in results.read(laboratory / "out" / "results.csv")]


def test_rows_are_trained_over_seeds_and_the_printed_commands_run(
    laboratory: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("digitlab.reproduce.executors.Processes", Inline)
    out = "my 'out';#"
    names = ["tiny/nn", "configs/tiny/linear.yaml"]
    command = ["reproduce", *names, "--framework", "torch", "--out", out]
    command += ["--seeds", "1", "--first_seed", "3", "--workers", "1"]
    assert main(command) == 0
    shown = capsys.readouterr().out
    measured = results.read(laboratory / out / "results.csv")
    keys = [("tiny/linear", "torch", 3), ("tiny/nn", "torch", 3)]
    assert sorted(it.key for it in measured) == keys
    assert "[2/2]" in shown
    assert r"12.5%\u202e" in shown  # which a terminal does not obey
    assert measured[0].optimizer_steps == 14
    assert len(measured[0].val_curve) == 2

    printed = shlex.split(shown.splitlines()[-1])
    assert printed == ["digitlab", "reproduce", *names, "--report", "--out", out]
    report(shown, capsys)
    assert (laboratory / out / "tables.md").exists()

    assert main(command) == 0
    assert "[1/1]" not in capsys.readouterr().out  # nothing was left to do


def test_files_of_one_name_in_two_folders_are_two_rows_that_are_compared(
    laboratory: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("digitlab.reproduce.executors.Processes", Inline)
    monkeypatch.setenv("COLUMNS", "80")
    for folder, name in (("one", "linear"), ("two", "nn")):
        Path(folder).mkdir()
        shutil.copy(Path("configs", "tiny", f"{name}.yaml"), Path(folder, "net.yaml"))
    rows = ["one/net.yaml", "two/net.yaml"]
    options = ["--seeds", "1", "--out", "out", "--workers", "1", "--margin", "9"]
    assert main(["reproduce", *rows, *options]) == 0
    measured = results.read(Path("out", "results.csv"))
    assert {it.row for it in measured} == {"one/net", "two/net"}
    assert len({it.test_loss for it in measured}) == 2
    shown = capsys.readouterr().out
    for text in (shown, report(shown, capsys)):
        assert "`one/net` − `two/net`" in text
        assert "runs: 1 and 1; margin: 9. No interval" in text
        assert all(len(line) <= 80 for line in text.splitlines() if line.startswith("Percentage"))
        assert "ocument" not in text
    assert Path("out", "accuracies.png").exists()


def test_a_run_with_a_hold_out_is_scored_on_the_test_split(
    laboratory: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("digitlab.reproduce.executors.Processes", Inline)
    text = Path("configs", "tiny", "linear.yaml").read_text()
    data = "  class_path: tests.tiny.TinyDataModule\n  init_args:\n    validation_size: 50"
    Path("held.yaml").write_text(text.replace(" tests.tiny.TinyDataModule", f"\n{data}"))
    assert main(["reproduce", "held.yaml", "--seeds", "1", "--out", "out", "--workers", "1"]) == 0
    (result,) = results.read(Path("out", "results.csv"))
    (metrics,) = Path("out").rglob("metrics.json")
    scores = run_folder.read_metrics(metrics.parent)
    assert result.test_accuracy == scores["test"]["accuracy"]
    assert scores["val"]["n"] == 50
    assert scores["test"]["checkpoint"] == "last"


def report(shown: str, capsys: pytest.CaptureFixture[str]) -> str:
    """Run the command that a command printed last."""
    _, *printed = shlex.split(shown.splitlines()[-1])
    assert main(printed) == 0
    return capsys.readouterr().out


def test_a_run_that_fails_is_named_with_its_log_and_gives_exit_code_1(
    laboratory: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("digitlab.reproduce.executors.Processes", Inline)
    monkeypatch.setattr("digitlab.reproduce.worker.main", lambda command: 1)
    command = ["reproduce", "tiny/linear", "--framework", "torch", "--out", "out", "--seeds", "1"]
    assert main(command) == 1
    log = Path("out", "runs", "tiny-linear-torch-seed_0", "log.txt")
    assert f"tiny/linear torch seed 0 failed: see {log}\n" in capsys.readouterr().out
    assert done(laboratory) == []


def test_runs_of_another_recipe_are_not_mixed_with_these(
    laboratory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = replace(RESULT, row="tiny/linear", config="tiny/linear", recipe="of before")
    results.add(laboratory / "out" / "results.csv", [result])
    said = refusal(capsys, "reproduce", "tiny/linear", "--framework", "torch", "--out", "out")
    assert "has runs of tiny/linear with other settings than its config has now" in said


@pytest.mark.parametrize(
    ("spec", "options", "said"),
    [
        (None, ["--framework", "keras"], "Keras is not installed: give --framework torch, or pip"),
        (1, ["--validate_every", "9"], "validate_every is 9, and Keras validates once an epoch"),
    ],
)
def test_what_keras_cannot_do_is_refused_before_any_run(
    spec: int | None,
    options: list[str],
    said: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(command, "find_spec", lambda name: spec)
    assert said in refusal(capsys, "reproduce", "B1", *options)


@pytest.mark.parametrize(
    ("words", "has_keras", "frameworks"),
    [
        ("B1", True, ["torch", "keras"]),
        ("B1", False, ["torch"]),
        ("tiny/linear", True, ["torch"]),
        ("tiny/linear --framework both", True, ["torch", "keras"]),
        ("B1 --framework torch", True, ["torch"]),
    ],
)
def test_the_documents_rows_are_trained_in_both_frameworks_and_others_where_it_is_asked(
    words: str,
    has_keras: bool,
    frameworks: list[str],
    laboratory: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trained: list[Item] = []

    def train(items: list[Item], *_: object, **__: object) -> list[Item]:
        trained.extend(items)
        return []

    monkeypatch.setattr(command, "train_items", train)
    monkeypatch.setattr(command, "find_spec", lambda name: has_keras or None)
    assert main(["reproduce", *words.split(), "--seeds", "1", "--out", "out"]) == 0
    assert [item.framework for item in trained] == frameworks
    is_missing = "Keras is not installed: training in PyTorch only" in capsys.readouterr().out
    assert is_missing == (not has_keras)
