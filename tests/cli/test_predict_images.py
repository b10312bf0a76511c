import errno
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from PIL import Image

from digitlab.cli import main
from digitlab.cli.evaluate import split_files
from digitlab.data.photographs import prepare_digit
from digitlab.models import LinearClassifier
from tests.commands import config_of
from tests.conftest import Trained
from tests.pictures import SEVEN, seven

KINDS = "PNG, JPEG, TIFF, BMP, GIF, WebP or PGM"
FIELDS = ["file", "class", "class_name", "probability", "probabilities"]


@pytest.fixture(scope="module")
def run(trained: Trained) -> Path:
    return trained("LinearClassifier", "--data.normalization", "standard")


@pytest.fixture
def pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with two pictures in it; the training data are out of reach."""
    monkeypatch.setenv("DIGITLAB_DATA", str(tmp_path / "nowhere"))
    monkeypatch.chdir(tmp_path)
    seven().save(tmp_path / "seven.png")
    seven(0, 255).rotate(90, expand=True).save(tmp_path / "turned.png")
    return tmp_path


def read_json(path: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(path.read_text("utf-8"))
    return rows


@pytest.mark.parametrize(
    "place",
    [
        lambda run, files: [*files, "--run", run, "--json", "rows.json"],
        lambda run, files: ["--run", run, "--json=rows.json", *files],
        lambda run, files: [files[0], "--run", run, files[1], "--json", "rows.json"],
        lambda run, files: ["--json", "rows.json", "--run", run, "--", *files],
    ],
)
def test_image_files_may_stand_anywhere_among_the_options(
    place: Any, run: Path, pictures: Path
) -> None:
    assert main(["predict", *place(str(run), ["seven.png", "turned.png"])]) == 0
    rows = read_json(pictures / "rows.json")
    assert [row["file"] for row in rows] == ["seven.png", "turned.png"]


def test_an_image_is_classified_as_the_network_does_with_the_run_s_normalization(
    run: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    options = ["--run", str(run), "--json", "rows.json", "--csv", "rows.csv"]
    assert main(["predict", "seven.png", *options]) == 0
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before
    # Reference: the checkpoint, called by hand on pixels scaled by NumPy.
    model = LinearClassifier.load_from_checkpoint(run / "checkpoints" / "last.ckpt").eval()
    pixels = (SEVEN[None, None] / np.float32(255) - np.float32(0.5196)) / np.float32(0.2631)
    with torch.no_grad():
        expected = model(torch.from_numpy(pixels)).softmax(1)[0]
    (row,) = read_json(pictures / "rows.json")
    assert list(row) == FIELDS
    torch.testing.assert_close(torch.tensor(row["probabilities"]), expected)
    assert row["class"] == int(expected.argmax())
    assert row["class_name"] == str(row["class"])
    assert row["probability"] == max(row["probabilities"])
    line = pd.read_csv("rows.csv").iloc[0]
    assert list(line.index) == [*FIELDS, "error"]
    assert json.loads(line["probabilities"]) == row["probabilities"]
    assert line["class"] == row["class"]
    assert pd.isna(line["error"])
    shown = capsys.readouterr().out.splitlines()
    steps = ", ".join(prepare_digit(seven()).steps)
    assert shown[0] == f"seven.png: {row['class']} ({row['probability']:.2%}); {steps}"
    assert shown[1:] == ["Written to rows.json", "Written to rows.csv"]


@pytest.mark.parametrize(
    ("data", "prepared"),
    [
        ("FashionMNIST", r"seven.png: [A-Z]\D+ \(.+%\); negated, trimmed, .+"),
        ("MNIST", r"seven.png: \d \(.+%\); .+"),
        ("Digits", r"seven.png: \d \(.+%\); .+\nNetworks .+ read photographs poorly: use MNIST's"),
    ],
)
def test_a_run_s_data_name_its_classes_and_prepare_pictures(
    data: str, prepared: str, run: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = shutil.copytree(run, pictures / "run")
    config = config_of(copy)
    config["data"]["class_path"] = f"digitlab.data.{data}DataModule"
    del config["data"]["init_args"]["root"], config["class_names"]
    (copy / "config.yaml").write_text(yaml.safe_dump(config), "utf-8")
    assert main(["predict", "--run", str(copy), "seven.png"]) == 0
    assert re.fullmatch(prepared, capsys.readouterr().out.strip())


def test_files_that_are_no_images_are_named_and_the_others_classified(
    run: Path, pictures: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (pictures / "empty.png").touch()
    (pictures / "text.png").write_text("no image")
    (pictures / "folder").mkdir()
    Image.new("L", (99, 99), 255).save("blank.png")
    seven().save("locked.png")
    opened = Path.open

    def refuse(path: Path, *args: Any, **options: Any) -> Any:  # root can open all
        if path.name == "locked.png":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return opened(path, *args, **options)

    monkeypatch.setattr(Path, "open", refuse)
    files = ["empty.png", "seven.png", "text.png", "folder", "blank.png", "locked.png"]
    files += ["no/such.png", "turned.png"]
    assert main(["predict", *files, "--run", str(run), "--json", "a.json", "--csv", "a.csv"]) == 1
    rows = read_json(pictures / "a.json")
    assert [row["file"] for row in rows] == files
    errors = {row["file"]: row["error"] for row in rows if "error" in row}
    assert errors == {
        "empty.png": "the file is empty",
        "text.png": f"it cannot be read as an image: give a {KINDS}",
        "folder": "it is a folder: name the files in it",
        "blank.png": "it is blank: nothing stands out from the ground",
        "locked.png": "Permission denied",
        "no/such.png": "there is no such file",
    }
    assert all(list(row) == FIELDS for row in rows if "error" not in row)
    shown = capsys.readouterr()
    lines = [f"digitlab: error: {file}: {error}" for file, error in errors.items()]
    assert shown.err.splitlines() == lines
    assert "2 of 8 images are classified" in shown.out
    said = pd.read_csv("a.csv")["error"].fillna("").tolist()
    assert said == [errors.get(name, "") for name in files]


def test_prepared_images_are_saved_each_under_a_name_of_its_own(run: Path, pictures: Path) -> None:
    (pictures / "more").mkdir()
    seven(0, 255).save(pictures / "more" / "seven.bmp")
    before = (pictures / "seven.png").read_bytes()
    files = ["seven.png", "more/seven.bmp", "no.png"]
    for option in ("--save_prepared", "--save-prepared"):
        assert main(["predict", *files, "--run", str(run), option, "."]) == 1
        saved = sorted(path.name for path in pictures.glob("*-prepared*"))
        assert saved == ["seven-prepared-2.png", "seven-prepared.png"]
        for name in saved:
            with Image.open(pictures / name) as image:
                assert np.array_equal(np.asarray(image), SEVEN)
            (pictures / name).unlink()
    assert (pictures / "seven.png").read_bytes() == before


def test_a_limit_of_batches_leaves_no_image_out(run: Path, pictures: Path) -> None:
    limits = ["--trainer.limit_predict_batches", "1", "--data.eval_batch_size", "2"]
    files = ["seven.png"] * 5
    assert main(["predict", *files, "--run", str(run), *limits, "--json", "rows.json"]) == 0
    assert len(read_json(pictures / "rows.json")) == 5


def test_a_network_that_gives_no_number_is_an_error_for_its_images(
    run: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = pictures / "broken.pt"
    state = LinearClassifier().state_dict()
    torch.save({name: torch.full_like(value, torch.nan) for name, value in state.items()}, broken)
    options = ["--run", str(run), "--checkpoint", str(broken), "--json", "rows.json"]
    assert main(["predict", "seven.png", *options]) == 1
    assert "seven.png: the network's output is not finite" in capsys.readouterr().err
    assert list(read_json(pictures / "rows.json")[0]) == ["file", "error"]


def test_a_file_name_outside_the_system_s_encoding_is_written_escaped(
    run: Path, pictures: Path
) -> None:
    name = "=seven\udcff.png"  # neither is the cell a formula
    try:
        shutil.copy("seven.png", name)
    except OSError:
        pytest.skip("the file system knows no such names")
    options = ["--run", str(run), "--csv", "rows.csv", "--json", "rows.json"]
    assert main(["predict", name, *options]) == 0
    assert read_json(pictures / "rows.json")[0]["file"] == "=seven\\udcff.png"
    assert "\n'=seven\\udcff.png," in (pictures / "rows.csv").read_text("utf-8")


def test_a_switch_takes_no_file_for_its_value() -> None:
    assert split_files(["--print_config", "a.png"]) == (["a.png"], ["--print_config"])
    assert split_files(["--run"]) == ([], ["--run"])
