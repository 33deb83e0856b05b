"""From a folder of images to a .beton: checks, the right page size, and a file that appears only when it is complete.

The images are re-encoded (JPEG 4:2:0 at `quality`, longest side at most `max_resolution`) or stored as pixels.
"""

import logging
import os
from pathlib import Path

from vitkd_ds.data.backend import IntField, RGBImageField
from vitkd_ds.data.fields import FIELDS, BetonInfo, read_num_images, side_path, side_text
from vitkd_ds.data.images import ImageFolder, image_size, list_images
from vitkd_ds.data.writer import BetonWriter

logger = logging.getLogger(__name__)

WRITE_MODES = ("jpg", "raw", "proportion")
SUFFIX = ".beton"
DEFAULT_PAGE_BYTES = 8 * 2**20
"""FFCV's page; an image must fit into one."""
MAX_PAGE_BYTES = 2**31
"""The largest power of two that FFCV's 32-bit page size allows."""
MAX_SIDE = 65535
"""FFCV stores height and width in 16 bits."""


def pack(
    src: str | Path,
    dst: str | Path,
    *,
    write_mode: str = "jpg",
    max_resolution: int = 500,
    quality: int = 90,
    workers: int = 0,
    skip_bad: bool = False,
) -> BetonInfo:
    """Write the images below `src` to the .beton `dst` and its side file.

    Args:
        src: a folder with one folder per class, as torchvision's ImageFolder reads it; sorted names give the labels.
        dst: a path ending in .beton that does not exist yet, in a folder that does.
        write_mode: jpg (small, decoded when read), raw (pixels: fast and large), or proportion (half of each).
        max_resolution: longest side in pixels, larger images are scaled down; 0 keeps every size.
        quality: of the JPEGs, 1 to 100.
        workers: processes; 0 uses the CPUs this process may use.
        skip_bad: leave files out that do not decode, with a warning each, where otherwise the first one stops the job.

    Returns:
        What was written.

    Raises:
        ValueError: an unfit argument, folder or file. Nothing is left behind.
        RuntimeError: a worker failed or was killed. Nothing is left behind.
    """
    src, dst = Path(src), Path(dst)
    _check_arguments(dst, write_mode=write_mode, max_resolution=max_resolution, quality=quality, workers=workers)
    folder = list_images(src)
    field = RGBImageField(write_mode=write_mode, max_resolution=max_resolution or None, jpeg_quality=quality)
    fields = dict(zip([name for name, _ in FIELDS], (field, IntField()), strict=True))
    temporary = dst.with_name(f".{dst.name}.{os.getpid()}.tmp")
    temporary_side = side_path(temporary)
    try:
        page_bytes, num_workers = _page_bytes(folder, max_resolution), workers or len(os.sched_getaffinity(0))
        writer = BetonWriter(str(temporary), fields, page_size=page_bytes, num_workers=num_workers)
        written = writer.write(folder, skip_bad=skip_bad)
        read_num_images(temporary)
        info = BetonInfo(
            path=dst,
            num_images=written.num_images,
            classes=folder.classes,
            bytes=temporary.stat().st_size,
            write_mode=write_mode,
            max_resolution=max_resolution,
            quality=quality,
            max_height=written.max_height,
            max_width=written.max_width,
        )
        _write_synced(temporary_side, side_text(info))
        _publish(temporary, temporary_side, dst)
    finally:
        temporary.unlink(missing_ok=True)
        temporary_side.unlink(missing_ok=True)
    for path, reason in written.bad:
        logger.warning("left out %r, which does not decode: %s", path, reason)
    return info


def _check_arguments(dst: Path, *, write_mode: str, max_resolution: int, quality: int, workers: int) -> None:
    if write_mode not in WRITE_MODES:
        raise ValueError(f"write_mode must be one of {', '.join(WRITE_MODES)}, found {write_mode!r}: choose one")
    if not 0 <= max_resolution <= MAX_SIDE:
        raise ValueError(f"max_resolution must be in [0, {MAX_SIDE}], found {max_resolution!r}: 0 keeps every size")
    if not 1 <= quality <= 100:
        raise ValueError(f"quality must be in [1, 100], found {quality!r}: 90 is usual")
    if workers < 0:
        raise ValueError(f"workers must be 0 (automatic) or more, found {workers!r}: change it")
    if dst.suffix != SUFFIX:
        raise ValueError(f"dst must end in {SUFFIX}, found {str(dst)!r}: rename it")
    if not dst.parent.is_dir():
        raise ValueError(f"the folder of dst must exist, found no folder {str(dst.parent)!r}: make it first")
    if dst.exists():
        raise ValueError(f"dst must not exist yet, found {str(dst)!r}: remove it, or choose another name")


def _page_bytes(folder: ImageFolder, max_resolution: int) -> int:
    """A page that holds the largest image as pixels; a JPEG may come close to that at quality 100.

    The headers of all files are read only where `max_resolution` alone does not keep the images within FFCV's page.
    """
    if 0 < 3 * max_resolution**2 <= DEFAULT_PAGE_BYTES:
        return DEFAULT_PAGE_BYTES
    largest = 0
    for path in folder.paths:
        width, height = image_size(path)
        shrink = min(1.0, max_resolution / max(width, height, 1)) if max_resolution else 1.0
        needed = int(3 * width * height * shrink**2)
        if needed > MAX_PAGE_BYTES:
            raise ValueError(
                f"an image must have at most {MAX_PAGE_BYTES} bytes of pixels, found {needed} in {path!r}: "
                f"lower max_resolution"
            )
        largest = max(largest, needed)
    return max(DEFAULT_PAGE_BYTES, 1 << (largest - 1).bit_length())


def _write_synced(path: Path, text: str) -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _publish(temporary: Path, temporary_side: Path, dst: Path) -> None:
    """Give both files their names: the side file first, so the .beton is complete the moment it appears."""
    if dst.exists():
        raise ValueError(f"dst must not exist yet, but {str(dst)!r} appeared meanwhile: is another job writing it?")
    os.replace(temporary_side, side_path(dst))
    try:
        os.replace(temporary, dst)
    except BaseException:
        side_path(dst).unlink(missing_ok=True)
        raise
    folder = os.open(dst.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
