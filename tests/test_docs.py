"""The guides' programs run as they are printed."""

import re
import shlex
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

DOCS = Path(__file__).parent.parent / "docs"
BLOCK = re.compile(r'^```(python|bash)(?: title="([^"]+)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)


def test_the_research_guide_runs_from_top_to_bottom(tmp_path: Path) -> None:
    run(program(DOCS / "research.md", tmp_path), tmp_path)
    assert list(tmp_path.glob("runs/*/version_0/metrics.json"))


@pytest.mark.skipif(not find_spec("tensorflow"), reason="needs the extra `parity`")
def test_the_parity_guide_s_python_runs_from_top_to_bottom(tmp_path: Path) -> None:
    shown = run(program(DOCS / "parity.md", tmp_path, languages=("python",)), tmp_path)
    assert "the first Keras layer whose output differs: pool" in shown


def run(code: str, folder: Path) -> str:
    # One process, as imports take most of the time; of its own, as it is the reader's program.
    (folder / "guide.py").write_text(code, "utf-8")
    done = subprocess.run(
        [sys.executable, "guide.py"], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def program(page: Path, folder: Path, languages: tuple[str, ...] = ("python", "bash")) -> str:
    """Join a page's blocks; those with a title become files, and commands become calls."""
    parts = ["from digitlab.cli import main"]
    for language, title, code in BLOCK.findall(page.read_text("utf-8")):
        if language not in languages:
            continue
        if title:
            (folder / title).write_text(code, "utf-8")
        elif language == "python":
            parts.append(code)
        else:
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
