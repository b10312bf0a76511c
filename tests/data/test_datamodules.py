import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from jsonargparse import ArgumentParser
from lightning import seed_everything

from digitlab.data import DigitsDataModule, FashionMNISTDataModule, ImageDataModule, MNISTDataModule
from digitlab.data.download import Split
from tests import tiny
from tests.tiny import SpiedDataModule, TinyDataModule


def numbers(data: ImageDataModule, split: Any, source: str = "train") -> list[int]:
    """Where a subset's images stand in the split that they come from."""
    whole = {image.tobytes(): i for i, image in enumerate(getattr(tiny, source.upper())[0])}
    return [whole[image.tobytes()] for image in data.arrays(split)[0]]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0: it must be at least 1"),
        ({"eval_batch_size": -3}, "eval_batch_size is -3: it must be at least 1"),
        ({"validation_size": -1}, "validation_size is -1: it must be at least 0"),
        ({"normalization": "none"}, "normalization is 'none': .* unit, symmetric or standard"),
        ({"train_images": (10, 10)}, r"train_images is \[10, 10\]: .* end greater than the first"),
        ({"train_images": (-1, 10)}, r"train_images is \[-1, 10\]: the first must be at least 0"),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(values: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        TinyDataModule(**values)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"train_images": (0, 201)}, r"train_images is \[0, 201\]: the end must be at most 200"),
        ({"validation_size": 9}, "validation_size is 9: both parts of the 200 training images"),
        ({"validation_size": 195}, "validation_size is 195: both parts of the 200"),
        ({"validation_size": 200}, "validation_size is 200: both parts of the 200"),
        ({"validation_size": 50, "train_images": (0, 40)}, "validation_size is 50: .* the 40"),
    ],
)
def test_a_value_that_the_data_set_is_too_small_for_is_refused_at_setup(
    values: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message) as error:
        TinyDataModule(**values).setup("fit")
    assert "\n" not in str(error.value)


def test_hyper_parameters_are_plain_and_name_no_folder(tiny_root: Path) -> None:
    data = TinyDataModule(root=str(tiny_root), train_images=(5, 60))
    assert dict(data.hparams) == {
        "batch_size": 32,
        "eval_batch_size": 1000,
        "normalization": "unit",
        "validation_size": 0,
        "validation_seed": 0,
        "train_images": (5, 60),
    }


def test_a_yaml_list_gives_a_range_of_training_images() -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(ImageDataModule, "data")
    config = parser.parse_string(
        "data: {class_path: tests.tiny.TinyDataModule, init_args: {train_images: [50, 200]}}"
    )
    data = parser.instantiate(config).data
    assert numbers(data, "train") == list(range(50, 200))
    assert config.data.init_args.root is None


def test_help_tells_of_every_argument(capsys: pytest.CaptureFixture[str]) -> None:
    parser = ArgumentParser()
    parser.add_class_arguments(FashionMNISTDataModule, "data")
    parser.print_help()
    text = capsys.readouterr().out
    for words in ["`FashionMNIST/raw`", "at least 1", "-1..1", "hold out", "without the end"]:
        assert words in " ".join(text.split())


def test_the_environment_names_the_folder_unless_root_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny.write(tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    TinyDataModule().setup("test")
    assert not (tmp_path / "data/.digitlab.lock").exists()
    monkeypatch.setenv("DIGITLAB_DATA", str(tmp_path / "nowhere"))
    TinyDataModule(root="data").setup("test")
    monkeypatch.delenv("DIGITLAB_DATA")
    TinyDataModule().setup("test")
    assert not (tmp_path / "nowhere").exists()


def test_arrays_are_the_images_of_the_loaders() -> None:
    data = TinyDataModule(validation_size=40, train_images=(20, 180))
    for split, loader in {
        "train": data.train_eval_dataloader(),
        "validation": data.val_dataloader(),
        "test": data.test_dataloader(),
    }.items():
        images, labels = data.arrays(split)  # type: ignore[arg-type] # a key of this dictionary
        assert (images.dtype.name, labels.dtype.name) == ("uint8", "int64")
        batches = list(loader)
        torch.testing.assert_close(
            torch.cat([batch for batch, _ in batches])[:, 0], torch.from_numpy(images) / 255
        )
        assert torch.cat([batch for _, batch in batches]).tolist() == labels.tolist()


def test_whoever_changes_arrays_does_not_change_the_loaders() -> None:
    data = TinyDataModule()
    before = next(iter(data.test_dataloader()))[0]
    images, labels = data.arrays("test")
    images[:] = 0
    labels[:] = 0
    after, after_labels = next(iter(data.test_dataloader()))
    assert torch.equal(before, after)
    assert after_labels.any()


def test_the_splits_are_those_of_the_files() -> None:
    data = TinyDataModule()
    for split, (images, labels) in (("train", tiny.TRAIN), ("test", tiny.TEST)):
        ours, our_labels = data.arrays(split)  # type: ignore[arg-type] # as above
        assert np.array_equal(ours, images)
        assert np.array_equal(our_labels, labels)
    assert numbers(data, "validation", "test") == list(range(50))


def test_a_hold_out_is_stratified_disjoint_and_complete() -> None:
    data = TinyDataModule(validation_size=50)
    train, validation = numbers(data, "train"), numbers(data, "validation")
    assert sorted(train + validation) == list(range(200))
    assert (len(train), len(validation)) == (150, 50)
    assert train == sorted(train)
    assert set(Counter(data.arrays("validation")[1].tolist()).values()) == {5}


def test_a_hold_out_is_the_same_in_every_run_whatever_its_seed() -> None:
    chosen = []
    for seed in (1, 2):
        seed_everything(seed, verbose=False)
        chosen.append(numbers(TinyDataModule(validation_size=50), "validation"))
    assert chosen[0] == chosen[1] != list(range(150, 200))


def test_a_hold_out_s_own_seed_chooses_other_images() -> None:
    first, second = (TinyDataModule(validation_size=50, validation_seed=seed) for seed in (0, 1))
    assert numbers(first, "validation") != numbers(second, "validation")


def test_a_hold_out_is_taken_from_the_range_of_training_images() -> None:
    data = TinyDataModule(validation_size=30, train_images=(50, 150))
    both = numbers(data, "train") + numbers(data, "validation")
    assert sorted(both) == list(range(50, 150))
    assert len(numbers(data, "train")) == 70


@pytest.mark.parametrize(
    ("stage", "validation_size", "splits"),
    [
        ("fit", 0, ["train", "test"]),
        ("fit", 50, ["train"]),
        ("validate", 0, ["test"]),
        ("validate", 50, ["train"]),
        ("test", 50, ["test"]),
        ("predict", 0, ["test"]),
        (None, 50, ["train", "test"]),
    ],
)
def test_a_stage_reads_what_it_needs_once(
    stage: str | None, validation_size: int, splits: list[str], read_splits: list[Split]
) -> None:
    data = SpiedDataModule(validation_size=validation_size)
    data.setup(stage)
    data.setup(stage)
    assert read_splits == splits


def test_without_a_trainer_loaders_need_no_preparation(read_splits: list[Split]) -> None:
    data = SpiedDataModule()
    assert sum(len(labels) for _, labels in data.predict_dataloader()) == 50
    assert read_splits == ["test"]
    data.prepare_data()
    assert read_splits == ["test", "train"]


def test_the_seed_of_the_run_chooses_the_order() -> None:
    def order(seed: int | None) -> Any:
        if seed is not None:
            seed_everything(seed, verbose=False)
        return TinyDataModule().train_dataloader().sampler.indices().tolist()

    torch.manual_seed(7)
    unset = order(None)
    assert order(7) == unset
    assert order(8) != unset
    assert os.environ["PL_GLOBAL_SEED"] == "8"


def test_class_names_are_ten_words() -> None:
    for module in (MNISTDataModule, FashionMNISTDataModule, DigitsDataModule):
        assert len(set(module.class_names)) == 10
    assert FashionMNISTDataModule.class_names[0] == "T-shirt/top"
    assert FashionMNISTDataModule.class_names[9] == "Ankle boot"


def test_a_data_set_without_statistics_or_a_name_can_be_used() -> None:
    class PlainDataModule(DigitsDataModule):
        name = None  # type: ignore[assignment]
        mean_std = None  # type: ignore[assignment]

    assert PlainDataModule().name == "plain"
    images, _ = next(iter(PlainDataModule(normalization="symmetric").train_dataloader()))
    assert images.shape == (32, 1, 28, 28)
    with pytest.raises(ValueError, match="standard, but PlainDataModule has no mean_std"):
        PlainDataModule(normalization="standard")


def test_a_root_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="file, where there should be a folder of data sets"):
        TinyDataModule(root=str(tmp_path / "file")).setup("fit")
