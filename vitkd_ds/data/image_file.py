"""Decode one image file's bytes into RGB pixels: what counts as an image, and how each colour mode becomes RGB.

EXIF orientation is ignored, transparency is dropped and of an animation the first frame is taken, all as torchvision's
ImageFolder does, on which published accuracies rest. Pillow's `draft`, which would scale JPEGs while decoding, is not
used: it changes pixels.
"""

import io
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
from PIL import Image, UnidentifiedImageError

from vitkd_ds.data import libtiff

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
"""Endings that make a file in a folder an image, in upper or lower case; torchvision's list."""
PILLOW_FORMATS = ("JPEG", "PNG", "PPM", "BMP", "DIB", "TIFF", "WEBP", "GIF")
"""Formats that are read, whatever the file's ending says. Pillow knows more, some of which start other programs."""
JPEG_FORMATS, JPEG_MODES = ("JPEG", "MPO"), ("L", "RGB")
"""Pillow's names of JPEGs (MPO has further pictures behind the first), and its modes of those with one and three
components; it opens none of more than 8 bits."""
END_MARKER = b"\xff\xd9"
SIXTEEN_BIT_MODES = ("I", "I;16", "I;16B", "I;16L", "I;16N")


def load_rgb(content: bytes, check: Callable | None = None) -> np.ndarray:
    """Decode one image file into uint8 [height, width, 3].

    Args:
        check: what looks for damage inside a plain JPEG (`vitkd_ds.data.beton.verify.check_jpeg`); None does not, and
            rejects JPEGs without an end marker.

    Raises:
        Exception: of Pillow's many kinds, when the file is damaged or no image; ValueError for pixels whose range is
            not defined; DecompressionBombError above Pillow's limit of 179 million pixels; what `check` raises.
    """
    with opened(content) as image:
        is_checked = check is not None and is_plain_jpeg(image)
        is_whole = is_checked and check(content, height=image.height, width=image.width)
        if not is_whole or content.endswith(END_MARKER):
            return to_rgb(image)
    return load_rgb(ended(content))


def ended(content: bytes) -> bytes:
    """Append the end marker, which Pillow insists on, to a JPEG that is known to lack nothing else."""
    return content if content.endswith(END_MARKER) else content + END_MARKER


@contextmanager
def opened(content: bytes) -> Iterator[Image.Image]:
    """Open an image file with Pillow, without its warnings of metadata and of images above half its size limit; raises
    ValueError if it is empty, or no image of `PILLOW_FORMATS`."""
    if not content:
        raise ValueError("it is empty")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            image = Image.open(io.BytesIO(content), formats=PILLOW_FORMATS)
        except UnidentifiedImageError:
            formats = ", ".join(PILLOW_FORMATS)
            raise ValueError(f"it is no image of the formats {formats}, or its header is cut") from None
        with image:
            yield image


def is_plain_jpeg(image: Image.Image) -> bool:
    """Whether an opened image is an RGB or grey JPEG, which our decoder takes."""
    return image.format in JPEG_FORMATS and image.mode in JPEG_MODES


def to_rgb(image: Image.Image) -> np.ndarray:
    """Read the pixels of an opened image: uint8 [height, width, 3]. Raises what `load_rgb` raises; of a TIFF also
    ValueError for what libtiff calls an error and Pillow shows all the same."""
    if image.format != "TIFF":
        return _to_rgb(image)
    with libtiff.messages() as messages:
        try:
            pixels_HWC = _to_rgb(image)
        except OSError as error:
            raise OSError("; ".join([str(error), *messages[:1]])) from error
    if messages:
        raise ValueError(f"it is a damaged TIFF: {messages[0]}")
    return pixels_HWC


def _to_rgb(image: Image.Image) -> np.ndarray:
    if image.mode in SIXTEEN_BIT_MODES:
        return _from_16_bit(np.array(image))
    if image.mode == "F":
        raise ValueError("its pixels are 32-bit floats, whose white is not defined")
    if image.mode in ("RGBa", "La") or image.mode == "P" and "transparency" in image.info:
        image = image.convert("LA" if image.mode == "La" else "RGBA")  # Pillow has no straight way to RGB
    return np.array(image.convert("RGB"))


def _from_16_bit(grey_HW: np.ndarray) -> np.ndarray:
    """Keep the upper 8 of 16 bits: Pillow's own conversion clips instead, and everything turns white."""
    if grey_HW.min() < 0 or grey_HW.max() > 65535:
        raise ValueError(f"its pixels must be 16-bit, found {grey_HW.min()} to {grey_HW.max()}")
    return np.repeat((grey_HW.astype(np.uint16) >> 8).astype(np.uint8)[:, :, None], 3, axis=2)
