"""Verify stored images: compare their CRC32, and decode them with the training decoder.

FFCV does not check its files. If it cannot decode an image, it silently returns the pixels of another image with the
label of this one. Therefore, packing gives a file its final name only after this check.
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
"""Height and width of the output in pixels; small, so that nearly all time is spent on decoding."""
CHUNK = 256
"""Number of images per call of the decoder."""


def damaged_images(path: Path, images: np.ndarray, *, num_threads: int) -> Iterator[tuple[int, str]]:
    """Read and decode every image; yield the row and a reason for each image that is damaged or whose CRC32 differs.

    The reason is the end of a sentence that starts with "image 7".
    """
    decoder = Decoder(path, images.copy())
    with closing(decoder), tqdm(total=len(images), unit="img", desc="verifying", disable=None) as progress:
        # Ask the kernel to drop the file's cached pages, so that the disk is read.
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

    Only the last pixel is computed. To do so, the decoder must read all coefficients, so it finds any damage.
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
    """Raise ValueError if a JPEG is damaged inside.

    Pillow ignores such damage and returns pixels that libjpeg makes up. This function detects missing scans, missing or
    invalid codes and markers, and surplus bytes. It does not detect damage that results in other valid codes. In
    ImageNet photographs, it detected 16 % of 600 flipped bits, and 90 % of 600 blocks of 512 bytes that were set to
    zero.

    Returns:
        True if the training decoder can read the JPEG, which is then complete, perhaps except for its end marker. False
        if the decoder cannot read it, for example because of its colours.

    Raises:
        ValueError: the JPEG is damaged, or of a kind that libjpeg does not support.
    """
    status = jpeg_status(content, height=height, width=width)
    if status in (BAD_JPEG, MISSING_SCANS, UNKNOWN_KIND):
        raise ValueError(f"it {STATUS_TEXT[status]}")
    return status == DECODED


def checksums(path: Path, images: np.ndarray, *, num_threads: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the length in bytes and the CRC32 of each image: int64 and uint32 [N].

    If the file ends inside an image, the returned length of this image is less than its field `size`.

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
