"""The guides' programs run as they are printed."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

GUIDE = Path(__file__).parent.parent / "docs" / "research.md"
BLOCK = re.compile(r'^```(python|bash)(?: title="([^"]+)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)


def test_the_research_guide_runs_from_top_to_bottom(tmp_path: Path) -> None:
    # One process, as imports take most of the time; of its own, as it is the reader's program.
    (tmp_path / "guide.py").write_text(program(GUIDE.read_text("utf-8"), tmp_path), "utf-8")
    done = subprocess.run(
        [sys.executable, "guide.py"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.glob("runs/*/version_0/metrics.json"))


def program(page: str, folder: Path) -> str:
    """Join a page's blocks; those with a title become files, and commands become calls."""
    parts = ["from digitlab.cli import main"]
    for language, title, code in BLOCK.findall(page):
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
