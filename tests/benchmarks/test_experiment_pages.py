"""The documentation's section for each experiment."""

import re
from functools import cache
from pathlib import Path

import pytest
from benchmarks.pages import MARK
from benchmarks.reproduction import by_experiment

from digitlab.reproduce import results
from digitlab.reproduce.rows import read_rows

pytestmark = pytest.mark.docs

EXPERIMENTS = by_experiment(read_rows())
FOLDER = Path("docs", "experiments")
CURVES = Path("docs", "results", "curves")
SNIPPET = re.compile(r'^--8<-- "(.+)"$', re.M)
HEADING = re.compile(r"^## (\w+): ", re.M)


def section_of(experiment: str) -> str:
    in_document = next(iter(EXPERIMENTS[experiment].values())).in_documents
    letter = "b" if experiment.startswith("B") else "a"  # `linear` is of document A
    page = FOLDER / (f"document_{letter}.md" if in_document else "others.md")
    text = page.read_text("utf-8").partition(f"\n## {experiment}: ")[2]
    return text.partition("\n## ")[0]


@cache
def with_curves() -> set[str]:
    measured = results.read(CURVES.with_name("results.csv"))
    drawn = {result.row for result in measured if result.val_curve}
    return {name for name, rows in EXPERIMENTS.items() if drawn & rows.keys()}


def test_every_experiment_has_one_section() -> None:
    pages = [path.read_text("utf-8") for path in FOLDER.glob("*.md")]
    assert sorted(name for page in pages for name in HEADING.findall(page)) == sorted(EXPERIMENTS)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_a_section_has_its_configs_commands_table_curves_and_what_was_published(name: str) -> None:
    text, rows = section_of(name), EXPERIMENTS[name].values()
    configs = {row.config.as_posix() for row in rows}
    assert {*SNIPPET.findall(text)} == configs
    assert {*re.findall(r"^digitlab fit --config (\S+)", text, re.M)} >= configs
    assert MARK.findall(text) == [f"row-{name}"]
    published = " ".join(text.partition("Published: ")[2].partition("<!--")[0].split())
    for row in rows:
        assert (row.published or "nothing").lower() in published.lower()
    figures = re.findall(r"!\[[^]]+\]\((.+)\)", text)
    assert figures == ([f"../results/curves/{name}.png"] if name in with_curves() else [])


def test_the_curves_of_every_experiment_are_drawn_and_light() -> None:
    sizes = {path.stem: path.stat().st_size for path in CURVES.glob("*.png")}
    assert sizes.keys() == with_curves()
    assert max(sizes.values()) < 40_000


def test_the_frameworks_are_equivalent_on_every_row_of_the_documents_but_a3() -> None:
    # docs/reproduction.md says so.
    verdicts: dict[str, str] = {}
    for name in EXPERIMENTS:
        verdicts |= dict(
            re.findall(r"^(\w+), PyTorch − Keras: .*\*\*(.+)\*\*", section_of(name), re.M)
        )
    in_keras = {row.name for row in read_rows().values() if row.in_documents}
    assert verdicts.keys() == in_keras - {"B1_as_published", "B5_as_published"}
    assert verdicts.pop("A3") == "inconclusive"
    assert {*verdicts.values()} == {"equivalent"}
