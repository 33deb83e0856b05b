"""Decode one image file's bytes into RGB pixels: supported formats and colour conversions.

EXIF orientation is ignored, transparency is dropped, and an animation gives its first frame. torchvision's ImageFolder,
with which published accuracies were measured, does the same. Pillow's `draft` is not used: it scales JPEGs while
decoding, which changes pixels.
"""

import io
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
from PIL import Image, UnidentifiedImageError

from vitkd_ds.data import libtiff

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
"""File extensions of images, in upper or lower case; torchvision's list."""
PILLOW_FORMATS = ("JPEG", "PNG", "PPM", "BMP", "DIB", "TIFF", "WEBP", "GIF")
"""Accepted formats, whatever the file's extension. Other formats of Pillow may start external programs."""
JPEG_FORMATS, JPEG_MODES = ("JPEG", "MPO"), ("L", "RGB")
"""Pillow's names for JPEGs (an MPO contains further pictures), and their modes with one and three components.

Pillow opens no JPEG of more than 8 bits.
"""
END_MARKER = b"\xff\xd9"
SIXTEEN_BIT_MODES = ("I", "I;16", "I;16B", "I;16L", "I;16N")


def load_rgb(content: bytes, check: Callable | None = None) -> np.ndarray:
    """Decode one image file into uint8 [height, width, 3].

    Args:
        check: function that finds damage inside a plain JPEG (`vitkd_ds.data.beton.verify.check_jpeg`). None skips this
            check, but rejects JPEGs without an end marker.

    Raises:
        Exception: any error of Pillow if the file is damaged or not an image; ValueError for pixels with an undefined
            range; DecompressionBombError above Pillow's limit of 179 million pixels; any error of `check`.
    """
    with opened(content) as image:
        is_checked = check is not None and is_plain_jpeg(image)
        is_whole = is_checked and check(content, height=image.height, width=image.width)
        if not is_whole or content.endswith(END_MARKER):
            return to_rgb(image)
    return load_rgb(ended(content))


def ended(content: bytes) -> bytes:
    """Append the end marker, which Pillow requires, to a JPEG that is otherwise complete."""
    return content if content.endswith(END_MARKER) else content + END_MARKER


@contextmanager
def opened(content: bytes) -> Iterator[Image.Image]:
    """Open an image file with Pillow, without its warnings about metadata and large images.

    Raises:
        ValueError: the file is empty, or not an image in `PILLOW_FORMATS`.
    """
    if not content:
        raise ValueError("it is empty")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            image = Image.open(io.BytesIO(content), formats=PILLOW_FORMATS)
        except UnidentifiedImageError:
            formats = ", ".join(PILLOW_FORMATS)
            raise ValueError(f"it is not an image ({formats}), or its header is incomplete") from None
        with image:
            yield image


def is_plain_jpeg(image: Image.Image) -> bool:
    """Return whether an opened image is an RGB or grey JPEG, which the compiled decoder supports."""
    return image.format in JPEG_FORMATS and image.mode in JPEG_MODES


def to_rgb(image: Image.Image) -> np.ndarray:
    """Return the pixels of an opened image: uint8 [height, width, 3].

    Raises:
        The errors of `load_rgb`, and ValueError for a TIFF that libtiff reports as damaged though Pillow decodes it.
    """
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
        raise ValueError("its pixels are 32-bit floats, which have no defined range")
    if image.mode in ("RGBa", "La") or image.mode == "P" and "transparency" in image.info:
        image = image.convert("LA" if image.mode == "La" else "RGBA")  # Pillow cannot convert these directly to RGB
    return np.array(image.convert("RGB"))


def _from_16_bit(grey_HW: np.ndarray) -> np.ndarray:
    """Keep the upper 8 of 16 bits; Pillow's own conversion clips, which turns nearly everything white."""
    if grey_HW.min() < 0 or grey_HW.max() > 65535:
        raise ValueError(f"its pixels must be 16-bit, got {grey_HW.min()} to {grey_HW.max()}")
    return np.repeat((grey_HW.astype(np.uint16) >> 8).astype(np.uint8)[:, :, None], 3, axis=2)
