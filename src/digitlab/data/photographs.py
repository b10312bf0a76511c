"""Photographs of digits and garments, prepared as the images of MNIST and Fashion-MNIST were."""

import warnings
from dataclasses import dataclass
from math import ceil, sqrt
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter, ImageOps, UnidentifiedImageError
from PIL.ExifTags import Base
from scipy import ndimage

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


Floats = NDArray[np.float64]
SIDE = 28
WORKING_PIXELS = 2**20  # of a larger photograph, the digit still has pixels enough for its 20


def prepare_digit(image: Image.Image, box: int = 20) -> Prepared:
    """Prepare an image of a digit as MNIST's were.

    The ground is removed, the digit scaled into a box of 20x20 pixels with its aspect ratio kept,
    and moved until its centre of mass is that of the 28x28 pixels, but not over the edge. Of 100
    images of MNIST, 98 are left as they are; others lose a speck or get a clearer stroke.

    Args:
        image: Of mode `L`, with one digit, darker or lighter than the ground, which most of the
            image's frame shows. Light may fall unevenly.
        box: Pixels of the digit's longer side, at most 28.

    Raises:
        ValueError: Nothing stands out from the ground.
    """
    factor = ceil(sqrt(image.width * image.height / WORKING_PIXELS))
    ink, inverted = _ink(np.asarray(image.reduce(factor), np.float64))
    ink = _trim(ink, ink > 0)
    height, width = ink.shape
    steps = ["inverted"] if inverted else []
    if (cropped := (width * factor, height * factor)) != image.size:
        steps.append("cropped to {}x{}".format(*cropped))
    digit = Image.fromarray(np.rint(255 * ink).astype(np.uint8))
    size = _fitted(digit, box)
    if size != digit.size:
        digit = digit.resize(size, Image.Resampling.LANCZOS)
        steps.append("scaled to {}x{}".format(*size))
    # Strokes thinner than a pixel have paled.
    values = np.asarray(digit, np.float64)
    values = np.rint(values * (255 / values.max()))
    top, left = (round(SIDE / 2 - centre) for centre in ndimage.center_of_mass(values))
    pixels = _paste(values, top, left)
    if image.size == (SIDE, SIDE) and np.abs(pixels - np.asarray(image, np.float64)).max() <= 3:
        return Prepared(np.array(image), ("left as it is",))
    return Prepared(pixels, (*steps, "centred by mass"))


def prepare_garment(image: Image.Image) -> Prepared:
    """Prepare a product picture of a garment as Fashion-MNIST's were.

    Edges like the corners are trimmed, the longer edge is scaled to 28 pixels of which no other is
    a mean, the image is sharpened, and the shorter edge extended. Dark on light is negated. The
    authors' pictures have 51x73 pixels, and larger ones are made as small first. Theirs are on
    white; here the ground, if it is light, is made so. An image of Fashion-MNIST is left as it is.

    Args:
        image: Of mode `L`, with one garment on an even ground, which the corners show.

    Raises:
        ValueError: Nothing stands out from the ground.
    """
    grey = np.asarray(image, np.float64)
    ground = float(np.median(grey[[0, 0, -1, -1], [0, -1, 0, -1]]))
    light = ground > 127
    if image.size == (SIDE, SIDE) and not light:
        return Prepared(np.array(image), ("left as it is",))
    steps = ["negated"] if light else []
    smaller = image.copy()
    smaller.thumbnail((4 * 73, 4 * 73))  # without the noise that is no edge
    grey = np.asarray(smaller, np.float64)
    grey, ground = (255 - grey, 255 - ground) if light else (grey, ground)
    grey = _trim(grey, np.abs(grey - ground) > 0.05 * 255)
    steps.append("trimmed")
    grey = np.clip((grey - ground) * (255 / (255 - ground)), 0, 255)
    garment = Image.fromarray(np.rint(grey).astype(np.uint8))
    garment.thumbnail((73, 73))
    size = _fitted(garment, SIDE)
    if size != garment.size:
        garment = garment.resize(size, Image.Resampling.NEAREST)
        garment = garment.filter(ImageFilter.UnsharpMask(radius=1, percent=100, threshold=0))
        steps.append("scaled to {}x{} and sharpened".format(*size))
    left, top = ((SIDE - side) // 2 for side in size)
    return Prepared(_paste(np.asarray(garment), top, left), (*steps, "extended to 28x28"))


def _ink(grey: Floats) -> tuple[Floats, bool]:
    """Separate ink from ground.

    Args:
        grey: `(H, W)`, from 0 to 255.

    Returns:
        Ink, `(H, W)`, from 0 for the ground to 1, and whether it is darker than the ground.
    """
    ground, noise = _ground(grey)
    darker, lighter = (np.clip(sign * (grey - ground) - 3 * noise, 0, None) for sign in (-1, 1))
    inverted = bool(darker.sum() > lighter.sum())
    # What the ground reflects, ink takes away: as a share of it, ink is as dark in the shade.
    ink = darker / np.maximum(ground, 1) if inverted else lighter / np.maximum(255 - ground, 1)
    threshold = _otsu_threshold(ink)
    surely = ink > threshold
    contrast = np.median((darker if inverted else lighter)[surely]) if surely.any() else 0
    if contrast < max(8, 3 * noise):
        raise ValueError("it is blank: nothing stands out from the ground")
    full = np.percentile(ink[surely], 90)
    ink = np.minimum(ink / full, 1)
    # Edges of strokes are fainter than the threshold; what is faint alone, or a speck, is no ink.
    # In few pixels the faintest count too, while in many they are traces of JPEG's compression.
    parts, count = ndimage.label(ink > (0.1 if max(ink.shape) > SIDE else 0), np.ones((3, 3)))
    numbers = np.arange(1, count + 1)
    mass = ndimage.sum(ink, parts, numbers)
    kept = ndimage.maximum(surely, parts, numbers) & (mass > 0.03 * mass.max())
    return ink * np.concatenate([[False], kept])[parts], inverted


def _ground(grey: Floats) -> tuple[Floats, float]:
    """Estimate ground `(H, W)` and its noise, a standard deviation, from the image's frame.

    Light falls unevenly, so the ground is a quadratic function of the place: the one with the least
    absolute differences, which ink that reaches the frame does not pull.
    """
    height, width = grey.shape
    margin = max(1, round(0.02 * min(height, width)))
    frame = np.ones(grey.shape, bool)
    frame[margin:-margin, margin:-margin] = False
    values = grey[frame]
    level = np.median(values)
    differences = np.abs(values - level)
    if np.median(differences) <= 1:  # a drawing's, where a curve would follow nothing but ink
        return np.full(grey.shape, level), 0.0
    y, x = (np.linspace(-1, 1, height)[:, None], np.linspace(-1, 1, width)[None])
    terms = np.stack(np.broadcast_arrays(1.0, x, y, x * x, x * y, y * y), -1)
    for _ in range(15):  # least squares, reweighted: they settle in about ten
        weights = 1 / np.sqrt(np.maximum(differences, 1))
        weighted = terms[frame] * weights[:, None]
        coefficients = np.linalg.lstsq(weighted, values * weights, rcond=None)[0]
        differences = np.abs(values - terms[frame] @ coefficients)
    # Of normal deviates, the median is 1 / 1.4826 of the standard deviation.
    return np.clip(terms @ coefficients, 0, 255), 1.4826 * float(np.median(differences))


def _otsu_threshold(values: Floats) -> float:
    """Find what divides values into two classes with the most variance between them.

    Reference: Otsu, A threshold selection method from gray-level histograms, 1979.
    """
    counts, edges = np.histogram(values, 256)
    below = np.cumsum(counts)[:-1]
    sums = np.cumsum(counts * (edges[:-1] + edges[1:]) / 2)
    total = values.size
    variance = (sums[:-1] * total - sums[-1] * below) ** 2 / np.maximum(below * (total - below), 1)
    return float(edges[np.argmax(variance) + 1])


def _trim(grey: Floats, wanted: NDArray[np.bool_]) -> Floats:
    """Cut away rows and columns at the edges without a wanted pixel."""
    if not wanted.any():
        raise ValueError("it is blank: nothing stands out from the ground")
    rows, columns = (np.flatnonzero(wanted.any(axis)) for axis in (1, 0))
    return grey[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _fitted(image: Image.Image, side: int) -> tuple[int, int]:
    """Give width and height with the longer one changed to `side`."""
    factor = side / max(image.size)
    width, height = (max(1, round(factor * length)) for length in image.size)
    return width, height


def _paste(values: NDArray[np.number], top: int, left: int) -> NDArray[np.uint8]:
    """Put an image into 28x28 black pixels, at a place or as near to it as it fits."""
    height, width = values.shape
    top, left = min(max(top, 0), SIDE - height), min(max(left, 0), SIDE - width)
    pixels = np.zeros((SIDE, SIDE), np.uint8)
    pixels[top : top + height, left : left + width] = values
    return pixels
