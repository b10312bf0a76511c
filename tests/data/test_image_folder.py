"""Folders of one's own pictures: what is read, in which order, and what is refused by name."""

import csv
import os
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from digitlab.cli import main
from digitlab.data import Augmentation, ImageFolderDataModule, image_folder
from tests.commands import config_of, fit, refusal, words
from tests.data import made

COUNTS = {"dark": 20, "light": 10, "middle": 15}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return made.pictures(tmp_path / "My pictures", COUNTS)


def refused(folder: Path, **settings: Any) -> str:
    with pytest.raises(ValueError, match=r": | has ") as error:
        ImageFolderDataModule(str(folder), **settings).setup()
    line = str(error.value)
    assert len(line.splitlines()) == 1
    return line


# What is read.


def test_classes_are_the_folders_and_files_come_in_the_order_of_their_names(folder: Path) -> None:
    data = ImageFolderDataModule(str(folder))
    assert data.class_names == ("dark", "light", "middle")
    assert data.name == "my_pictures"
    for split in ("train", "test"):
        images, labels = data.arrays(split)
        assert labels.tolist() == sorted(labels.tolist())
        assert (images.shape[1:], images.dtype.name) == ((28, 28), "uint8")
    everything = {np.asarray(Image.open(path)).tobytes(): path for path in folder.rglob("*.png")}
    read = [
        everything[image.tobytes()]
        for image in np.concatenate([data.arrays("train")[0], data.arrays("test")[0]])
    ]
    assert sorted(read) == sorted(folder.rglob("*.png"))
    assert read[: data.size("train")] == sorted(read[: data.size("train")])


def test_the_test_split_is_a_stratified_fifth_that_depends_on_its_own_seed(folder: Path) -> None:
    first, again, other = (
        ImageFolderDataModule(str(folder), test_seed=seed).arrays("test") for seed in (0, 0, 1)
    )
    assert Counter(first[1].tolist()) == {0: 4, 1: 2, 2: 3}
    assert np.array_equal(first[0], again[0])
    assert not np.array_equal(first[0], other[0])
    half = ImageFolderDataModule(str(folder), test_share=0.5, validation_size=5)
    assert Counter(half.arrays("test")[1].tolist()) == {0: 10, 1: 5, 2: 8}
    assert (half.size("train"), half.size("validation")) == (17, 5)


def test_folders_train_and_test_are_the_splits(folder: Path, tmp_path: Path) -> None:
    root = tmp_path / "split"
    shutil.copytree(folder, root / "train")
    made.pictures(root / "test", {"dark": 1, "middle": 2}, seed=1)
    data = ImageFolderDataModule(str(root))
    assert data.arrays("train")[1].tolist() == [0] * 20 + [1] * 10 + [2] * 15
    assert data.arrays("test")[1].tolist() == [0, 2, 2]
    shutil.rmtree(root / "test")
    assert ImageFolderDataModule(str(root)).size("test") == 9
    shutil.copytree(folder, root / "valid")
    assert "valid: beside train there can be test only" in refused(root)
    shutil.rmtree(root / "valid")
    made.pictures(root / "test", {"dark": 1, "odd": 1})
    assert "test/odd: there is no such class in train" in refused(root)


def test_classes_may_be_called_train_and_test(tmp_path: Path) -> None:
    made.pictures(tmp_path, {"test": 5, "train": 5})
    assert ImageFolderDataModule(str(tmp_path)).class_names == ("test", "train")


def test_hidden_files_and_others_are_ignored_and_folders_in_a_class_are_not(folder: Path) -> None:
    before = ImageFolderDataModule(str(folder)).size("train")
    (folder / ".cache").mkdir()
    (folder / "dark/.DS_Store").write_bytes(b"?")
    (folder / "dark/._001.png").write_bytes(b"?")
    (folder / "dark/notes.txt").write_text("none", "utf-8")
    (folder / "README.md").write_text("none", "utf-8")
    assert ImageFolderDataModule(str(folder)).size("train") == before
    made.pictures(folder / "dark", {"more": 5})
    assert ImageFolderDataModule(str(folder)).size("train") == before + 4


def test_pictures_are_opened_as_photographs_are_and_by_any_ending(tmp_path: Path) -> None:
    for part in ("train", "test"):
        made.pictures(tmp_path / part, {"a": 1, "b": 1})
        Image.new("RGBA", (28, 28), (0, 0, 0, 0)).save(tmp_path / part / "a/000.png")
        Image.new("RGB", (28, 28), (255, 0, 0)).save(tmp_path / part / "a/001.BMP")
    images, _ = ImageFolderDataModule(str(tmp_path)).arrays("test")
    assert images[:2].max((1, 2)).tolist() == images[:2].min((1, 2)).tolist() == [255, 76]


# Sizes.


def two_classes(folder: Path, picture: Image.Image) -> Path:
    for name in ("a", "b"):
        (folder / name).mkdir(parents=True)
        for number in range(5):
            picture.save(folder / name / f"{number}.png")
    return folder


def test_other_sizes_are_stretched_padded_cropped_or_refused(tmp_path: Path) -> None:
    wide = Image.new("L", (40, 20), 50)
    wide.paste(200, (10, 0, 30, 20))  # a bright square in the middle
    folder = two_classes(tmp_path / "wide", wide)

    def read(**settings: Any) -> Any:
        return ImageFolderDataModule(str(folder), 20, **settings).arrays("train")[0][0].astype(int)

    stretched = read()
    assert np.array_equal(read(resize="stretch"), stretched)
    assert (stretched[:, 7:13] == 200).all()
    assert (stretched[:, [0, 1, 18, 19]] == 50).all()
    padded = read(resize="pad")
    assert (padded[[0, 1, 2, -1]] == 50).all()  # the margin has the border's tone
    assert (padded[7:13, 7:13] == 200).all()
    assert (read(resize="crop")[:, 1:19] == 200).all()
    line = refused(folder, size=20, resize="refuse")
    assert line.startswith(f"{folder}/a/0.png: it has 40x20 pixels, not 20x20: set resize to stre")
    same = two_classes(tmp_path / "same", wide.resize((20, 20)))
    assert ImageFolderDataModule(str(same), 20, "refuse").size("train") == 8


def test_a_custom_picture_is_prepared_as_those_of_the_folder_are(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    picture = Image.fromarray(generator.integers(0, 256, (50, 30)).astype(np.uint8))
    folder = two_classes(tmp_path / "folder", picture)
    for resize in ("stretch", "pad", "crop"):
        data = ImageFolderDataModule(str(folder), resize=resize)
        prepared = data.prepare_image(picture)
        assert np.array_equal(prepared.pixels, data.arrays("train")[0][0])
        assert prepared.steps[0].endswith("to 28x28")


# What is refused.


def test_a_folder_without_classes_images_or_at_all_is_refused(tmp_path: Path) -> None:
    root = tmp_path / "folder"
    missing = f"there is no folder {root}; set --data.folder to where the images are"
    assert refused(root) == f"folder is {root}: {missing}"
    root.mkdir()
    assert refused(root).startswith(f"{root} has no folders of classes: give at least two")
    Image.new("L", (28, 28)).save(root / "1.png")
    assert refused(root).startswith(f"{root} has no folders of classes: give at least two")
    made.pictures(root, {"cat": 5})
    assert refused(root).startswith(f"{root} has one class, cat: give at least two folders")
    (root / "dog").mkdir()
    (root / "dog/1.txt").touch()
    assert refused(root).startswith(f"{root}/dog has no images: add PNG, JPEG")


@pytest.mark.parametrize("content", [b"", b"no picture", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"])
def test_a_file_that_cannot_be_read_is_named(folder: Path, content: bytes) -> None:
    for path in (folder / "light").iterdir():
        path.write_bytes(content)
    line = refused(folder)
    assert line.startswith(f"{folder}/light/0")
    assert ".png: " in line


def test_a_class_needs_images_for_both_parts_of_a_split(tmp_path: Path) -> None:
    folder = made.pictures(tmp_path / "few", {"cat": 9, "dog": 4})
    assert refused(folder) == (
        f"{folder}: class dog has 4 of the 5 images that test_share 0.2 needs: add images, or make "
        "folders train and test"
    )
    assert "class dog has 4 of the 10 images" in refused(folder, test_share=0.9)
    for share in (0.25, 0.3, 0.5, 0.7, 0.75):
        data = ImageFolderDataModule(str(folder), test_share=share)
        for split in ("train", "test"):
            assert set(data.arrays(split)[1]) == {0, 1}


@pytest.mark.parametrize("counts", [[5, 5], [5, 7], [5, 6, 11], [5, 5, 5, 5, 9], [5, 200]])
def test_with_the_fewest_images_each_class_is_in_both_parts(tmp_path: Path, counts: Any) -> None:
    folder = made.pictures(tmp_path, {f"class{i}": count for i, count in enumerate(counts)})
    for seed in range(3):
        data = ImageFolderDataModule(str(folder), test_seed=seed)
        for split in ("train", "test"):
            assert set(data.arrays(split)[1]) == set(range(len(counts)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": 0}, "size is 0: it must be at least 1"),
        ({"test_share": 0.0}, "test_share is 0.0: it must be between 0 and 1"),
        ({"test_share": 1.0}, "test_share is 1.0: it must be between 0 and 1"),
        ({"test_seed": -1}, "test_seed is -1: it must be at least 0"),
    ],
)
def test_a_setting_out_of_range_is_refused_by_name(
    folder: Path, settings: Any, message: str
) -> None:
    assert refused(folder, **settings) == message


def test_shifts_are_compared_with_the_size_that_was_given(folder: Path) -> None:
    data = ImageFolderDataModule(str(folder), size=64, augmentation=Augmentation(shift=30))
    assert data.image_size == 64
    with pytest.raises(ValueError, match=r"shift is 10: it must be less than 8, the pixels of"):
        ImageFolderDataModule(str(folder), size=8, augmentation=Augmentation(shift=10))


def test_no_class_is_lost_whose_name_is_not_utf_8(folder: Path) -> None:
    for name in (b"\xfe", b"\xff"):
        shutil.copytree(folder / "dark", os.fsdecode(os.fsencode(folder) + b"/" + name))
    names = ImageFolderDataModule(str(folder)).class_names
    assert names == ("dark", "light", "middle", r"\xfe", r"\xff")


def test_a_link_that_leads_back_is_refused_with_the_remedy(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "dark" / "loop").symlink_to(folder / "dark")
    data = ["--data", "ImageFolderDataModule", "--data.folder", str(folder)]
    assert "remove the link" in refusal(capsys, *words(folder, *data))


def test_what_does_not_fit_into_memory_is_refused_before_it_is_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    line = refused(folder, size=1_000_000)
    assert "36 images of 1000000x1000000 pixels take 36000.0 GB of memory, and this ma" in line
    monkeypatch.setattr(image_folder, "_ANNOUNCED", 1000)
    ImageFolderDataModule(str(folder)).setup("test")
    assert "9 images of 28x28 pixels take 0.0 GB of memory" in capsys.readouterr().out


# Runs.


def test_a_network_is_trained_on_a_folder_and_names_its_classes(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = ["--data", "ImageFolderDataModule", "--data.folder", str(folder)]
    more = ["--data.normalization", "standard", "--trainer.max_epochs", "2"]
    run = fit(tmp_path / "runs", *data, *more, model="LeNet5")
    assert run.parent.name == "my_pictures-lenet5"
    config = config_of(run)
    assert config["model"]["init_args"]["num_classes"] == 3
    assert set(config["data"]["init_args"]["digests"]) == {"train", "test"}
    assert main(["predict", "--run", str(run)]) == 0
    with (run / "predictions.csv").open(encoding="utf-8") as file:
        assert {row["class_name"] for row in csv.DictReader(file)} <= set(COUNTS)
    capsys.readouterr()
    assert main(["predict", "--run", str(run), str(folder / "dark/000.png")]) == 0
    assert "left as it is" in capsys.readouterr().out
    assert main(["report", str(run)]) == 0
    assert "middle" in (run / "report.html").read_text("utf-8")
    moved = folder.rename(tmp_path / "moved")
    assert main(["test", "--run", str(run), "--data.folder", str(moved)]) == 0
    made.pictures(moved, {"middle": 16})
    capsys.readouterr()
    line = refusal(capsys, "test", "--run", str(run), "--data.folder", str(moved))
    assert "the test images or labels are not those of data.digests" in line


def test_training_images_that_changed_are_refused_where_they_are_read_to_normalize(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = ["--data", "ImageFolderDataModule", "--data.folder", str(folder)]
    data += ["--data.normalization", "standard", "--data.validation_size", "9"]
    run = fit(tmp_path / "runs", *data)
    made.pictures(folder, {"middle": 16})
    for images in ([], [str(folder / "dark/000.png")]):
        capsys.readouterr()
        line = refusal(capsys, "predict" if images else "test", "--run", str(run), *images)
        assert "the train images or labels are not those of data.digests" in line


@pytest.mark.parametrize("change", ["added", "renamed"])
def test_other_classes_than_those_of_the_training_are_refused(
    change: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = ["--data", "ImageFolderDataModule", "--data.folder", str(folder)]
    run = fit(tmp_path / "runs", *data, "--data.validation_size", "9")
    assert config_of(run)["class_names"] == ["dark", "light", "middle"]
    alter = shutil.copytree if change == "added" else shutil.move
    image = str(Path(alter(folder / "dark", folder / "bright")) / "000.png")
    names = "bright, dark, light, middle" if change == "added" else "bright, light, middle"
    for command, *images in (["test"], ["predict"], ["predict", image], ["fit"]):
        capsys.readouterr()
        line = refusal(capsys, command, "--run", str(run), *images)
        assert f"my_pictures has the classes {names}, but the run was trained on dark, " in line


def test_a_network_for_another_size_is_refused_by_name(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = ["--data", "ImageFolderDataModule", "--data.folder", str(folder), "--data.size", "32"]
    line = refusal(capsys, *words(tmp_path / "runs", *data, model="LeNet5"))
    assert line.startswith("LeNet5 cannot take my_pictures's images, (N, 1, 32, 32): ")
    assert line.endswith("set --data.size 28")
    assert not (tmp_path / "runs").exists()
