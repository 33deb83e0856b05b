"""Pack images into a .beton, atomically and resumably.

`vitkd_ds.data.sources` reads the sources. `encode.py` converts an image to its stored form: a JPEG 4:2:0, raw pixels,
or the original JPEG with or without restart markers. `writer.py` runs the worker processes.
"""

import logging
import os
import signal
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np

from vitkd_ds.checkpoint.files import sync_folder, write_text
from vitkd_ds.commands.pack.encode import ORIGINAL, REASONS, Encoding
from vitkd_ds.commands.pack.parts import PART, Unfinished, open_unfinished, write_at
from vitkd_ds.commands.pack.writer import Packing, handled_by, store_images
from vitkd_ds.data.beton.format import METADATA_START, STORED_DTYPE, SUFFIX, beton_tables, read_tables
from vitkd_ds.data.beton.side_file import BetonInfo, read_side, side_path, side_text
from vitkd_ds.data.beton.verify import damaged_images
from vitkd_ds.data.draws import keyed_rng
from vitkd_ds.data.sources import open_source

logger = logging.getLogger(__name__)

MAX_RESOLUTION = 500
"""Default limit of an image's longest side in pixels, as in FFCV's ImageNet recipe."""
SHUFFLE_STREAM = 6
"""Random-generator key of the image order with `shuffle`."""


def pack(
    src: str | Path,
    dst: str | Path,
    *,
    labels: str = "",
    classes: str = "",
    split: str = "",
    write_mode: str = "jpg",
    max_resolution: int | None = None,
    short_side: int = 0,
    quality: int = 90,
    passthrough: bool = False,
    restart_markers: bool = False,
    shuffle: bool = False,
    workers: int = 0,
    skip_bad: bool = False,
    restart: bool = False,
) -> BetonInfo:
    """Pack images into a .beton with a side file, a JSON file of classes and checksums. Return the .beton's info.

    Args:
        src: class folders, ImageNet or WebDataset tars, or a Hugging Face data set; see `vitkd_ds.data.sources`.
        dst: new file ending in .beton, in an existing folder.
        labels: file with the labels of ImageNet's validation tar. With "none", `src` is a folder of unlabelled images,
            and all of them are packed.
        classes: file with one class name per line in label order, or a .beton with these classes. Some classes may have
            no images. Only for class folders and WebDataset tars.
        split: name of the split to read, if a Hugging Face folder has several.
        write_mode: jpg (small, decoded in training), raw (pixels: large, fast to read), or proportion (half of each).
        max_resolution: maximum longest side in pixels. Larger images are scaled down. 0 keeps every size. None means
            500, or 0 with `passthrough` or `short_side`.
        short_side: maximum shorter side in pixels, as an alternative to `max_resolution`. 0 means off.
        quality: JPEG quality of images that are encoded, 1 to 100.
        passthrough: store RGB and grey JPEGs of up to 8 MiB unchanged if they need no scaling. Encode all others.
        restart_markers: with `passthrough`, store original JPEGs as one baseline scan with restart markers. They then
            decode faster to the same pixels. EXIF data and colour profiles are dropped.
        shuffle: store the images in a reproducible random order instead of the order of the source.
        workers: number of processes. 0 uses one per available CPU.
        skip_bad: skip files that do not decode and log a warning for each. If False, the first such file is an error.
        restart: discard the images of an interrupted pack to the same file. If False, continue that pack.

    Raises:
        ValueError: an argument, the source or an image is invalid, or another process is packing into `dst`.
        RuntimeError, OSError: a worker failed or was killed, or the disk is full or faulty.
    """
    dst = Path(dst)
    if max_resolution is None:
        max_resolution = 0 if passthrough or short_side else MAX_RESOLUTION
    encoding = Encoding(write_mode, max_resolution, short_side, quality, passthrough, restart_markers)
    _check_dst(dst, workers=workers)
    source = open_source(src, labels=labels, classes=classes, split=split)
    settings = {"source": source.kind, "num_images": len(source.labels), "fingerprint": source.fingerprint()}
    folder = open_unfinished(dst, settings | asdict(encoding) | {"shuffle": shuffle}, restart=restart)
    # Slurm ends processes with SIGTERM. Treat it like Ctrl-C, which keeps finished parts.
    with handled_by(signal.default_int_handler, signal.SIGTERM), folder as unfinished:
        _check_dst(dst, workers=workers)  # the previous holder of the lock may have written dst
        order = _order(len(source.labels), shuffle=shuffle)
        packing = Packing(source, encoding, order, unfinished, skip_bad, workers or len(os.sched_getaffinity(0)))
        store_images(packing)
        return _finish(packing, dst, shuffled=shuffle, fingerprint=source.fingerprint(without=f"{Path(src)}/"))


def _order(num_images: int, *, shuffle: bool) -> np.ndarray:
    return keyed_rng(SHUFFLE_STREAM).permutation(num_images) if shuffle else np.arange(num_images)


def _finish(packing: Packing, dst: Path, *, shuffled: bool, fingerprint: str) -> BetonInfo:
    """Write the tables, verify all images, and move the .beton and its side file to their final names."""
    unfinished = packing.unfinished
    source = packing.source
    encoding = packing.encoding
    records = unfinished.records
    bad = {int(packing.order[place]): reason for place, reason in unfinished.bad.items()}
    if not len(records):
        index, reason = next(iter(bad.items()))
        raise ValueError(
            f"none of {len(bad)} files decode as images; the first one is {source.names[index]!r} ({reason})"
        )
    # skip_bad may have left out images, so row numbers differ from numbers in the storing order.
    sources = packing.order[records["number"].astype(np.int64)]
    tables_crc32 = _write_tables(unfinished, records, source.labels[sources])
    _check_images(packing, records, name_of=lambda row: source.names[sources[row]])
    info = BetonInfo(
        path=dst,
        num_images=len(records),
        classes=source.classes,
        bytes=unfinished.images.stat().st_size,
        write_mode=encoding.write_mode,
        max_resolution=encoding.max_resolution,
        short_side=encoding.short_side,
        quality=encoding.quality,
        passthrough=int((records["origin"] == ORIGINAL).sum()),
        shuffled=shuffled,
        max_height=int(records["height"].max()),
        max_width=int(records["width"].max()),
    )
    text = side_text(
        info, source=fingerprint, tables_crc32=tables_crc32, lengths=records["size"], crc32s=records["crc32"]
    )
    _publish(unfinished.images, dst, text)
    for index, reason in sorted(bad.items()):
        logger.warning("skipped %r, which does not decode: %s", source.names[index], reason)
    for origin, reason in REASONS.items():
        found = sources[records["origin"] == origin]
        if len(found):
            first = source.names[found.min()]
            logger.warning("%d images %s and were re-encoded. The first one is %r.", len(found), reason, first)
    return info


def _check_images(packing: Packing, records: np.ndarray, *, name_of: Callable[[int], str]) -> None:
    """Read back and decode every image, because FFCV does not report damaged images in training.

    Raises:
        ValueError: some images differ from those written. The next run packs their parts again.
    """
    images = np.zeros(len(records), STORED_DTYPE)
    for key in ("offset", "size", "crc32", "height", "width", "mode"):
        images[key] = records[key]
    images["has_crc"] = 1
    unfinished = packing.unfinished
    damaged = [*damaged_images(unfinished.images, images, num_threads=packing.num_workers)]
    for row, _ in damaged:
        unfinished.forget(int(records["number"][row]) // PART)
    if damaged:
        row, reason = damaged[0]
        raise ValueError(
            f"{len(damaged)} images in {str(unfinished.images)!r} are damaged. The first one, from {name_of(row)!r}, "
            f"{reason}. Check disk and memory, and rerun the same command, which packs the damaged images again."
        )


def _check_dst(dst: Path, *, workers: int) -> None:
    if workers < 0:
        raise ValueError(f"workers must be 0 (automatic) or positive, got {workers!r}")
    if dst.suffix != SUFFIX:
        raise ValueError(f"dst must end in {SUFFIX}, got {str(dst)!r}")
    if not dst.parent.is_dir():
        raise ValueError(f"the folder of dst, {str(dst.parent)!r}, does not exist. Create it first.")
    if os.path.lexists(dst):  # includes broken links, which would be replaced
        what = "" if dst.exists() else " (a broken link)"
        raise ValueError(f"dst {str(dst)!r} already exists{what}. Remove it or pass another name.")
    _check_side(dst)


def _check_side(dst: Path) -> None:
    """Raise ValueError if the path of the new side file is taken by a file that is not a side file.

    A valid side file is accepted and will be replaced. It may be left over from a run that was interrupted before it
    could move the .beton, or from a .beton that someone deleted.
    """
    side = side_path(dst)
    if not os.path.lexists(side):
        return
    try:
        read_side(dst)
    except ValueError as error:
        foreign = f"{str(side)!r} exists, but is not a side file of a .beton"
        raise ValueError(f"{foreign} ({error}). Move this file or pass another dst.") from error


def _write_tables(unfinished: Unfinished, records: np.ndarray, labels: np.ndarray) -> int:
    """Write FFCV's header and tables to the file `images`; read the tables back and return their CRC32."""
    head, tail, end = beton_tables(records, labels)
    os.ftruncate(unfinished.descriptor, end)
    write_at(unfinished.descriptor, head, 0)
    write_at(unfinished.descriptor, tail, end)
    os.fsync(unfinished.descriptor)
    tables = read_tables(unfinished.images)
    if tables.metadata.tobytes() != head[METADATA_START:] or tables.allocations.tobytes() != tail:
        raise RuntimeError(
            f"the tables read back from {str(unfinished.images)!r} differ from those written. Check the disk."
        )
    return tables.crc32


def _publish(partial: Path, dst: Path, text: str) -> None:
    """Move the side file, then the .beton, to their final names, so that a visible .beton always has its side file."""
    if os.path.lexists(dst):
        raise ValueError(f"dst {str(dst)!r} was created by another process. Remove it or pass another name.")
    _check_side(dst)
    write_text(side_path(dst), text)
    try:
        os.replace(partial, dst)
    except BaseException:
        side_path(dst).unlink(missing_ok=True)
        raise
    sync_folder(dst.parent)
