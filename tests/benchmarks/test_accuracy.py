import statistics
from pathlib import Path

import pytest
from benchmarks.accuracy import FRAMEWORKS, described, read, shipped_configs, table

# Mean test accuracy in per cent, from the documents and independent runs. Too good is wrong too: it
# would mean that test images were trained on, or counted twice. A single run may lie outside: at a
# constant learning rate, a last epoch sometimes ends some tenths below the one before.
BANDS = {
    "mnist/linear": (91.5, 92.8),
    "mnist/mlp512_keras_recipe": (98.0, 98.7),
    "mnist/pytorch_example_net": (98.0, 99.1),
    "mnist/tensorflow_tutorial_cnn": (96.5, 97.8),
    "mnist/nn128": (96.0, 97.6),
    "mnist/nn128_as_published": (94.5, 96.3),
    "mnist/nn128_keras_recipe": (97.3, 98.2),
    "mnist/lenet5": (98.4, 99.2),
    "mnist/lenet5_keras_recipe": (98.4, 99.2),
    "fashion_mnist/nn128": (85.0, 88.5),
    "fashion_mnist/nn128_as_published": (84.0, 88.5),
    "fashion_mnist/nn128_keras_recipe": (85.0, 88.5),
    "fashion_mnist/lenet5": (87.0, 90.5),
    "fashion_mnist/lenet5_keras_recipe": (87.0, 90.5),
    "fashion_mnist/lenet1": (90.0, 92.5),
    "fashion_mnist/lenet1_keras_recipe": (90.0, 92.5),
    "fashion_mnist/lenet1_keras_recipe_continued": (90.0, 92.5),
}


@pytest.mark.parametrize("page", ["README.md", "docs/experiments.md"])
def test_the_table_of_a_page_is_the_generated_one(page: str) -> None:
    text = Path(page).read_text("utf-8")
    shown = text.partition("<!-- results -->\n")[2].partition("\n<!-- /results -->")[0]
    assert shown == table(read())


def test_every_config_was_measured() -> None:
    measured = {row["config"] for row in read() if row["framework"] == "torch"}
    assert {f"{path.parent.name}/{path.stem}" for path in shipped_configs()} == measured


def test_every_row_of_a_keras_program_was_measured_in_keras() -> None:
    measured = {row["config"] for row in read() if row["framework"] == "keras"}
    rows = {config for config in BANDS if "_keras_recipe" in config}
    assert rows | {"mnist/tensorflow_tutorial_cnn", "mnist/linear"} <= measured


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("config", BANDS)
def test_a_measured_mean_lies_in_its_band(config: str, framework: str) -> None:
    low, high = BANDS[config]
    measured = [
        100 * float(row["test_accuracy"])
        for row in read()
        if (row["config"], row["framework"]) == (config, framework)
    ]
    assert not measured or low <= statistics.mean(measured) <= high


def test_no_run_was_counted_twice() -> None:
    runs = [(row["config"], row["seed"], row["framework"]) for row in read()]
    assert len(runs) == len(set(runs))


def test_row_and_published_figure_come_from_the_config_s_comment() -> None:
    assert described(Path("configs/mnist/lenet5.yaml")) == ("B3", '"almost 99%"')
    assert described(Path("configs/digits/lenet5.yaml"))[0] == "—"
