"""Whatever a config says: training could begin, or one line on stderr says what is wrong."""

import io
import math
import os
import re
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from inspect import signature
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning import Trainer

from digitlab.classifier import Classifier
from digitlab.cli import fit, main
from tests.faults.processes import THOROUGH
from tests.tiny import TinyDataModule

# The same examples in every run, so that a failure is of the change that is being tested.
many = settings(deadline=None, max_examples=3000 if THOROUGH else 200, derandomize=True)
pytestmark = pytest.mark.promise("configs")


def arguments(kind: type) -> list[str]:
    return [name for name in signature(kind).parameters if not name.startswith("_")]


KEYS = [
    *("seed_everything", "name", "config", "weights", "model", "data", "trainer", "unknown"),
    *("model.class_path", "model.init_args", "model.dict_kwargs", "data.class_path"),
    *("data.init_args", "data.unknown", "model.unknown"),
    *(f"model.init_args.{name}" for name in [*arguments(Classifier), "unknown"]),
    *(f"data.init_args.{name}" for name in arguments(TinyDataModule)),
    *(f"trainer.{name}" for name in [*arguments(Trainer), "unknown"]),
    *(f"model.init_args.optimizer.{name}" for name in ("class_path", "init_args.lr", "lr")),
    *(f"model.init_args.lr_scheduler.{name}" for name in ("class_path", "init_args")),
]
# No number between: that many units or processes would be made before they were too many.
NUMBERS = [-(10**30), -(2**63), -1, 0, 1, 2, 7, 10**15, 2**63, 10**30, 10**400]
FLOATS = [0.0, -0.0, 0.5, 1.5, -1.0, 1e-30, 1e300, math.inf, -math.inf, math.nan]
WORDS = ["", " ", "~", "x", "null", "1e400", "-0", "0x10", "1_0", "auto", "LeNet5", "MLP", "Adam"]
WORDS += ["SGD", "StepLR", "TinyDataModule", "torch.nn.ReLU", "os.path", "nowhere.Net", ".", "..x"]
WORDS += ["a.", "simple", "norm", "bf16-mixed", "16-mixed", "00:00:00:01", "ddp", "EarlyStopping"]
WORDS += ["ModelCheckpoint", "CSVLogger", "unit", "keras", "${x}", "{", "%s", "a\nb", "é", "\0"]
scalars = st.one_of(
    st.none() | st.booleans() | st.dates() | st.binary(max_size=3),
    st.sampled_from(NUMBERS) | st.sampled_from(FLOATS) | st.sampled_from(WORDS),
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["class_path", "init_args", "lr", "x", "", "dict_kwargs"])
            | st.sampled_from([1, None, 2.5]),
            inner,
            max_size=3,
        )
    ),
    max_leaves=5,
)
edits = st.lists(st.tuples(st.sampled_from(KEYS), values), min_size=1, max_size=3)


def edited(changes: list[tuple[str, Any]]) -> str:
    """A good config with other values at some keys."""
    config: dict[str, Any] = {
        "model": {"class_path": "LinearClassifier", "init_args": {}},
        "data": {"class_path": "tests.tiny.TinyDataModule", "init_args": {}},
        "trainer": {"max_epochs": 1, "accelerator": "cpu"},
    }
    for key, value in changes:
        *groups, last = key.split(".")
        group = config
        for name in groups:
            if not isinstance(group.get(name), dict):
                group[name] = {}
            group = group[name]
        group[last] = value
    text: str = yaml.safe_dump(config)
    return text


ALIASES = ["ab", "bc", "cd", "de", "ef", "fg", "gh", "hi"]  # nine times as many values at each
BROKEN = [
    *("&x {model: *x}", "model: &m {class_path: MLP, init_args: *m}", "a: &x [*x]", "[" * 3000),
    "a: &a [x, x]\n" + "\n".join(f"{b}: &{b} [{f'*{a}, ' * 9}]" for a, b in map(tuple, ALIASES)),
    *("", "~", "- 1", "x", "a: b: c", "[" * 100, "{a: " * 100, "a: &x 1\nb: *x"),
    *("trainer: &m {max_epochs: 1}\nmodel: *m", "a: *b", "!!python/object/apply:os.getcwd []"),
    *("model: !x MLP", "%YAML 9.9\n---\na: 1", "a: 1\n---\nb: 2", "\ta: 1", "? [1]\n: 2", "1: 2"),
    *("null: 1", "? {a: 1}\n: 2", "<<: 3", "<<: {trainer: {max_epochs: 0}}", "trainer: {<<: [1]}"),
    *("trainer: {max_epochs: 1, max_epochs: 2}", "model.class_path: MLP", "trainer.max_epochs: x"),
    *("a: 2001-99-99", "a: 1:99:99", "a: 0b2", "a: .nan"),
    *("seed_everything: .inf", "name: 2001-1-1"),
]
pieces = st.sampled_from(["model", "trainer", ": ", "\n", "  ", "- ", "[", "]", "{", "}", ","])
pieces |= st.sampled_from(
    ["*a", "&a", "!!int", "'", '"', "|", ">", "#", "%", "@", "?", "<<", "\t", "---"]
)
raw = st.one_of(
    st.lists(pieces, max_size=12).map(lambda words: "".join(words).encode()),
    st.binary(max_size=20),
    st.binary(max_size=4).map(lambda tail: edited([]).encode() + tail),
)


class NothingTrained(Exception):  # noqa: N818
    """The input was accepted."""


@pytest.fixture
def _only_prepared(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """All is checked that `fit` checks, and nothing is trained; no setting outlives the test."""

    def prepared(*_: object) -> None:
        raise NothingTrained

    for name in ("_fit", "_fit_in"):
        monkeypatch.setattr(fit, name, prepared)
    monkeypatch.chdir(tmp_path)
    environment = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(environment)
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.benchmark = False


def check(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as name, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what a user sees beside the answer is no failure
        config, runs = Path(name, "config.yaml"), Path(name, "runs")
        config.write_bytes(content)
        with redirect_stderr(io.StringIO()) as errors, redirect_stdout(io.StringIO()):
            place = ["--trainer.default_root_dir", str(runs)]
            try:
                code = main(["fit", "--config", str(config), *place])
            except NothingTrained:
                code = 0
        torch.set_flush_denormal(False)  # hypothesis counts on small numbers
        shown = errors.getvalue()
        if code == 0:
            assert not re.search("error|Traceback", shown)
        else:
            assert code == 2
            assert re.fullmatch(r"digitlab: error: [^\n]+\n", shown), shown
            assert not runs.exists() or not list(runs.rglob("*"))


@pytest.mark.slow
@pytest.mark.usefixtures("_only_prepared")
def test_a_broken_config_is_refused_in_one_line() -> None:
    for text in BROKEN:
        check(text.encode())


def check_edited(changes: list[tuple[str, Any]]) -> None:
    check(edited(changes).encode())


@pytest.mark.usefixtures("_only_prepared")
def test_the_config_that_is_edited_is_good() -> None:
    check_edited([])


CHECKS: dict[str, tuple[Any, Any]] = {"values": (edits, check_edited), "text": (raw, check)}


@pytest.mark.slow
@pytest.mark.usefixtures("_only_prepared")
@pytest.mark.parametrize("kind", CHECKS)
def test_a_config_is_taken_or_refused_in_one_line(kind: str) -> None:
    drawn, checked = CHECKS[kind]
    many(given(drawn)(checked))()
