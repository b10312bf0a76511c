"""The real TensorBoard on a finished run."""

import json
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.browser.chromium import Browser
from tests.browser.servers import tensorboard
from tests.commands import config_of

SCALARS = {
    *(f"{phase}/{name}" for phase in ("train", "val") for name in ("accuracy", "loss")),
    *("while_training/learning_rate", "while_training/images_per_second"),
}
IMAGES = {"train/samples", "val/confusion_matrix", "val/mistakes", "weights/conv1"}
# Of the groups of tags, only the first are unfolded; what a filter finds is shown at once.
FILTER = "tagFilter=(train|val|weights|while_training)%2F"
CURVE = """element.shadowRoot
  .querySelector("tf-line-chart-data-loader").shadowRoot
  .querySelector("vz-line-chart2").shadowRoot
  .querySelector("path.line")?.getAttribute("d") ?? ''"""


@pytest.fixture(scope="module")
def address(run: Path) -> Iterator[str]:
    with tensorboard(run) as address:
        yield address


def test_scalars_shows_a_curve_of_each_figure(browser: Browser, address: str) -> None:
    # A run of a few epochs has no outlier, and nothing to smooth.
    browser.open(f"{address}#scalars&_smoothingWeight=0&{FILTER}")
    outliers = "Ignore outliers in chart scaling"
    browser.wait_for(lambda: browser.read("paper-checkbox"), lambda names: outliers in names)
    browser.click("paper-checkbox", outliers)
    curves = browser.wait_for(
        lambda: dict(browser.read("tf-scalar-card", f"[element.tag, {CURVE}]")),
        lambda curves: curves.keys() >= SCALARS and all(curves[tag] for tag in SCALARS),
    )
    for tag in SCALARS:
        assert "L" in curves[tag], f"{tag} is one point, which is no curve"


def test_accuracy_and_loss_are_what_scalars_shows_first(browser: Browser, address: str) -> None:
    browser.look(width=1280, height=900)
    browser.open(f"{address}#scalars&_smoothingWeight=0")
    place = "[element.tag, element.getBoundingClientRect().bottom]"
    shown = browser.wait_for(
        lambda: dict(browser.read("tf-scalar-card", place)), lambda cards: "val/loss" in cards
    )
    assert [tag for tag, bottom in shown.items() if bottom < 900] == [
        f"{phase}/{name}" for phase in ("train", "val") for name in ("accuracy", "loss")
    ]
    browser.picture("tensorboard_scalars", height=900, width=1280)


def test_images_shows_pictures(browser: Browser, address: str) -> None:
    browser.look(height=1560)
    browser.open(f"{address}#images&{FILTER}")
    width = "element.shadowRoot.querySelector('img')?.naturalWidth"
    browser.wait_for(
        lambda: dict(browser.read("tf-image-loader", f"[element.tag, {width}]")),
        lambda widths: all(widths.get(tag) for tag in IMAGES),
    )
    browser.click("paper-checkbox", "Show actual image size")
    browser.picture("tensorboard_images", height=1560)


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


def test_graphs_shows_the_layers(browser: Browser, address: str, run: Path) -> None:
    checkpoint = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    layers = {key.split(".")[1] for key in checkpoint["state_dict"]}
    browser.open(f"{address}#graphs")
    label = "element.firstChild.textContent"  # what follows is the tooltip
    browser.wait_for(lambda: set(browser.read("text.nodelabel", label)), layers.issubset)
    browser.click("paper-button", "Fit to screen")
    browser.picture("tensorboard_graphs")


def test_projector_shows_a_point_for_each_image(browser: Browser, address: str, run: Path) -> None:
    browser.open(f"{address}#projector")
    features = (run / "projector" / "features.tsv").read_text("utf-8").splitlines()
    size = [str(len(features)), str(len(features[0].split()))]
    with browser.inside("iframe"), browser.inside("iframe"):
        browser.wait_for(lambda: browser.read(".numDataPoints, .dim"), size.__eq__)
    browser.picture("tensorboard_projector")


def test_text_shows_the_config(browser: Browser, address: str, run: Path) -> None:
    browser.open(f"{address}#text")
    config = (run / "config.yaml").read_text("utf-8")
    browser.wait_for(lambda: browser.read("pre"), [config].__eq__)
    browser.picture("tensorboard_text", height=760)


def figures_of(run: Path) -> dict[str, str]:
    """What the table must say, with numbers as TensorBoard writes them: five digits."""
    metrics = json.loads((run / "metrics.json").read_text("utf-8"))
    held_out = metrics.get("val") or metrics["test"]
    settings: Any = config_of(run)
    optimizer = settings["model"]["init_args"]["optimizer"]
    numbers = {
        "val/accuracy": held_out["accuracy"],
        "val/loss": held_out["loss"],
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
