"""Pack images into a .beton, atomically and resumably.

`vitkd_ds.data.sources` says where they come from, `vitkd_ds.commands.pack.encode` what is stored of each (JPEG 4:2:0,
pixels, or the JPEG it is, with restart markers), `vitkd_ds.commands.pack.writer` how.
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
"""Pixels of the longest side where nothing else is asked for: FFCV's recipe for ImageNet."""
SHUFFLE_STREAM = 6
"""Key of the one random order in which images are stored."""


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
    """Write the images of `src` to the .beton `dst` and its side file. Called again after a kill, it continues.

    Args:
        src: class folders, ImageNet's or WebDataset's tars, or a Hugging Face data set; see `vitkd_ds.data.sources`.
        dst: a path ending in .beton that does not exist yet, in a folder that does.
        labels: file with the labels of ImageNet's validation tar; "none" packs all images of a folder without labels.
        classes: file with a class name per line in label order, or a .beton with these classes, for class folders and
            WebDataset's tars; it may name classes without images.
        split: name of the split to read, where a Hugging Face folder has several.
        write_mode: jpg (small, decoded when read), raw (pixels: fast and large), or proportion (half of each).
        max_resolution: longest side in pixels, larger images are scaled down; 0 keeps every size. None is 500, and 0
            with `passthrough` or `short_side`.
        short_side: shorter side in pixels, larger images are scaled down; 0 does not. Not with `max_resolution`.
        quality: quality of the JPEGs that are encoded here, 1 to 100.
        passthrough: store RGB and grey JPEGs of up to 8 MiB that need no scaling as they are; a warning counts others.
        restart_markers: with `passthrough`, write these JPEGs once more with restart markers, as one baseline scan with
            the same pixels: they are decoded faster. EXIF and colour profile are left out.
        shuffle: store the images in a random order, the same each time, and not by class.
        workers: number of processes; 0 uses the CPUs this process may use.
        skip_bad: leave out files that do not decode, with a warning each; otherwise the first one ends the run.
        restart: throw away what an interrupted run left; otherwise it is continued.

    Raises:
        ValueError: an unfit argument, source or file, or another run packs into `dst`.
        RuntimeError, OSError: a worker failed or was killed, or the disk is full or fails.
    """
    dst = Path(dst)
    if max_resolution is None:
        max_resolution = 0 if passthrough or short_side else MAX_RESOLUTION
    encoding = Encoding(write_mode, max_resolution, short_side, quality, passthrough, restart_markers)
    _check_dst(dst, workers=workers)
    source = open_source(src, labels=labels, classes=classes, split=split)
    settings = {"source": source.kind, "num_images": len(source.labels), "fingerprint": source.fingerprint()}
    settings |= asdict(encoding) | {"shuffle": shuffle}
    folder = open_unfinished(dst, settings, restart=restart)
    # Slurm and others end processes with SIGTERM, which acts as Ctrl-C here: what is stored is kept.
    with handled_by(signal.default_int_handler, signal.SIGTERM), folder as unfinished:
        _check_dst(dst, workers=workers)  # a run that held the lock until now may have finished it
        order = _order(len(source.labels), shuffle=shuffle)
        packing = Packing(source, encoding, order, unfinished, skip_bad, workers or len(os.sched_getaffinity(0)))
        store_images(packing)
        return _finish(packing, dst, shuffled=shuffle, fingerprint=source.fingerprint(without=f"{Path(src)}/"))


def _order(num_images: int, *, shuffle: bool) -> np.ndarray:
    return keyed_rng(SHUFFLE_STREAM).permutation(num_images) if shuffle else np.arange(num_images)


def _finish(packing: Packing, dst: Path, *, shuffled: bool, fingerprint: str) -> BetonInfo:
    """Write the tables around the images, check all of them, and give both files their names."""
    unfinished = packing.unfinished
    source = packing.source
    encoding = packing.encoding
    records = unfinished.records
    bad = {int(packing.order[place]): reason for place, reason in unfinished.bad.items()}
    if not len(records):
        index, reason = next(iter(bad.items()))
        raise ValueError(
            f"at least one image must decode, found none in {len(bad)} files, the first is {source.names[index]!r} "
            f"({reason}): give images"
        )
    # Where skip_bad left images out, rows of the file are no longer numbers in the order of storing.
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
        logger.warning("left out %r, which does not decode: %s", source.names[index], reason)
    for origin, reason in REASONS.items():
        found = sources[records["origin"] == origin]
        if len(found):
            first = source.names[found.min()]
            logger.warning("%d images %s and are encoded instead, the first is %r", len(found), reason, first)
    return info


def _check_images(packing: Packing, records: np.ndarray, *, name_of: Callable[[int], str]) -> None:
    """Read back and decode every image, as FFCV trains on damaged files without a message; raises ValueError if some
    are not what was written, and has their parts packed again."""
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
            f"{len(damaged)} images in {str(unfinished.images)!r} are damaged: that of {name_of(row)!r} {reason}. "
            "Check disk and memory, and rerun the same command, which packs the damaged parts again."
        )


def _check_dst(dst: Path, *, workers: int) -> None:
    if workers < 0:
        raise ValueError(f"workers must be 0 (automatic) or more, found {workers!r}: change it")
    if dst.suffix != SUFFIX:
        raise ValueError(f"dst must end in {SUFFIX}, found {str(dst)!r}: rename it")
    if not dst.parent.is_dir():
        raise ValueError(f"the folder of dst must exist, found no folder {str(dst.parent)!r}: make it first")
    if os.path.lexists(dst):  # a link that leads nowhere would be replaced
        what = "" if dst.exists() else "a link to nothing at "
        raise ValueError(f"dst must not exist yet, found {what}{str(dst)!r}: remove it, or choose another name")
    _check_side(dst)


def _check_side(dst: Path) -> None:
    """Raise ValueError if what has the side file's name is none: one of ours was left by an interrupted run between
    naming the two files, or by somebody who removed the .beton alone."""
    side = side_path(dst)
    if not os.path.lexists(side):
        return
    try:
        read_side(dst)
    except ValueError as error:
        must = f"what has the name of dst's side file must be one, found {str(side)!r}"
        raise ValueError(f"{must} ({error}): move it, or choose another name") from error


def _write_tables(unfinished: Unfinished, records: np.ndarray, labels: np.ndarray) -> int:
    """Make the file with the images a whole .beton, and return the CRC32 of its tables, read back."""
    head, tail, end = beton_tables(records, labels)
    os.ftruncate(unfinished.descriptor, end)
    write_at(unfinished.descriptor, head, 0)
    write_at(unfinished.descriptor, tail, end)
    os.fsync(unfinished.descriptor)
    tables = read_tables(unfinished.images)
    if tables.metadata.tobytes() != head[METADATA_START:] or tables.allocations.tobytes() != tail:
        raise RuntimeError(
            f"{str(unfinished.images)!r} must hold the tables written to it, found others: check the disk"
        )
    return tables.crc32


def _publish(partial: Path, dst: Path, text: str) -> None:
    """Give both files their names: the side file first, so the .beton is complete the moment it appears."""
    if os.path.lexists(dst):
        raise ValueError(f"dst must not exist yet, but {str(dst)!r} appeared meanwhile: who else writes it?")
    _check_side(dst)
    write_text(side_path(dst), text)
    try:
        os.replace(partial, dst)
    except BaseException:
        side_path(dst).unlink(missing_ok=True)
        raise
    sync_folder(dst.parent)
