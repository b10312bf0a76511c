import re
from pathlib import Path

import pytest

from digitlab.reproduce.rows import Row, choose, find_row, read_rows

ROOT = Path(__file__).parents[2]
ROWS = read_rows()
DOCUMENTS = {
    "linear": ("mnist/linear", 88.0),
    "A1": ("mnist/mlp512_keras_recipe", 98.4),
    "A2": ("mnist/pytorch_example_net", None),
    "A3": ("mnist/tensorflow_tutorial_cnn", 97.3),
    "B1": ("mnist/nn128", 95.0),
    "B1_as_published": ("mnist/nn128_as_published", 95.0),
    "B2": ("mnist/nn128_keras_recipe", 97.0),
    "B3": ("mnist/lenet5", 99.0),
    "B4": ("mnist/lenet5_keras_recipe", 99.0),
    "B5": ("fashion_mnist/nn128", 85.0),
    "B5_as_published": ("fashion_mnist/nn128_as_published", 85.0),
    "B6": ("fashion_mnist/lenet5", 89.0),
    "B7": ("fashion_mnist/lenet1", 91.0),
    "B8": ("fashion_mnist/nn128_keras_recipe", 87.0),
    "B9": ("fashion_mnist/lenet5_keras_recipe", 89.0),
    "B10": ("fashion_mnist/lenet1_keras_recipe", 91.0),
    "B11": ("fashion_mnist/lenet1_keras_recipe_continued", 91.0),
}


def test_the_documents_rows_are_those_of_the_inventory_in_its_order() -> None:
    shown = {
        row.name: (f"{row.config.parent.name}/{row.config.stem}", row.published_accuracy)
        for row in choose([], ROWS)
    }
    assert [*shown.items()] == [*DOCUMENTS.items()]
    assert {row.config for row in ROWS.values()} == set(Path("configs").glob("*/*.yaml"))


def test_a_row_is_chosen_once_and_whatever_the_case_of_its_name() -> None:
    assert choose(["b3", "Digits/LeNet5", "B3"], ROWS) == [ROWS["B3"], ROWS["digits/lenet5"]]
    with pytest.raises(ValueError, match="there is no config B1_published: did you mean B1_as_p"):
        choose(["B1_published"], ROWS)


@pytest.mark.parametrize("given", ["B3", "mnist/lenet5", "configs/mnist/lenet5.yaml", "absolute"])
def test_a_row_is_found_by_all_that_a_command_takes_as_a_config(given: str) -> None:
    absolute = str(Path("configs/mnist/lenet5.yaml").resolve())
    assert find_row(absolute if given == "absolute" else given) == ROWS["B3"]


@pytest.mark.parametrize("path", ["mine/net.yaml", "linear.yaml", "../up.yaml"])
def test_a_config_of_one_s_own_is_a_row_named_after_its_folder_and_file(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here" / "mine").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    Path(path).write_text("# linear: copied. Published: 12%.\nmodel: MLP\n")
    row = find_row(path)
    folder = Path(path).resolve().parent.name
    assert row.name == f"{folder}/{Path(path).stem}"
    assert row.config.samefile(path)
    assert row.dataset == folder
    assert (row.in_documents, row.published) == (False, "")
    assert row.frameworks == ("torch", "keras")


def test_runs_of_two_configs_never_share_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    paths = ["mnist/lenet5.yaml", "my-a/b.yaml", "my/a-b.yaml", "x/my/a.yaml", "y/my/a.yaml"]
    for path in paths:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text("model: MLP\n")
    folders = {find_row(path).run_folder for path in paths}
    assert len(folders) == len(paths)
    assert find_row("B3").run_folder == "mnist-lenet5"
    assert find_row("./x/my/a.yaml").run_folder == find_row("x/my/a.yaml").run_folder


def test_configs_of_one_name_are_refused(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder / "mine").mkdir(parents=True)
        (tmp_path / folder / "mine" / "net.yaml").write_text("model: MLP\n")
    names = [str(tmp_path / folder / "mine" / "net.yaml") for folder in ("a", "b")]
    with pytest.raises(ValueError, match="would both be mine/net in the results: rename a file"):
        choose(names, ROWS)
    assert len(choose([names[0], names[0]], ROWS)) == 1


def test_a_local_config_takes_the_row_of_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("configs/mnist").mkdir(parents=True)
    for name in ("lenet5", "copy"):
        Path(f"configs/mnist/{name}.yaml").write_text("# B3: Published: 97%.\nmodel: MLP\n")
    rows = read_rows()
    assert rows["B3"] == Row("B3", Path("configs/mnist/lenet5.yaml"), "97%")
    assert rows["mnist/copy"] == Row("mnist/copy", Path("configs/mnist/copy.yaml"))
    assert rows["B1"].config == ROOT / "configs" / "mnist" / "nn128.yaml"


@pytest.mark.parametrize("text", [b"\xff", b"a: [", b"- 1\n", b"seed_everything: 1\n", b""])
def test_a_damaged_config_is_named(text: bytes, tmp_path: Path) -> None:
    config = tmp_path / "odd.yaml"
    config.write_bytes(text)
    row = find_row(str(config))
    for read in (lambda: row.recipe, lambda: row.frameworks):
        with pytest.raises(ValueError, match=re.escape(str(config))):
            read()


def test_a_recipe_is_of_the_settings_but_not_of_comments_speed_and_threads(tmp_path: Path) -> None:
    adam = "    optimizer:\n      class_path: Adam\n      init_args:\n        lr: 0.01\n"
    texts = {
        "bare": "model: MLP\n",
        "commented": "# other words\nmodel:   MLP\n",
        "class": "model:\n  class_path: MLP\n",
        "threads": "model: MLP\nthreads: 2\n",
        "fast": "model:\n  class_path: MLP\n  init_args:\n    steps_per_execution: 8\n",
        "adam": f"model:\n  class_path: MLP\n  init_args:\n{adam}",
        "fused": f"model:\n  class_path: MLP\n  init_args:\n{adam}        fused: true\n",
        "dropout": "model:\n  class_path: MLP\n  init_args:\n    dropout: 0.1\n",
        "other": "model: LeNet5\n",
    }
    for name, text in texts.items():
        (tmp_path / f"{name}.yaml").write_text(text)
    recipe = {name: Row(name, tmp_path / f"{name}.yaml").recipe for name in texts}
    alike = ("bare", "commented", "class", "fast", "threads")
    assert len({recipe[name] for name in alike}) == 1
    assert recipe["adam"] == recipe["fused"]
    assert len({*recipe.values()}) == 4


def test_rows_know_their_frameworks_and_what_they_continue() -> None:
    alone = {name for name, row in ROWS.items() if row.frameworks == ("torch",)}
    assert alone == {"B1_as_published", "B5_as_published", "mnist/fast99"}
    assert ROWS["B1"].frameworks == ("torch", "keras")
    assert {name: row.after for name, row in ROWS.items() if row.after} == {
        "B11": ROWS["B10"].config
    }
