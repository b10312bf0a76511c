"""Photographs of digits and garments, prepared as the images of MNIST and Fashion-MNIST were."""

import warnings
from dataclasses import dataclass
from math import ceil, sqrt
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter, ImageOps, UnidentifiedImageError
from PIL.ExifTags import Base

FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "GIF", "WEBP", "PPM")
"""The formats that are opened. Pillow's reader of another one, EPS, starts a program."""
SIDE = 28
WORKING_PIXELS = 2**20  # larger photographs are reduced: the digit needs only 20 of 28 pixels
BLANK = "it is blank: nothing stands out from the ground"

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class PreparedImage:
    """An image in the format of a data module, and the steps of its preparation.

    Args:
        pixels: uint8 `(28, 28)`, light on a black background.
        steps: The steps taken, such as `inverted` and `cropped to 143x98`.
    """

    pixels: NDArray[np.uint8]
    steps: tuple[str, ...]


def open_image(path: Path) -> tuple[Image.Image, tuple[str, ...]]:
    """Open a file as a grey image, turned upright by its EXIF data, white where transparent.

    Values of more than 8 bits are stretched to 0..255, because not all of them may be in use.

    Returns:
        An image of mode `L`, and the steps taken.

    Raises:
        OSError: There is no such file, or it cannot be read.
        ValueError: The file is not an image, is damaged, or has more pixels than Pillow's limit.
    """
    if not path.exists():
        raise FileNotFoundError("there is no such file")
    if path.is_dir():
        raise ValueError("it is a folder: name the files in it")
    if not path.is_file():  # a pipe, for example, may never end
        raise ValueError("it is not a regular file: give an image file")
    if not path.stat().st_size:
        raise ValueError("the file is empty")
    with path.open("rb") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about harmless oddities in the file
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            with Image.open(file, formats=FORMATS) as image:
                return _read(image)
        except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
            fault = f"it has more than {Image.MAX_IMAGE_PIXELS:,} pixels: scale it down"
            raise ValueError(fault) from error
        except UnidentifiedImageError as error:
            kinds = "PNG, JPEG, TIFF, BMP, GIF, WebP or PGM"
            raise ValueError(f"it cannot be read as an image: give a {kinds}") from error
        except Exception as error:  # a damaged byte can raise any exception in the readers
            reason = str(error) or type(error).__name__
            raise ValueError(f"the image cannot be read: {reason}") from error


def _read(image: Image.Image) -> tuple[Image.Image, tuple[str, ...]]:
    frames = getattr(image, "n_frames", 1)
    steps = (f"first of {frames} frames",) if frames > 1 else ()
    try:
        orientation = image.getexif().get(Base.Orientation, 1)
    except Exception:  # the EXIF data are damaged, but the image may be intact
        orientation = 1
    image.load()
    grey = _to_grey(image)
    if orientation not in range(2, 9):
        return grey, steps
    bare = Image.fromarray(np.asarray(grey))  # without the other EXIF data, which may be damaged
    bare.getexif()[Base.Orientation] = orientation
    ImageOps.exif_transpose(bare, in_place=True)
    return bare, (*steps, "turned upright")


def _to_grey(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):
        values = np.asarray(image, np.float64)
        if not np.isfinite(values).all():
            raise ValueError("it has values that are not finite")
        scaled = (values - values.min()) * (255 / (np.ptp(values) or 1))
        return Image.fromarray(np.rint(scaled).astype(np.uint8))
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image.convert("RGBA")).convert("L")
    # Through RGB, because Pillow converts neither CMYK nor every palette directly.
    return image if image.mode == "L" else image.convert("RGB").convert("L")


def prepare_digit(image: Image.Image, box: int = 20) -> PreparedImage:
    """Prepare an image of a digit as MNIST's were.

    The background is removed; the digit is scaled to fit a box of 20x20 pixels and moved, within
    the 28x28 pixels, until its centre of mass is in the middle. Of 100 images of MNIST, 98 are left
    as they are; others lose a speck or get a clearer stroke.

    Args:
        image: Mode `L`, with one digit, darker or lighter than the background, which covers most of
            the image's border. Light may fall unevenly.
        box: Pixels of the digit's longer side, at most 28.

    Raises:
        ValueError: Nothing stands out from the background.
    """
    factor = ceil(sqrt(image.width * image.height / WORKING_PIXELS))
    ink, inverted = _ink(np.asarray(image.reduce(factor), np.float64))
    ink = _trim(ink, ink > 0)
    steps = ["inverted"] if inverted else []
    if (cropped := (ink.shape[1] * factor, ink.shape[0] * factor)) != image.size:
        steps.append("cropped to {}x{}".format(*cropped))
    digit = Image.fromarray(np.rint(255 * ink).astype(np.uint8))
    if (size := _fitted(digit, box)) != digit.size:
        digit = digit.resize(size, Image.Resampling.LANCZOS)
        steps.append("scaled to {}x{}".format(*size))
    from scipy import ndimage  # which no training needs

    values = np.asarray(digit, np.float64)
    values = np.rint(values * (255 / values.max()))  # strokes thinner than a pixel have paled
    top, left = (round(SIDE / 2 - centre) for centre in ndimage.center_of_mass(values))
    pixels = _paste(values, top, left)
    if image.size == (SIDE, SIDE) and np.abs(pixels - np.asarray(image, np.float64)).max() <= 3:
        return PreparedImage(np.array(image), ("left as it is",))
    return PreparedImage(pixels, (*steps, "centred by mass"))


def prepare_garment(image: Image.Image) -> PreparedImage:
    """Prepare a product picture of a garment as Fashion-MNIST's were.

    Borders in the corners' tone are trimmed, the longer side is scaled to 28 pixels by the nearest
    neighbour, the image is sharpened, and the shorter side extended. Dark on light is negated. The
    authors' pictures have 51x73 pixels, and larger ones are reduced to that first. Theirs are on
    white; here a light background is made white. An image of Fashion-MNIST is left as it is.

    Args:
        image: Mode `L`, with one garment on an even background, which the corners show.

    Raises:
        ValueError: Nothing stands out from the background.
    """
    grey = np.asarray(image, np.float64)
    background = float(np.median(grey[[0, 0, -1, -1], [0, -1, 0, -1]]))
    light = background > 127
    if image.size == (SIDE, SIDE) and not light:
        return PreparedImage(np.array(image), ("left as it is",))
    smaller = image.copy()
    smaller.thumbnail((4 * 73, 4 * 73))  # averages noise, which would count as an edge
    grey = np.asarray(smaller, np.float64)
    grey, background = (255 - grey, 255 - background) if light else (grey, background)
    grey = _trim(grey, np.abs(grey - background) > 0.05 * 255)
    steps = ["negated", "trimmed"] if light else ["trimmed"]
    grey = np.clip((grey - background) * (255 / (255 - background)), 0, 255)
    garment = Image.fromarray(np.rint(grey).astype(np.uint8))
    garment.thumbnail((73, 73))
    if (size := _fitted(garment, SIDE)) != garment.size:
        garment = garment.resize(size, Image.Resampling.NEAREST)
        garment = garment.filter(ImageFilter.UnsharpMask(radius=1, percent=100, threshold=0))
        steps.append("scaled to {}x{} and sharpened".format(*size))
    left, top = ((SIDE - side) // 2 for side in size)
    return PreparedImage(_paste(np.asarray(garment), top, left), (*steps, "extended to 28x28"))


def _ink(grey: Floats) -> tuple[Floats, bool]:
    """Separate ink from background in `(H, W)`, values 0..255.

    Returns:
        Ink, `(H, W)`, from 0 for the background to 1, and whether it is the darker of the two.
    """
    background, noise = _background(grey)
    darker, lighter = (np.clip(sign * (grey - background) - 3 * noise, 0, None) for sign in (-1, 1))
    inverted = bool(darker.sum() > lighter.sum())
    # Divide by the background's brightness, so that a stroke in shadow counts as one in light does.
    stroke, paper = (darker, background) if inverted else (lighter, 255 - background)
    ink = stroke / np.maximum(paper, 1)
    sure = ink > _otsu_threshold(ink)
    contrast = np.median(stroke[sure]) if sure.any() else 0
    if contrast < max(8, 3 * noise):
        raise ValueError(BLANK)
    ink = np.minimum(ink / np.percentile(ink[sure], 90), 1)
    # The edges of a stroke are below the threshold: keep the parts that touch sure ink, without
    # specks. In a large image the faintest values are artefacts of JPEG and connect nothing.
    from scipy import ndimage  # which no training needs

    parts, count = ndimage.label(ink > (0.1 if max(ink.shape) > SIDE else 0), np.ones((3, 3)))
    numbers = np.arange(1, count + 1)
    mass = ndimage.sum(ink, parts, numbers)
    kept = ndimage.maximum(sure, parts, numbers) & (mass > 0.03 * mass.max())
    return ink * np.concatenate([[False], kept])[parts], inverted


def _background(grey: Floats) -> tuple[Floats, float]:
    """Estimate the background `(H, W)` and its noise, a standard deviation, from the border.

    Light falls unevenly, so the background is a quadratic function of the position, fitted by the
    least absolute differences, on which ink at the border has little influence.
    """
    margin = max(1, round(0.02 * min(grey.shape)))
    border = np.ones(grey.shape, bool)
    border[margin:-margin, margin:-margin] = False
    values = grey[border]
    level = np.median(values)
    differences = np.abs(values - level)
    if np.median(differences) <= 1:  # a drawing, where a curve would follow nothing but ink
        return np.full(grey.shape, level), 0.0
    y, x = (np.linspace(-1, 1, side) for side in grey.shape)
    y = y[:, None]
    terms = np.stack(np.broadcast_arrays(1.0, x, y, x * x, x * y, y * y), -1)
    for _ in range(15):  # reweighted least squares, which converge in about ten
        weights = 1 / np.sqrt(np.maximum(differences, 1))
        weighted = terms[border] * weights[:, None]
        coefficients = np.linalg.lstsq(weighted, values * weights, rcond=None)[0]
        differences = np.abs(values - terms[border] @ coefficients)
    # The median of normal deviates is the standard deviation divided by 1.4826.
    return np.clip(terms @ coefficients, 0, 255), 1.4826 * float(np.median(differences))


def _otsu_threshold(values: Floats) -> float:
    """Find the threshold between two classes of values with the most variance between them.

    Reference: Otsu, A threshold selection method from gray-level histograms, 1979.
    """
    counts, edges = np.histogram(values, 256)
    below = np.cumsum(counts)[:-1]
    sums = np.cumsum(counts * (edges[:-1] + edges[1:]) / 2)
    total = values.size
    variance = (sums[:-1] * total - sums[-1] * below) ** 2 / np.maximum(below * (total - below), 1)
    return float(edges[np.argmax(variance) + 1])


def _trim(grey: Floats, wanted: NDArray[np.bool_]) -> Floats:
    """Cut off rows and columns at the borders without a wanted pixel."""
    if not wanted.any():
        raise ValueError(BLANK)
    rows, columns = (np.flatnonzero(wanted.any(axis)) for axis in (1, 0))
    return grey[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _fitted(image: Image.Image, side: int) -> tuple[int, int]:
    """Compute width and height after scaling the longer one to `side`."""
    factor = side / max(image.size)
    return max(1, round(factor * image.width)), max(1, round(factor * image.height))


def _paste(values: NDArray[np.number], top: int, left: int) -> NDArray[np.uint8]:
    """Paste an image onto 28x28 black pixels, as near to the position as it fits."""
    height, width = values.shape
    top, left = min(max(top, 0), SIDE - height), min(max(left, 0), SIDE - width)
    pixels = np.zeros((SIDE, SIDE), np.uint8)
    pixels[top : top + height, left : left + width] = values
    return pixels
