import os
from pathlib import Path

import pytest
import yaml

from digitlab import __version__
from digitlab.cli import configs, main
from digitlab.cli.configs import find_config, list_configs, shipped_folder
from digitlab.cli.fit import FitCLI
from tests.commands import SHORT, config_of

ROOT = Path(__file__).parents[2]


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, an empty one."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(path: str, text: str = "model: LinearClassifier\n") -> Path:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(text)
    return Path(path)


def test_a_clone_reads_its_own_configs_so_that_an_edited_file_takes_effect() -> None:
    assert shipped_folder().samefile(ROOT / "configs")


def test_a_wheel_has_the_configs_in_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(configs, "__file__", str(tmp_path / "digitlab" / "cli" / "configs.py"))
    path = tmp_path / "digitlab" / "configs" / "mnist" / "lenet5.yaml"
    write(str(path), "# B3: LeNet-5.")
    monkeypatch.chdir(tmp_path)
    assert shipped_folder() == tmp_path / "digitlab" / "configs"
    assert find_config("B3").path == path
    assert str(find_config("B3")) == f"mnist/lenet5 (B3) of digitlab {__version__}"


def test_a_file_comes_before_a_name_a_local_name_before_a_shipped_one_and_a_row_last(
    elsewhere: Path,
) -> None:
    shipped = ROOT / "configs" / "mnist" / "lenet5.yaml"
    found = find_config("mnist/lenet5")
    assert found.path == shipped
    assert str(found) == f"mnist/lenet5 (B3) of {ROOT / 'configs'}"
    assert find_config("B3") == found

    write("configs/mnist/lenet5.yaml")
    found = find_config("mnist/lenet5")
    assert found.path == Path("configs/mnist/lenet5.yaml")
    assert str(found) == "mnist/lenet5 (B3) of ./configs"
    assert find_config("B3") == found  # the row follows the name

    write("configs/b3.yaml")
    assert find_config("B3").path == Path("configs/b3.yaml")
    for name in ("mnist/lenet5", "B3"):
        write(name)
        assert str(find_config(name)) == name
        assert find_config(name).path == Path(name)


def test_a_folder_is_not_a_config(elsewhere: Path) -> None:
    Path("mnist/lenet5").mkdir(parents=True)
    assert find_config("mnist/lenet5").path == ROOT / "configs" / "mnist" / "lenet5.yaml"


def test_a_copy_of_a_row_s_config_is_not_that_row(elsewhere: Path) -> None:
    write("configs/mine/net.yaml", (ROOT / "configs/mnist/lenet5.yaml").read_text())
    assert find_config("mine/net").row == ""
    assert find_config("B3").path == ROOT / "configs" / "mnist" / "lenet5.yaml"


def test_fit_says_and_records_which_configs_it_had_and_so_does_a_run_of_its_config_yaml(
    elsewhere: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(ROOT)
    write("configs/short.yaml", "trainer: {limit_train_batches: 1}")
    write("own.yaml", "model: {init_args: {steps_per_execution: 1}}")
    origin = [f"digits/linear of {ROOT / 'configs'}", "short of ./configs", "own.yaml"]
    command = ["fit", "--config", "digits/linear", "-c", "short", "--config=own.yaml"]
    assert main([*command, *SHORT, "--data.train_images", "null"]) == 0
    (folder,) = Path("runs").glob("tiny-linear/version_*")
    assert f"config: {', '.join(origin)}\n" in capsys.readouterr().out
    assert config_of(folder)["from_configs"] == origin
    assert config_of(folder)["trainer"]["limit_train_batches"] == 1

    assert main(["fit", "--config", str(folder / "config.yaml"), "--name", "again"]) == 0
    (again,) = Path("runs").glob("tiny-again/version_*")
    assert config_of(again)["from_configs"] == origin
    longer = ["--trainer.max_epochs", "2", "--config", "short"]
    assert main(["fit", "--run", str(again), *longer]) == 0
    assert config_of(again)["from_configs"] == [*origin, "short of ./configs"]
    capsys.readouterr()
    assert main(["test", "--run", str(folder), "--config", "short"]) == 0
    assert f"config: {', '.join(origin)}, short of ./configs\n" in capsys.readouterr().out
    assert config_of(folder, "test.yaml")["from_configs"] == [*origin, "short of ./configs"]


def test_a_record_of_no_configs_is_replaced(elsewhere: Path) -> None:
    write("a.yaml", "from_configs: null\nmodel: MLP\ndata: DigitsDataModule\n")
    write("b.yaml", "from_configs: [x]\n")
    cli = FitCLI("fit", ["--config", "a.yaml", "--config", "b.yaml"])
    assert cli.config.from_configs == ["a.yaml", "x"]


def test_configs_lists_names_rows_and_what_each_is(
    elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write("configs/mine/net.yaml", "# My network on digits. More on it.\nmodel: MLP\n")
    assert main(["configs"]) == 0
    shown = capsys.readouterr().out
    assert f"of {ROOT / 'configs'}:\n" in shown
    assert "  digits/lenet1                   B's \"LeNet1\" on scikit-learn's digits" in shown
    assert "  mnist/lenet5                   B3: LeNet-5, document B, PyTorch\n" in shown
    assert shown.startswith("of ./configs:\n  mine/net  My network on digits\n\nof ")
    listed = {line.split()[0] for line in shown.splitlines() if line.startswith("  ")}
    assert listed == {*list_configs()}
    paths = (ROOT / "configs").rglob("*.yaml")
    names = {str(path.relative_to(ROOT / "configs"))[: -len(".yaml")] for path in paths}
    assert listed == names | {"mine/net"}


def test_configs_shows_one_that_can_be_read_back(
    elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["configs", "B3"]) == 0
    shown = capsys.readouterr().out
    path = ROOT / "configs" / "mnist" / "lenet5.yaml"
    assert shown.startswith(f"# {path}\n")
    assert yaml.safe_load(shown) == yaml.safe_load(path.read_text())

    write("odd.yaml", "# \x1b[31mred\n")
    assert main(["configs", "odd.yaml"]) == 0
    assert "\x1b" not in capsys.readouterr().out


def test_configs_copies_one(elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["configs", "mnist/lenet5", "--copy", "new/my net.yaml"]
    assert main(command) == 0
    assert capsys.readouterr().out.endswith("  digitlab fit --config 'new/my net.yaml'\n")
    target, source = Path("new/my net.yaml"), ROOT / "configs" / "mnist" / "lenet5.yaml"
    assert target.read_bytes() == source.read_bytes()


def test_what_is_no_file_in_the_local_folder_disturbs_no_list(elsewhere: Path) -> None:
    Path("configs", "folder.yaml").mkdir(parents=True)
    Path("configs", "nowhere.yaml").symlink_to("nothing")
    os.mkfifo("configs/pipe.yaml")  # to read it would never end
    write("configs/mine.yaml")
    assert [name for name, it in list_configs().items() if it.place == "./configs"] == ["mine"]
