import math
from collections.abc import Iterator
from itertools import chain
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision import transforms

from digitlab.data import (
    DigitsDataModule,
    EpochSampler,
    FashionMNISTDataModule,
    ImageDataModule,
    ImageLoader,
    MNISTDataModule,
)
from tests.tiny import TinyDataModule

NORMALIZATIONS = ["unit", "symmetric", "standard"]


def numbered(order: EpochSampler, batch_size: int = 4) -> ImageLoader:
    """A loader whose labels are the images' numbers, so that a batch tells what it holds."""
    images = np.random.default_rng(3).integers(0, 256, (order.images, 28, 28), np.uint8)
    return ImageLoader(images, np.arange(order.images), order, batch_size)


def served(loader: ImageLoader) -> list[list[int]]:
    return [labels.tolist() for _, labels in loader]


def flat(batches: list[list[Any]]) -> list[Any]:
    return list(chain.from_iterable(batches))


def reference_images(data: ImageDataModule, split: Any) -> Tensor:
    """What torchvision's per-image transforms make of a split."""
    scales: Any = {"unit": (0.0, 1.0), "symmetric": (0.5, 0.5), "standard": data.mean_std}
    mean, std = scales[data.normalization]
    steps: list[Any] = [transforms.ToTensor()]
    if data.normalization != "unit":
        steps.append(transforms.Normalize([mean], [std]))
    transform = transforms.Compose(steps)
    images, _ = data.arrays(split)
    return torch.stack([transform(image) for image in images])


def assert_bit_identical(loader: ImageLoader, reference: Tensor) -> None:
    images = torch.cat([images for images, _ in loader])
    assert images.dtype == torch.float32
    assert images.shape == reference.shape == (len(reference), 1, 28, 28)
    assert torch.equal(images.cpu().view(torch.int32), reference.view(torch.int32))


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_images_are_bit_identical_to_torchvisions_transforms(normalization: Any) -> None:
    data = TinyDataModule(normalization=normalization, eval_batch_size=32)
    assert_bit_identical(data.train_eval_dataloader(), reference_images(data, "train"))


def test_every_pixel_value_is_normalized_as_torchvision_does() -> None:
    pixels = np.resize(np.arange(256, dtype=np.uint8), (1, 28, 28))
    for mean_std in [(0.5, 0.5), (0.1307, 0.3081), (0.2860, 0.3530), (0.3047, 0.3245)]:
        loader = ImageLoader(pixels, np.zeros(1, np.int64), EpochSampler(1), 1, mean_std)
        mean, std = mean_std
        transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize([mean], [std])])
        assert_bit_identical(loader, transform(pixels[0])[None])


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize(
    "module", [MNISTDataModule, FashionMNISTDataModule, DigitsDataModule], ids=lambda m: m.name
)
@pytest.mark.usefixtures("real_data")
def test_real_images_are_bit_identical_to_torchvisions_transforms(
    module: type[ImageDataModule], normalization: Any
) -> None:
    data = module(normalization=normalization, eval_batch_size=512)
    assert_bit_identical(data.test_dataloader(), reference_images(data, "test"))


@pytest.mark.gpu
@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_images_made_on_a_gpu_are_bit_identical_to_torchvisions_transforms(
    normalization: Any,
) -> None:
    data = TinyDataModule(normalization=normalization)
    scale = {"unit": None, "symmetric": (0.5, 0.5), "standard": data.mean_std}[normalization]
    loader = ImageLoader(*data.arrays("train"), EpochSampler(200), 32, scale, "cuda")
    assert all(images.is_cuda and labels.is_cuda for images, labels in loader)
    assert_bit_identical(loader, reference_images(data, "train"))


def test_labels_are_int64_and_stay_with_their_images() -> None:
    data = TinyDataModule()
    images, labels = data.arrays("train")
    label_of = {image.tobytes(): label for image, label in zip(images, labels, strict=True)}
    for batch, batch_labels in data.train_dataloader():
        assert batch_labels.dtype == torch.int64
        pixels = batch.mul(255).round().to(torch.uint8).numpy()
        assert [label_of[image.tobytes()] for image in pixels] == batch_labels.tolist()


def test_no_partial_batch_is_dropped() -> None:
    loader = TinyDataModule(batch_size=32).train_dataloader()
    assert [len(labels) for _, labels in loader] == [32] * 6 + [8]
    assert len(loader) == 7


@pytest.mark.parametrize(("images", "batch_size", "steps"), [(60_000, 128, 469), (60_000, 64, 938)])
def test_an_epoch_has_as_many_steps_as_in_the_documents(
    images: int, batch_size: int, steps: int
) -> None:
    loader = ImageLoader(
        np.zeros((1, 28, 28), np.uint8), np.zeros(1, np.int64), EpochSampler(images), batch_size
    )
    assert len(loader) == steps


def test_a_loader_resumed_at_any_batch_goes_on_as_if_it_had_not_stopped() -> None:
    def batches(loader: ImageLoader, first: int, epochs: int = 3) -> Iterator[Tensor]:
        for epoch in range(first, epochs):
            loader.sampler.set_epoch(epoch)
            for images, labels in loader:
                yield torch.cat([images.flatten(), labels])

    uninterrupted = list(batches(numbered(EpochSampler(23, shuffle=True)), 0))
    stopped = numbered(EpochSampler(23, shuffle=True))
    for position, _ in enumerate(batches(stopped, 0), start=1):
        state = stopped.state_dict()
        resumed = numbered(EpochSampler(23, shuffle=True))
        resumed.load_state_dict(state)
        assert resumed.state_dict() == state
        rest = list(batches(resumed, state["epoch"]))
        assert len(rest) == len(uninterrupted) - position
        assert all(map(torch.equal, rest, uninterrupted[position:]))


def test_a_batch_counts_as_served_while_it_is_being_used() -> None:
    loader = numbered(EpochSampler(23))
    assert loader.state_dict()["batches"] == 0
    assert [loader.state_dict()["batches"] for _ in loader] == [1, 2, 3, 4, 5, 6]


def test_a_new_epoch_starts_at_its_first_batch() -> None:
    loader = numbered(EpochSampler(23, shuffle=True))
    next(iter(loader))
    loader.sampler.set_epoch(1)
    assert loader.state_dict()["batches"] == 0
    assert sorted(flat(served(loader))) == list(range(23))


def test_a_position_in_another_epoch_than_the_one_that_starts_is_forgotten() -> None:
    loader, resumed = (numbered(EpochSampler(23, shuffle=True)) for _ in range(2))
    next(iter(loader))
    resumed.load_state_dict(loader.state_dict())
    resumed.sampler.set_epoch(1)
    assert sorted(flat(served(resumed))) == list(range(23))


def test_only_the_first_iteration_after_loading_a_position_is_cut() -> None:
    loader = numbered(EpochSampler(23))
    loader.load_state_dict({**loader.state_dict(), "batches": 4})
    assert [len(served(loader)) for _ in range(2)] == [2, 6]


def test_an_evaluation_that_was_cut_short_starts_anew() -> None:
    loader = numbered(EpochSampler(23))
    next(iter(loader))
    loader.sampler.set_epoch(0)
    assert flat(served(loader)) == list(range(23))


def test_asking_for_iterators_without_using_them_changes_nothing() -> None:
    loader = numbered(EpochSampler(23, shuffle=True))
    iterators = [iter(loader) for _ in range(3)]
    loader.load_state_dict({**loader.state_dict(), "epoch": 2, "batches": 4})
    reference = flat(served(numbered(EpochSampler(23, shuffle=True, epoch=2))))
    assert flat([labels.tolist() for _, labels in iterators[1]]) == reference[16:]


@pytest.mark.parametrize(
    "name", ["seed", "batch_size", "images", "world_size", "steps_per_execution"]
)
def test_a_position_in_another_order_is_refused_by_name(name: str) -> None:
    loader = numbered(EpochSampler(23))
    state = loader.state_dict()
    with pytest.raises(ValueError, match=f"{name} is {state[name]}.* {name} 77: resume"):
        loader.load_state_dict({**state, name: 77})


def test_the_position_is_made_of_plain_numbers() -> None:
    assert {type(value) for value in numbered(EpochSampler(23)).state_dict().values()} == {int}


def in_blocks(steps: int, left: float = math.inf) -> ImageLoader:
    images = np.zeros((23, 28, 28), np.uint8)
    order = EpochSampler(23, shuffle=True)
    return ImageLoader(
        images, np.arange(23), order, 4, steps_per_execution=steps, steps_left=lambda: left
    )


@pytest.mark.parametrize("steps", [2, 4, 6, 10])
def test_blocks_have_the_batches_in_their_order(steps: int) -> None:
    blocks = list(in_blocks(steps))
    assert len(blocks) == len(in_blocks(steps)) == -(-6 // steps)
    batches = [labels.tolist() for block in blocks for _, labels in block.batches()]
    assert batches == served(numbered(EpochSampler(23, shuffle=True)))


def test_a_loader_resumed_at_a_block_goes_on_with_the_next() -> None:
    stopped, resumed = in_blocks(4), in_blocks(4)
    next(iter(stopped))
    assert stopped.state_dict()["batches"] == 4
    resumed.load_state_dict(stopped.state_dict())
    ((_, rest, _),) = list(resumed)
    assert rest.tolist() == stopped.sampler.indices()[16:].tolist()


def test_a_block_that_was_cut_short_is_followed_by_its_rest() -> None:
    stopped, again = in_blocks(4, left=3), in_blocks(4)
    (first,) = (next(iter(stopped)),)
    again.load_state_dict(stopped.state_dict())
    whole = list(in_blocks(4))
    rest, *others = again
    assert torch.equal(torch.cat([first.labels, rest.labels]), whole[0].labels)
    assert [block.labels.tolist() for block in others] == [b.labels.tolist() for b in whole[1:]]


@pytest.mark.parametrize("left", [0, -5])
def test_nothing_is_served_when_no_step_is_left(left: int) -> None:
    assert list(in_blocks(4, left)) == []
