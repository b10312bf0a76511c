import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks import gpu_check


def call(monkeypatch: pytest.MonkeyPatch, *options: str) -> int:
    monkeypatch.setattr("sys.argv", ["gpu_check", *options])
    return gpu_check.main()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_it_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch) == 2
    assert "torch finds no CUDA device" in capsys.readouterr().err


def passes(check: Any) -> dict[str, Any]:
    return {"text": "1 µs"}


def misses(check: Any) -> dict[str, Any]:
    return {"text": "97%", "passed": False}


def breaks(check: Any) -> dict[str, Any]:
    raise RuntimeError("CUDA error: an illegal memory access\nand more")


def hangs(check: Any) -> dict[str, Any]:
    time.sleep(600)
    raise AssertionError


@pytest.mark.parametrize(
    ("parts", "statuses", "exit_code"),
    [
        ([passes], ["passed"], 0),
        ([misses, passes], ["FAILED", "passed"], 1),
        ([breaks, passes], ["FAILED", "passed"], 1),
        ([hangs, passes], ["left out", "left out"], 3),
        ([breaks, hangs], ["FAILED", "left out"], 1),
    ],
)
def test_each_part_is_recorded_whatever_becomes_of_another(
    parts: list[Any],
    statuses: list[str],
    exit_code: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    named = {f"{i} {part.__name__}": (0.5, part) for i, part in enumerate(parts)}
    monkeypatch.setattr(gpu_check, "PARTS", named)
    monkeypatch.setattr(gpu_check, "STARTED", time.monotonic())
    out, seconds = tmp_path / "out.json", "3" if hangs in parts else "60"
    assert (
        call(monkeypatch, "--device", "cpu", "--seconds", seconds, "--out", str(out)) == exit_code
    )
    result = json.loads(out.read_text("utf-8"))
    assert [it["status"] for it in result["parts"].values()] == statuses
    assert [*result["parts"]] == [*named]
    assert result["preflight"]["versions"]["torch"] == torch.__version__.partition("+")[0]
    rows = capsys.readouterr().out.splitlines()[-len(parts) :]
    assert all(
        f"| {name} | {it} |" in row for name, it, row in zip(named, statuses, rows, strict=True)
    )


# Our code imports no package that is neither named in the docstring nor needed by one that is.
BLOCKED_IMPORTS = r"""
import builtins, re
from importlib.metadata import PackageNotFoundError, packages_distributions, requires

import benchmarks

path = benchmarks.__path__[0] + "/gpu_check.py"
words = open(path, encoding="utf-8").read().split('\"\"\"')[1]
waiting, found = set(re.findall(r"[\w-]+", words.lower())), set()
while waiting:
    name = waiting.pop()
    try:
        needed = requires(name) or []
    except (PackageNotFoundError, ValueError):
        continue
    found.add(re.sub("[-_.]+", "-", name))
    if name != "digitlab":
        names = {re.match(r"[\w.-]+", it)[0].lower() for it in needed if "extra" not in it}
        waiting |= {re.sub("[-_.]+", "-", it) for it in names} - found
owners, real = packages_distributions(), builtins.__import__

def checked(name, globals=None, locals=None, fromlist=(), level=0):
    of = owners.get(name.partition(".")[0], [])
    is_ours = (globals or {}).get("__name__", "").partition(".")[0] in ("digitlab", "benchmarks")
    if is_ours and of and not any(re.sub("[-_.]+", "-", it.lower()) in found for it in of):
        raise ModuleNotFoundError(f"{name} is not named")
    return real(name, globals, locals, fromlist, level)

builtins.__import__ = checked
for blocked in ("scipy", "sklearn", "keras", "joblib"):
    try:
        exec(f"import {blocked}", {"__name__": "digitlab"})
    except ModuleNotFoundError:
        continue
    raise AssertionError(blocked)
import benchmarks.callbacks, benchmarks.gpu_check, benchmarks.raw_steps
import digitlab.callbacks, digitlab.cli.evaluate, digitlab.cli.fit, digitlab.data, digitlab.models
"""


@pytest.mark.slow  # imports torch and Lightning in a process of its own
def test_the_core_imports_nothing_that_the_docstring_does_not_name() -> None:
    done = subprocess.run([sys.executable, "-c", BLOCKED_IMPORTS], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
