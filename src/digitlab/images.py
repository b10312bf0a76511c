"""Image files of all kinds, opened as grey images."""

import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.ExifTags import Base

FORMATS = ("PNG", "JPEG", "MPO", "TIFF", "BMP", "GIF", "WEBP", "PPM")
"""What is opened; Pillow's reader of another format, EPS, starts a program."""


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
    steps = []
    if (frames := getattr(image, "n_frames", 1)) > 1:
        steps.append(f"first of {frames} frames")
    if image.getexif().get(Base.Orientation, 1) in range(2, 9):
        steps.append("turned upright")
    # Greyed first, which makes it smaller; it keeps the EXIF data.
    exif = image.getexif()
    image.load()
    grey = to_grey(image)
    grey.getexif().update(exif)
    ImageOps.exif_transpose(grey, in_place=True)
    return grey, tuple(steps)


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
