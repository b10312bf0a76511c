import os
import re
from collections import Counter
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from lightning import LightningModule, Trainer, seed_everything
from PIL import Image
from torch import Tensor

from digitlab.data import DigitsDataModule, ImageDataModule
from digitlab.data.download import Split
from tests import tiny
from tests.fitting import trainer
from tests.tiny import SpiedDataModule, TinyDataModule

Read = Callable[..., tuple[Any, Any]]
TRAIN = {image.tobytes(): number for number, image in enumerate(tiny.TRAIN[0])}
TEST = {image.tobytes(): number for number, image in enumerate(tiny.TEST[0])}


def positions(data: ImageDataModule, split: Any, source: dict[bytes, int] = TRAIN) -> list[int]:
    """Positions of a subset's images in the split that they come from."""
    return [source[image.tobytes()] for image in data.arrays(split)[0]]


# Settings.


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0: it must be at least 1"),
        ({"validation_size": -1}, "validation_size is -1: it must be at least 0"),
        ({"train_images": (10, 10)}, r"train_images is \[10, 10\]: .* end greater than the first"),
        ({"train_images": (-1, 10)}, r"train_images is \[-1, 10\]: the first must be at least 0"),
        ({"train_images": (0, 201)}, r"train_images is \[0, 201\]: the end must be at most 200"),
        ({"validation_size": 9}, "validation_size is 9: both parts of the 200 training images"),
        ({"validation_size": 50, "train_images": (0, 40)}, "validation_size is 50: .* the 40"),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(values: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        TinyDataModule(**values).setup("fit")
    assert "\n" not in str(error.value)


# Splits.


def test_the_splits_are_those_of_the_files_and_of_the_loaders() -> None:
    data = TinyDataModule()
    loaders = {"train": data.train_eval_dataloader(), "test": data.test_dataloader()}
    for split, truth in (("train", tiny.TRAIN), ("test", tiny.TEST)):
        images, labels = data.arrays(split)  # type: ignore[arg-type] # a literal above
        assert (images.dtype.name, labels.dtype.name) == ("uint8", "int64")
        assert np.array_equal(images, truth[0])
        assert np.array_equal(labels, truth[1])
        images, labels = images.copy(), labels.copy()
        for array in data.arrays(split):  # type: ignore[arg-type]
            array[:] = 0  # a copy, which the loaders do not see
        batches = list(loaders[split])
        pixels = torch.cat([batch for batch, _ in batches])[:, 0]
        torch.testing.assert_close(pixels, torch.from_numpy(images) / 255)
        assert torch.cat([batch for _, batch in batches]).tolist() == labels.tolist()
    assert positions(data, "validation", TEST) == list(range(50))


def test_a_hold_out_is_stratified_disjoint_and_complete() -> None:
    data = TinyDataModule(validation_size=30, train_images=(50, 150))
    train, validation = positions(data, "train"), positions(data, "validation")
    assert sorted(train + validation) == list(range(50, 150))
    assert (data.size("train"), data.size("validation")) == (70, 30)
    assert train == sorted(train)
    assert sum(len(labels) for _, labels in data.val_dataloader()) == 30
    of_all = TinyDataModule(validation_size=50).arrays("validation")[1]
    assert set(Counter(of_all.tolist()).values()) == {5}


def test_a_hold_out_depends_on_its_own_seed_only() -> None:
    def hold_out(seed: int, validation_seed: int) -> list[int]:
        seed_everything(seed, verbose=False)
        data = TinyDataModule(validation_size=50, validation_seed=validation_seed)
        return positions(data, "validation")

    assert hold_out(1, 0) == hold_out(2, 0) != hold_out(1, 1)
    # A literal: a run of an older release is resumed with the same hold-out.
    assert hold_out(1, 0)[:10] == [5, 10, 11, 12, 18, 19, 21, 28, 30, 31]


@pytest.mark.parametrize(
    ("stage", "validation_size", "splits"),
    [
        ("fit", 0, ["train", "test"]),
        ("fit", 50, ["train"]),
        ("validate", 0, ["test"]),
        ("test", 50, ["test"]),
        (None, 50, ["train", "test"]),
    ],
)
def test_a_stage_reads_the_splits_that_it_needs_once(
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


def test_the_run_s_seed_chooses_the_order() -> None:
    def order(seed: int | None) -> Any:
        if seed is not None:
            seed_everything(seed, verbose=False)
        return TinyDataModule().train_dataloader().sampler.indices().tolist()

    torch.manual_seed(7)
    unset = order(None)
    assert order(7) == unset
    assert order(8) != unset
    assert os.environ["PL_GLOBAL_SEED"] == "8"


# Data sets of other people.


class OwnDataModule(ImageDataModule):
    """Digits, altered by a function of images and labels."""

    alter: Read = staticmethod(lambda images, labels: (images, labels))

    def read(self, split: Split) -> tuple[Any, Any]:
        return self.alter(*DigitsDataModule().read(split))


def test_a_data_set_without_statistics_or_a_name_can_be_used() -> None:
    class PlainDataModule(OwnDataModule):
        name = None

    assert PlainDataModule().name == "plain"
    assert type("DataModule", (OwnDataModule,), {"name": ""})().name == "datamodule"
    data = PlainDataModule(normalization="standard")
    images, labels = data.arrays("test")
    assert np.array_equal(images, DigitsDataModule().arrays("test")[0])
    assert np.array_equal(labels, DigitsDataModule().arrays("test")[1])
    pixels = data.arrays("train")[0] / 255
    served = torch.cat([images for images, _ in data.test_dataloader()])[:, 0]
    reference = (images / 255 - pixels.mean()) / pixels.std()
    torch.testing.assert_close(served.double(), torch.from_numpy(reference), rtol=0, atol=2e-6)


@pytest.mark.promise("data")
def test_images_other_than_those_recorded_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    data = OwnDataModule()
    data.setup()
    assert data.verification == "not verified"
    recorded = data.digests_read
    assert recorded.keys() == {"train", "test"}
    OwnDataModule(digests=recorded).setup()
    for alter in (lambda x, y: (x ^ 1, y), lambda x, y: (x, y[::-1])):
        monkeypatch.setattr(OwnDataModule, "alter", staticmethod(alter))
        message = "own: the train images or labels are not those of data.digests, which a run reco"
        with pytest.raises(ValueError, match=message):
            OwnDataModule(digests=recorded).setup("fit")
        OwnDataModule(digests={"test": recorded["test"]}).arrays("train")
    known = TinyDataModule()
    known.setup()
    assert known.digests_read == {}
    with pytest.raises(ValueError, match="tiny: the test images or labels are not those of"):
        TinyDataModule(digests=recorded).setup("test")


class LargeDataModule(OwnDataModule):
    """Digits of 32x32 pixels."""

    image_size = 32

    def read(self, split: Split) -> tuple[Any, Any]:
        images, labels = super().read(split)
        return np.pad(images, [(0, 0), (2, 2), (2, 2)]), labels


def test_images_may_have_another_size_that_the_class_names() -> None:
    data = LargeDataModule()
    images, _ = next(iter(data.train_dataloader()))
    assert images.shape == (32, 1, 32, 32)
    photograph = Image.fromarray(DigitsDataModule().arrays("test")[0][0])
    assert data.prepare_image(photograph).pixels.shape == (32, 32)
    data.image_size = 30
    with pytest.raises(ValueError, match=r"images are uint8 \(360, 32, 32\): .* \(N, 30, 30\)"):
        data.setup("test")


def test_a_runtime_error_of_torchvision_s_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    error = RuntimeError("Dataset not found.\nYou can use download=True")
    monkeypatch.setattr(OwnDataModule, "read", Mock(side_effect=error))
    with pytest.raises(ValueError, match=r"^OwnDataModule.read\('train'\): Dataset not found. You"):
        OwnDataModule().setup("fit")


@pytest.mark.parametrize(
    ("alter", "message"),
    [
        (lambda x, y: (x / 255, y), r"images are float64 \(360, 28, 28\): .* from 0 to 255, uint8"),
        (lambda x, y: (x[:, None], y), r"images are uint8 \(360, 1, 28, 28\): .* \(N, 28, 28\)"),
        (lambda x, y: (x[:0], y[:0]), r"images are uint8 \(0, 28, 28\): .* at least one"),
        (lambda x, y: (torch.tensor(x), y), "images are Tensor: they must be a NumPy array"),
        (lambda x, y: (x, y[:-1]), r"labels are int64 \(359,\): .* for each image, int64 \(360,\)"),
        (lambda x, y: (x, y.astype(np.uint8)), r"labels are uint8 \(360,\): .* int64 \(360,\)"),
        (
            lambda x, y: (x, y + 1),
            "labels are from 1 to 10: .* from 0 to 9, the positions in class_n",
        ),
        (lambda x, y: (x, y - 1), "labels are from -1 to 8: they must be from 0 to 9"),
    ],
)
def test_arrays_that_break_a_rule_are_refused_with_the_rule(
    alter: Read, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(OwnDataModule, "alter", staticmethod(alter))
    with pytest.raises(ValueError, match=rf"^OwnDataModule\.read\('test'\): the {message}"):
        OwnDataModule().setup("test")


LAYOUTS: dict[str, Read] = {
    "reversed": lambda x, y: (x[::-1, :, ::-1], y[::-1]),
    "read-only": lambda x, y: (np.frombuffer(x, np.uint8).reshape(x.shape), y),
    "in Fortran's order": lambda x, y: (np.asfortranarray(x), y.repeat(2)[::2]),
}


@pytest.mark.parametrize("validation_size", [0, 100])
@pytest.mark.parametrize("alter", LAYOUTS.values(), ids=LAYOUTS)
def test_arrays_are_taken_however_they_lie_in_memory(
    alter: Read, validation_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(OwnDataModule, "alter", staticmethod(alter))
    data = OwnDataModule(validation_size=validation_size)
    data.setup()  # torch's warning would fail the test
    expected = alter(*DigitsDataModule().arrays("test"))
    images, labels = data.arrays("test")
    assert np.array_equal(images, expected[0])
    assert np.array_equal(labels, expected[1])
    served = torch.cat([images for images, _ in data.test_dataloader()])[:, 0]
    assert torch.equal(served.mul(255).round().byte(), torch.from_numpy(expected[0].copy()))
    given = expected[0][:7][::-1]
    assert sum(len(labels) for _, labels in data.image_loader(given)) == 7
    assert sum(len(labels) for _, labels in data.train_dataloader()) == data.size("train")


@pytest.mark.parametrize("returned", [None, np.zeros((2, 28, 28), np.uint8), (1, 2, 3)])
def test_read_must_return_two_arrays(returned: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OwnDataModule, "read", lambda *_: returned)
    with pytest.raises(ValueError, match=r"OwnDataModule.read\('test'\) returns .*two NumPy"):
        OwnDataModule().setup("test")


def test_class_names_may_be_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    for names in (range(10), np.arange(10), "0123456789"):
        monkeypatch.setattr(OwnDataModule, "class_names", names)
        assert OwnDataModule().class_names == DigitsDataModule.class_names
    monkeypatch.setattr(OwnDataModule, "class_names", property(lambda self: ("a", "b")))
    assert OwnDataModule().class_names == ("a", "b")


@pytest.mark.parametrize(
    ("attribute", "values", "rule"),
    [
        (
            "name",
            ["emnist/letters", "two words", "..", ".hidden", "-x", "a\nb", "x" * 101, 2024],
            "it names folders, so give at most 100 letters, digits and _ . [+] -",
        ),
        ("class_names", [None, [], {0: "a"}, {"a", "b"}, ["a", None], 10], "give a list of texts"),
    ],
)
def test_a_bad_name_is_refused_where_the_data_module_is_made(
    attribute: str, values: list[Any], rule: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = OwnDataModule()
    for value in values:
        message = rf"OwnDataModule.{attribute} is {re.escape(repr(value))}: {rule}"
        with pytest.raises(ValueError, match=message):
            setattr(own, attribute, value)
        monkeypatch.setattr(OwnDataModule, attribute, value)
        with pytest.raises(ValueError, match=message):
            OwnDataModule()
        monkeypatch.undo()


# Under Lightning's trainer.


def numbers(batch: tuple[Tensor, Tensor], whole: dict[bytes, int]) -> list[int]:
    """Positions of a batch's images in the split that they come from."""
    return [whole[image.tobytes()] for image in batch[0].mul(255).round().byte().numpy()]


class Recorder(LightningModule):
    """Trains one weight, and records the images it is served."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen: list[tuple[int, list[int]]] = []
        self.validations: list[list[list[int]]] = []

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        self.seen.append((self.current_epoch, numbers(batch, TRAIN)))
        return self.weight.sum()

    def on_validation_start(self) -> None:
        self.validations.append([])

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.validations[-1].append(numbers(batch, TRAIN | TEST))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.parametrize(("limit", "batches"), [(1.0, 3), (1, 1), (2, 2)])
def test_every_validation_starts_at_the_first_image(limit: float, batches: int) -> None:
    model = Recorder()
    data = TinyDataModule(eval_batch_size=20)
    trainer(max_epochs=2, limit_val_batches=limit, val_check_interval=3).fit(model, data)
    whole = [[*range(20)], [*range(20, 40)], [*range(40, 50)]]
    assert model.validations == [whole[: min(2, batches)], *[whole[:batches]] * 4]


def test_overfitting_repeats_the_same_batches() -> None:
    model = Recorder()
    # Lightning looks at the sampler's class only, so it warns about the validation split too.
    with pytest.warns(UserWarning, match=r"turning off the (train|val) dataloader shuffling"):
        trainer(max_epochs=2, overfit_batches=2, limit_val_batches=0).fit(model, TinyDataModule())
    first, second = ([batch for e, batch in model.seen if e == epoch] for epoch in (0, 1))
    assert first == second == [[*range(32)], [*range(32, 64)]]


def test_loaders_take_device_rank_and_blocks_from_the_trainer() -> None:
    data = TinyDataModule()
    values: dict[str, Any] = {
        "strategy": SimpleNamespace(root_device=torch.device("meta")),
        "global_rank": 1,
        "world_size": 3,
        "lightning_module": SimpleNamespace(steps_per_execution=2),
        "limit_train_batches": 2,
        "max_steps": 10,
        "global_step": 9,
    }
    data.trainer = cast("Trainer", SimpleNamespace(**values))
    for loader in (data.train_dataloader(), data.val_dataloader(), data.predict_dataloader()):
        assert (loader.sampler.rank, loader.sampler.world_size) == (1, 3)
        assert {tensor.device.type for tensor in next(iter(loader))[:2]} == {"meta"}
    train = data.train_dataloader()
    assert (len(train.sampler), len(data.val_dataloader().sampler)) == (67, 17)
    assert (train.batches, len(train)) == (2, 1)
    assert [len(block.labels) for block in train] == [32, 32]  # one step at a time is left
