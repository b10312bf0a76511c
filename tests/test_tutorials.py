"""The tutorials run, and store the outputs that they have."""

import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

# Groups start first, so that these long tests are not the last.
pytestmark = [pytest.mark.docs, pytest.mark.xdist_group("tutorials")]

TUTORIALS = sorted((Path(__file__).parents[1] / "docs" / "tutorials").glob("*.ipynb"))


def outputs(notebook: Any) -> list[list[tuple[str, ...]]]:
    """Each code cell's outputs: their kinds, and their text without numbers and spaces."""
    return [
        [
            (
                output.output_type,
                *sorted(output.get("data", [output.get("name")])),
                *re.sub(r"[-+\d.,e\s]+", " ", text_of(output)).split(),
            )
            for output in cell.outputs
        ]
        for cell in notebook.cells
        if cell.cell_type == "code"
    ]


def text_of(output: Any) -> str:
    text: str = output.get("text") or output.get("data", {}).get("text/plain", "")
    return text


@pytest.mark.parametrize("path", TUTORIALS, ids=lambda it: it.stem)
def test_a_tutorial_runs_and_has_the_outputs_that_it_stores(path: Path, tmp_path: Path) -> None:
    stored = nbformat.read(path, as_version=4)
    if "parity" in path.read_text("utf-8") and not find_spec("tensorflow"):
        pytest.skip("needs the extra `parity`")
    place = {"metadata": {"path": str(tmp_path)}}
    notebook = nbformat.read(path, as_version=4)
    if path.stem == "first_lesson":  # with fewer epochs and seeds, which change numbers alone
        (tmp_path / "short.yaml").write_text("trainer: {max_epochs: 2}")
        for cell in notebook.cells:
            source = cell.source.replace(
                'fit("digits/lenet5"', 'fit(["digits/lenet5", "short.yaml"]'
            )
            cell.source = source.replace("range(5)", "range(2)")
    ran = NotebookClient(notebook, timeout=1200, resources=place).execute()
    assert outputs(ran) == outputs(stored)
    assert any(outputs(stored))


@pytest.mark.parametrize("path", TUTORIALS, ids=lambda it: it.stem)
def test_a_tutorial_stores_no_warnings_and_no_paths_of_a_machine(path: Path) -> None:
    for cell in nbformat.read(path, as_version=4).cells:
        for output in cell.get("outputs", []):
            assert output.get("name") != "stderr"
            text = f"{text_of(output)} {output.get('data', {}).get('text/html', '')}"
            assert re.findall(r"[^\s<\"'(]*(?:(?<![<\w])/|\w:\\)\w+[/\\]\S+", text) == []
