"""Convert an image file to its stored form: the original bytes, or an image that is scaled and encoded."""

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
"""Maximum longest side in pixels. This is libjpeg's limit. FFCV's limit is larger: it stores 16-bit sides."""
MAX_STORED_BYTES = 2**31
"""Maximum bytes of a stored image, because it must fit into one FFCV page. FFCV stores the page size, a power of two,
in 32 bits."""
MAX_ORIGINAL_BYTES = PAGE_BYTES
"""Maximum bytes of an original that is stored unchanged. Larger ones are encoded, because one large image makes all
pages large."""
ENCODED, ORIGINAL, NO_JPEG, TOO_LARGE, SCALED, REFUSED = range(6)
"""Origin of a stored image. ENCODED means that `passthrough` is off, and ORIGINAL that the original JPEG is stored. The
other four are reasons why an image was encoded although `passthrough` is on.

The lists of finished parts on disk contain these numbers."""
REASONS = {
    NO_JPEG: "are not RGB or grey JPEGs",
    TOO_LARGE: f"are larger than {MAX_ORIGINAL_BYTES // 2**20} MiB",
    SCALED: "have more pixels than requested",
    REFUSED: "need more memory to decode than training allows",
}
"""Origin -> reason for not storing the original, as the end of a sentence that starts with "7 images"."""
MCU_PIXELS = 16
"""Width in pixels of an MCU (minimum coded unit) in a JPEG 4:2:0."""
PROPORTION_STREAM = 5
"""Random-generator key for choosing the images that write_mode "proportion" stores as JPEGs."""


@dataclass(frozen=True)
class Encoding:
    """Settings for storing images, with the same names as in `pack`. Invalid or inconsistent ones raise ValueError."""

    write_mode: str
    max_resolution: int
    """Maximum longest side in pixels; 0 means no limit. Images are scaled with cv2's INTER_AREA, as in FFCV."""
    short_side: int
    """Maximum shorter side in pixels; 0 means no limit. Images are scaled with Pillow's antialiased bicubic filter."""
    quality: int
    passthrough: bool
    restart_markers: bool = False
    """Whether to add restart markers to originals if this changes no pixel. Encoded images always have them."""

    def __post_init__(self) -> None:
        if self.write_mode not in WRITE_MODES:
            modes = ", ".join(WRITE_MODES)
            raise ValueError(f"write_mode must be one of {modes}, got {self.write_mode!r}")
        for name in ("max_resolution", "short_side"):
            if not 0 <= (value := getattr(self, name)) <= MAX_SIDE:
                raise ValueError(f"{name} must be in [0, {MAX_SIDE}], got {value!r}. Pass 0 to keep every size.")
        if self.max_resolution and self.short_side:
            both = f"{self.max_resolution} and {self.short_side}"
            raise ValueError(f"max_resolution and short_side are both given ({both}). Remove one of them.")
        if self.passthrough and self.write_mode != "jpg":
            raise ValueError(f"passthrough needs write_mode 'jpg', got {self.write_mode!r}. Remove one of them.")
        if self.restart_markers and not self.passthrough:
            raise ValueError(
                "restart_markers needs passthrough. Remove it: without passthrough all images are encoded and have "
                "restart markers."
            )
        if not 1 <= self.quality <= 100:
            raise ValueError(f"quality must be in [1, 100], got {self.quality!r}. The default is 90.")


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
    """Decode an image file completely and convert it to its stored form.

    RGB and grey JPEGs are first read with the decoder used in training, because Pillow silently invents pixels for
    damaged ones. The docstring of `vitkd_ds.data.beton.verify.check_jpeg` lists damage that this decoder misses. CMYK
    JPEGs are read only by Pillow, so damage in their image data is not detected.

    Args:
        content: bytes of the image file.
        encoding: settings for storing the image.
        number: number of the image in its source. With write_mode "proportion", it determines whether the image is
            stored as a JPEG or as raw pixels.

    Raises:
        ValueError: a JPEG is damaged, or the image cannot be stored.
        Exception: the exceptions of `vitkd_ds.data.image_file.load_rgb`, for a file that cannot be decoded.
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
    """Return ORIGINAL if the content can be stored unchanged. Otherwise return the reason, a key of REASONS.

    Args:
        is_read: whether the decoder used in training can read the JPEG; None if the file is not an RGB or grey JPEG.
    """
    if image.format != "JPEG" or is_read is None:
        return NO_JPEG
    if len(content) > MAX_ORIGINAL_BYTES:
        return TOO_LARGE
    if 0 < encoding.max_resolution < max(image.size) or 0 < encoding.short_side < min(image.size):
        return SCALED
    return ORIGINAL if is_read else REFUSED


def _marked(content: bytes) -> bytes:
    """Return a JPEG with restart markers added. Return it unchanged if this is impossible or would change a pixel."""
    whole = ended(content)
    marked = with_restart_markers(whole)
    if marked is None or len(marked) > MAX_ORIGINAL_BYTES or not np.array_equal(load_rgb(marked), load_rgb(whole)):
        return content
    return marked


def _scaled(pixels_HWC: np.ndarray, encoding: Encoding) -> np.ndarray:
    """Return an image scaled down to `short_side`.

    Raises:
        ValueError: in the stored image, a side would have less than one pixel or more than MAX_SIDE.
    """
    height, width = pixels_HWC.shape[:2]
    longest, shortest = max(height, width), min(height, width)
    if 0 < encoding.short_side < shortest:
        longer = int(encoding.short_side * longest / shortest)  # truncated, as in torchvision
        size = (encoding.short_side, longer) if width <= height else (longer, encoding.short_side)
        pixels_HWC = np.array(Image.fromarray(pixels_HWC).resize(size, Image.Resampling.BICUBIC))
        longest = longer
    limit = encoding.max_resolution
    if limit and limit < longest:
        if int(limit / longest * shortest) < 1:
            raise ValueError(
                f"an image of {shortest} x {longest} pixels cannot be scaled to {limit} on the longer side, because "
                "the shorter side would have less than one pixel"
            )
    elif longest > MAX_SIDE:
        raise ValueError(f"the longer side has {longest} pixels; the format allows at most {MAX_SIDE}")
    return pixels_HWC


def _encode_pixels(pixels_HWC: np.ndarray, encoding: Encoding, *, number: int, origin: int) -> Encoded:
    """Scale an image down to `max_resolution` and encode it. It decodes to the same pixels as if FFCV had encoded it.

    Unlike FFCV's, the JPEGs have restart markers and optimised Huffman tables.
    """
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
            f"the stored image has {len(content)} bytes; the format allows at most {MAX_STORED_BYTES}. Scale it down."
        )
    return Encoded(content, RAW_MODE if mode == "raw" else JPEG_MODE, height, width, origin)


def _jpeg(pixels_HWC: np.ndarray, *, quality: int) -> bytes:
    """Encode RGB pixels as a JPEG 4:2:0 with restart markers, so that crops decode fast."""
    interval = restart_interval(pixels_HWC.shape[1], MCU_PIXELS)
    options = {cv2.IMWRITE_JPEG_QUALITY: quality, cv2.IMWRITE_JPEG_OPTIMIZE: 1, cv2.IMWRITE_JPEG_RST_INTERVAL: interval}
    is_done, jpeg = cv2.imencode(".jpg", cv2.cvtColor(pixels_HWC, cv2.COLOR_RGB2BGR), sum(options.items(), ()))
    if not is_done:
        raise ValueError(f"{pixels_HWC.shape[0]} x {pixels_HWC.shape[1]} pixels cannot be encoded as a JPEG")
    return jpeg.tobytes()
