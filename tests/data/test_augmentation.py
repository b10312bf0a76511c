"""Random changes of training images: what they do, and that they depend on nothing else."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning import seed_everything
from numpy.typing import NDArray
from torch import Tensor

from digitlab.cli import main
from digitlab.data import Augmentation, DigitsDataModule, EpochSampler, ImageLoader
from tests import tiny
from tests.commands import checkpoint, config_of, fit
from tests.fitting import assert_bitwise_equal
from tests.tiny import TinyDataModule

ALL = Augmentation(shift=2, flip=True, erase=0.5)


def loader(
    augmentation: Augmentation | None = ALL,
    batch_size: int = 16,
    rank: int = 0,
    ranks: int = 1,
    **options: Any,
) -> ImageLoader:
    sampler = EpochSampler(200, 5, shuffle=True, pad=True, rank=rank, world_size=ranks)
    images, labels = tiny.TRAIN[0], np.arange(200)  # the labels number the images
    return ImageLoader(images, labels, sampler, batch_size, augmentation=augmentation, **options)


def served(loader: ImageLoader) -> dict[int, NDArray[np.uint8]]:
    """The images by their numbers."""
    found: dict[int, NDArray[np.uint8]] = {}
    for images, labels, *_ in loader:
        pixels = images.mul(255).round().byte()[:, 0].numpy()
        found |= dict(zip(labels.tolist(), pixels, strict=True))
    return found


# What it does.


def test_images_are_changed_as_drawn() -> None:
    drawn = ALL.draw(200, 28, seed=5, epoch=0)
    for number, image in served(loader()).items():
        top, left, mirrored, *rectangle = drawn[number].tolist()
        expected = np.zeros((28, 28), np.uint8)
        for row in range(28):
            for column in range(28):
                source = row + top - 2, (27 - column if mirrored else column) + left - 2
                inside = all(0 <= place < 28 for place in source)
                a, b, c, d = rectangle
                erased = a <= row < b and c <= column < d
                expected[row, column] = (
                    tiny.TRAIN[0][number][source] if inside and not erased else 0
                )
        assert np.array_equal(image, expected), number


def test_shifts_mirrors_and_rectangles_have_their_probabilities() -> None:
    drawn = Augmentation(shift=2, flip=True, erase=0.25).draw(40_000, 28, 0, 0).numpy()
    for corner in (drawn[:, 0], drawn[:, 1]):
        counts = Counter(corner.tolist())
        assert counts.keys() == {0, 1, 2, 3, 4}
        assert max(abs(count - 8000) for count in counts.values()) < 400  # 5 standard deviations
    assert abs(drawn[:, 2].mean() - 0.5) < 0.0125
    sides = np.stack([drawn[:, 4] - drawn[:, 3], drawn[:, 6] - drawn[:, 5]])
    erased = sides[:, sides[0] > 0]
    assert abs(erased.shape[1] / 40_000 - 0.25) < 0.011
    for side in erased:
        assert set(side) == set(range(3, 15))  # an eighth to a half of 28
    rows = drawn[sides[0] > 0, 3:5]
    assert (rows[:, 0].min(), rows[:, 1].max()) == (0, 28)
    correlations = np.corrcoef(drawn.T) - np.eye(7)
    assert np.abs(correlations[:3]).max() < 0.025


@pytest.mark.parametrize(
    "part", [Augmentation(shift=3), Augmentation(flip=True), Augmentation(erase=1.0)]
)
def test_each_change_works_alone(part: Augmentation) -> None:
    changed = served(loader(part))
    same = [np.array_equal(changed[i], tiny.TRAIN[0][i]) for i in range(200)]
    assert sum(same) < (130 if part.flip else 20)
    mirrored = [np.array_equal(changed[i], tiny.TRAIN[0][i][:, ::-1]) for i in range(200)]
    assert (sum(same) + sum(mirrored) == 200) is part.flip
    zeros = np.array([(changed[i] == 0).sum() for i in range(200)])
    assert (zeros.max() > 50) is not part.flip
    assert not part.erase or zeros.min() >= 9


def test_switched_off_it_is_bit_equal_to_none() -> None:
    for first, second in zip(loader(None), loader(Augmentation()), strict=True):
        assert torch.equal(first[0].view(torch.int32), second[0].view(torch.int32))
        assert torch.equal(first[1], second[1])


# What it depends on.


def test_every_epoch_and_every_seed_has_its_own_changes() -> None:
    one = loader()
    first = served(one)
    assert all(map(np.array_equal, first.values(), served(one).values()))
    one.sampler.set_epoch(1)
    second = served(one)
    one.sampler.set_epoch(0)
    one.sampler.seed = 6
    third = served(one)
    for other in (second, third):
        assert sum(np.array_equal(first[i], other[i]) for i in range(200)) < 10


@pytest.mark.parametrize(
    "other",
    [
        lambda: [loader(batch_size=7)],
        lambda: [loader(steps_per_execution=4)],
        lambda: [loader(steps_per_execution=100)],
        lambda: [loader(rank=rank, ranks=3) for rank in range(3)],
    ],
    ids=["batch size", "blocks", "one block", "ranks"],
)
def test_an_image_is_changed_alike_in_batches_blocks_and_ranks(
    other: Callable[[], list[ImageLoader]],
) -> None:
    expected = served(loader())
    found: dict[int, Any] = {}
    for one in other():
        found |= served(one)
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[i], expected[i]) for i in expected)


@pytest.mark.gpu
def test_images_are_changed_alike_on_a_gpu() -> None:
    on_cpu, on_gpu = served(loader()), served_on_gpu()
    assert all(np.array_equal(on_gpu[i], on_cpu[i]) for i in on_cpu)


def served_on_gpu() -> dict[int, NDArray[np.uint8]]:
    return served([(images.cpu(), labels.cpu()) for images, labels in loader(device="cuda")])  # type: ignore[arg-type]


# The setting.


def test_only_training_images_are_changed() -> None:
    data = TinyDataModule(augmentation=ALL, validation_size=50, eval_batch_size=64)
    plain = TinyDataModule(validation_size=50, eval_batch_size=64)
    for name in ("train_eval", "val", "test", "predict"):
        ours, theirs = (getattr(it, f"{name}_dataloader")() for it in (data, plain))
        assert all(torch.equal(a, b) for (a, _), (b, _) in zip(ours, theirs, strict=True))
    assert np.array_equal(data.arrays("train")[0], plain.arrays("train")[0])
    (ours, labels), (theirs, same) = (next(iter(it.train_dataloader())) for it in (data, plain))
    assert torch.equal(labels, same)
    assert not torch.equal(ours, theirs)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"shift": -1}, "augmentation.shift is -1: it must be at least 0"),
        ({"erase": 1.5}, "augmentation.erase is 1.5: it must be from 0 to 1"),
        ({"erase": float("nan")}, "augmentation.erase is nan: it must be from 0 to 1"),
    ],
)
def test_a_bad_value_is_refused_by_name(settings: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        Augmentation(**settings)


def test_a_shift_out_of_the_image_is_refused() -> None:
    TinyDataModule(augmentation=Augmentation(shift=27))
    with pytest.raises(ValueError, match=r"augmentation.shift is 28: it must be less than 28, "):
        TinyDataModule(augmentation=Augmentation(shift=28))


def test_settings_of_python_may_be_a_dict_as_in_a_config() -> None:
    assert DigitsDataModule(augmentation={"shift": 2}).augmentation == Augmentation(shift=2)  # type: ignore[arg-type]


def test_a_run_resumed_inside_an_epoch_ends_as_one_that_was_not_interrupted(tmp_path: Path) -> None:
    config, given = tmp_path / "more.yaml", "{augmentation: {shift: 2, erase: 0.5}}"
    config.write_text(f"data: {{class_path: tests.tiny.TinyDataModule, init_args: {given}}}")
    options = [
        *("--config", str(config), "--data.augmentation.flip", "true", "--data.batch_size", "16"),
        *("--trainer.max_epochs", "2", "--model.steps_per_execution", "4"),
    ]
    whole = fit(tmp_path / "whole", *options)
    assert config_of(whole)["data"]["init_args"]["augmentation"] == vars(ALL)
    stopped = fit(tmp_path / "stopped", *options, "--trainer.max_steps", "17")  # of 2 x 13
    assert main(["fit", "--run", str(stopped), "--trainer.max_steps", "-1"]) == 0
    assert_bitwise_equal(*(checkpoint(run)["state_dict"] for run in (stopped, whole)))


def test_seed_everything_chooses_the_changes() -> None:
    def first(seed: int) -> Tensor:
        seed_everything(seed, verbose=False)
        data = TinyDataModule(augmentation=ALL)
        images: Tensor = next(iter(data.train_dataloader()))[0]
        return images

    assert torch.equal(first(1), first(1))
    assert not torch.equal(first(1), first(2))
