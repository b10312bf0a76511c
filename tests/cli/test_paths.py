"""All paths of all commands are expanded alike, and all printed commands run when pasted."""

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import jsonargparse
import pytest

from digitlab.callbacks import LastCheckpoint
from digitlab.checkpoints import AtomicCheckpointIO, read_checkpoint
from digitlab.cli import COMMANDS, main
from digitlab.data import MNISTDataModule
from tests.commands import SHORT, config_of, fit, refusal
from tests.pictures import seven

UNSET = "$NO_SUCH_VARIABLE/x"
NAMED = "$NO_SUCH_VARIABLE/x names the variable NO_SUCH_VARIABLE, which is not set"
NOT_PATHS = {
    *("accelerator", "strategy", "devices", "max_time", "val_check_interval", "profiler", "name"),
    *("gradient_clip_algorithm", "model_registry", "framework", "output", "help", "print_config"),
    *("rows", "trainer", "print_shtab", "from_configs", "class_names", "scheduler"),
}
"""Settings that may be text, but are no paths."""


@pytest.fixture
def given(finished_run: Path) -> dict[str, list[str]]:
    """Words that make each command complete."""
    run = ["--run", str(finished_run)]
    model = ["--model", "LinearClassifier", *SHORT]
    return {
        **dict.fromkeys(("fit", "parity"), model),
        **dict.fromkeys(("validate", "test", "predict"), run),
        "report": [str(finished_run)],
        "reproduce": ["--report"],
    }


@pytest.mark.parametrize("name", [name for name in COMMANDS if name not in ("configs", "convert")])
def test_every_path_setting_of_a_command_is_expanded(
    name: str,
    given: dict[str, list[str]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    parsers: list[Any] = []
    parse = jsonargparse.ArgumentParser.parse_args

    def spied(parser: Any, *args: Any, **options: Any) -> Any:
        parsers.append(parser)
        return parse(parser, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(jsonargparse.ArgumentParser, "parse_args", spied)
        with pytest.raises(SystemExit):
            main([name, "--help_all"])
    capsys.readouterr()
    tried = []
    for action in parsers[0]._actions:
        kind = str(getattr(action, "_typehint", None) or action.type)
        last = action.dest.rpartition(".")[2]
        is_text = re.search(r"\bstr\b|Path|^None$", kind) and action.nargs != 0
        if last in NOT_PATHS or (not is_text and last != "config"):
            continue
        words = [*action.option_strings[:1], UNSET]
        assert NAMED.partition(" ")[2] in refusal(capsys, name, *given[name], *words), words
        tried.append(last)
    least = {
        "fit": {"config", "default_root_dir", "weights", "run"},
        "predict": {"config", "run", "checkpoint", "json", "csv", "save_prepared"},
        "report": {"runs", "out"},
        "reproduce": {"out", "against"},
    }
    assert set(tried) >= least.get(name, {"config"})


@pytest.mark.parametrize("words", [[UNSET, "x.keras"], ["x.keras", UNSET]])
def test_convert_expands_its_paths(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert NAMED in refusal(capsys, "convert", *words)


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("data.root", ["--data.root", UNSET]),
        ("dirpath", ["--trainer.callbacks", "ModelCheckpoint", "--trainer.callbacks.dirpath"]),
        ("save_dir", ["--trainer.logger", "CSVLogger", "--trainer.logger.save_dir"]),
        ("profiler", ["--trainer.profiler", "SimpleProfiler", "--trainer.profiler.dirpath"]),
    ],
)
def test_paths_of_classes_are_expanded_too(
    setting: str, words: list[str], given: dict[str, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    words = words if UNSET in words else [*words, UNSET]
    assert NAMED in refusal(capsys, "fit", *given["fit"], *words)


def test_a_run_in_the_home_folder_is_in_one_piece(
    tmp_path: Path, tiny_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("TINY", str(tiny_root))
    monkeypatch.delenv("DIGITLAB_DATA")
    place = tmp_path / "here"
    place.mkdir()
    monkeypatch.chdir(place)
    (home / "c.yaml").write_text(
        "model: LinearClassifier\ndata: {class_path: tests.tiny.TinyDataModule, "
        "init_args: {root: $TINY}}\ntrainer: {default_root_dir: ~/r, max_epochs: 1}\n"
    )
    assert main(["fit", "--config=~/c.yaml", "--name", "x", "--trainer.accelerator", "cpu"]) == 0
    run = home / "r" / "tiny-x" / "version_0"
    names = {path.name for path in run.iterdir()}
    assert {"config.yaml", "metrics.json", "checkpoints", "history.csv"} <= names
    assert {path.name for path in (run / "checkpoints").iterdir()} == {"last.ckpt", "best.ckpt"}
    assert config_of(run)["trainer"]["default_root_dir"] == str(home / "r")
    short = "$HOME/r/tiny-x/version_0"
    assert main(["test", "--run", short, "--checkpoint", f"{short}/checkpoints/best.ckpt"]) == 0
    seven().save(home / "a.png")
    seven().save(place / "$HOME.png")  # named by the shell, and there
    outputs = ["--json", "~/p.json", "--csv", "${HOME}/p.csv", "--save_prepared", "~/prepared"]
    assert main(["predict", "--run", short, "~/a.png", "$HOME.png", *outputs]) == 0
    assert main(["report", short, "--out", "~/p.html"]) == 0
    written = {"p.json", "p.csv", "prepared", "p.html"}
    assert {path.name for path in home.iterdir()} == {"c.yaml", "r", "a.png", *written}
    assert [path.name for path in place.iterdir()] == ["$HOME.png"]


def test_a_data_module_expands_its_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_SUCH_VARIABLE", raising=False)
    with pytest.raises(ValueError, match=re.escape(NAMED)):
        MNISTDataModule(root=UNSET).setup("test")


# Printed commands.

FOLDER = "my runs [1]  #2 'x' $5"


def paste(line: str, place: Path) -> list[str]:
    """Let a shell run a line, and return the words that the program gets."""
    program = line.split()[0]
    assert program in ("digitlab", "tensorboard")
    stub = place / "bin" / program
    stub.parent.mkdir(exist_ok=True)
    stub.write_text(f"#!/bin/sh\nfor word; do printf '%s\\0' \"$word\"; done > '{place}/words'\n")
    stub.chmod(0o755)
    path = f"{stub.parent}:{os.environ['PATH']}"
    subprocess.run(["sh", "-c", line], env={**os.environ, "PATH": path}, check=True)
    return (place / "words").read_text("utf-8").split("\0")[:-1]


def test_what_is_printed_at_the_end_of_a_run_can_be_pasted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = fit(Path(FOLDER))
    lines = [line[2:] for line in capsys.readouterr().out.splitlines() if line.startswith("  ")]
    commands = [line for line in lines if line.startswith(("digitlab ", "tensorboard "))]
    words = {line.split()[1]: paste(line, tmp_path) for line in commands}
    assert [*words] == ["test", "predict", "report", "--logdir"]
    assert words.pop("--logdir") == ["--logdir", str(folder)]
    for pasted in words.values():
        assert pasted[-1] == str(folder)
        assert main(pasted) == 0


def test_how_to_resume_can_be_pasted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)

    def fail(*_: Any) -> None:
        raise OSError("no room")

    with monkeypatch.context() as patch:
        patch.setattr(LastCheckpoint, "on_train_epoch_end", fail)
        place = ["--trainer.default_root_dir", FOLDER]
        assert main(["fit", "--model", "LinearClassifier", *SHORT, *place]) == 1
    (folder,) = Path(FOLDER).glob("*/version_*")
    error = capsys.readouterr().err.splitlines()[-1]
    pasted = paste(error.partition("resume with: ")[2], tmp_path)
    assert pasted == ["fit", "--run", str(folder)]
    assert main(pasted) == 0
    # What cannot be resumed says how to start a new run.
    last = folder / "checkpoints" / "last.ckpt"
    content = {key: it for key, it in read_checkpoint(last).items() if key != "exact_resume"}
    AtomicCheckpointIO().save_checkpoint(content, last)
    capsys.readouterr()
    line = refusal(capsys, *pasted).partition("start a new run, ")[2]
    assert paste(f"digitlab {line}", tmp_path) == ["--weights", str(last)]
    (folder / "config.yaml").write_text((folder / "config.yaml").read_text() + "1: 2\n")
    assert "config.yaml" in refusal(capsys, *pasted)


def test_names_from_files_are_printed_inert(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    nasty = "\x1b[31mred\n\u202egnp.png"
    run = fit(Path(nasty))
    seven().save("x.png")
    Path("x.png").rename(nasty + ".png")
    outputs = ["--json", f"{nasty}.json", "--csv", f"{nasty}.csv"]
    codes = [
        main(["test", "--run", str(run)]),
        main(["predict", "--run", str(run)]),
        main(["predict", "--run", str(run), f"{nasty}.png", "no\x1b.png", *outputs]),
        main(["report", str(run)]),
        main(["fit", "--run", str(run)]),
        main(["test", "--run", f"no {nasty}"]),
        main(["predict", f"--{nasty}", "--run", str(run)]),
        main([nasty]),
    ]
    assert codes == [0, 0, 1, 0, 0, 2, 2, 2]
    shown = capsys.readouterr()
    lines = (shown.out + shown.err).splitlines()
    assert [line for line in lines if not line.isprintable()] == []
    assert any(line.startswith(r"\x1b[31mred\n\u202egnp.png.png: ") for line in lines)
