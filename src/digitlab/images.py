"""Image files of all kinds, opened as grey images, and what they are made into."""

import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.ExifTags import Base

FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "GIF", "WEBP", "PPM")
"""What is opened; Pillow's reader of another format, EPS, starts a program."""


@dataclass(frozen=True)
class Prepared:
    """An image as a data module holds it, and how it became so.

    Args:
        pixels: uint8 `(28, 28)`, light on a black ground.
        steps: What was done, in words, such as `inverted` and `cropped to 143x98`.
    """

    pixels: NDArray[np.uint8]
    steps: tuple[str, ...]


def open_image(path: Path) -> tuple[Image.Image, tuple[str, ...]]:
    """Open a file as a grey image, upright as its EXIF data say, on paper where it is transparent.

    Returns:
        An image of mode `L`, and what was done, in words.

    Raises:
        OSError: There is no such file, or it cannot be read.
        ValueError: The file is no image, is damaged, or has more pixels than Pillow's limit.
    """
    if not path.exists():
        raise FileNotFoundError("there is no such file")
    if path.is_dir():
        raise ValueError("it is a folder: name the files in it")
    if not path.is_file():  # such as a pipe, which may never begin or end
        raise ValueError("it is no plain file: give an image file")
    if not path.stat().st_size:
        raise ValueError("the file is empty")
    with path.open("rb") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what is odd in a file, but does no harm
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            with Image.open(file, formats=FORMATS) as image:
                return _read(image)
        except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
            limit = f"{Image.MAX_IMAGE_PIXELS:,}"
            raise ValueError(f"it has more than {limit} pixels: scale it down") from error
        except UnidentifiedImageError as error:
            kinds = "PNG, JPEG, TIFF, BMP, GIF, WebP or PGM"
            raise ValueError(f"it is no image that can be read: give a {kinds}") from error
        except Exception as error:  # a damaged byte can lead the readers anywhere
            raise ValueError(
                f"the image cannot be read: {error or type(error).__name__}"
            ) from error


def _read(image: Image.Image) -> tuple[Image.Image, tuple[str, ...]]:
    frames, orientation = getattr(image, "n_frames", 1), _orientation(image)
    steps = (f"first of {frames} frames",) if frames > 1 else ()
    image.load()
    grey = to_grey(image)
    if orientation == 1:
        return grey, steps
    bare = Image.fromarray(np.asarray(grey))  # whose other EXIF data need not be written anew
    bare.getexif()[Base.Orientation] = orientation
    ImageOps.exif_transpose(bare, in_place=True)
    return bare, (*steps, "turned upright")


def _orientation(image: Image.Image) -> int:
    try:
        orientation = image.getexif().get(Base.Orientation, 1)
    except Exception:  # the EXIF data are damaged, which need not be true of the image
        return 1
    return orientation if orientation in range(2, 9) else 1


def to_grey(image: Image.Image) -> Image.Image:
    """Turn an image of any mode into one of mode `L`.

    Values of more than 8 bits are stretched to 0..255, as not all of them may be in use. What is
    transparent becomes paper.

    Raises:
        ValueError: Values are not finite, or all of it is transparent.
    """
    if image.mode.startswith(("I", "F")):
        values = np.asarray(image, np.float64)
        if not np.isfinite(values).all():
            raise ValueError("it has values that are not finite")
        scaled = (values - values.min()) * (255 / (np.ptp(values) or 1))
        return Image.fromarray(np.rint(scaled).astype(np.uint8))
    if image.has_transparency_data:
        return _on_paper(image.convert("RGBA"))
    # By way of RGB, as neither CMYK nor a palette of grey tones has one of its own to `L`.
    return image if image.mode == "L" else image.convert("RGB").convert("L")


def _on_paper(image: Image.Image) -> Image.Image:
    """Put an image onto paper that what is visible of it stands out from."""
    grey, alpha = image.convert("L"), image.getchannel("A")
    visible = np.asarray(grey)[np.asarray(alpha) > 127]
    if not visible.size:
        raise ValueError("all of it is transparent")
    low, median, high = np.percentile(visible, (5, 50, 95))
    # In one tone it is ink alone; in several it is mostly paper, as of a photograph cut out.
    paper = median if high - low > 64 else 255 if median < 128 else 0
    return Image.composite(grey, Image.new("L", image.size, round(paper)), alpha)
