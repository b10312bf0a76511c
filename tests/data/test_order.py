from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

from digitlab.data import EpochSampler
from tests.data.test_loader import flat, numbered, served


def test_the_order_follows_from_seed_and_epoch_alone() -> None:
    def order(seed: int, epoch: int) -> Any:
        return EpochSampler(50, seed=seed, epoch=epoch, shuffle=True).indices().tolist()

    first = order(1, 0)
    torch.manual_seed(99)
    np.random.default_rng(99).random()
    assert order(1, 0) == first
    assert len({tuple(order(seed, epoch)) for seed in range(4) for epoch in range(4)}) == 16


def test_an_epoch_holds_every_image_exactly_once() -> None:
    loader = numbered(EpochSampler(23, shuffle=True))
    for epoch in range(3):
        loader.sampler.set_epoch(epoch)
        assert sorted(flat(served(loader))) == list(range(23))


def test_an_unshuffled_order_is_that_of_the_data_set() -> None:
    assert flat(served(numbered(EpochSampler(23)))) == list(range(23))


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
def test_training_pads_so_that_ranks_have_equally_many_images(images: int, world_size: int) -> None:
    orders = [
        EpochSampler(images, shuffle=True, pad=True, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    shares = [order.indices().tolist() for order in orders]
    assert {len(share) for share in shares} == {-(-images // world_size)}
    assert [len(order) for order in orders] == [len(share) for share in shares]
    assert set(flat(shares)) == set(range(images))


@pytest.mark.parametrize(("images", "world_size"), [(9, 2), (10, 3), (11, 4), (12, 4), (2, 5)])
def test_evaluation_counts_every_image_once_on_unequal_ranks(images: int, world_size: int) -> None:
    loaders = [
        numbered(EpochSampler(images, rank=rank, world_size=world_size))
        for rank in range(world_size)
    ]
    shares = [served(loader) for loader in loaders]
    assert sorted(flat(flat(shares))) == list(range(images))
    assert sum(len(loader.sampler) for loader in loaders) == images
    assert [len(loader) for loader in loaders] == [len(share) for share in shares]


def test_without_set_epoch_every_iteration_has_the_same_order() -> None:
    loader = numbered(EpochSampler(23, shuffle=True))
    assert all(first == second for first, second in pairwise([served(loader) for _ in range(3)]))
