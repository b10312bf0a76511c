import re
import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

import digitlab
from digitlab.cli import COMMANDS, main
from tests.commands import SHORT, refusal


def run_python(program: str, *args: str) -> str:
    command = [sys.executable, "-c", program, *args]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("args", [[], ["-h"], ["--help"]])
def test_help_names_every_command(args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(args) == 0
    shown = capsys.readouterr().out
    assert all(f"\n  {command} " in shown for command in COMMANDS)


def test_version_is_the_package_s(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"digitlab {digitlab.__version__}\n"


def test_an_unknown_command_is_refused_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    message = refusal(capsys, "tset")
    assert message == "there is no command 'tset': did you mean 'test'?"


def test_a_command_like_no_other_is_refused_with_all(capsys: pytest.CaptureFixture[str]) -> None:
    assert refusal(capsys, "xyzzy").endswith(
        "choose from fit, validate, test, predict, convert, parity, reproduce, report"
    )


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("keras", "keras fit is now: digitlab fit --framework keras"),
        ("keras fit --config x", "keras fit is now: digitlab fit --framework keras"),
        ("keras test --run x", "keras test is now: digitlab test --run RUN_DIR"),
    ],
)
def test_the_old_keras_commands_are_answered_with_the_new_ones(
    old: str, new: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert refusal(capsys, *old.split()) == f"digitlab {new}"


@pytest.mark.parametrize("arg", ["--help", "--version", "tset"])
def test_help_and_refusals_need_no_torch(arg: str) -> None:
    program = "import sys; from digitlab.cli import main; main(sys.argv[1:]); print(*sys.modules)"
    modules = run_python(program, arg).splitlines()[-1].split()
    assert "digitlab.cli" in modules
    assert not {"torch", "lightning", "numpy"} & set(modules)


def test_debug_shows_the_traceback_of_bad_input_before_the_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["test", "--run", "no/such/run", "--debug"]) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("Traceback (most recent call last):")
    assert "digitlab: error: no/such/run has no config.yaml" in shown.splitlines()[-1]


def test_ctrl_c_names_the_checkpoint_and_exits_with_130(tmp_path: Path) -> None:
    # A shell's background jobs, as which tests may run, are started with SIGINT ignored.
    program = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from digitlab.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    place = ["--trainer.default_root_dir", str(tmp_path), "--trainer.max_epochs", "100000"]
    command = [sys.executable, "-c", program, "fit", "--model", "LinearClassifier"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([*command, *SHORT[:-2], *place], **pipes) as process:  # type: ignore[call-overload]
        for line in process.stdout:
            if line.startswith("epoch   2"):
                break
        process.send_signal(signal.SIGINT)
        try:
            _, error = process.communicate(timeout=60)
        finally:
            process.kill()
    folder = tmp_path / "tiny-linearclassifier" / "version_0"
    assert process.returncode == 130
    last = folder / "checkpoints" / "last.ckpt"
    first, second, third = error.splitlines()
    assert (first, second) == ("", "stopping after this step; Ctrl-C stops at once")
    said = rf"digitlab: interrupted by Ctrl-C: saved {last} at step (\d+); (.+)"
    match = re.fullmatch(said, third)
    assert match
    assert match[2] == f"resume with: digitlab fit --run {folder}"
    assert torch.load(last, weights_only=True)["global_step"] == int(match[1]) >= 14


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


def test_without_the_extra_a_keras_run_is_refused_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing(*_: object) -> None:
        raise ImportError("keras cannot be imported: install the extra")

    monkeypatch.setattr("digitlab.cli.fit._as_keras", missing)
    place = ["--trainer.default_root_dir", str(tmp_path / "runs"), "--framework", "keras"]
    message = refusal(capsys, "fit", "--model", "LinearClassifier", *SHORT, *place)
    assert message == "keras cannot be imported: install the extra"
    assert not (tmp_path / "runs").exists()


@pytest.mark.skipif(not find_spec("keras"), reason="proves nothing where Keras is missing")
def test_a_whole_fit_leaves_tensorflow_and_keras_out(tmp_path: Path) -> None:
    program = "import sys; from digitlab.cli import main; main(sys.argv[1:]); print(*sys.modules)"
    place = ["--trainer.default_root_dir", str(tmp_path)]
    shown = run_python(program, "fit", "--model", "LinearClassifier", *SHORT, *place)
    modules = shown.splitlines()[-1].split()
    assert "tensorboard" in modules, "the logger was not used"
    assert not {"tensorflow", "keras"} & set(modules)


def test_nothing_but_the_run_itself_is_printed(tmp_path: Path) -> None:
    place = ["--trainer.default_root_dir", str(tmp_path)]
    command = [sys.executable, "-m", "digitlab", "fit", "--model", "LinearClassifier"]
    shown = subprocess.run([*command, *SHORT, *place], capture_output=True, text=True, check=True)
    assert shown.stderr == ""
    assert [word for word in ("lightning", "Tip", "GPU available") if word in shown.stdout] == []
