from pathlib import Path

import pytest

from digitlab.cli.fit import FitCLI
from digitlab.reproduce.explain import make_grid
from digitlab.reproduce.factors import (
    batches_evaluated,
    config_of,
    find_factors,
    images_evaluated,
    parse_config,
    read_config,
    switch,
)
from digitlab.reproduce.rows import Row, read_rows

FIVE = {
    "dropout in evaluation": ("on", "off"),
    "normalization": ("symmetric", "unit"),
    "initialization": ("torch", "keras"),
    "optimizer.eps": ("1e-08", "1e-07"),
    "images evaluated": ("1,600", "10,000"),
}


def read_configs(folder: Path, *texts: str) -> list[FitCLI]:
    """Configs on the tiny data."""
    clis = []
    for i, text in enumerate(texts):
        (folder / f"{i}.yaml").write_text(f"data: tests.tiny.TinyDataModule\n{text}")
        clis.append(read_config(str(folder / f"{i}.yaml")))
        clis[-1].datamodule.setup()
    return clis


@pytest.mark.parametrize(("first", "second"), [("B1", "B2"), ("B5", "B8")])
def test_document_b_s_two_programs_for_nn128_differ_in_five_ways(
    first: str, second: str, real_data: Path, tmp_path: Path
) -> None:
    rows = read_rows()
    grid = make_grid(rows[f"{first}_as_published"], rows[second], tmp_path)
    found = {factor.name: (factor.first, factor.second) for factor in grid.factors}
    assert list(found.items()) == list(FIVE.items())
    trained = [factor.name for factor in grid.factors if factor.needs_training]
    assert trained == ["normalization", "initialization", "optimizer.eps"]
    assert len(grid.cells) == 8


MLP = "model:\n  class_path: MLP\n"
SGD = (
    f"{MLP}  init_args:\n    optimizer:\n      class_path: SGD\n"
    "      init_args:\n        lr: 0.001\n        momentum: 0.9\n"
)
LINEAR = "model: LinearClassifier\n"
OTHER_PLACE = f"{LINEAR}name: other\nthreads: 2\ntrainer:\n  log_every_n_steps: 7\n"
OTHER_PLACE += "seed_everything: 4\n"


@pytest.mark.parametrize(
    ("first", "second", "found"),
    [
        # Another optimizer is one factor with all its arguments.
        (MLP, SGD, {"optimizer": ("Adam", "SGD(momentum=0.9)")}),
        # Another model is one factor beside the arguments of all models.
        (
            LINEAR,
            "model:\n  class_path: LeNet5\n  init_args:\n    initialization: keras\n",
            {"model": ("LinearClassifier", "LeNet5"), "initialization": ("torch", "keras")},
        ),
        # Names, places and seeds are no difference.
        (LINEAR, OTHER_PLACE, {}),
    ],
    ids=["optimizer", "model", "names"],
)
def test_differences_of_classes_are_one_factor_each(
    first: str, second: str, found: dict[str, tuple[str, str]], tmp_path: Path
) -> None:
    factors = find_factors(*read_configs(tmp_path, first, second))
    shown = {
        factor.name: (factor.first.partition("(fused")[0], factor.second) for factor in factors
    }
    assert shown == found


def test_the_number_of_images_evaluated_is_one_factor_of_two_settings(tmp_path: Path) -> None:
    clis = read_configs(tmp_path, LINEAR, f"{LINEAR}trainer:\n  limit_val_batches: 2\n")
    for cli in clis:
        cli.datamodule.eval_batch_size = 16
    assert [images_evaluated(cli) for cli in clis] == [50, 32]
    assert [batches_evaluated(cli) for cli in clis] == [4, 2]
    (factor,) = find_factors(*clis)
    assert (factor.name, factor.first, factor.second) == ("images evaluated", "50", "32")


def test_switched_settings_are_read_by_the_parser_as_they_were_written(
    tmp_path: Path, real_data: Path
) -> None:
    rows = read_rows()
    configs = [read_config(str(rows[name].config)) for name in ("B1_as_published", "B2")]
    for cli in configs:
        cli.datamodule.setup()
    ours, theirs = map(config_of, configs)
    factors = find_factors(*configs)
    some = switch(ours, factors[:2], theirs)
    assert config_of(parse_config(some)) == some
    everything = switch(ours, factors, theirs)
    second = config_of(parse_config(theirs))
    assert everything["model"] == second["model"]
    assert everything["data"] == second["data"]
    assert everything["trainer"]["limit_val_batches"] == second["trainer"]["limit_val_batches"]
    assert ours == config_of(configs[0])  # nothing was switched in place


@pytest.mark.parametrize(
    ("second", "said"),
    [("B8", "name configs of one data set"), ("B11", "a setting that cannot be switched")],
)
def test_differences_that_no_setting_explains_are_refused(
    second: str, said: str, tmp_path: Path
) -> None:
    rows = read_rows()
    with pytest.raises(ValueError, match=said):
        make_grid(rows["B1"], rows[second], tmp_path)


def test_configs_that_differ_in_nothing_are_refused(tmp_path: Path) -> None:
    read_configs(tmp_path, LINEAR, LINEAR)
    first, second = (Row(name, tmp_path / f"{name}.yaml") for name in "01")
    with pytest.raises(ValueError, match="differ in nothing that accuracy depends on"):
        make_grid(first, second, tmp_path / "out")
