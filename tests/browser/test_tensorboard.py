"""The real TensorBoard on a finished run."""

import json
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest

from tests.browser.chromium import Browser
from tests.browser.servers import tensorboard
from tests.commands import config_of

SCALARS = {f"{phase}/{name}" for phase in ("train", "val") for name in ("accuracy", "loss")}
# Of the groups of tags, only the first are unfolded; what a filter finds is shown at once.
FILTER = "tagFilter=(train|val|weights)%2F"
CURVE = """element.shadowRoot
  .querySelector("tf-line-chart-data-loader").shadowRoot
  .querySelector("vz-line-chart2").shadowRoot
  .querySelector("path.line")?.getAttribute("d") ?? ''"""


@pytest.fixture(scope="module")
def address(run: Path) -> Iterator[str]:
    with tensorboard(run) as address:
        yield address


def test_scalars_shows_a_curve_of_each_figure(browser: Browser, address: str) -> None:
    browser.open(f"{address}#scalars&{FILTER}")
    curves = browser.wait_for(
        lambda: dict(browser.read("tf-scalar-card", f"[element.tag, {CURVE}]")),
        lambda curves: curves.keys() >= SCALARS and all(curves[tag] for tag in SCALARS),
    )
    browser.picture("tensorboard_scalars")
    for tag in SCALARS:
        assert "L" in curves[tag], f"{tag} is one point, which is no curve"


def test_hparams_shows_what_the_run_was_made_with_and_what_it_gave(
    browser: Browser, address: str, run: Path
) -> None:
    browser.open(f"{address}#hparams")
    expected = figures_of(run)
    browser.wait_for(lambda: browser.read("paper-checkbox"), {"model", "batch_size"}.issubset)
    for name in {"learning_rate", "model", "optimizer"}.difference(columns(browser)):
        browser.click("paper-checkbox", name)
    browser.wait_for(lambda: columns(browser), lambda shown: shown.items() >= expected.items())
    # No more columns than these fit into the picture.
    for name in columns(browser).keys() - expected.keys() - {"Trial ID"}:
        browser.click("paper-checkbox", name)
    browser.wait_for(lambda: columns(browser), lambda shown: len(shown) == 1 + len(expected))
    browser.picture("tensorboard_hparams", height=420)


def figures_of(run: Path) -> dict[str, str]:
    """What the table must say, with numbers as TensorBoard writes them: five digits."""
    metrics = json.loads((run / "metrics.json").read_text("utf-8"))
    held_out = metrics.get("val") or metrics["test"]
    settings: Any = config_of(run)
    optimizer = settings["model"]["init_args"]["optimizer"]
    numbers = {
        "hparams/val_accuracy": held_out["accuracy"],
        "hparams/val_loss": held_out["loss"],
        "learning_rate": optimizer["init_args"]["lr"],
    }
    words = {"model": metrics["model"], "optimizer": optimizer["class_path"].rpartition(".")[2]}
    return {**words, **{name: f"{number:#.5g}" for name, number in numbers.items()}}


def columns(browser: Browser) -> dict[str, str]:
    """Of the table's columns with a header and a value, both; no attribute joins them."""
    place = "element.getBoundingClientRect()"
    read = f"[{place}.x, {place}.y, element.innerText.trim()]"
    cells = sorted(browser.read("vaadin-grid-cell-content", read))
    found = [[text for *_, text in column if text] for _, column in groupby(cells, lambda c: c[0])]
    return {column[0]: column[1] for column in found if len(column) == 2}
