import os
import re
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch

import digitlab
from digitlab import models
from digitlab.cli import COMMANDS, main
from digitlab.cli.completion import parser_of
from digitlab.cli.evaluate import EvaluationCLI, PredictionCLI
from digitlab.cli.fit import FitCLI
from digitlab.cli.messages import option_names
from digitlab.cli.parity import ParityCLI
from tests.commands import SHORT

one_process = pytest.mark.xdist_group("one process of the command line")


@pytest.mark.parametrize("args", [[], ["-h"], ["--help"], ["help"]])
def test_help_names_every_command(args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(args) == 0
    shown = capsys.readouterr().out
    assert all(f"\n  {command} " in shown for command in COMMANDS)


def test_version_help_and_refusals_need_no_torch() -> None:
    words = ["--version", "--help", "tset", "help fit", "predict --help", "configs"]
    program = "import sys; from digitlab.cli import main\nfor it in sys.argv[1:]: main(it.split())"
    command = [sys.executable, "-c", f"{program}\nprint(*sys.modules)", *words]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert shown[0] == f"digitlab {digitlab.__version__}"
    modules = shown[-1].split()
    assert "digitlab.cli" in modules
    assert not {"torch", "lightning", "numpy"} & set(modules)


SHORT_HELP = {
    **{"fit": FitCLI, "parity": ParityCLI, "validate": EvaluationCLI, "test": EvaluationCLI},
    "predict": PredictionCLI,
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_help_text_fits_two_screens_and_names_only_options_that_there_are(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with suppress(SystemExit):
        main([command, "--help"])
    text = capsys.readouterr().out
    lines = text.splitlines()
    assert len(lines) <= 80
    assert max(map(len, lines)) <= 80
    assert re.findall("type:|<class|None|Optional|default: ", text) == []
    if command in SHORT_HELP:
        known = {*option_names(parser_of(SHORT_HELP[command], command)), "help_all"}
        shown = {*re.findall(r"^  --?([\w.]+)", text, re.MULTILINE)}
        of_classes = {"optimizer", "root", "batch_size", "eval_batch_size", "validation_size"}
        assert {it.rpartition(".")[2] for it in shown - known} <= of_classes
        assert "help_all" in shown
    if command == "fit":
        named = " ".join(text.split())
        assert all(it in named for it in (*models.__all__, "DigitsDataModule", "MNISTDataModule"))
        assert "TorchvisionDataModule" not in named  # a base class, which has no data


@pytest.mark.parametrize("words", ["fit --help_all", "fit --model.help LeNet5"])
def test_no_markup_is_in_a_help_text(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(words.split())
    text = capsys.readouterr().out
    assert "--model.optimizer" in text or "--trainer.max_epochs" in text
    assert re.findall(r".*(?::\w+:`|``|`_).*", text) == []


@pytest.mark.parametrize(
    ("is_terminal", "loaded", "shown"),
    [
        (True, False, f"digitlab {digitlab.__version__}: loading PyTorch ...\n"),
        (False, False, ""),
        (True, True, ""),
    ],
)
def test_a_terminal_shows_what_is_loaded_before_it_is(
    is_terminal: bool,
    loaded: bool,
    shown: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    seen = []

    def load(_: str) -> SimpleNamespace:
        seen.append(capsys.readouterr())
        return SimpleNamespace(run=lambda *_: 0)

    monkeypatch.setattr("digitlab.cli.import_module", load)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: is_terminal, raising=False)
    if not loaded:
        monkeypatch.delitem(sys.modules, "torch")
    assert main(["fit"]) == 0
    assert [(it.out, it.err) for it in seen] == [("", shown)]


@pytest.mark.slow
@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_a_shell_completes_commands_and_options(
    shell: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--print_completion", shell]) == 0
    script = tmp_path / "completion"
    script.write_text(capsys.readouterr().out)
    assert all(f"{name}" in script.read_text() for name in COMMANDS)
    if shell == "zsh":
        return
    complete = (
        f"source {script}; COMP_WORDS=($1); COMP_CWORD=$(( ${{#COMP_WORDS[@]}} - 1 ));"
        ' COMP_TYPE=9; _shtab_digitlab; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    for words, expected in {
        "digitlab va": "validate",
        "digitlab fit --trainer.max_e": "--trainer.max_epochs",
        "digitlab predict --run x --save_": "--save_prepared",
        "digitlab fit --framework ke": "keras",
        "digitlab reproduce my.yaml --see": "--seeds",
        "digitlab report --o": "--out",
        "digitlab configs B3 --c": "--copy",
        "digitlab convert latest a.onnx --raw": "--raw_pixels",
    }.items():
        done = subprocess.run(
            ["bash", "-c", complete, "bash", words], capture_output=True, text=True, check=True
        )
        assert expected in done.stdout.split(), (words, done)


def test_debug_shows_the_traceback_of_bad_input_before_the_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["test", "--run", "no/such/run", "--debug"]) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("Traceback (most recent call last):")
    assert "digitlab: error: there is no folder no/such/run" in shown.splitlines()[-1]


class Seen(NamedTuple):
    """What a process printed that trained two runs, the second until Ctrl-C."""

    root: Path
    output: list[str]
    errors: list[str]
    exit_code: int


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory, tiny_for_module: None) -> Seen:
    root = tmp_path_factory.mktemp("process")
    place = ["--trainer.default_root_dir", str(root)]
    command = ["fit", "--model", "LinearClassifier", *SHORT, *place]
    # A shell's background jobs, as which tests may run, are started with SIGINT ignored.
    program = f"""
import signal, sys, torch
from digitlab.cli import main
signal.signal(signal.SIGINT, signal.default_int_handler)
torch.set_num_threads(2)
assert main({command!r}) == 0
print("denormal numbers left:", (torch.full((1 << 20,), 1e-40) * 1.5).count_nonzero().item())
assert main(["report", {str(root / "tiny-linearclassifier" / "version_0")!r}]) == 0
print(*sys.modules)
print("end of the first", file=sys.stderr)
sys.exit(main([*{command!r}, "--trainer.max_epochs", "100000"]))
"""
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        env={**os.environ, "OMP_NUM_THREADS": "2"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout
        output = []
        for line in process.stdout:
            output.append(line.rstrip("\n"))
            if line.startswith("epoch   2"):
                break
        process.send_signal(signal.SIGINT)
        try:
            _, errors = process.communicate(timeout=60)
        finally:
            process.kill()
    return Seen(root, output, errors.splitlines(), process.returncode)


@one_process
def test_ctrl_c_names_the_checkpoint_and_exits_with_130(seen: Seen) -> None:
    folder = seen.root / "tiny-linearclassifier" / "version_1"
    assert seen.exit_code == 130
    last = folder / "checkpoints" / "last.ckpt"
    _, first, second, third = seen.errors
    assert (first, second) == ("", "stopping after this step; Ctrl-C stops at once")
    said = rf"digitlab: interrupted by Ctrl-C: saved {last} at step (\d+); (.+)"
    match = re.fullmatch(said, third)
    assert match
    assert match[2] == f"resume with: digitlab fit --run {folder}"
    assert torch.load(last, weights_only=True)["global_step"] == int(match[1]) >= 14


@one_process
def test_nothing_but_the_run_itself_is_printed(seen: Seen) -> None:
    assert seen.errors[0] == "end of the first"
    shown = "\n".join(line for line in seen.output if " digitlab.cli " not in line)
    assert [word for word in ("lightning", "Tip", "GPU available") if word in shown] == []


@one_process
def test_a_fit_and_a_report_leave_tensorflow_and_keras_out(seen: Seen) -> None:
    (modules,) = ({*line.split()} for line in seen.output if " digitlab.cli " in line)
    assert "tensorboard" in modules, "the logger was not used"
    assert "digitlab.report.page" in modules
    assert not {"tensorflow", "keras", "digitlab.parity"} & modules


@one_process
def test_denormal_numbers_are_zeros_in_every_thread_of_a_run(seen: Seen) -> None:
    assert "denormal numbers left: 0" in seen.output
    assert (torch.full((1 << 20,), 1e-40) * 1.5).count_nonzero().item() == 1 << 20  # not here


def test_ctrl_c_before_the_run_starts_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("digitlab.cli.import_module", interrupt)
    assert main(["fit"]) == 130
    assert capsys.readouterr().err == "digitlab: interrupted by Ctrl-C\n"


def test_one_file_alone_imports_tensorflow_and_keras() -> None:
    statement = re.compile(r"^ *(import|from) (keras|tensorflow)\b", re.MULTILINE)
    files = [
        path for path in Path("src").rglob("*.py") if statement.search(path.read_text("utf-8"))
    ]
    assert files == [Path("src/digitlab/parity/backend.py")]
