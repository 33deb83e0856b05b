"""Verify stored images: compare their CRC32, and decode them with the training decoder.

FFCV trusts its files: for an image that it cannot decode, it silently returns another image's pixels with this image's
label. So packing publishes a file only after this check.
"""

import itertools
import os
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import numpy as np
from tqdm import tqdm

from vitkd_ds.data.beton.decode import BAD_JPEG, DECODED, MISSING_SCANS, STATUS_TEXT, UNKNOWN_KIND, Decoder
from vitkd_ds.data.beton.format import JPEG_MODE, STORED_DTYPE
from vitkd_ds.data.crops import BILINEAR, CROP_DTYPE

CHECK_SIZE = 8
"""Output size in pixels; small, so that nearly all time goes into the full decode."""
CHUNK = 256
"""Images per decoder call."""


def damaged_images(path: Path, images: np.ndarray, *, num_threads: int) -> Iterator[tuple[int, str]]:
    """Read and decode every image, and yield the row and fault of each that fails or whose CRC32 differs.

    The fault is the end of a sentence that starts with "image 7".
    """
    decoder = Decoder(path, images.copy())
    with closing(decoder), tqdm(total=len(images), unit="img", desc="verifying", disable=None) as progress:
        # Ask the kernel to drop its cached pages, so that the disk is read.
        os.posix_fadvise(decoder.fd, 0, 0, os.POSIX_FADV_DONTNEED)
        for first in range(0, len(images), CHUNK):
            chunk = images[first : first + CHUNK]
            rows = np.zeros(len(chunk), CROP_DTYPE)  # whole images, so that all pixels are decoded
            rows["index"] = first + np.arange(len(chunk))
            rows["filter"] = BILINEAR
            rows["height"], rows["width"] = chunk["height"], chunk["width"]
            rows["resized_height"] = rows["resized_width"] = CHECK_SIZE
            status_B = np.zeros(len(chunk), np.int32)
            squares_BHWC = np.empty((len(chunk), CHECK_SIZE, CHECK_SIZE, 3), np.uint8)
            decoder.decode(rows, squares_BHWC, status_B, num_threads=num_threads)
            for row in np.flatnonzero(status_B != DECODED).tolist():
                yield first + row, STATUS_TEXT[int(status_B[row])]
            progress.update(len(chunk))


def jpeg_status(content: bytes, *, height: int, width: int) -> int:
    """Check a JPEG of this size with the training decoder; return a status of `vitkd_ds.data.beton.decode`.

    Only the last pixel is produced. It needs all coefficients, and so shows any damage.
    """
    image = np.zeros(1, STORED_DTYPE)
    row = np.zeros(1, CROP_DTYPE)
    image["size"] = len(content)
    image["height"] = height
    image["width"] = width
    image["mode"] = JPEG_MODE
    image["thorough"] = 1
    row["top"] = height - 1
    row["left"] = width - 1
    row["filter"] = BILINEAR
    for key in ("height", "width", "resized_height", "resized_width"):
        row[key] = 1
    pixel_BHWC = np.empty((1, 1, 1, 3), np.uint8)
    status_B = np.zeros(1, np.int32)
    memory = os.memfd_create("image")  # the decoder reads files
    try:
        os.pwrite(memory, content, 0)
        with closing(Decoder(f"/proc/self/fd/{memory}", image)) as decoder:
            decoder.decode(row, pixel_BHWC, status_B, num_threads=1)
    finally:
        os.close(memory)
    return int(status_B[0])


def check_jpeg(content: bytes, *, height: int, width: int) -> bool:
    """Find damage inside a JPEG, which Pillow ignores: it shows the pixels that libjpeg invents.

    This detects missing scans, codes and markers, invalid codes and markers, and surplus bytes. It does not detect
    damage that forms other valid codes. In ImageNet photographs, it detected 16 % of 600 flipped bits, and 90 % of 600
    runs of 512 zero bytes.

    Returns:
        Whether the training decoder can read the JPEG; then at most the end marker is missing.

    Raises:
        ValueError: the JPEG is damaged, or of a kind that libjpeg does not support.
    """
    status = jpeg_status(content, height=height, width=width)
    if status in (BAD_JPEG, MISSING_SCANS, UNKNOWN_KIND):
        raise ValueError(f"it {STATUS_TEXT[status]}")
    return status == DECODED


def checksums(path: Path, images: np.ndarray, *, num_threads: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the length in bytes and the CRC32 of each image: int64 and uint32 [N].

    If the file ends inside an image, its length is less than its `size`.

    Args:
        images: array with the fields offset and size.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def checksum(image: np.void) -> tuple[int, int]:
        content = os.pread(descriptor, int(image["size"]), int(image["offset"]))
        return len(content), zlib.crc32(content)

    try:
        with ThreadPoolExecutor(num_threads) as threads:
            chunks = (images[first : first + CHUNK] for first in range(0, len(images), CHUNK))
            results = threads.map(lambda chunk: [checksum(image) for image in chunk], chunks)
            pairs = np.array([*itertools.chain.from_iterable(results)], np.int64).reshape(-1, 2)
            return pairs[:, 0], pairs[:, 1].astype(np.uint32)
    finally:
        os.close(descriptor)
