"""Decode the bytes of an image file into RGB pixels.

EXIF orientation is ignored, transparency is dropped, and only the first frame of an animation is used. Published
accuracies were measured with torchvision's ImageFolder, which does the same. Pillow's `draft` mode is not used, because
it scales JPEGs while it decodes them, which changes the pixels.
"""

import io
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
from PIL import Image, UnidentifiedImageError

from vitkd_ds.data import libtiff

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
"""File extensions of images, as in torchvision. They are accepted in lower and upper case."""
PILLOW_FORMATS = ("JPEG", "PNG", "PPM", "BMP", "DIB", "TIFF", "WEBP", "GIF")
"""Accepted image formats; a file's extension does not matter. For some other formats, Pillow starts other programs."""
JPEG_FORMATS, JPEG_MODES = ("JPEG", "MPO"), ("L", "RGB")
"""Pillow's format names of JPEG files, and its mode names of JPEGs with one and with three colour components.

An MPO file is a JPEG followed by further pictures. Pillow does not open JPEGs with more than 8 bits per component.
"""
END_MARKER = b"\xff\xd9"
SIXTEEN_BIT_MODES = ("I", "I;16", "I;16B", "I;16L", "I;16N")


def load_rgb(content: bytes, check: Callable | None = None) -> np.ndarray:
    """Decode one image file into uint8 [height, width, 3].

    Args:
        check: function that raises an error if an RGB or grey JPEG is damaged inside, such as
            `vitkd_ds.data.beton.verify.check_jpeg`. With None, only a missing end marker is detected.

    Raises:
        Exception: the file is damaged or not an image; Pillow and `check` raise many error types. ValueError: the
            pixels have no defined maximum, as in float images. DecompressionBombError: the image has more than 179
            million pixels, which is Pillow's limit.
    """
    with opened(content) as image:
        is_checked = check is not None and is_plain_jpeg(image)
        is_whole = is_checked and check(content, height=image.height, width=image.width)
        if not is_whole or content.endswith(END_MARKER):
            return to_rgb(image)
    return load_rgb(ended(content))


def ended(content: bytes) -> bytes:
    """Return a JPEG with the end marker that Pillow requires; append the marker if it is missing."""
    return content if content.endswith(END_MARKER) else content + END_MARKER


@contextmanager
def opened(content: bytes) -> Iterator[Image.Image]:
    """Open the bytes of an image file with Pillow, and suppress Pillow's warnings about metadata and large images.

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
    """Return whether an opened image is an RGB or grey JPEG, the only JPEGs that the compiled decoder supports."""
    return image.format in JPEG_FORMATS and image.mode in JPEG_MODES


def to_rgb(image: Image.Image) -> np.ndarray:
    """Return the pixels of an opened image: uint8 [height, width, 3].

    Raises:
        Exception: as in `load_rgb`. ValueError is also raised if libtiff reports damage in a TIFF that Pillow can
            decode.
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
    """Convert 16-bit grey to 8-bit RGB: keep the upper 8 bits.

    Pillow's own conversion clips values at 255 instead, which turns nearly all pixels white.
    """
    if grey_HW.min() < 0 or grey_HW.max() > 65535:
        raise ValueError(f"its pixels must be 16-bit, got {grey_HW.min()} to {grey_HW.max()}")
    return np.repeat((grey_HW.astype(np.uint16) >> 8).astype(np.uint8)[:, :, None], 3, axis=2)
