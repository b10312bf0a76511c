"""The documentation's page for each experiment, and the command that fills the pages."""

import re
import shlex
from collections import Counter
from pathlib import Path

import pytest

from digitlab.reproduce import results
from digitlab.reproduce.command import PAGE_TABLE
from digitlab.reproduce.rows import CONFIGS, by_experiment, read_rows
from tests.reproduce.test_record import PAGES

EXPERIMENTS = by_experiment(read_rows())
FOLDER = Path("docs", "experiments")
CURVES = Path("docs", "results", "curves")
SNIPPET = re.compile(r'^--8<-- "(.+)"$', re.M)
HEADINGS = ["The command", "Published", "Measured", "Config", "What differs from the document"]


def text_of(experiment: str) -> str:
    return (FOLDER / f"{experiment.lower()}.md").read_text("utf-8")


def with_curves() -> set[str]:
    rows = read_rows()
    measured = results.read(CURVES.with_name("results.csv"))
    return {rows[result.row].experiment for result in measured if result.val_curve}


def test_every_experiment_has_a_page_and_every_page_a_place_in_the_site() -> None:
    pages = {path.stem for path in FOLDER.glob("*.md")} - {"index"}
    assert pages == {name.lower() for name in EXPERIMENTS}
    site = Path("mkdocs.yml").read_text("utf-8")
    index = (FOLDER / "index.md").read_text("utf-8")
    for page in pages:
        assert site.count(f"experiments/{page}.md\n") == 1
        assert f"]({page}.md)" in index


def test_every_config_is_shown_on_one_page() -> None:
    shown = Counter(path for name in EXPERIMENTS for path in SNIPPET.findall(text_of(name)))
    assert shown == {path.as_posix(): 1 for path in CONFIGS.glob("*/*.yaml")}


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_a_page_shows_its_experiment_in_the_order_of_all_pages(name: str) -> None:
    text, rows = text_of(name), EXPERIMENTS[name].values()
    assert re.findall("^## (.+)$", text, re.M) == HEADINGS
    assert {*SNIPPET.findall(text)} == {row.config.as_posix() for row in rows}
    assert PAGE_TABLE.findall(text) == [f"row-{name}"]
    published = " ".join(text.partition("## Published")[2].partition("##")[0].split())
    for row in rows:
        assert row.published.lower() in published.lower()


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_a_page_gives_the_commands_that_train_it_and_that_fill_it(name: str) -> None:
    text, rows = text_of(name).replace(" \\\n ", ""), EXPERIMENTS[name].values()
    fit = {*re.findall(r"^digitlab fit --config (\S+)", text, re.M)}
    keras = {*re.findall(r"^digitlab keras fit --config (\S+)", text, re.M)}
    assert fit >= {row.config.as_posix() for row in rows}
    assert bool(keras) == any("keras" in row.frameworks for row in rows)
    assert keras <= fit - {row.config.as_posix() for row in rows if "keras" not in row.frameworks}
    page = (FOLDER / f"{name.lower()}.md").as_posix()
    assert f"`digitlab reproduce --report --out docs/results --pages {page}`" in text


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_a_page_shows_the_curves_that_were_kept(name: str) -> None:
    figures = re.findall(r"!\[[^]]+\]\((.+)\)", text_of(name))
    assert figures == ([f"../results/curves/{name}.png"] if name in with_curves() else [])


def test_the_curves_of_every_experiment_are_drawn_and_light() -> None:
    sizes = {path.stem: path.stat().st_size for path in CURVES.glob("*.png")}
    assert sizes.keys() == with_curves()
    assert max(sizes.values()) < 40_000


@pytest.mark.parametrize("page", [Path("docs", "reproduction.md"), Path("CONTRIBUTING.md")])
def test_the_command_that_fills_the_pages_names_all_of_them(page: Path) -> None:
    text = page.read_text("utf-8").replace("\\\n", "")
    (globs,) = re.findall(r"--report\s+--out docs/results\s+--pages ([^`]+?)\s*`", text)
    named = {path for glob in shlex.split(globs) for path in Path().glob(glob)}
    assert named == {path for path in PAGES if PAGE_TABLE.search(path.read_text("utf-8"))}
