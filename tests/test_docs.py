"""The programs of the README and the guides run as they are printed."""

import re
import shlex
import subprocess
import sys
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from textwrap import indent

import pytest

from digitlab.reproduce import results
from tests import events
from tests.data import made

pytestmark = pytest.mark.docs

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
IMPORTS = """\
from collections import OrderedDict
from typing import Any

from lightning import Trainer
from torch import nn

from digitlab.classifier import Classifier
from digitlab.data import DigitsDataModule

"""
BLOCK = re.compile(
    r'^```(python|bash|yaml)(?: title="([^"]+)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL
)
needs_keras = pytest.mark.skipif(not find_spec("tensorflow"), reason="needs the extra `parity`")


def test_the_readme_s_python_runs_and_its_architecture_trains_from_the_command_line(
    tmp_path: Path,
) -> None:
    text = (ROOT / "README.md").read_text("utf-8").partition("## In Python")[2]
    code = program(text, tmp_path)
    network = f"class {code.partition('class ')[2].partition('Trainer(')[0]}"
    (tmp_path / "my_module.py").write_text(IMPORTS + network, "utf-8")
    run(f"{IMPORTS}{code}", tmp_path)
    histories = sorted(tmp_path.glob("runs/digits-*/version_0/history.csv"))
    assert [it.parts[-3] for it in histories] == ["digits-lenet5", "digits-twoconvolutions"]
    assert [len(it.read_text("utf-8").splitlines()) for it in histories] == [1 + 5] * 2


def test_every_link_of_the_readme_leads_to_a_file_of_the_repository() -> None:
    for page in ("README.md", "CONTRIBUTING.md"):
        text = " ".join((ROOT / page).read_text("utf-8").split())
        links = re.findall(r"\]\((?!https?:)([^)#]+)", text)
        assert links
        assert [link for link in links if not (ROOT / link).exists()] == []


def test_the_research_guide_runs_from_top_to_bottom(tmp_path: Path) -> None:
    shown = run(program(text_of("research.md"), tmp_path), tmp_path)
    assert re.search(r"^\d+ of 360 right, loss \d", shown, re.M)


def test_the_guide_to_resuming_in_one_s_own_code_runs(tmp_path: Path) -> None:
    run(program(text_of("reliability.md"), tmp_path, languages=("python",)), tmp_path)


@needs_keras
def test_the_parity_guide_s_python_runs_from_top_to_bottom(tmp_path: Path) -> None:
    code = program(text_of("parity.md"), tmp_path, languages=("python",))
    shown = run(f"{code}\ntest_both_frameworks_compute_the_same()", tmp_path)
    assert "the first Keras layer that differs: pool" in shown


@needs_keras
@pytest.mark.parametrize("example", sorted(DOCS.glob("examples/*.py")), ids=lambda it: it.stem)
def test_a_complete_pair_of_the_parity_guide_passes(example: Path, tmp_path: Path) -> None:
    assert f'--8<-- "docs/examples/{example.name}"' in text_of("parity.md")
    assert "FAILED" not in run(example.read_text("utf-8"), tmp_path)


def test_the_guide_to_a_data_set_runs_from_top_to_bottom(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DIGITLAB_DATA", str(tmp_path / "data"))  # small files instead of downloads
    for write in (made.kmnist, made.qmnist, partial(made.emnist, split="balanced", classes=47)):
        write(tmp_path / "data")
    page = text_of("extend/data_set.md")
    shown = run(program(page, tmp_path), tmp_path)
    for split, digest in re.findall(r'"(train|test)": \(\s+"(\w{64})"', page):
        assert f"{split} {digest}" in shown
    assert "photo.png: K (" in shown


def test_the_guide_to_comparisons_trains_its_configs_and_reports_them(tmp_path: Path) -> None:
    page = text_of("compare.md").replace("--seeds 5", "--seeds 2")
    code = indent(program(page, tmp_path, languages=("bash", "yaml")), "    ")
    run(f"if __name__ == '__main__':  # worker processes import this file\n{code}", tmp_path)
    recorded = results.read(DOCS / "results" / "rates" / "results.csv")
    trained = results.read(tmp_path / "runs" / "rates" / "results.csv")
    assert len(trained) == 4
    # So the tables of the page are of the configs that it shows.
    assert {(it.row, it.recipe) for it in trained} == {(it.row, it.recipe) for it in recorded}
    assert (tmp_path / "runs" / "rates" / "accuracies.png").exists()


@pytest.mark.skipif(not find_spec("optuna"), reason="needs optuna")
def test_the_sweep_finds_the_better_of_its_trials(tmp_path: Path) -> None:
    page = text_of("compare.md").replace("n_trials=8", "n_trials=2")
    code = program(page, tmp_path, languages=("python",))
    shown = run(f"{code}\nprint(max(it.value for it in study.trials), study.best_value)", tmp_path)
    best, said = re.findall(r"^(0\.\d+) (0\.\d+)$", shown, re.M)[0]
    assert best == said
    assert re.search(r"^\{'rate': 0\.\d+", shown, re.M)
    assert len(list(tmp_path.glob("runs/*/version_*/metrics.json"))) == 2


def test_the_guide_to_an_architecture_trains_without_tensorflow(tmp_path: Path) -> None:
    network = text_of("extend/architecture.md").partition("## Its Keras twin")[0]
    run(program(network, tmp_path) + "\nimport sys\nassert 'keras' not in sys.modules", tmp_path)
    assert list(tmp_path.glob("runs/digits-lenet1989/version_1/metrics.json"))


@needs_keras
def test_the_guide_to_an_architecture_and_its_twin_runs_from_top_to_bottom(tmp_path: Path) -> None:
    shown = run(program(text_of("extend/architecture.md"), tmp_path), tmp_path)
    assert "the first Keras layer that differs: conv1" in shown
    assert "both compute the same" in shown
    assert list(tmp_path.glob("runs/digits-lenet1989-keras/version_0/metrics.json"))


def test_the_callbacks_that_the_guide_to_tensorboard_lists_work_in_a_plain_trainer(
    tmp_path: Path,
) -> None:
    run(program(text_of("tensorboard.md"), tmp_path, languages=("python",)), tmp_path)
    folder = tmp_path / "runs" / "mine" / "version_0"
    assert events.pictures(folder).keys() == {
        "val/confusion_matrix",
        "val/mistakes",
        "weights/conv1",
    }
    assert (folder / "projector" / "penultimate_layer" / "tensors.tsv").is_file()


def text_of(page: str) -> str:
    return (DOCS / page).read_text("utf-8")


def run(code: str, folder: Path) -> str:
    # A process of its own, because it is the reader's program.
    (folder / "guide.py").write_text(f"{code}\nprint('to the end')", "utf-8")
    done = subprocess.run(
        [sys.executable, "guide.py"], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("to the end\n")  # a command such as --help ends a program with 0
    return done.stdout


def program(
    page: str, folder: Path, languages: tuple[str, ...] = ("python", "bash", "yaml")
) -> str:
    """Join a page's blocks; those with a title become files, and commands become calls."""
    parts = ["from digitlab.cli import main"]
    for language, title, code in BLOCK.findall(page):
        if language not in languages:
            continue
        if title:
            (folder / title).parent.mkdir(exist_ok=True)
            (folder / title).write_text(code, "utf-8")
        elif language == "python":
            parts.append(code)
        elif language == "bash":
            parts += [f"assert main({arguments(line)}) == 0, {line!r}" for line in commands(code)]
    return "\n".join(parts)


def commands(code: str) -> list[str]:
    lines = code.replace("\\\n", "").splitlines()  # a backslash joins two lines
    return [line for line in lines if line and not line.startswith("#")]


def arguments(command: str) -> list[str]:
    """Take the words after `digitlab`."""
    program, *words = shlex.split(command)
    assert program == "digitlab"
    return words
