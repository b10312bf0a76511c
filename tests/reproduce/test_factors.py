from pathlib import Path

import pytest

from digitlab.reproduce.explain import make_grid
from digitlab.reproduce.factors import (
    batches_evaluated,
    find_factors,
    images_evaluated,
    parse,
    resolve,
    settings_of,
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


def write(folder: Path, name: str, text: str) -> str:
    path = folder / f"{name}.yaml"
    path.write_text(f"data: tests.tiny.TinyDataModule\n{text}")
    return str(path)


def between(folder: Path, first: str, second: str) -> dict[str, tuple[str, str]]:
    """The factors between two configs on the tiny data."""
    clis = [resolve(write(folder, name, text)) for name, text in (("a", first), ("b", second))]
    for cli in clis:
        cli.datamodule.setup()
    return {factor.name: (factor.first, factor.second) for factor in find_factors(*clis)}


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


def test_a_convolution_s_padding_is_a_factor(real_data: Path, tmp_path: Path) -> None:
    rows = read_rows()
    grid = make_grid(rows["B7"], rows["B10"], tmp_path)
    found = {factor.name: (factor.first, factor.second) for factor in grid.factors}
    assert found["padding"] == ("2", "same")
    assert found.keys() == {"padding", "normalization", "initialization", "optimizer.eps"}


def test_another_optimizer_is_one_factor_with_all_its_arguments(tmp_path: Path) -> None:
    adam = "model:\n  class_path: MLP\n"
    sgd = (
        f"{adam}  init_args:\n    optimizer:\n      class_path: SGD\n"
        "      init_args:\n        lr: 0.001\n        momentum: 0.9\n"
    )
    ((name, (first, second)),) = between(tmp_path, adam, sgd).items()
    assert name == "optimizer"
    assert first.startswith("Adam")
    assert second == "SGD(momentum=0.9)"


def test_another_model_is_one_factor_beside_what_all_models_have(tmp_path: Path) -> None:
    keras = "model:\n  class_path: LeNet5\n  init_args:\n    initialization: keras\n"
    found = between(tmp_path, "model: LinearClassifier\n", keras)
    assert found == {
        "model": ("LinearClassifier", "LeNet5"),
        "initialization": ("torch", "keras"),
    }


def test_names_places_and_seeds_are_no_difference(tmp_path: Path) -> None:
    model = "model: LinearClassifier\n"
    other = f"{model}seed_everything: 4\nname: other\ntrainer:\n  log_every_n_steps: 7\n"
    assert between(tmp_path, model, other) == {}


def test_the_number_of_images_evaluated_is_one_factor_of_two_settings(tmp_path: Path) -> None:
    model = "model: LinearClassifier\n"
    few = f"{model}trainer:\n  limit_val_batches: 2\n"
    clis = [resolve(write(tmp_path, *pair)) for pair in (("all", model), ("few", few))]
    for cli in clis:
        cli.datamodule.setup()
        cli.datamodule.eval_batch_size = 16
    assert [images_evaluated(cli) for cli in clis] == [50, 32]
    assert [batches_evaluated(cli) for cli in clis] == [4, 2]


def test_switched_settings_are_read_by_the_parser_as_they_were_written(
    tmp_path: Path, real_data: Path
) -> None:
    rows = read_rows()
    configs = [resolve(str(rows[name].config)) for name in ("B1_as_published", "B2")]
    for cli in configs:
        cli.datamodule.setup()
    ours, theirs = map(settings_of, configs)
    factors = find_factors(*configs)
    assert settings_of(parse(switch(ours, factors[:2], theirs))) == switch(
        ours, factors[:2], theirs
    )
    everything = switch(ours, factors, theirs)
    second = settings_of(parse(theirs))
    assert everything["model"] == second["model"]
    assert everything["data"] == second["data"]
    assert everything["trainer"]["limit_val_batches"] == second["trainer"]["limit_val_batches"]
    assert ours == settings_of(configs[0])  # nothing was switched in place


@pytest.mark.parametrize(
    ("second", "said"),
    [
        ("B8", "name configs of one data set"),
        ("B11", "which is no setting that can be switched"),
    ],
)
def test_what_no_setting_explains_is_refused(
    second: str, said: str, tmp_path: Path, real_data: Path
) -> None:
    rows = read_rows()
    with pytest.raises(ValueError, match=said):
        make_grid(rows["B1"], rows[second], tmp_path)


def test_configs_that_differ_in_nothing_are_refused(tmp_path: Path) -> None:
    first, second = (write(tmp_path, name, "model: LinearClassifier\n") for name in "ab")
    with pytest.raises(ValueError, match="differ in nothing that accuracy depends on"):
        make_grid(Row("a", Path(first)), Row("b", Path(second)), tmp_path / "out")
