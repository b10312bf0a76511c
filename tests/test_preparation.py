from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from digitlab.data import DigitsDataModule, FashionMNISTDataModule, MNISTDataModule
from digitlab.data.photographs import Prepared, prepare_digit, prepare_garment
from tests.pictures import SEVEN, likeness, seven


def mass_centre(pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Reference: row and column of the centre of mass, by their definition."""
    values = pixels.astype(np.float64)
    places = np.arange(28)
    sums = np.array([values.sum(1) @ places, values.sum(0) @ places])
    return sums / float(values.sum())


def numbers(step: str) -> list[int]:
    """Width and height, as in `cropped to 143x98`."""
    return [int(number) for number in step.rpartition(" ")[2].split("x")]


def test_a_digit_fills_a_box_of_20_pixels_and_lies_by_its_centre_of_mass() -> None:
    prepared = prepare_digit(seven())
    assert prepared.pixels.dtype == np.uint8
    rows, columns = (np.flatnonzero(prepared.pixels.any(axis)) for axis in (1, 0))
    height, width = (int(np.ptp(places)) + 1 for places in (rows, columns))
    assert height == 20
    assert np.abs(mass_centre(prepared.pixels) - 14).max() <= 0.5
    assert prepared.pixels.max() == 255
    inverted, crop, scaled, centred = prepared.steps
    wide, high = numbers(crop)
    assert width == round(20 * wide / high)
    assert crop == f"cropped to {wide}x{high}"
    assert scaled == f"scaled to {width}x20"
    assert (inverted, centred) == ("inverted", "centred by mass")


def strokes() -> st.SearchStrategy[Image.Image]:
    """A bent line of random width on white paper that has room around it."""
    points = st.lists(st.tuples(st.integers(40, 110), st.integers(40, 160)), min_size=3, max_size=5)

    def draw(points: list[tuple[int, int]], width: int) -> Image.Image:
        image = Image.new("L", (150, 200), 255)
        ImageDraw.Draw(image).line([(40, 40), (110, 150), *points], fill=0, width=width)
        return image

    return st.builds(draw, points, st.integers(6, 20))


@given(strokes())
def test_any_stroke_is_prepared_as_28x28_pixels_with_the_mass_in_the_middle(
    image: Image.Image,
) -> None:
    pixels = prepare_digit(image).pixels
    assert pixels.dtype == np.uint8
    assert pixels.shape == (28, 28)
    at_an_edge = bool(pixels[[0, -1]].any() or pixels[:, [0, -1]].any())
    assert at_an_edge or np.abs(mass_centre(pixels) - 13.5).max() <= 1


@given(strokes())
def test_light_on_dark_is_prepared_as_dark_on_light(image: Image.Image) -> None:
    inverted = prepare_digit(Image.fromarray(255 - np.asarray(image)))
    assert np.array_equal(inverted.pixels, prepare_digit(image).pixels)
    assert "inverted" not in inverted.steps


@given(strokes(), st.tuples(*[st.integers(0, 200)] * 4))
def test_margins_make_no_difference(image: Image.Image, margins: tuple[int, int, int, int]) -> None:
    left, top, right, bottom = margins
    grey = np.pad(np.asarray(image), ((top, bottom), (left, right)), constant_values=255)
    wider = prepare_digit(Image.fromarray(grey))
    assert np.array_equal(wider.pixels, prepare_digit(image).pixels)


@given(strokes(), st.integers(0, 3), st.integers(0, 2**32 - 1))
def test_uneven_light_and_noise_are_removed(image: Image.Image, quarter: int, seed: int) -> None:
    light = np.rot90(np.broadcast_to(np.linspace(0.6, 1, 200), (200, 200)), quarter)[:, :150]
    grey = 230 * light * (1 - 0.8 * (np.asarray(image) == 0))
    grey += np.random.default_rng(seed).normal(0, 4, grey.shape)
    prepared = prepare_digit(Image.fromarray(np.clip(grey, 0, 255).astype(np.uint8)))
    # Where the centre of mass is halfway between two pixels, noise decides.
    moves = [np.roll(prepared.pixels, (y, x), (0, 1)) for y in (-1, 0, 1) for x in (-1, 0, 1)]
    clean = prepare_digit(image).pixels
    assert max(likeness(moved, clean) for moved in moves) > 0.95


@pytest.mark.usefixtures("real_data")
def test_mnist_s_own_images_are_nearly_left_as_they_are() -> None:
    images = MNISTDataModule().arrays("test")[0][:500]
    ours = np.stack([prepare_digit(Image.fromarray(image)).pixels for image in images])
    furthest = np.abs(ours.astype(int) - images).max((1, 2))
    assert 0.96 < (furthest == 0).mean() <= 1
    assert (furthest <= 30).mean() > 0.99


@pytest.mark.usefixtures("real_data")
def test_fashion_mnist_s_own_images_are_left_as_they_are() -> None:
    for image in FashionMNISTDataModule().arrays("test")[0][:500]:
        prepared = prepare_garment(Image.fromarray(image))
        # A dress whose corners are no ground is none of theirs, but 499 others are.
        assert np.array_equal(prepared.pixels, image) or image[[0, -1]][:, [0, -1]].max() > 100


def test_a_digit_of_scikit_learn_s_scans_fills_the_height() -> None:
    pixels = DigitsDataModule().prepare_image(seven()).pixels
    assert pixels[0].any()
    assert pixels[-1].any()
    images, _ = DigitsDataModule().arrays("test")
    likenesses = [
        likeness(DigitsDataModule().prepare_image(Image.fromarray(image)).pixels, image)
        for image in images[:50]
    ]
    assert np.median(likenesses) > 0.8


def test_a_garment_is_prepared_as_its_authors_did() -> None:
    picture = Image.new("L", (300, 400), 250)
    ImageDraw.Draw(picture).rectangle((100, 50, 199, 349), fill=100)
    prepared = FashionMNISTDataModule().prepare_image(picture)
    rows, columns = (np.flatnonzero(prepared.pixels.any(axis)) for axis in (1, 0))
    assert (rows[0], rows[-1]) == (0, 27)
    assert columns.tolist() == list(range(10, 19)) or columns.tolist() == list(range(9, 18))
    assert abs(int(np.median(prepared.pixels[:, columns])) - (250 - 100) * 255 // 250) <= 2
    words = ("negated", "trimmed", "scaled to 9x28 and sharpened", "extended to 28x28")
    assert prepared.steps == words


@pytest.mark.parametrize("prepare", [prepare_digit, prepare_garment])
@pytest.mark.parametrize("size", [(1, 1), (2, 2), (29, 28), (3, 900), (200, 150)])
@pytest.mark.parametrize("tone", [0, 130, 255])
def test_a_blank_image_is_refused(
    prepare: Callable[[Image.Image], Prepared], size: tuple[int, int], tone: int
) -> None:
    with pytest.raises(ValueError, match="it is blank: nothing stands out"):
        prepare(Image.new("L", size, tone))


def test_blank_paper_with_noise_and_shade_is_refused() -> None:
    grey = np.linspace(150, 230, 300) + np.random.default_rng(0).normal(0, 5, (200, 300))
    with pytest.raises(ValueError, match="it is blank"):
        prepare_digit(Image.fromarray(grey.astype(np.uint8)))


@pytest.mark.parametrize("size", [(3000, 9), (9, 3000)])
def test_a_very_long_image_is_cropped_to_what_is_in_it(size: tuple[int, int]) -> None:
    image = Image.new("L", size, 255)
    ImageDraw.Draw(image).rectangle((2, 2, 6, 6), fill=0)
    assert "cropped to 5x5" in prepare_digit(image).steps


def test_what_is_said_of_a_large_photograph_is_in_its_own_pixels() -> None:
    prepared = prepare_digit(seven().resize((3000, 4000), Image.Resampling.NEAREST))
    crop = next(step for step in prepared.steps if step.startswith("cropped"))
    small = next(step for step in prepare_digit(seven()).steps if step.startswith("cropped"))
    for ours, theirs in zip(numbers(crop), numbers(small), strict=True):
        assert abs(ours - 20 * theirs) <= 20
    assert likeness(prepared.pixels) > 0.99


def test_a_speck_far_from_the_digit_is_no_part_of_it() -> None:
    image = seven()
    ImageDraw.Draw(image).rectangle((5, 190, 8, 193), fill=0)
    assert np.array_equal(prepare_digit(image).pixels, SEVEN)
