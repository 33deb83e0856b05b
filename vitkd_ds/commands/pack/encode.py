"""Turn one image file's bytes into what is stored: the bytes themselves, or the image scaled and encoded."""

from dataclasses import dataclass

import cv2
import numpy as np
from PIL import Image

from vitkd_ds.data.beton.decode import restart_interval, with_restart_markers
from vitkd_ds.data.beton.format import JPEG_MODE, PAGE_BYTES, RAW_MODE
from vitkd_ds.data.beton.verify import check_jpeg
from vitkd_ds.data.draws import keyed_rng
from vitkd_ds.data.image_file import ended, is_plain_jpeg, load_rgb, opened, to_rgb

WRITE_MODES = ("jpg", "raw", "proportion")
MAX_SIDE = 65500
"""Pixels; libjpeg's longest side, and FFCV stores 16 bits."""
MAX_STORED_BYTES = 2**31
"""An image must fit into an FFCV page, and this is the largest power of two that its 32-bit page size allows."""
MAX_ORIGINAL_BYTES = PAGE_BYTES
"""Larger originals are encoded again, because one large image makes all pages large."""
ENCODED, ORIGINAL, NO_JPEG, TOO_LARGE, SCALED, REFUSED = range(6)
"""What is stored: an encoded image, as asked for; the original; or an encoded image although originals were asked for.
Journals hold these numbers."""
REASONS = {
    NO_JPEG: "are no RGB or grey JPEGs",
    TOO_LARGE: f"are files of more than {MAX_ORIGINAL_BYTES // 2**20} MiB",
    SCALED: "are larger than the pixels asked for",
    REFUSED: "take more memory than the decoder of training allows",
}
"""Why originals are not stored: ends of the sentence "7 images ..."."""
MCU_PIXELS = 16
"""Width of the blocks that belong together in a JPEG 4:2:0."""
PROPORTION_STREAM = 5
"""First part of the key that decides which images of write_mode "proportion" become JPEGs."""


@dataclass(frozen=True)
class Encoding:
    """Settings of storing images, in the words of `pack`. Raises ValueError where the fields do not go together."""

    write_mode: str
    max_resolution: int
    """Scaled to by cv2's INTER_AREA, as in FFCV."""
    short_side: int
    """Scaled to by Pillow's antialiased bicubic."""
    quality: int
    passthrough: bool
    restart_markers: bool = False
    """Whether originals get restart markers, where that changes no pixel; images that are encoded here have them."""

    def __post_init__(self) -> None:
        if self.write_mode not in WRITE_MODES:
            modes = ", ".join(WRITE_MODES)
            raise ValueError(f"write_mode must be one of {modes}, found {self.write_mode!r}: choose one")
        for name in ("max_resolution", "short_side"):
            if not 0 <= (value := getattr(self, name)) <= MAX_SIDE:
                raise ValueError(f"{name} must be in [0, {MAX_SIDE}], found {value!r}: 0 keeps every size")
        if self.max_resolution and self.short_side:
            both = f"{self.max_resolution} and {self.short_side}"
            raise ValueError(f"give max_resolution or short_side, found both, {both}: choose one")
        if self.passthrough and self.write_mode != "jpg":
            raise ValueError(f"passthrough stores JPEGs, found it with write_mode {self.write_mode!r}: leave one away")
        if self.restart_markers and not self.passthrough:
            raise ValueError(
                "restart_markers are added to originals, found it without passthrough: leave it away, as images that "
                "are encoded have them anyway"
            )
        if not 1 <= self.quality <= 100:
            raise ValueError(f"quality must be in [1, 100], found {self.quality!r}: 90 is usual")


@dataclass(frozen=True)
class Encoded:
    """Stored form of an image."""

    content: bytes
    mode: int
    """JPEG_MODE or RAW_MODE."""
    height: int
    width: int
    origin: int
    """ORIGINAL, ENCODED or one of `REASONS`."""


def encode(content: bytes, encoding: Encoding, *, number: int) -> Encoded:
    """Decode an image file in full and bring it into the form that is stored.

    The decoder of training reads RGB and grey JPEGs first, because Pillow shows made-up pixels of damaged ones without
    a message; `vitkd_ds.data.beton.verify.check_jpeg` says what even that decoder cannot see. Damage inside a CMYK
    JPEG, which only Pillow reads, goes unnoticed.

    Args:
        number: number of the image in its source; decides what write_mode "proportion" does.

    Raises:
        Exception: as `vitkd_ds.data.image_file.load_rgb`; ValueError when a JPEG is damaged or nothing can be stored.
    """
    with opened(content) as image:
        width, height = image.size
        is_read = check_jpeg(content, height=height, width=width) if is_plain_jpeg(image) else None
        origin = _origin(content, image, encoding, is_read) if encoding.passthrough else ENCODED
        if origin == ORIGINAL:
            content = _marked(content) if encoding.restart_markers else content
            return Encoded(content, JPEG_MODE, height, width, origin)
        pixels_HWC = load_rgb(ended(content)) if is_read else to_rgb(image)
    return _encode_pixels(_scaled(pixels_HWC, encoding), encoding, number=number, origin=origin)


def _origin(content: bytes, image: Image.Image, encoding: Encoding, is_read: bool | None) -> int:
    """ORIGINAL, or why the content cannot be stored as it is."""
    if image.format != "JPEG" or is_read is None:
        return NO_JPEG
    if len(content) > MAX_ORIGINAL_BYTES:
        return TOO_LARGE
    if 0 < encoding.max_resolution < max(image.size) or 0 < encoding.short_side < min(image.size):
        return SCALED
    return ORIGINAL if is_read else REFUSED


def _marked(content: bytes) -> bytes:
    """Add restart markers to a JPEG; where that cannot be done, or would change a pixel, it stays as it is."""
    whole = ended(content)
    marked = with_restart_markers(whole)
    if marked is None or len(marked) > MAX_ORIGINAL_BYTES or not np.array_equal(load_rgb(marked), load_rgb(whole)):
        return content
    return marked


def _scaled(pixels_HWC: np.ndarray, encoding: Encoding) -> np.ndarray:
    """Scale to `short_side`; or check that FFCV's scaling to `max_resolution`, which comes later, leaves pixels."""
    height, width = pixels_HWC.shape[:2]
    longest, shortest = max(height, width), min(height, width)
    if 0 < encoding.short_side < shortest:
        longer = int(encoding.short_side * longest / shortest)  # cut off as torchvision does
        size = (encoding.short_side, longer) if width <= height else (longer, encoding.short_side)
        pixels_HWC = np.array(Image.fromarray(pixels_HWC).resize(size, Image.Resampling.BICUBIC))
        longest = longer
    limit = encoding.max_resolution
    if limit and limit < longest:
        if int(limit / longest * shortest) < 1:
            raise ValueError(f"{shortest} x {longest} pixels leave none when the longer side is scaled to {limit}")
    elif longest > MAX_SIDE:
        raise ValueError(f"its longer side of {longest} pixels is above {MAX_SIDE}, the format's limit")
    return pixels_HWC


def _encode_pixels(pixels_HWC: np.ndarray, encoding: Encoding, *, number: int, origin: int) -> Encoded:
    """Scale to `max_resolution` and encode, both as FFCV's own field does, but for restart markers and Huffman tables
    of the image's own, which change no pixel."""
    mode = encoding.write_mode
    longest = max(pixels_HWC.shape[:2])
    if mode == "proportion":
        mode = "jpg" if keyed_rng(PROPORTION_STREAM, number).random() < 0.5 else "raw"
    if 0 < encoding.max_resolution < longest:
        ratio = encoding.max_resolution / longest
        size = [int(ratio * side) for side in pixels_HWC.shape[1::-1]]
        pixels_HWC = cv2.resize(pixels_HWC, size, interpolation=cv2.INTER_AREA)
    height, width = pixels_HWC.shape[:2]
    content = pixels_HWC.tobytes() if mode == "raw" else _jpeg(pixels_HWC, quality=encoding.quality)
    if len(content) > MAX_STORED_BYTES:
        raise ValueError(
            f"it takes {len(content)} bytes, above {MAX_STORED_BYTES}, the format's limit: scale images down"
        )
    return Encoded(content, RAW_MODE if mode == "raw" else JPEG_MODE, height, width, origin)


def _jpeg(pixels_HWC: np.ndarray, *, quality: int) -> bytes:
    """Encode RGB pixels as a JPEG 4:2:0 of which crops are decoded fast."""
    interval = restart_interval(pixels_HWC.shape[1], MCU_PIXELS)
    options = {cv2.IMWRITE_JPEG_QUALITY: quality, cv2.IMWRITE_JPEG_OPTIMIZE: 1, cv2.IMWRITE_JPEG_RST_INTERVAL: interval}
    is_done, jpeg = cv2.imencode(".jpg", cv2.cvtColor(pixels_HWC, cv2.COLOR_RGB2BGR), sum(options.items(), ()))
    if not is_done:
        raise ValueError(f"{pixels_HWC.shape[0]} x {pixels_HWC.shape[1]} pixels cannot be encoded as a JPEG")
    return jpeg.tobytes()
