"""`digitlab reproduce --explain B1:B2`: which setting makes how much of two configs' difference.

All combinations of what differs are measured, over seeds: a full factorial experiment.
"""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice, product
from pathlib import Path
from threading import Lock
from typing import Any

import torch
import yaml

from digitlab import files, run_folder
from digitlab.checkpoints import load_weights
from digitlab.cli.fit import FitCLI
from digitlab.reproduce.effects import (
    draw_effects,
    effects_table,
    interactions_table,
    read_measured,
)
from digitlab.reproduce.factors import (
    DROPOUT,
    IMAGES,
    Factor,
    Settings,
    batches_evaluated,
    find_factors,
    parse,
    resolve,
    settings_of,
    switch,
)
from digitlab.reproduce.queue import Item, Queue
from digitlab.reproduce.results import add_lines, read_lines
from digitlab.reproduce.rows import Row, choose
from digitlab.scores import Score

MOST_TRAINED = 6
"""Factors of the training at most: each more doubles the number of runs."""

_ONE_AT_A_TIME = Lock()  # dropout draws from the process's only generator


@dataclass(frozen=True)
class Cell:
    """One way to train: a combination of the factors that change the training.

    Args:
        switched: For each of them whether it has the second config's value, 0 or 1.
        row: What the queue trains.
        text: The row's config.
        cli: The config, parsed.
    """

    switched: dict[str, int]
    row: Row
    text: str
    cli: FitCLI


@dataclass(frozen=True)
class Grid:
    """A full factorial experiment on what differs between two configs.

    Args:
        names: The two configs' names.
        configs: The two, parsed.
        factors: What differs.
        cells: The ways to train, by the stem of their config's file.
        out: The folder of everything that is written.
    """

    names: tuple[str, str]
    configs: tuple[FitCLI, FitCLI]
    factors: list[Factor]
    cells: dict[str, Cell]
    out: Path

    @property
    def of_evaluation(self) -> list[Factor]:
        """The factors under all of whose combinations each trained network is evaluated."""
        return [factor for factor in self.factors if not factor.needs_training]

    def is_done(self, item: Item) -> bool:
        """Say whether the accuracies of an item are in the grid."""
        switched = self.cells[item.row.config.stem].switched | {"seed": item.seed}
        own = {name: str(value) for name, value in switched.items()}.items()
        return any(own <= line.items() for line in read_lines(self.out / "grid.csv"))

    def record(self, item: Item, run: Path) -> str:
        """Evaluate what an item trained in every way, and put that into the grid."""
        cell = self.cells[item.row.config.stem]
        lines: list[dict[str, Any]] = []
        for bits in product((0, 1), repeat=len(self.of_evaluation)):
            names = (factor.name for factor in self.of_evaluation)
            switched = cell.switched | dict(zip(names, bits, strict=True))
            score = self.evaluate(cell.cli, run, switched, item.seed)
            levels = {factor.name: switched[factor.name] for factor in self.factors}
            figures = {"accuracy": score["accuracy"], "n": score["n"]}
            lines.append({**levels, "seed": item.seed, **figures})
        key = (*(factor.name for factor in self.factors), "seed")
        add_lines(self.out / "grid.csv", lines, key)
        said = f"{lines[-1]['accuracy']:.2%}"
        if len(lines) > 1:
            said += f" as {self.names[1]} evaluates, {lines[0]['accuracy']:.2%} as {self.names[0]}"
        return said

    def evaluate(self, cli: FitCLI, run: Path, switched: dict[str, int], seed: int) -> Score:
        """Measure a run's last weights on the test split, on the CPU in float32.

        Args:
            cli: The run's config.
            run: The run folder.
            switched: Whether the evaluation has the second config's value, by factor. What is no
                factor is the same in both, and taken from the second.
            seed: Seed of the activations that are dropped where dropout is on.
        """
        model, data = cli.model, cli.datamodule
        dropout, images = (self.configs[switched.get(name, 1)] for name in (DROPOUT, IMAGES))
        # It also is the process's only data module and model of that cell, and changed here.
        with _ONE_AT_A_TIME, torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            load_weights(model, run / run_folder.CHECKPOINTS["torch"]["last"])
            model.dropout_in_evaluation = dropout.model.dropout_in_evaluation
            data.eval_batch_size = images.datamodule.eval_batch_size
            return model.evaluate(islice(data.test_dataloader(), batches_evaluated(images)))

    def write(self) -> None:
        """Write the configs to train, and factors.json, which says what the grid's columns mean."""
        (self.out / "configs").mkdir(parents=True, exist_ok=True)
        for path, text in self._files().items():
            files.write_text(path, text)

    def check_place(self) -> None:
        """Refuse a folder in which runs of other settings are.

        Raises:
            ValueError: There are some.
        """
        files = self._files()
        for path in (self.out / "factors.json", *self.out.glob("configs/*.yaml")):
            if path.exists() and path.read_text("utf-8") != files.get(path):
                raise ValueError(
                    f"{path} is of other settings than {' and '.join(self.names)} have now: "
                    f"move {self.out} away, or give another --out"
                )

    def _files(self) -> dict[Path, str]:
        factors = [{"name": f.name, "first": f.first, "second": f.second} for f in self.factors]
        about = {"first": self.names[0], "second": self.names[1], "factors": factors}
        text = json.dumps(about, indent=2, ensure_ascii=False) + "\n"
        configs = {cell.row.config: cell.text for cell in self.cells.values()}
        return {self.out / "factors.json": text, **configs}

    def announce(self, seeds: int) -> str:
        """Say what differs, and how many runs that makes."""
        lines = [f"{self.names[0]} and {self.names[1]} differ in:"]
        lines += [f"  {factor.name}: {factor.first} → {factor.second}" for factor in self.factors]
        return "\n".join(
            [
                *lines,
                f"{len(self.cells)} ways to train × {seeds} seeds = {len(self.cells) * seeds} "
                f"runs, each evaluated in {2 ** len(self.of_evaluation)} ways",
            ]
        )


def make_grid(first: Row, second: Row, out: Path) -> Grid:
    """Find what differs between two configs, and make a config of each way to train.

    What changes only the evaluation has the second config's value while training, so the cell in
    which all is switched is a run of the second config, to the last bit. A run of the first config
    is another draw of the cell in which nothing is: where dropout stays on, its validations during
    training use up random numbers.

    Raises:
        ValueError, OSError: The configs cannot be compared, or `out` has another comparison.
    """
    configs = resolve(str(first.config)), resolve(str(second.config))
    factors = find_factors(*configs)
    trained = [factor for factor in factors if factor.needs_training]
    _check_number(f"{first.name} and {second.name}", factors, trained)
    for config in configs:
        config.datamodule.setup()
    ours, theirs = map(settings_of, configs)
    base = switch(ours, [factor for factor in factors if not factor.needs_training], theirs)
    cells = {}
    for bits in product((0, 1), repeat=len(trained)):
        switched = [factor for factor, bit in zip(trained, bits, strict=True) if bit]
        path = out / "configs" / f"{''.join(map(str, bits)) or '0'}.yaml"
        row = Row(" + ".join([first.name, *(factor.name for factor in switched)]), path)
        levels = {factor.name: int(factor in switched) for factor in trained}
        cells[path.stem] = _make_cell(levels, row, switch(base, switched, theirs))
    grid = Grid((first.name, second.name), configs, factors, cells, out)
    grid.check_place()
    return grid


def _check_number(pair: str, factors: Sequence[Factor], trained: Sequence[Factor]) -> None:
    if not factors:
        raise ValueError(f"{pair} differ in nothing that accuracy depends on: name others")
    if len(trained) > MOST_TRAINED:
        raise ValueError(
            f"{pair} differ in {len(trained)} settings of training, "
            f"{', '.join(factor.name for factor in trained)}, which takes {2 ** len(trained)} runs "
            f"a seed: write a config between them that differs in at most {MOST_TRAINED} from each"
        )


def _make_cell(levels: dict[str, int], row: Row, settings: Settings) -> Cell:
    try:
        cli = parse(settings)
    except ValueError as error:
        raise ValueError(f"{row.name} does not go together: {error}") from error
    return Cell(levels, row, yaml.safe_dump(settings, sort_keys=False), cli)


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
    files.write_figure(folder / "effects.png", draw_effects(measured))
    text = "\n\n".join(tables.values())
    print(f"\n{text}\n\nWritten to {folder / 'tables.md'} and {folder / 'effects.png'}")
    title = f"# From {measured.first} to {measured.second}"
    files.write_text(folder / "tables.md", f"{title}\n\n{text}\n\n![Effects](effects.png)\n")


def _find_row(name: str, rows: dict[str, Row]) -> Row:
    if name.endswith((".yaml", ".yml")):
        return Row(name, Path(name))
    (row,) = choose([name], rows)
    return rows.get(f"{row.name}_as_published", row)
