import math
from collections.abc import Iterator
from itertools import chain, pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision import transforms

from digitlab.data import Augmentation, DigitsDataModule, EpochSampler, ImageDataModule, ImageLoader
from tests.tiny import TinyDataModule

NORMALIZATIONS = ["unit", "symmetric", "standard"]


def numbered(sampler: EpochSampler, batch_size: int = 4, **options: Any) -> ImageLoader:
    """A loader whose labels are the images' positions in the data set."""
    images = np.random.default_rng(3).integers(0, 256, (sampler.images, 28, 28), np.uint8)
    return ImageLoader(images, np.arange(sampler.images), sampler, batch_size, **options)


def shuffled(images: int = 23, **options: Any) -> ImageLoader:
    return numbered(EpochSampler(images, shuffle=True), **options)


def served(loader: ImageLoader) -> list[list[int]]:
    return [labels.tolist() for _, labels in loader]


def flat(batches: list[list[Any]]) -> list[Any]:
    return list(chain.from_iterable(batches))


# The order of images.


def test_the_order_is_numpy_s_permutation_seeded_with_seed_and_epoch() -> None:
    # Literals: a run of an older release is resumed in the same order.
    for seed, epoch, order in [
        (3, 1, [2, 1, 4, 0, 5, 7, 6, 3]),
        (3, 2, [1, 7, 4, 0, 2, 6, 3, 5]),
        (4, 1, [4, 5, 6, 1, 2, 7, 3, 0]),
    ]:
        torch.manual_seed(99)
        assert EpochSampler(8, seed, shuffle=True, epoch=epoch).indices().tolist() == order
        loader = numbered(EpochSampler(8, seed, shuffle=True), batch_size=3)
        loader.sampler.set_epoch(epoch)
        assert served(loader) == [order[:3], order[3:6], order[6:]]


@pytest.mark.parametrize("world_size", [2, 3, 7])
@pytest.mark.parametrize("shuffle", [False, True])
def test_the_ranks_batches_are_together_the_batch_of_one_process(
    world_size: int, shuffle: bool
) -> None:
    images = 4 * world_size * 3  # so that nothing is padded
    whole = served(numbered(EpochSampler(images, 5, shuffle), batch_size=4 * world_size))
    ranks = [
        served(numbered(EpochSampler(images, 5, shuffle, True, rank, world_size)))
        for rank in range(world_size)
    ]
    for step, batch in enumerate(whole):
        assert sorted(flat([rank[step] for rank in ranks])) == sorted(batch)


@pytest.mark.parametrize(("images", "world_size"), [(10, 3), (11, 4), (12, 4), (2, 5)])
def test_training_pads_and_evaluation_counts_every_image_once(images: int, world_size: int) -> None:
    for pad in (True, False):
        samplers = [
            EpochSampler(images, pad=pad, rank=rank, world_size=world_size)
            for rank in range(world_size)
        ]
        shares = [sampler.indices().tolist() for sampler in samplers]
        assert [len(sampler) for sampler in samplers] == [len(share) for share in shares]
        assert [len(numbered(s)) for s in samplers] == [math.ceil(len(s) / 4) for s in shares]
        assert set(flat(shares)) == set(range(images))
        if pad:
            assert {len(share) for share in shares} == {math.ceil(images / world_size)}
        else:
            assert len(flat(shares)) == images


def test_without_set_epoch_every_iteration_has_the_same_order() -> None:
    loader = shuffled()
    assert all(first == second for first, second in pairwise([served(loader) for _ in range(3)]))


# Pixels.


def reference_images(data: ImageDataModule, split: Any) -> Tensor:
    """A split as prepared by torchvision's per-image transforms."""
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


def test_every_pixel_value_is_normalized_as_torchvision_does() -> None:
    pixels = np.resize(np.arange(256, dtype=np.uint8), (1, 28, 28))
    for mean_std in [(0.5, 0.5), (0.1307, 0.3081), (0.2860, 0.3530), (0.3047, 0.3245)]:
        loader = ImageLoader(pixels, np.zeros(1, np.int64), EpochSampler(1), 1, mean_std)
        mean, std = mean_std
        transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize([mean], [std])])
        assert_bit_identical(loader, transform(pixels[0])[None])


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("module", [TinyDataModule, DigitsDataModule])
def test_images_are_bit_identical_to_torchvisions_transforms(
    module: type[ImageDataModule], normalization: Any
) -> None:
    data = module(normalization=normalization, eval_batch_size=32)
    assert_bit_identical(data.test_dataloader(), reference_images(data, "test"))


@pytest.mark.gpu
@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_images_made_on_a_gpu_are_bit_identical_to_torchvisions_transforms(
    normalization: Any,
) -> None:
    data = TinyDataModule(normalization=normalization)
    scale = {"unit": None, "symmetric": (0.5, 0.5), "standard": data.mean_std}[normalization]
    loader = ImageLoader(*data.arrays("train"), EpochSampler(200), 32, scale, "cuda")
    assert_bit_identical(loader, reference_images(data, "train"))


# The position.


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"steps_per_execution": 4},
        {"steps_per_execution": 4, "augmentation": Augmentation(shift=2, flip=True, erase=0.5)},
    ],
)
def test_a_loader_resumed_after_any_batch_serves_the_rest(options: Any) -> None:
    def batches(loader: ImageLoader, first: int, epochs: int = 3) -> Iterator[Tensor]:
        for epoch in range(first, epochs):
            loader.sampler.set_epoch(epoch)
            for images, labels, *_ in loader:
                yield torch.cat([images.flatten(), labels])

    uninterrupted = list(batches(shuffled(**options), 0))
    stopped = shuffled(**options)
    for position, _ in enumerate(batches(stopped, 0), start=1):
        state = stopped.state_dict()
        resumed = shuffled(**options)
        torch.manual_seed(position)  # other random numbers have no part in it
        resumed.load_state_dict(state)
        assert resumed.state_dict() == state
        rest = list(batches(resumed, state["epoch"]))
        assert len(rest) == len(uninterrupted) - position
        assert all(map(torch.equal, rest, uninterrupted[position:]))


def test_a_batch_counts_as_served_while_it_is_used_and_a_new_epoch_starts_at_its_first() -> None:
    loader, resumed = shuffled(), shuffled()
    assert loader.state_dict()["batches"] == 0
    assert [loader.state_dict()["batches"] for _ in loader] == [1, 2, 3, 4, 5, 6]
    resumed.load_state_dict(loader.state_dict())
    for one in (loader, resumed):
        one.sampler.set_epoch(1)
        assert one.state_dict()["batches"] == 0
        assert sorted(flat(served(one))) == list(range(23))


def test_only_the_first_iteration_after_loading_a_position_is_cut() -> None:
    loader = numbered(EpochSampler(23))
    loader.load_state_dict({**loader.state_dict(), "batches": 4})
    assert [len(served(loader)) for _ in range(2)] == [2, 6]
    next(iter(loader))  # an evaluation that is cut short starts anew
    loader.sampler.set_epoch(0)
    assert flat(served(loader)) == list(range(23))


def test_iterators_that_are_made_but_not_used_change_nothing() -> None:
    loader = shuffled()
    iterators = [iter(loader) for _ in range(3)]
    loader.load_state_dict({**loader.state_dict(), "epoch": 2, "batches": 4})
    reference = flat(served(numbered(EpochSampler(23, shuffle=True, epoch=2))))
    assert flat([labels.tolist() for _, labels in iterators[1]]) == reference[16:]


@pytest.mark.parametrize(
    "name", ["seed", "batch_size", "images", "world_size", "steps_per_execution", "augmentation"]
)
def test_a_position_in_another_order_is_refused_by_name(name: str) -> None:
    loader = numbered(EpochSampler(23))
    state = loader.state_dict()
    assert {type(value) for value in state.values()} == {int, str}
    with pytest.raises(ValueError, match=f"{name} is {state[name]}.* {name} 77: resume"):
        loader.load_state_dict({**state, name: 77})


# Blocks of several batches.


def in_blocks(steps: int, left: float = math.inf, limit: int | None = None) -> ImageLoader:
    return shuffled(steps_per_execution=steps, limit=limit, steps_left=lambda: left)


@pytest.mark.parametrize("limit", [None, 5])
@pytest.mark.parametrize("steps", [2, 4, 6, 10])
def test_blocks_have_the_batches_in_their_order(steps: int, limit: int | None) -> None:
    count = limit or 6
    blocks = list(in_blocks(steps, limit=limit))
    assert len(blocks) == len(in_blocks(steps, limit=limit)) == math.ceil(count / steps)
    batches = [[labels.tolist() for _, labels in block.batches()] for block in blocks]
    assert [len(block) for block in batches[:-1]] == [steps] * (len(blocks) - 1)
    assert flat(batches) == served(shuffled())[:count]


def test_a_block_that_was_cut_short_is_followed_by_its_rest() -> None:
    stopped, resumed = in_blocks(4, left=3), in_blocks(4)
    first = next(iter(stopped))
    assert stopped.state_dict()["batches"] == 3
    resumed.load_state_dict(stopped.state_dict())
    whole = list(in_blocks(4))
    rest, *others = resumed
    assert torch.equal(torch.cat([first.labels, rest.labels]), whole[0].labels)
    assert [block.labels.tolist() for block in others] == [b.labels.tolist() for b in whole[1:]]


@pytest.mark.parametrize("left", [0, -5])
def test_nothing_is_served_when_no_step_is_left(left: int) -> None:
    assert list(in_blocks(4, left)) == []
