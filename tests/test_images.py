import io
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from digitlab.data.photographs import open_image, prepare_digit, to_grey
from tests.pictures import likeness, seven


def open_saved(image: Image.Image, path: Path, **options: object) -> NDArray[np.uint8]:
    image.save(path, **options)  # type: ignore[arg-type]  # of each format's own
    return prepare_digit(open_image(path)[0]).pixels


RGBA_CLEAR, BLACK, WHITE = (0, 0, 0, 0), (0, 0, 0, 255), (255, 255, 255, 255)
MODES: dict[str, tuple[Image.Image, str]] = {
    "one bit": (seven(1, 0, "1"), "x.png"),
    "colour": (seven("white", "navy", "RGB"), "x.png"),
    "JPEG": (seven("white", "black", "RGB"), "x.jpg"),
    "palette": (seven("white", "black", "RGB").convert("P"), "x.png"),
    "grey and alpha": (seven("white", "black", "RGBA").convert("LA"), "x.png"),
    "black ink on nothing": (seven(RGBA_CLEAR, BLACK, "RGBA"), "x.png"),
    "white ink on nothing": (seven(RGBA_CLEAR, WHITE, "RGBA"), "x.png"),
    "WebP": (seven("white", "black", "RGB"), "x.webp"),
    "BMP": (seven(), "x.bmp"),
    "PGM": (seven(), "x.pgm"),
    "GIF": (seven(), "x.gif"),
    "CMYK": (seven((0, 0, 0, 0), (0, 0, 0, 255), "CMYK"), "x.jpg"),
    "CMYK in TIFF": (seven((0, 0, 0, 0), (0, 0, 0, 255), "CMYK"), "x.tif"),
    "32 bits": (seven(100_000, -5, "I"), "x.tif"),
    "floats": (seven(1.5, 0.25, "F"), "x.tif"),
    "12 of 16 bits": (Image.fromarray(np.asarray(seven()).astype(np.uint16) * 16), "x.png"),
}


@pytest.mark.parametrize("name", MODES)
def test_every_mode_of_pixels_is_read(name: str, tmp_path: Path) -> None:
    image, file = MODES[name]
    assert likeness(open_saved(image, tmp_path / file)) > 0.98


def test_a_cut_out_photograph_lies_on_its_own_paper(tmp_path: Path) -> None:
    image = seven("white", "black", "RGBA")
    corners = Image.new("L", image.size, 0)
    ImageDraw.Draw(corners).rounded_rectangle((0, 0, 149, 199), 40, fill=255)
    image.putalpha(corners)
    assert likeness(open_saved(image, tmp_path / "x.png")) > 0.99


@pytest.mark.parametrize("orientation", range(2, 9))
def test_a_photograph_is_turned_upright(orientation: int, tmp_path: Path) -> None:
    # Reference: what EXIF's eight orientations say of the first row and column.
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


def test_damaged_exif_data_do_not_stand_in_the_image_s_way(tmp_path: Path) -> None:
    seven().save(tmp_path / "x.jpg", exif=b"Exif\0\0no such thing")
    assert open_image(tmp_path / "x.jpg")[1] == ()


@pytest.mark.parametrize("kind", ["gif", "png", "tif"])
def test_the_first_of_several_frames_is_taken(kind: str, tmp_path: Path) -> None:
    others = [Image.new("L", (150, 200), tone) for tone in (255, 100)]
    pixels = open_saved(seven(), tmp_path / f"x.{kind}", save_all=True, append_images=others)
    assert likeness(pixels) > 0.99
    assert open_image(tmp_path / f"x.{kind}")[1] == ("first of 3 frames",)


def whole_file(kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    seven().save(file, kind)
    return file.getvalue()


FILES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "the file is empty"),
    "text": (b"no image at all", "it is no image that can be read: give a PNG, JPEG"),
    "a truncated PNG": (whole_file()[:200], "the image cannot be read: .*truncated"),
    "a truncated JPEG": (whole_file("JPEG")[:1500], "the image cannot be read: .*truncated"),
    "a header alone": (whole_file()[:30], "it is no image|cannot be read"),
    "PostScript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "it is no image"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_no_whole_image_is_refused(name: str, tmp_path: Path) -> None:
    content, message = FILES[name]
    (tmp_path / "x.png").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        open_image(tmp_path / "x.png")


@given(st.sampled_from(["PNG", "JPEG", "GIF", "TIFF", "BMP", "WEBP", "PPM"]), st.data())
def test_any_damage_gives_an_image_or_one_kind_of_error(
    tmp_path_factory: pytest.TempPathFactory, kind: str, data: st.DataObject
) -> None:
    content = bytearray(whole_file(kind))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, min(len(content), 300) - 1))] = data.draw(
            st.integers(0, 255)
        )
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


def test_what_is_no_plain_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="it is a folder: name the files in it"):
        open_image(tmp_path)
    with pytest.raises(ValueError, match="it is no plain file"):
        open_image(Path("/dev/zero"))
    with pytest.raises(FileNotFoundError, match="there is no such file"):
        open_image(tmp_path / "x.png")


def test_what_has_no_visible_or_no_finite_pixels_is_refused() -> None:
    with pytest.raises(ValueError, match="all of it is transparent"):
        to_grey(Image.new("RGBA", (9, 9)))
    with pytest.raises(ValueError, match="not finite"):
        to_grey(Image.fromarray(np.full((9, 9), np.nan, np.float32)))
