"""`digitlab reproduce --explain B1:B2`: which setting makes how much of two configs' difference.

All combinations of what differs are measured, over seeds: a full factorial experiment.
"""

import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from digitlab import runs
from digitlab.reproduce.effects import read_measured
from digitlab.reproduce.effects_report import draw_effects, effects_table, interactions_table
from digitlab.reproduce.grid import Grid, make_grid
from digitlab.reproduce.queue import Item, Queue
from digitlab.reproduce.rows import Row, choose


def prepare_explain(
    pair: str, rows: dict[str, Row], out: Path, seeds: Sequence[int], workers: int, threads: int
) -> Callable[[], int]:
    """Check all input of an explanation, and return the work, which gives the exit code.

    Args:
        pair: Two configs with a colon between them: names of rows, or paths of YAML files. Of a
            row that also is there as published, that one is taken.
        rows: The rows by their names.
        out: What is written goes into a folder of the pair's in it.
        seeds: Seeds of the runs, the same for all ways to train.
        workers: Number of runs beside each other.
        threads: Number of CPU threads of each.

    Raises:
        ValueError, OSError: The input is bad.
    """
    given = pair.split(":")
    if len(given) != 2 or not all(given):
        raise ValueError(f"explain is {pair}: name two configs with a colon between, such as B1:B2")
    first, second = (_find_row(name, rows) for name in given)
    if first == second:
        raise ValueError(f"explain is {pair}: both are {first.config}, so name two configs")
    place = "-".join(re.sub(r"\W+", "_", name.removesuffix(".yaml")).strip("_") for name in given)
    grid = make_grid(first, second, out / f"explain-{place}")
    return partial(_work, grid, list(dict.fromkeys(seeds)), workers, threads)


def read_explain(folder: Path) -> dict[str, str]:
    """Read a grid, and give its Markdown tables by their names.

    Raises:
        ValueError: There is no grid, or none of its seeds is complete.
    """
    measured = read_measured(folder)
    tables = {f"{folder.name}-effects": effects_table(measured)}
    if len(measured.factors) > 1:
        tables[f"{folder.name}-interactions"] = interactions_table(measured)
    return tables


def _work(grid: Grid, seeds: Sequence[int], workers: int, threads: int) -> int:
    print(grid.announce(len(seeds)))
    grid.write()
    items = [Item(cell.row, "torch", seed) for seed in seeds for cell in grid.cells.values()]
    queue = Queue(grid.out, grid.is_done, grid.record, workers=workers, threads=threads)
    failed = queue.work(items)
    for item in failed:
        print(f"{item} failed: see {queue.log(item)}")
    try:
        _write_report(grid.out)
    except ValueError as error:  # where a run failed, or another process still trains it
        print(error)
    return 1 if failed else 0


def _write_report(folder: Path) -> None:
    tables = read_explain(folder)
    measured = read_measured(folder)
    runs.write_figure(folder / "effects.png", draw_effects(measured))
    text = "\n\n".join(tables.values())
    print(f"\n{text}\n\nWritten to {folder / 'tables.md'} and {folder / 'effects.png'}")
    title = f"# From {measured.first} to {measured.second}"
    runs.write_text(folder / "tables.md", f"{title}\n\n{text}\n\n![Effects](effects.png)\n")


def _find_row(name: str, rows: dict[str, Row]) -> Row:
    if name.endswith((".yaml", ".yml")):
        return Row(name, Path(name))
    (row,) = choose([name], rows)
    return rows.get(f"{row.name}_as_published", row)
