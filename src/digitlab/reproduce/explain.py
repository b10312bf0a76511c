"""`digitlab reproduce --explain B1:B2`: how much each setting adds to two configs' difference.

All combinations of the settings that differ are measured, over seeds: a full factorial experiment.
"""

import json
import re
from collections.abc import Sequence
from itertools import islice, product
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml

from digitlab import files, run_folder
from digitlab.checkpoints import load_weights
from digitlab.cli.fit import FitCLI
from digitlab.errors import InputError, reading_input
from digitlab.reproduce import factors
from digitlab.reproduce.effects import (
    UnfinishedError,
    draw_effects,
    effects_table,
    interactions_table,
    read_grid,
    read_measured,
)
from digitlab.reproduce.executors import train_items
from digitlab.reproduce.factors import DROPOUT, IMAGES, Factor
from digitlab.reproduce.results import append
from digitlab.reproduce.rows import Row, find_row
from digitlab.reproduce.worker import Item, Outcome
from digitlab.scores import Score
from digitlab.terminal import printable

MOST_TRAINED = 6
"""Factors of the training at most: each more doubles the number of runs."""


class Cell(NamedTuple):
    """A way to train: a combination of the factors that change the training."""

    levels: dict[str, int]  # for each of these factors, 1 if it has the second config's value
    row: Row  # to be trained
    text: str  # the row's config
    cli: FitCLI  # the config, parsed


class Grid(NamedTuple):
    """A full factorial experiment on the differences between two configs."""

    names: tuple[str, str]
    configs: tuple[FitCLI, FitCLI]
    factors: list[Factor]
    cells: dict[str, Cell]  # by the stem of their config's file
    out: Path  # the folder of all files

    @property
    def of_evaluation(self) -> list[str]:
        """The factors of evaluation: a trained network is evaluated in all their combinations."""
        return [factor.name for factor in self.factors if not factor.needs_training]

    def is_done(self, item: Item) -> bool:
        """Return whether the accuracies of an item are in the grid."""
        levels = self.cells[item.row.config.stem].levels | {"seed": item.seed}
        grid = read_grid(self.out, self.factors)[[*levels]]
        return bool((grid == [*levels.values()]).all(axis=1).any())

    def record(self, item: Item, outcome: Outcome) -> str:
        """Evaluate an item's trained network in every way, and add the accuracies to the grid."""
        cell = self.cells[item.row.config.stem]
        assert outcome.folder
        lines: list[dict[str, Any]] = []
        for bits in product((0, 1), repeat=len(self.of_evaluation)):
            levels = cell.levels | dict(zip(self.of_evaluation, bits, strict=True))
            score = self.evaluate(cell.cli, outcome.folder, levels, item.seed)
            line: dict[str, Any] = {factor.name: levels[factor.name] for factor in self.factors}
            measured = {"accuracy": score["accuracy"], "n": score["n"]}
            lines.append({**line, "seed": item.seed, **measured})
        append(self.out / "grid.csv", lines, [*line, "seed"])
        said = f"{lines[-1]['accuracy']:.2%}"
        if len(lines) > 1:
            said += f" as {self.names[1]} evaluates, {lines[0]['accuracy']:.2%} as {self.names[0]}"
        return said

    def evaluate(self, cli: FitCLI, run: Path, levels: dict[str, int], seed: int) -> Score:
        """Measure a run's last weights on the test split, on the CPU in float32.

        `levels` has 1 for each factor if the evaluation has the second config's value; settings
        that are no factor are the same in both. The seed is that of dropout, where it stays on.
        """
        model, data = cli.model, cli.datamodule
        dropout, images = (self.configs[levels.get(name, 1)] for name in (DROPOUT, IMAGES))
        # The process has one model and data module for each cell, which are changed here.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            load_weights(model, run / run_folder.CHECKPOINTS["torch"]["last"])
            model.dropout_in_evaluation = dropout.model.dropout_in_evaluation
            data.eval_batch_size = images.datamodule.eval_batch_size
            batches = factors.batches_evaluated(images)
            return model.evaluate(islice(data.test_dataloader(), batches))

    def write(self) -> None:
        """Write the configs to train, and factors.json, which explains the grid's columns.

        Raises:
            InputError: The folder has runs of other settings.
        """
        columns = [{"name": f.name, "first": f.first, "second": f.second} for f in self.factors]
        about = {"first": self.names[0], "second": self.names[1], "factors": columns}
        texts = {cell.row.config: cell.text for cell in self.cells.values()}
        index = self.out / "factors.json"
        texts[index] = json.dumps(about, indent=2, ensure_ascii=False) + "\n"
        for path in (index, *self.out.glob("configs/*.yaml")):
            if path.exists() and path.read_bytes() != texts.get(path, "").encode():
                raise InputError(
                    f"{path} has other settings than {' and '.join(self.names)} now: "
                    f"move {self.out} away, or give another --out"
                )
        (self.out / "configs").mkdir(parents=True, exist_ok=True)
        for path, text in texts.items():
            files.write_text(path, text)


def make_grid(first: Row, second: Row, out: Path) -> Grid:
    """Find the differences between two configs, and make a config for each way to train.

    Settings of the evaluation alone have the second config's value while training, so the cell in
    which all is switched is a run of the second config, to the last bit. A run of the first config
    is another draw of the cell in which nothing is: where dropout stays on, its validations during
    training use up random numbers.

    Raises:
        ValueError, OSError: The configs cannot be read or compared.
    """
    configs = factors.read_config(str(first.config)), factors.read_config(str(second.config))
    found = factors.find_factors(*configs)
    trained = [factor for factor in found if factor.needs_training]
    of_evaluation = [factor for factor in found if not factor.needs_training]
    pair = f"{first.name} and {second.name}"
    if not found:
        raise InputError(f"{pair} differ in nothing that accuracy depends on: name others")
    if len(trained) > MOST_TRAINED:
        raise InputError(
            f"{pair} differ in {len(trained)} settings of training, "
            f"{', '.join(factor.name for factor in trained)}, which takes {2 ** len(trained)} runs "
            f"a seed: write a config between them that differs in at most {MOST_TRAINED} from each"
        )
    for cli in configs:
        cli.datamodule.setup()
    ours, theirs = map(factors.config_of, configs)
    cells = {}
    for bits in product((0, 1), repeat=len(trained)):
        switched = [factor for factor, bit in zip(trained, bits, strict=True) if bit]
        path = out / "configs" / f"{''.join(map(str, bits)) or '0'}.yaml"
        row = Row(" + ".join([first.name, *(factor.name for factor in switched)]), path)
        levels = {factor.name: bit for factor, bit in zip(trained, bits, strict=True)}
        config = factors.switch(ours, of_evaluation + switched, theirs)
        try:
            cli = factors.parse_config(config)
        except ValueError as error:
            raise InputError(f"the settings of {row.name} do not fit together: {error}") from error
        cells[path.stem] = Cell(levels, row, yaml.safe_dump(config, sort_keys=False), cli)
    return Grid((first.name, second.name), configs, found, cells, out)


def explain_difference(
    pair: str,
    rows: dict[str, Row],
    out: Path,
    seeds: Sequence[int],
    workers: int,
    threads: int,
    scheduler: str | None = None,
) -> int:
    """Measure the effects of all settings in which two configs differ; return the exit code.

    Args:
        pair: Two configs with a colon between them: names of rows, or paths of YAML files. A row
            that exists as published, too, means that one.
        rows: The rows by their names.
        out: A folder for the pair is made in this one.
        seeds: Seeds of the runs, the same for all ways to train.
        workers: Number of runs at a time.
        threads: Number of CPU threads of each.
        scheduler: The address of a Dask scheduler, whose workers train the runs.

    Raises:
        InputError: The input is bad.
    """
    with reading_input():
        names = pair.split(":")
        if len(names) != 2 or not all(names):
            raise InputError(
                f"explain is {pair}: name two configs with a colon between, such as B1:B2"
            )
        first, second = (_as_published(name, rows) for name in names)
        if first == second:
            raise InputError(f"explain is {pair}: both are {first.config}, so name two configs")
        stems = [re.sub(r"\W+", "_", name.removesuffix(".yaml")).strip("_") for name in names]
        grid = make_grid(first, second, out / f"explain-{'-'.join(stems)}")
        grid.write()
    torch.set_num_threads(threads)  # of the evaluations, which are in this process
    print(printable(f"{grid.names[0]} and {grid.names[1]} differ in:"))
    for factor in grid.factors:
        print(printable(f"  {factor.name}: {factor.first} → {factor.second}"))
    items = [Item(cell.row, "torch", seed) for seed in seeds for cell in grid.cells.values()]
    print(
        f"{len(grid.cells)} ways to train × {len(seeds)} seeds = {len(items)} runs, each evaluated "
        f"in {2 ** len(grid.of_evaluation)} ways"
    )
    failed = train_items(
        *(items, grid.out, grid.is_done, grid.record),
        workers=workers,
        threads=threads,
        scheduler=scheduler,
        fetch=bool(scheduler),  # the weights are evaluated here
    )
    try:
        _write_report(grid.out)
    except UnfinishedError as error:  # a run failed, or another process still trains it
        print(printable(error))
    return 1 if failed else 0


def explanation_tables(folder: Path) -> dict[str, str]:
    """Read a grid, and make its Markdown tables by their names.

    Raises:
        InputError: As `read_measured` says.
    """
    measured = read_measured(folder)
    tables = {f"{folder.name}-effects": effects_table(measured)}
    if len(measured.factors) > 1:
        tables[f"{folder.name}-interactions"] = interactions_table(measured)
    return tables


def _write_report(folder: Path) -> None:
    measured = read_measured(folder)
    files.write_figure(folder / "effects.png", draw_effects(measured))
    text = "\n\n".join(explanation_tables(folder).values())
    written = f"Written to {folder / 'tables.md'} and {folder / 'effects.png'}"
    print(printable(f"\n{text}\n", keep="\n"), printable(written), sep="\n")
    title = f"# From {measured.first} to {measured.second}"
    files.write_text(folder / "tables.md", f"{title}\n\n{text}\n\n![Effects](effects.png)\n")


def _as_published(name: str, rows: dict[str, Row]) -> Row:
    row = find_row(name)
    is_row = name.lower() == row.name.lower()
    return rows.get(f"{row.name}_as_published", row) if is_row else row
