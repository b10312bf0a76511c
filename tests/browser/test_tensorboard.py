"""The real TensorBoard on a finished run."""

import json
from collections.abc import Callable, Iterator
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from tests.browser.conftest import read, wait_for
from tests.browser.servers import tensorboard
from tests.commands import config_of

if TYPE_CHECKING:
    from playwright.sync_api import Page

Picture = Callable[..., None]

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


def test_scalars_shows_a_curve_of_each_figure(page: "Page", address: str) -> None:
    # A run of a few epochs has no outlier, and nothing to smooth.
    page.goto(f"{address}#scalars&_smoothingWeight=0&{FILTER}")
    page.get_by_text("Ignore outliers in chart scaling").click()
    curves = wait_for(
        lambda: dict(read(page, "tf-scalar-card", f"[element.tag, {CURVE}]")),
        lambda curves: curves.keys() >= SCALARS and all(curves[tag] for tag in SCALARS),
    )
    for tag in SCALARS:
        assert "L" in curves[tag], f"{tag} is one point, which is no curve"


def test_accuracy_and_loss_are_what_scalars_shows_first(
    page: "Page", picture: Picture, address: str
) -> None:
    page.set_viewport_size({"width": 1280, "height": 900})
    page.goto(f"{address}#scalars&_smoothingWeight=0")
    place = "[element.tag, element.getBoundingClientRect().bottom]"
    shown = wait_for(
        lambda: dict(read(page, "tf-scalar-card", place)), lambda cards: "val/loss" in cards
    )
    assert [tag for tag, bottom in shown.items() if bottom < 900] == [
        f"{phase}/{name}" for phase in ("train", "val") for name in ("accuracy", "loss")
    ]
    picture("tensorboard_scalars", height=900)


def test_images_shows_pictures(page: "Page", picture: Picture, address: str) -> None:
    page.set_viewport_size({"width": 1460, "height": 1560})
    page.goto(f"{address}#images&{FILTER}")
    width = "element.shadowRoot.querySelector('img')?.naturalWidth"
    wait_for(
        lambda: dict(read(page, "tf-image-loader", f"[element.tag, {width}]")),
        lambda widths: all(widths.get(tag) for tag in IMAGES),
    )
    page.get_by_text("Show actual image size").click()
    picture("tensorboard_images", height=1560)


def test_hparams_shows_what_the_run_was_made_with_and_what_it_gave(
    page: "Page", picture: Picture, address: str, run: Path
) -> None:
    page.goto(f"{address}#hparams")
    expected = figures_of(run)
    boxes = page.locator("paper-checkbox")
    wait_for(lambda: read(page, "paper-checkbox"), {"model", "batch_size"}.issubset)
    for name in {"learning_rate", "model", "optimizer"}.difference(columns(page)):
        boxes.get_by_text(name, exact=True).click()
    wait_for(lambda: columns(page), lambda shown: shown.items() >= expected.items())
    # No more columns than these fit into the picture.
    for name in columns(page).keys() - expected.keys() - {"Trial ID"}:
        boxes.get_by_text(name, exact=True).click()
    wait_for(lambda: columns(page), lambda shown: len(shown) == 1 + len(expected))
    picture("tensorboard_hparams", height=420)


def test_graphs_shows_the_layers(page: "Page", picture: Picture, address: str, run: Path) -> None:
    checkpoint = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    layers = {key.split(".")[1] for key in checkpoint["state_dict"]}
    page.goto(f"{address}#graphs")
    label = "element.firstChild.textContent"  # what follows is the tooltip
    wait_for(lambda: {*read(page, "text.nodelabel", label)}, layers.issubset)
    page.get_by_text("Fit to screen").click()
    picture("tensorboard_graphs")


def test_projector_shows_a_point_for_each_image(
    page: "Page", picture: Picture, address: str, run: Path
) -> None:
    page.goto(f"{address}#projector")
    (tensors,) = run.glob("projector/*/tensors.tsv")
    features = tensors.read_text("utf-8").splitlines()
    size = [str(len(features)), str(len(features[0].split()))]
    inside = page.frame_locator("iframe").frame_locator("iframe")
    wait_for(lambda: read(inside, ".numDataPoints, .dim"), size.__eq__)
    picture("tensorboard_projector")


def test_text_shows_the_config(page: "Page", picture: Picture, address: str, run: Path) -> None:
    page.goto(f"{address}#text")
    config = (run / "config.yaml").read_text("utf-8")
    wait_for(lambda: read(page, "pre"), [config].__eq__)
    picture("tensorboard_text", height=760)


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


def columns(page: "Page") -> dict[str, str]:
    """Of the table's columns with a header and a value, both; no attribute joins them."""
    place = "element.getBoundingClientRect()"
    cell = f"[{place}.x, {place}.y, element.innerText.trim()]"
    cells = sorted(read(page, "vaadin-grid-cell-content", cell))
    found = [[text for *_, text in column if text] for _, column in groupby(cells, lambda c: c[0])]
    return {column[0]: column[1] for column in found if len(column) == 2}
