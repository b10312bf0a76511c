import io
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from digitlab.data import DigitsDataModule, FashionMNISTDataModule, MNISTDataModule
from digitlab.data.photographs import PreparedImage, open_image, prepare_digit, prepare_garment
from tests.pictures import SEVEN, likeness, seven

few = settings(max_examples=30, deadline=None)

# Files.


def open_saved(image: Image.Image, path: Path, **options: object) -> NDArray[np.uint8]:
    image.save(path, **options)  # type: ignore[arg-type]  # each format has its own
    return prepare_digit(open_image(path)[0]).pixels


CLEAR, BLACK = (0, 0, 0, 0), (0, 0, 0, 255)
MODES: dict[str, tuple[Image.Image, str]] = {
    "one bit": (seven(1, 0, "1"), "x.png"),
    "colour": (seven("white", "navy", "RGB"), "x.png"),
    "JPEG": (seven("white", "black", "RGB"), "x.jpg"),
    "palette": (seven("white", "black", "RGB").convert("P"), "x.png"),
    "grey and alpha": (seven("white", "black", "RGBA").convert("LA"), "x.png"),
    "black ink on nothing": (seven(CLEAR, BLACK, "RGBA"), "x.png"),
    "GIF": (seven(), "x.gif"),
    "CMYK": (seven(CLEAR, BLACK, "CMYK"), "x.jpg"),
    "32 bits": (seven(100_000, -5, "I"), "x.tif"),
    "floats": (seven(1.5, 0.25, "F"), "x.tif"),
    "12 of 16 bits": (Image.fromarray(np.asarray(seven()).astype(np.uint16) * 16), "x.png"),
}


@pytest.mark.parametrize("name", MODES)
def test_every_mode_of_pixels_is_read(name: str, tmp_path: Path) -> None:
    image, file = MODES[name]
    assert likeness(open_saved(image, tmp_path / file)) > 0.98


@pytest.mark.parametrize("orientation", range(2, 9))
def test_a_photograph_is_turned_upright(orientation: int, tmp_path: Path) -> None:
    # Reference: the position of the first row and column by EXIF's eight orientations.
    turns = {
        **{2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1]},
        **{5: lambda a: a.T, 6: lambda a: np.rot90(a), 7: lambda a: a[::-1, ::-1].T},
        8: lambda a: np.rot90(a, -1),
    }
    stored = Image.fromarray(np.ascontiguousarray(turns[orientation](np.asarray(seven()))))
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "x.png", exif=exif)
    image, steps = open_image(tmp_path / "x.png")
    assert np.array_equal(np.asarray(image), np.asarray(seven()))
    assert steps == ("turned upright",)


def test_an_image_with_damaged_exif_data_is_read(tmp_path: Path) -> None:
    seven().save(tmp_path / "x.jpg", exif=b"Exif\0\0no such thing")
    assert open_image(tmp_path / "x.jpg")[1] == ()


@pytest.mark.parametrize("kind", ["gif", "png", "tif"])
def test_the_first_of_several_frames_is_taken(kind: str, tmp_path: Path) -> None:
    others = [Image.new("L", (150, 200), tone) for tone in (255, 100)]
    pixels = open_saved(seven(), tmp_path / f"x.{kind}", save_all=True, append_images=others)
    assert likeness(pixels) > 0.99
    assert open_image(tmp_path / f"x.{kind}")[1] == ("first of 3 frames",)


def encoded(kind: str = "PNG", image: Image.Image | None = None) -> bytes:
    file = io.BytesIO()
    (image or seven()).save(file, kind)
    return file.getvalue()


NAN = Image.fromarray(np.full((9, 9), np.nan, np.float32))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (encoded("JPEG")[:1500], "the image cannot be read: .*truncated"),
        (encoded()[:30], "cannot be read"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "it cannot be read as an image"),
        (encoded("TIFF", NAN), "the image cannot be read: it has values that are not finite"),
    ],
    ids=["truncated", "header", "PostScript", "NaN"],
)
def test_a_file_without_a_whole_image_is_refused(
    content: bytes, message: str, tmp_path: Path
) -> None:
    (tmp_path / "x.png").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        open_image(tmp_path / "x.png")


@few
@given(st.sampled_from(["PNG", "JPEG", "GIF", "TIFF", "BMP", "WEBP", "PPM"]), st.data())
def test_any_damage_gives_an_image_or_one_kind_of_error(
    tmp_path_factory: pytest.TempPathFactory, kind: str, data: st.DataObject
) -> None:
    content = bytearray(encoded(kind))
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, min(len(content), 300) - 1))
        content[place] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / f"damaged.{kind.lower()}"
    path.write_bytes(bytes(content))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            image, _ = open_image(path)
        except ValueError:
            return
    assert image.mode == "L"


@pytest.mark.parametrize("times", [1.5, 3])  # Pillow warns, or refuses
def test_a_decompression_bomb_is_refused(
    times: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seven().save(tmp_path / "x.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", int(150 * 200 / times))
    with pytest.raises(ValueError, match=r"it has more than [\d,]+ pixels: scale it down"):
        open_image(tmp_path / "x.png")


def test_a_device_is_not_read() -> None:
    with pytest.raises(ValueError, match="it is not a regular file"):
        open_image(Path("/dev/zero"))


# Digits.


def mass_centre(pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Reference: row and column of the centre of mass, by their definition."""
    values = pixels.astype(np.float64)
    places = np.arange(28)
    sums = np.array([values.sum(1) @ places, values.sum(0) @ places])
    return sums / float(values.sum())


def numbers(step: str) -> list[int]:
    """Width and height, as in `cropped to 143x98`."""
    return [int(number) for number in step.rpartition(" ")[2].split("x")]


def test_a_digit_fits_a_box_of_20_pixels_and_is_centred_by_mass() -> None:
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
    """A bent line of random width on white paper with room around it."""
    points = st.lists(st.tuples(st.integers(40, 110), st.integers(40, 160)), min_size=3, max_size=5)

    def draw(points: list[tuple[int, int]], width: int) -> Image.Image:
        image = Image.new("L", (150, 200), 255)
        ImageDraw.Draw(image).line([(40, 40), (110, 150), *points], fill=0, width=width)
        return image

    return st.builds(draw, points, st.integers(6, 20))


@few
@given(strokes(), st.tuples(*[st.integers(0, 200)] * 4))
def test_tone_and_margins_of_the_paper_make_no_difference(
    image: Image.Image, margins: tuple[int, int, int, int]
) -> None:
    pixels = prepare_digit(image).pixels
    assert pixels.dtype == np.uint8
    assert pixels.shape == (28, 28)
    at_an_edge = bool(pixels[[0, -1]].any() or pixels[:, [0, -1]].any())
    assert at_an_edge or np.abs(mass_centre(pixels) - 13.5).max() <= 1
    inverted = prepare_digit(Image.fromarray(255 - np.asarray(image)))
    assert np.array_equal(inverted.pixels, pixels)
    assert "inverted" not in inverted.steps
    left, top, right, bottom = margins
    grey = np.pad(np.asarray(image), ((top, bottom), (left, right)), constant_values=255)
    assert np.array_equal(prepare_digit(Image.fromarray(grey)).pixels, pixels)


@few
@given(strokes(), st.integers(0, 3), st.integers(0, 2**32 - 1))
def test_uneven_light_and_noise_are_removed(image: Image.Image, quarter: int, seed: int) -> None:
    light = np.rot90(np.broadcast_to(np.linspace(0.6, 1, 200), (200, 200)), quarter)[:, :150]
    grey = 230 * light * (1 - 0.8 * (np.asarray(image) == 0))
    grey += np.random.default_rng(seed).normal(0, 4, grey.shape)
    prepared = prepare_digit(Image.fromarray(np.clip(grey, 0, 255).astype(np.uint8)))
    # Noise decides if the centre of mass is halfway between two pixels.
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


def test_a_digit_for_scikit_learn_s_scans_fills_the_height() -> None:
    pixels = DigitsDataModule().prepare_image(seven()).pixels
    assert pixels[0].any()
    assert pixels[-1].any()
    images, _ = DigitsDataModule().arrays("test")
    likenesses = [
        likeness(DigitsDataModule().prepare_image(Image.fromarray(image)).pixels, image)
        for image in images[:50]
    ]
    assert np.median(likenesses) > 0.8


@pytest.mark.parametrize("size", [(3000, 9), (9, 3000)])
def test_a_very_long_image_is_cropped_to_its_content(size: tuple[int, int]) -> None:
    image = Image.new("L", size, 255)
    ImageDraw.Draw(image).rectangle((2, 2, 6, 6), fill=0)
    assert "cropped to 5x5" in prepare_digit(image).steps


def test_the_crop_of_a_large_photograph_is_given_in_its_own_pixels() -> None:
    prepared = prepare_digit(seven().resize((3000, 4000), Image.Resampling.NEAREST))
    crop = next(step for step in prepared.steps if step.startswith("cropped"))
    small = next(step for step in prepare_digit(seven()).steps if step.startswith("cropped"))
    for ours, theirs in zip(numbers(crop), numbers(small), strict=True):
        assert abs(ours - 20 * theirs) <= 20
    assert likeness(prepared.pixels) > 0.99


def test_a_speck_far_from_the_digit_is_ignored() -> None:
    image = seven()
    ImageDraw.Draw(image).rectangle((5, 190, 8, 193), fill=0)
    assert np.array_equal(prepare_digit(image).pixels, SEVEN)


# Garments.


@pytest.mark.usefixtures("real_data")
def test_fashion_mnist_s_own_images_are_left_as_they_are() -> None:
    for image in FashionMNISTDataModule().arrays("test")[0][:500]:
        prepared = prepare_garment(Image.fromarray(image))
        # One dress reaches the corners; the 499 other images are unchanged.
        assert np.array_equal(prepared.pixels, image) or image[[0, -1]][:, [0, -1]].max() > 100


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
@pytest.mark.parametrize("size", [(1, 1), (29, 28), (3, 900)])
def test_a_blank_image_is_refused(
    prepare: Callable[[Image.Image], PreparedImage], size: tuple[int, int]
) -> None:
    for tone in (0, 130, 255):
        with pytest.raises(ValueError, match="it is blank: nothing stands out"):
            prepare(Image.new("L", size, tone))
    shade = np.linspace(150, 230, 300) + np.random.default_rng(0).normal(0, 5, (200, 300))
    with pytest.raises(ValueError, match="it is blank"):
        prepare_digit(Image.fromarray(shade.astype(np.uint8)))
