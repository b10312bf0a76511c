from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from digitlab.parity.backend import import_keras
from digitlab.parity.trajectory import Masks, check_dropouts, masked_model, masked_module

pytestmark = pytest.mark.skipif(not find_spec("tensorflow"), reason="needs the extra `parity`")

RATE = 0.3
ONES = np.ones((200, 7, 6, 5), np.float32)  # (N, H, W, C)


def keras_sequence(shape: tuple[int, ...], *layers: Any) -> Any:
    keras = import_keras()
    return keras.Sequential([keras.Input(shape), *layers])


def test_numbers_are_a_function_of_seed_layer_and_step() -> None:
    def draw(seed: int = 1, layer: int = 2, step: int = 3) -> list[float]:
        numbers: list[float] = Masks(seed, step).uniform(layer, (50,)).tolist()
        return numbers

    assert draw() == draw()
    variants = [draw(), draw(seed=2), draw(layer=3), draw(step=4), draw(seed=2, layer=1)]
    assert len({number for numbers in variants for number in numbers}) == 250


def test_numbers_are_uniform() -> None:
    numbers = Masks(seed=5).uniform(0, (100_000,))
    assert numbers.min() >= 0
    assert numbers.max() < 1
    # Four standard errors of each of ten bins.
    counts = np.histogram(numbers, bins=10, range=(0, 1))[0]
    np.testing.assert_allclose(counts, 10_000, atol=4 * 95)


@pytest.mark.parametrize("of_channels", [False, True])
def test_both_frameworks_real_dropouts_do_what_the_masks_do(of_channels: bool) -> None:
    keras = import_keras()
    keras.utils.set_random_seed(0)
    layer = (keras.layers.SpatialDropout2D if of_channels else keras.layers.Dropout)(RATE)
    torch_layer = (nn.Dropout2d if of_channels else nn.Dropout)(RATE)
    first = torch.from_numpy(ONES).permute(0, 3, 1, 2)
    masked = masked_module(nn.Sequential(torch_layer), Masks())
    masked_keras = masked_model(keras_sequence(ONES.shape[1:], layer), Masks())
    trained = {
        "torch": torch_layer(first).permute(0, 2, 3, 1).numpy(),
        "keras": layer(ONES, training=True).numpy(),
        "masked torch": masked(first).permute(0, 2, 3, 1).numpy(),
        "masked keras": masked_keras(ONES, training=True).numpy(),
    }
    for values in trained.values():
        assert set(np.unique(values)) == {np.float32(0), np.float32(1 / (1 - RATE))}
        kept = (values > 0)[:, :1, :1] if of_channels else values > 0
        # Four standard errors of a share.
        assert abs(kept.mean() - (1 - RATE)) < 4 * (RATE * (1 - RATE) / kept.size) ** 0.5
        constant = (values == values[:, :1, :1]).all((1, 2))
        assert constant.all() if of_channels else not constant.all()
    evaluated = {
        "torch": torch_layer.eval()(first).permute(0, 2, 3, 1).numpy(),
        "keras": layer(ONES, training=False).numpy(),
        "masked torch": masked.eval()(first).permute(0, 2, 3, 1).numpy(),
        "masked keras": masked_keras(ONES, training=False).numpy(),
    }
    for values in evaluated.values():
        np.testing.assert_array_equal(values, ONES)


@pytest.mark.parametrize("step", [0, 9])
def test_both_sides_drop_the_same_in_either_layout(step: int) -> None:
    layers = import_keras().layers
    masks = Masks(seed=4, step=step)
    ours = masked_module(
        nn.Sequential(nn.Dropout(RATE), nn.Dropout2d(0.6), nn.MaxPool2d(2), nn.Dropout(0.1)), masks
    )
    theirs = masked_model(
        keras_sequence(
            ONES.shape[1:],
            layers.Dropout(RATE),
            layers.SpatialDropout2D(0.6),
            layers.MaxPooling2D(2),
            layers.Dropout(0.1),
        ),
        masks,
    )
    images = np.random.default_rng(0).normal(size=ONES.shape).astype(np.float32)
    left = ours(torch.from_numpy(images).permute(0, 3, 1, 2)).permute(0, 2, 3, 1).numpy()
    right = theirs(images, training=True).numpy()
    np.testing.assert_array_equal(left, right)
    assert 0.1 < (left == 0).mean() < 0.9


def test_each_layer_and_each_step_has_a_mask_of_its_own() -> None:
    masks = Masks(seed=0)
    masked = masked_module(nn.Sequential(nn.Dropout(0.5), nn.Dropout(0.5)), masks)
    first, second = masked.children()
    ones = torch.ones(4, 100)
    before = first(ones)
    assert not torch.equal(before, second(ones))
    masks.step = 1
    assert not torch.equal(before, first(ones))
    masks.step = 0
    assert torch.equal(before, first(ones))


@pytest.mark.parametrize(("rate", "expected"), [(0.0, 1.0), (1.0, 0.0)])
def test_all_or_nothing_may_be_dropped(rate: float, expected: float) -> None:
    theirs = masked_model(keras_sequence((3,), import_keras().layers.Dropout(rate)), Masks())
    ours = masked_module(nn.Sequential(nn.Dropout(rate)), Masks())
    assert (ours(torch.ones(5, 3)) == expected).all()
    assert (theirs(np.ones((5, 3)), training=True).numpy() == expected).all()


def test_the_originals_keep_their_own_dropout() -> None:
    layer, module = import_keras().layers.Dropout(RATE), nn.Sequential(nn.Dropout(RATE))
    model = keras_sequence((3,), layer)
    masked_module(module, Masks())
    masked_model(model, Masks())
    assert type(module[0]) is nn.Dropout
    assert model.layers == [layer]


def test_other_kinds_of_dropout_are_refused_by_name() -> None:
    keras = import_keras()
    with pytest.raises(ValueError, match=r"^0 is a AlphaDropout, whose random numbers cannot"):
        masked_module(nn.Sequential(nn.AlphaDropout()), Masks())
    alpha = keras.layers.GaussianDropout(0.5, name="noise")
    with pytest.raises(ValueError, match=r"^noise is a GaussianDropout, whose .*: use Dropout or"):
        masked_model(keras_sequence((3,), alpha), Masks())
    shaped = keras.layers.Dropout(0.5, noise_shape=(None, 1), name="shaped")
    with pytest.raises(ValueError, match=r"^shaped is a Dropout"):
        masked_model(keras_sequence((3,), shaped), Masks())


def test_dropout_behind_a_flattening_drops_the_same_features_on_both_sides() -> None:
    layers, masks = import_keras().layers, Masks(seed=1)
    shape = ONES.shape[1:]
    theirs = masked_model(keras_sequence(shape, layers.Flatten(), layers.Dropout(RATE)), masks)
    ours = masked_module(nn.Sequential(nn.Flatten(), nn.Dropout(RATE)), masks)
    images = np.random.default_rng(0).normal(size=ONES.shape).astype(np.float32)
    left = ours(torch.from_numpy(images).permute(0, 3, 1, 2)).reshape(-1, 5, 7, 6)
    right = theirs(images, training=True).numpy().reshape(images.shape)
    np.testing.assert_array_equal(left.permute(0, 2, 3, 1).numpy(), right)


def test_another_number_of_dropouts_is_refused() -> None:
    model = keras_sequence((3,), import_keras().layers.Dropout(0.5))
    check_dropouts(nn.Sequential(nn.Dropout()), model)
    with pytest.raises(ValueError, match=r"has 2 dropout layers and the Keras model 1: give both"):
        check_dropouts(nn.Sequential(nn.Dropout(), nn.Dropout()), model)
